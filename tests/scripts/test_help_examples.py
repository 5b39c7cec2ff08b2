# SPDX-License-Identifier: Apache-2.0
"""The examples in each script's --help run unchanged, on small files with the names they use."""

import hashlib
import importlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import imageio.v2
import numpy as np
import PIL.Image
import pytest

from dnnlib import cli
from dnnlib.files import write_text
from metrics.reports import speed
from tests.metrics import stand_ins
from tests.scripts.outcome import FakeVideo
from tests.support import ROOT
from tests.training import test_export_web
from tests.training.data.test_sources import write_mnist
from tests.training.files import tensorflow_pickle
from torch_utils import images
from training import checkpoint, families, generation
from training.dataset import ImageFolderDataset
from training.files.snapshot import save_snapshot
from training.networks import Discriminator, Generator
from training.options import build as options_of_a_run

# Flags added to keep examples short; their own flags are not changed.
EXTRA_FLAGS = {"projector": ["--num-steps=3"], "train": ["--dry-run"]}
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))


def write_photos(folder: pathlib.Path, *names: str, channels: int = 3) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in zip(names, stand_ins.make_images(len(names), 32, channels)):
        images.save_png(pixels, folder / name)


@pytest.fixture
def folder(tmp_path, monkeypatch, redefine):
    """The working directory of the examples, with detectors in the cache and metrics of few fakes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    for name, network in (("inception-2015-12-05", stand_ins.Inception()), ("vgg16", stand_ins.VGG16())):
        stand_ins.save_detector(network, tmp_path / "cache" / "downloads" / f"{name}.pt")
    for metric in ("fid50k_full", "fid5k_full", "kid50k_full", "kid5k_full", "pr5k3_full"):
        redefine(metric, num_fakes=100)
    monkeypatch.setattr(speed, "RUNTIMES", speed.RUNTIMES[:1])
    monkeypatch.setattr("metrics.reports.compare.SPEED_BUDGET", 0)
    monkeypatch.setattr(speed, "peaks_in_subprocess", lambda *args: [0, 0])
    return tmp_path


def make_files(script: str, folder: pathlib.Path) -> None:
    """Create the input files of the examples of `script`."""
    if script == "dataset_tool":
        write_mnist(folder / "mnist", 12)
        for name in ("photos", "flowers/rose", "flowers/tulip"):
            write_photos(folder / name, "a.png", "b.png")
        write_photos(folder / "emoji", "a.png", channels=4)
        PIL.Image.fromarray(stand_ins.make_images(1, 300)[0]).crop((0, 0, 300, 200)).save(folder / "photos" / "c.jpg")
        return
    if script == "legacy":
        cat = tensorflow_pickle.golden_networks("uncond")
        tensorflow_pickle.write(folder / "stylegan2-cat-config-f.pkl", cat)
        G = Generator(8, 0, 8, 32, 3, synthesis_kwargs={"channel_base": 128, "channel_max": 4})
        save_snapshot(folder / "ffhq.pkl", {"G": G, "D": None, "G_ema": G})
        return
    if script == "export":
        G = stand_ins.tiny_generator(resolution=4)  # compilation takes time for each layer
        for name in ("ffhq.pkl", "student.pkl"):
            save_snapshot(folder / name, {"G": G, "D": None, "G_ema": G})
        stand_ins.write_zip(folder / "ffhq.zip", stand_ins.make_images(20, 4))
        test_export_web.write_runtime(folder / "build" / "onnxruntime-web")
        return
    labels = [i % 10 for i in range(100)]
    digits = ImageFolderDataset(ROOT / "data" / "mnist5k-32x32.zip")  # noise would be no digits for --detector=mnist
    greys = np.stack([digits[i][0].transpose(1, 2, 0) for i in range(100)])
    (folder / "data").mkdir()
    for name, pixels in (
        ("ffhq", stand_ins.make_images(100, 32)), ("faces", stand_ins.make_images(8, 32)), ("out", greys),
        ("cats", stand_ins.make_images(8, 256)), ("digits", greys), ("data/mnist5k-32x32", greys),
    ):  # fmt: skip
        stand_ins.write_zip(folder / f"{name}.zip", pixels, labels[: len(pixels)] if pixels is greys else None)
    interrupted = folder / "runs" / "00000-faces-auto"
    interrupted.mkdir(parents=True)
    write_text(interrupted / "training_options.json", json.dumps(options_of_a_run(data=str(folder / "faces.zip"))[1]))
    state = {"format": checkpoint.FORMAT, "about": {}, "cur_nimg": 0, "cur_tick": 0}
    checkpoint.write(interrupted, state)
    run_dir = folder / "runs" / "00000-ffhq"
    run_dir.mkdir(parents=True)
    for path, options in (
        (folder / "ffhq.pkl", {}),
        (folder / "digits.pkl", {"channels": 1, "c_dim": 10}),
        (folder / "student.pkl", {"channels": 1, "c_dim": 10}),
        (run_dir / "network-snapshot-000200.pkl", {}),
    ):
        G = stand_ins.tiny_generator(resolution=32, **options)
        data = stand_ins.dataset_options(str(folder / "ffhq.zip"))
        save_snapshot(path, {"G": G, "D": None, "G_ema": G, "augment_pipe": None, "training_set_kwargs": data})
    biggan = {"G_ema": stand_ins.tiny_biggan(c_dim=10, channels=1)}
    save_snapshot(folder / "biggan.pkl", {**biggan, "training_set_kwargs": data | {"path": str(folder / "digits.zip")}})
    (run_dir / "training_options.json").write_text("{}")
    key = hashlib.md5(families.aliases()["ffhq1024"].encode()).hexdigest()
    teacher = folder / "cache" / "downloads" / f"{key}_ffhq1024.pkl"
    widths = {"channel_base": 128, "channel_max": 4}  # half of which is still a network
    teacher_G = Generator(8, 0, 8, 32, 3, synthesis_kwargs=widths)
    save_snapshot(teacher, {"D": Discriminator(0, 32, 3, **widths), "G_ema": teacher_G})
    write_photos(folder, "me.png")
    write_photos(folder, "four.png", channels=1)
    write_photos(folder / "photos", "a.png", "b.png", "c.png", "d.png", "e.png")
    if script == "generate":  # as after the projector's example
        (folder / "out").mkdir()
        np.savez(folder / "out" / "projected_w.npz", w=np.zeros([1, G.num_ws, G.w_dim], dtype=np.float32))


def run(script: str, flags: list[str], monkeypatch) -> int:
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *flags])
    with pytest.raises(SystemExit) as exited:
        cli.run(importlib.import_module(script).main)
    return exited.value.code


def examples(help_text: str) -> list[list[str]]:
    """The words of each command line in the text; a backslash at the end of a line continues it."""
    lines = help_text.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if re.match(r"\s+python \w+\.py ", line)]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_quick(script):
    check = f"import sys, {script}; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False).returncode == 0
    before = os.times()
    done = subprocess.run(
        [sys.executable, f"{script}.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    after = os.times()
    assert "Usage:" in done.stdout and "--help" in done.stdout
    # Processor time, so the test does not fail on a busy machine.
    assert after.children_user + after.children_system - before.children_user - before.children_system < 2


@pytest.mark.parametrize(
    "script", [pytest.param(script, marks=pytest.mark.slow if script == "export" else ()) for script in SCRIPTS]
)
def test_examples(script, folder, monkeypatch, capsys):
    assert run(script, ["--help"], monkeypatch) == 0
    commands = examples(capsys.readouterr().out)
    make_files(script, folder)
    assert commands and commands[0][0] == f"{script}.py"
    monkeypatch.setattr(generation, "ffmpeg_available", lambda: True)
    monkeypatch.setattr(imageio.v2, "get_writer", FakeVideo().open)
    for program, *flags in commands:
        stem = program.removesuffix(".py")
        status = run(stem, flags + EXTRA_FLAGS.get(stem, []), monkeypatch)
        assert status == 0, f"{program} {' '.join(flags)}\n{capsys.readouterr().err}"
        for flag in flags:
            name, _, value = flag.partition("=")
            if name in ("--outdir", "--out", "--dest", "--save-stats") and script != "train":
                written = folder / value
                assert any(written.iterdir()) if written.is_dir() else written.stat().st_size > 0
