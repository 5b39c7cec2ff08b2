# SPDX-License-Identifier: Apache-2.0
"""train.py: refusals before anything is written, the dry run, the run directory."""

import gc
import json
import os
import pickle
import re
import subprocess
import sys
import time
import zipfile

import pytest
import torch
from PIL import Image

import dnnlib.cli
import train
from tests.metrics import stand_ins
from tests.support import ROOT, golden_json
from tests.training.test_options import datasets, make_dataset, teacher_pkl  # noqa: F401 (fixtures)
from training import training_loop
from training.files import snapshot
from training.flags import BY_NAME
from training.initial import new_network
from training.networks import Generator
from training.options import build

SHAPE_64 = {"c_dim": 0, "img_resolution": 64, "img_channels": 3}
REFUSALS = [case for case in golden_json("train_options")["cases"] if "error" in case]


@pytest.fixture
def run_cli(monkeypatch, capsys):
    """Runs train.py's command in this process: `run_cli(flag=value, ...)` -> (exit status, stdout, stderr)."""

    def run(**flags):
        argv = ["train.py"]
        for name, value in flags.items():
            value = ",".join(value) if isinstance(value, list) else value
            flag = f"--{name.replace('_', '-')}"
            is_switch = name in ("dry_run", "trust_pickle", "trust_detector")
            argv.append(flag if value is True and is_switch else f"{flag}={value}")
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as exit_info:
            dnnlib.cli.run(train.main)
        return (exit_info.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def outdir(tmp_path):
    return tmp_path / "runs"


def refused(result, outdir, *words):
    """Asserts that the run ended with status 2, one sentence holding `words`, and nothing created."""
    status, _, err = result
    message = err[err.index("Error: ") :]
    assert status == 2
    assert "Traceback" not in err
    for word in words:
        assert word in message
    assert not outdir.exists()


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: str(case["flags"]))
def test_golden_refusals(case, run_cli, outdir, datasets):  # noqa: F811
    flag = case["error"].split()[0].split("=")[0]
    refused(run_cli(outdir=outdir, data=datasets[case["dataset"]], **case["flags"]), outdir, flag)


@pytest.mark.parametrize(
    "flags, word",
    [
        ({"batch": 0}, "--batch"),
        ({"batch_gpu": 0}, "--batch-gpu"),
        ({"keep": 0}, "--keep"),
        ({"seed": -1}, "--seed"),
        ({"kimg": 0.5}, "Invalid value for '--kimg': '0.5' is not a valid integer."),
        ({"dgl_weight": -0.1}, "--dgl-weight"),
        ({"dgl_weighting": "both"}, "--dgl-weighting"),
        ({"cbase": 10}, "--cbase"),
        ({"cfg": "huge"}, "--cfg"),
        ({"mirror": "maybe"}, "--mirror"),
        ({"device": "tpu"}, "--device"),
        ({"device": "cpu", "precision": "fp16", "metrics": "none"}, "--precision=fp16 needs a CUDA device"),
        ({"precision": "fp8"}, "--precision"),
        ({"precision": "bf16", "fp32": 1}, "--precision=bf16"),
        ({"resume": "/no/such/file.pkl"}, "--resume"),
        ({"dgl_teacher": "/no/such/file.pkl"}, "--dgl-teacher"),
        ({"detector": "/no/such/detector.pt"}, "--detector"),
    ],
    ids=str,
)
def test_bad_flags(flags, word, run_cli, outdir, datasets):  # noqa: F811
    refused(run_cli(outdir=outdir, data=datasets["toy64"], **{"metrics": "fid5k_full", **flags}), outdir, word)


def png_zip(path, *sizes, damage=False, mode="RGB"):
    """A zip with one PNG of each size (width, height); with `damage` the last is cut short."""
    with zipfile.ZipFile(path, "w") as archive:
        for i, size in enumerate(sizes):
            image = path.with_suffix(".png")
            Image.effect_noise(size, 90).convert(mode).save(image)
            content = image.read_bytes()
            archive.writestr(f"img{i}.png", content[: len(content) // 2] if damage and i == len(sizes) - 1 else content)
    return path


@pytest.mark.parametrize(
    "make, word",
    [
        (lambda path: path, "data.zip"),
        (lambda path: png_zip(path), "data.zip"),
        (lambda path: (path.write_text("no zip"), path)[1], "data.zip"),
        (lambda path: png_zip(path, (16, 16), (16, 16), damage=True), "img1.png"),
        (lambda path: png_zip(path, (16, 16), (16, 16), (32, 32)), "img2.png"),
        (lambda path: png_zip(path, (16, 32)), "16x32"),
        (lambda path: png_zip(path, (20, 20)), "20x20"),
        (lambda path: png_zip(path, (16, 16), mode="LA"), "grey + alpha"),
        (lambda path: png_zip(path, (16, 16), mode="I;16"), "16"),
    ],
    ids=["missing", "empty", "not a zip", "truncated", "mixed", "not square", "not a power of two", "LA", "16 bit"],
)
def test_bad_datasets(make, word, run_cli, tmp_path, outdir):
    refused(run_cli(outdir=outdir, data=make(tmp_path / "data.zip"), metrics="none"), outdir, word)


def test_outdir_below_a_file(run_cli, tmp_path, datasets):  # noqa: F811
    (tmp_path / "file").write_text("")
    outdir = tmp_path / "file" / "runs"
    refused(run_cli(outdir=outdir, data=datasets["toy64"], metrics="none"), outdir, "--outdir")


def test_resume_from_something_else_than_a_network(run_cli, outdir, datasets):  # noqa: F811
    refused(run_cli(outdir=outdir, data=datasets["toy64"], metrics="none", resume=__file__), outdir, __file__)


def test_resume_from_networks_of_which_nothing_fits(run_cli, outdir, datasets, teacher_pkl):  # noqa: F811
    result = run_cli(outdir=outdir, data=datasets["toy64"], metrics="none", resume=teacher_pkl)
    refused(result, outdir, "--resume", "none of the weights", "--cbase")


def test_resume_from_another_resolution(run_cli, outdir, datasets, tmp_path, monkeypatch):  # noqa: F811
    flags = {"batch": 4, "device": "cpu", "cbase": 64, "workers": 1, "metrics": "none"}
    options = build(data=datasets["toy64"], batch=4, cbase=64)[1]
    G, D = (new_network(options[name], {**SHAPE_64, "img_resolution": 32}) for name in ("G_kwargs", "D_kwargs"))
    snapshot.save_snapshot(tmp_path / "32.pkl", {"G": G, "D": D, "G_ema": G})
    monkeypatch.setattr(training_loop.Trainer, "run", lambda self, *_: self.training_set.close())
    status, out, err = run_cli(outdir=outdir, data=datasets["toy64"], resume=tmp_path / "32.pkl", **flags)
    assert status == 0, err
    assert re.search(r"^Notice: --resume: \d+ of \d+ tensors of G_ema taken over from a 32x32 ", out, re.MULTILINE)


class _Opens:
    """Pickles as a call of os.listdir, standing for any code that a pickle could run."""

    def __reduce__(self):
        return os.listdir, ("/",)


def bad_teachers(folder):
    """Files that cannot teach, each with a word of the sentence that says so."""
    snapshot.save_snapshot(folder / "no_d.pkl", {"G_ema": torch.nn.Identity(), "training_set_kwargs": {}})
    (folder / "text.pkl").write_text("no pickle")
    (folder / "unsafe.pkl").write_bytes(pickle.dumps({"D": _Opens()}))
    return [("no_d.pkl", "--dgl-teacher"), ("text.pkl", "--dgl-teacher"), ("unsafe.pkl", "--trust-pickle")]


def test_faulty_teachers(run_cli, outdir, datasets, teacher_pkl, tmp_path):  # noqa: F811
    for name, word in bad_teachers(tmp_path):
        result = run_cli(outdir=outdir, data=datasets["toy64"], metrics="none", dgl_teacher=tmp_path / name)
        refused(result, outdir, word, name)
    below = f"{teacher_pkl}/below.pkl"
    refused(run_cli(outdir=outdir, data=datasets["toy64"], metrics="none", dgl_teacher=below), outdir, below)
    misfit = {"data": datasets["toy32"], "metrics": "none", "dgl_teacher": teacher_pkl}
    refused(run_cli(outdir=outdir, **misfit), outdir, "64x64", "32x32")
    refused(run_cli(outdir=outdir, **{**misfit, "data": datasets["toy64"]}, batch=2), outdir, "multiple of 4")


def test_an_unknown_detector_needs_trust(run_cli, outdir, datasets, monkeypatch):  # noqa: F811
    path = stand_ins.save_detector(stand_ins.Inception(seed=9), outdir.parent / "unknown.pt", trusted=False)
    flags = {"outdir": outdir, "data": datasets["toy64"], "metrics": "fid1k_full", "detector": path, "device": "cpu"}
    refused(run_cli(**flags), outdir, "unknown.pt", "--trust-detector")
    monkeypatch.setattr(train, "train_process", lambda *_: None)
    monkeypatch.setattr("torch_utils.distributed.launch", lambda *_: None)
    status, _out, err = run_cli(**flags, trust_detector=True)
    assert status == 0 and "WARNING: --trust-detector" in err
    assert '"trust_detector": true' in next(outdir.glob("*/training_options.json")).read_text()


@pytest.mark.parametrize("teacher", ["", ","])
def test_a_teacher_without_a_name_is_refused(run_cli, outdir, datasets, teacher):  # noqa: F811
    refused(
        run_cli(outdir=outdir, data=datasets["toy64"], metrics="none", dgl_teacher=teacher), outdir, "--dgl-teacher"
    )


def test_a_detector_made_for_other_images(run_cli, outdir, datasets):  # noqa: F811
    flags = {"outdir": outdir, "metrics": "fid1k_full", "device": "cpu"}
    colour = run_cli(data=datasets["toy64"], detector="mnist", **flags)
    refused(colour, outdir, "'mnist' was made for grey images", "RGB", "--detector")
    digits = run_cli(data=ROOT / "data" / "mnist5k-32x32.zip", detector="fashion", **flags)
    refused(digits, outdir, "'fashion' was made for images like", "another kind", "--detector")


@pytest.mark.parametrize(
    "flags, words",
    [({}, ["--detector", "downloads"]), ({"metrics": "none", "resume": "ffhq256"}, ["ffhq-res256", "downloads"])],
    ids=["detector", "resume"],
)
def test_what_cannot_be_downloaded(flags, words, run_cli, outdir, datasets, monkeypatch, tmp_path):  # noqa: F811
    """Offline, nothing is begun that could not go on; nothing listens on the proxy's port."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    refused(run_cli(outdir=outdir, data=datasets["toy64"], **flags), outdir, *words)


def test_real_run_is_without_warnings(outdir, tmp_path):
    """The whole command, in a process of its own, on networks small enough for the suite."""
    data = make_dataset(tmp_path / "tiny.zip", resolution=8, num_images=40)
    flags = [f"--outdir={outdir}", f"--data={data}", "--cfg=auto", "--cbase=0.02", "--kimg=1", "--metrics=none"]
    command = [sys.executable, "-W", "error", "train.py", *flags, "--device=cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    (snapshot_pkl,) = outdir.glob("00000-tiny-auto1-*/network-snapshot-000001.pkl")
    assert snapshot.load_snapshot(snapshot_pkl)["G_ema"].img_resolution == 8


def test_dry_run_prints_the_options_and_creates_nothing(run_cli, outdir, datasets):  # noqa: F811
    flags = {"data": datasets["toy32"], "gpus": 8, "resume": "/some/file.pkl", "metrics": ["fid50k_full"]}
    status, out, err = run_cli(outdir=outdir, dry_run=True, **flags)
    assert status == 0
    desc, options = build(**flags)
    assert json.loads(out) == {**options, "run_dir": str(outdir / f"00000-{desc}")}
    assert "--cond=1" in err and not outdir.exists()
    values = [outdir / f"00000-{desc}", flags["data"], "25000 kimg", 8, 20, 32, "no", "no"]
    assert summary(err) == list(map(str, values))


def summary(err: str) -> list[str]:
    """The values of the first eight lines for a person, which are those of StyleGAN2-ADA."""
    lines = err.splitlines()
    (first,) = (i for i, line in enumerate(lines) if line.startswith("Run directory:"))
    names = "Run directory|Training data|Training length|Processes .GPUs.|Images|Resolution|Conditional|x-flips"
    found = [re.fullmatch(rf"({names}): +(.*)", line) for line in lines[first : first + 8]]
    assert [match[1] for match in found] == names.replace(".GPUs.", "(GPUs)").split("|")
    return [match[2] for match in found]


def test_the_summary_goes_on_with_what_one_wants_to_check(datasets):  # noqa: F811
    for flags, aug in [({}, "ADA, target 0.6"), ({"aug": "fixed", "p": 0.25}, "p = 0.25"), ({"aug": "noaug"}, "none")]:
        options = build(data=datasets["toy32"], metrics=["fid5k_full", "kid5k_full"], batch=16, seed=3, **flags)[1]
        values = [line.split(":", 1)[1].strip() for line in train._summary({"run_dir": "x", **options})[8:]]
        assert values == ["16", aug, "fid5k_full, kid5k_full", "3"]


def test_help_without_torch():
    code = "import sys, train; train.main(['--help'], standalone_mode=False); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for name in BY_NAME:
        assert f"--{name.replace('_', '-')}" in done.stdout


def test_dry_run_as_a_script_never_imports_dgl(tmp_path, outdir):
    data = make_dataset(tmp_path / "toy.zip", 16, 4)
    code = "import sys, train; train.main(sys.argv[1:], standalone_mode=False); sys.exit('dgl' in sys.modules)"
    argv = [sys.executable, "-W", "error", "-c", code, f"--outdir={outdir}", f"--data={data}", "--cbase=0.5", "-n"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["G_kwargs"]["synthesis_kwargs"]["channel_base"] == 8192


@pytest.fixture
def loop_calls(monkeypatch):
    """Training replaced by a record of its arguments; an exception in `raises` is raised instead."""
    calls, raises = [], []

    def stand_in(**kwargs):
        assert kwargs.pop("opened").training_set is not None
        calls.append(kwargs)
        print("training now")
        if raises:
            raise raises[0]

    monkeypatch.setattr(training_loop, "training_loop", stand_in)
    return calls, raises


def test_a_guided_run_describes_its_teacher(run_cli, outdir, datasets, teacher_pkl, monkeypatch):  # noqa: F811
    """Printed before the first tick; the tick line ends with the scores and the push."""
    held_out = make_dataset(outdir.parent / "other.zip", resolution=64, num_images=4)
    flags = {"data": datasets["toy64"], "batch": 4, "device": "cpu", "cbase": 0.5, "workers": 1, "metrics": "none"}
    guided = {"dgl_teacher": teacher_pkl, "dgl_recipe": "paper", "dgl_weight": 1000, "dgl_ratio": 0.5}
    guided["dgl_held_out"] = held_out
    assert "Safe --dgl-weight" not in "".join(run_cli(outdir=outdir, **flags, **guided, dry_run=True)[1:])
    monkeypatch.setattr(training_loop.Trainer, "run", lambda self, *_: _one_tick(self))
    status, out, err = run_cli(outdir=outdir, **flags, **guided)
    assert status == 0, err
    number = r"-?\d+\.\d\d"
    described = rf"Teacher 0: mean score {number} of \d+ training images, {number} of 4 held-out images; AUC {number} "
    limit = r"Safe --dgl-weight, by held-out images: up to \S+\.\nNotice: --dgl-weight=1000 is above that"
    assert re.search(rf"^{described}.*\n{limit}", out, flags=re.MULTILINE)
    tick = rf"^tick 0 .* augment 0\.000 scores {number}/{number} +r1 \S+ +teacher {number} +push 0\.50$"
    assert re.search(tick, out, flags=re.MULTILINE)


def _one_tick(trainer):
    """One iteration and its tick line, without any file."""
    trainer.log.tick_start = time.time()
    trainer.step(new_tick=True)
    trainer.log.tick(0, 0.004, 0.004, 0.0)
    trainer.training_set.close()


def test_run_directory(run_cli, outdir, datasets, loop_calls):  # noqa: F811
    calls, _ = loop_calls
    os.makedirs(outdir / "00007-other")
    (outdir / "2024-holiday").mkdir()
    flags = {"data": datasets["toy32"], "cond": True, "metrics": [], "device": "cpu"}
    for number in (8, 9):
        run_dir = outdir / f"{number:05d}-toy32-cond-auto1"
        assert json.loads(run_cli(outdir=outdir, **flags, dry_run=True)[1])["run_dir"] == str(run_dir)
        status, out, err = run_cli(outdir=outdir, **{**flags, "metrics": "none"})
        assert status == 0 and summary(err)[0] == str(run_dir) and summary(err)[-2:] == ["yes", "no"]
        assert sorted(p.name for p in run_dir.iterdir()) == ["log.txt", "training_options.json"]
        expected = {**build(**flags)[1], "run_dir": str(run_dir)}
        assert json.loads((run_dir / "training_options.json").read_text()) == expected
        about = {"flags": {"data": flags["data"], "cond": True, "metrics": [], "device": "cpu"}}
        assert calls[-1] == {"rank": 0, "about": about, "resume": False, **expected}
        log = (run_dir / "log.txt").read_text()
        assert log.count("training now") == 1 and str(run_dir) in log
        assert f"Training options: {run_dir / 'training_options.json'}\n" in out and len(log.splitlines()) < 20
        assert "training now" in out


def test_a_number_taken_meanwhile_is_passed_over(monkeypatch, outdir):
    os.makedirs(outdir / "00000-x")
    listed = [[], os.listdir(outdir)]
    monkeypatch.setattr(train.os, "listdir", lambda _: listed.pop(0))
    assert train.create_run_dir(str(outdir), "x") == str(outdir / "00001-x")


def test_interrupt_leaves_the_run_directory(run_cli, outdir, datasets, loop_calls):  # noqa: F811
    loop_calls[1].append(KeyboardInterrupt())
    assert run_cli(outdir=outdir, data=datasets["toy64"], metrics="none", device="cpu")[0] == 130
    assert (outdir / "00000-toy64-auto1" / "training_options.json").exists()


def test_the_loop_takes_every_option(datasets, teacher_pkl):  # noqa: F811
    """Whatever flags are given, the options are names that the training loop knows."""
    everything = {"resume": "ffhq256", "aug": "fixed", "p": 0.1, "nobench": True, "allow_tf32": True, "keep": 1}
    ours = {"device": "cpu", "detector": "mnist", "trust_pickle": True, "dgl_teacher": [teacher_pkl], "cbase": 1}
    _, options = build(data=datasets["toy64"], **everything, **ours)
    training_loop.TrainingOptions(run_dir="runs", **options)


@pytest.fixture
def opened_files():
    """Real paths of the files that this process opens."""
    found, here = [], os.getpid()

    def record(event, arguments):
        if active and event == "open" and os.getpid() == here and isinstance(arguments[0], (str, bytes, os.PathLike)):
            found.append(os.path.realpath(os.fsdecode(arguments[0])))

    active = True
    sys.addaudithook(record)  # cannot be removed
    yield found
    active = False


def test_each_file_is_opened_once(run_cli, datasets, teacher_pkl, tmp_path, monkeypatch, opened_files):  # noqa: F811
    """A guided run with --resume: options, checks and the loop use what is open, and training starts without it."""
    kept = []

    def run(self, *_):
        gc.collect()
        kept.extend(found for found in gc.get_objects() if type(found) in (snapshot.Snapshot, Generator))
        self.training_set.close()

    monkeypatch.setattr(training_loop.Trainer, "run", run)
    flags = {"data": datasets["toy64"], "batch": 4, "device": "cpu", "cbase": 0.5, "workers": 1}
    _, options = build(**flags, dgl_teacher=[teacher_pkl], dgl_recipe="paper")
    G, D = (new_network(options[name], SHAPE_64) for name in ("G_kwargs", "D_kwargs"))
    own = str(tmp_path / "own.pkl")
    snapshot.save_snapshot(own, {"G": G, "D": D, "G_ema": G})
    del G, D
    opened_files.clear()
    status, _, err = run_cli(outdir=tmp_path, metrics="none", dgl_teacher=teacher_pkl, resume=own, **flags)
    assert status == 0, err
    assert [opened_files.count(os.path.realpath(path)) for path in (teacher_pkl, own)] == [1, 1]
    assert opened_files.count(os.path.realpath(flags["data"])) == 2  # as a zip, and raw to look at the files' ends
    assert len(kept) == 2  # G and G_ema of the run
