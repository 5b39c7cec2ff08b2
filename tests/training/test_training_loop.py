# SPDX-License-Identifier: Apache-2.0
"""Whole runs on a small dataset: files, reproducibility, and effects of the options."""

import gc
import json
import multiprocessing
import pathlib
import re
import time
import zipfile

import pytest
import torch
from PIL import Image

from dnnlib.util import UserError
from tests import tolerances
from tests.metrics import stand_ins
from tests.support import make_image_zip
from torch_utils import distributed
from training.files.snapshot import load_snapshot
from training.loss import StyleGAN2Loss
from training.training_loop import Trainer, TrainingOptions, training_loop

WIDTHS = {"channel_base": 128, "channel_max": 8}
ADAM = {"class_name": "torch.optim.Adam", "lr": 0.002, "betas": [0, 0.99], "eps": 1e-8}


def options(run_dir: pathlib.Path, data: pathlib.Path, **changes) -> dict:
    """The smallest run that exercises everything: 5 iterations of 8 images, two ticks."""
    run_dir.mkdir(exist_ok=True)
    return {
        "run_dir": str(run_dir),
        "training_set_kwargs": {
            "class_name": "training.dataset.ImageFolderDataset", "path": str(data), "use_labels": False,
            "max_size": None, "xflip": False,
        },
        "data_loader_kwargs": {"num_workers": 0},
        "G_kwargs": {
            "class_name": "training.networks.Generator", "z_dim": 8, "w_dim": 8, "mapping_kwargs": {"num_layers": 1},
            "synthesis_kwargs": dict(WIDTHS),
        },
        "D_kwargs": {"class_name": "training.networks.Discriminator", **WIDTHS},
        "G_opt_kwargs": dict(ADAM),
        "D_opt_kwargs": dict(ADAM),
        "loss_kwargs": {"class_name": "training.loss.StyleGAN2Loss", "r1_gamma": 1},
        "batch_size": 8,
        "batch_gpu": 4,
        "total_kimg": 0.04,
        "kimg_per_tick": 0.016,
        "image_snapshot_ticks": 1,
        "network_snapshot_ticks": 1,
        "device": "cpu",
        **changes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_image_zip(tmp_path_factory.mktemp("data") / "toy.zip", resolution=16, num_images=12, num_labels=3)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("run")
    training_loop(**options(path, data))
    return path


def weights(path: pathlib.Path) -> dict[str, torch.Tensor]:
    """All tensors of the newest snapshot in a run directory."""
    snap = load_snapshot(sorted(path.glob("network-snapshot-*.pkl"))[-1])
    return {f"{key}.{name}": t for key in ("G", "D", "G_ema") for name, t in snap[key].state_dict().items()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_files_of_a_run(run_dir):
    assert {p.name for p in run_dir.iterdir() if not p.name.startswith("events.out.tfevents")} == {
        "reals.png", "fakes_init.png", "fakes000000.png", "stats.jsonl", "network-snapshot-000000.pkl",
        "training-state.pt", "training-state-previous.pt", "report.html",
    }  # fmt: skip
    with Image.open(run_dir / "fakes_init.png") as grid:
        assert grid.size == (16 * 16, 8 * 16)
    lines = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    assert [line["Progress/tick"]["mean"] for line in lines] == [0, 1, 2]
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    assert "0.04 of 0.04 kimg" in page and "fakes000000.png" in page and "http-equiv" not in page
    assert lines[-1]["Progress/kimg"]["mean"] == pytest.approx(0.04)
    assert {"num", "mean", "std"} == set(lines[0]["Loss/G/loss"]) and "timestamp" in lines[0]
    assert lines[0]["Loss/pl_penalty"]["num"] == 4  # half of each micro-batch of 4, twice
    times = [lines[1][f"Timing/{phase}"] for phase in ("Gmain", "Greg", "Dmain", "Dreg")]
    assert [time["num"] for time in times] == [2, 1, 2, 1]  # in the tick, or in the last one that had any
    assert all(time["mean"] > 0 for time in times)
    milliseconds = sum(lines[0][f"Timing/{phase}"]["mean"] for phase in ("Gmain", "Greg", "Dmain", "Dreg"))
    assert milliseconds < lines[0]["Timing/sec_per_tick"]["mean"] * 1000 < 20 * milliseconds


def test_tick_line(data, tmp_path, capsys):
    training_loop(**options(tmp_path / "run", data, total_kimg=0.008))
    number = r"[\d.]+"
    pattern = (
        rf"^tick 0 +kimg 0.0 +time \S.*? +sec/tick {number} +sec/kimg {number} +maintenance {number} +"
        rf"cpumem {number} +gpumem {number} +augment 0.000 scores -?{number}/-?{number} +r1 {number}$"
    )
    assert re.search(pattern, capsys.readouterr().out, flags=re.MULTILINE)


@pytest.mark.slow
def test_same_seed_same_weights(run_dir, data, tmp_path):
    training_loop(**options(tmp_path / "again", data))
    assert same(weights(run_dir), weights(tmp_path / "again"))
    training_loop(**options(tmp_path / "other", data, random_seed=1))
    assert not same(weights(run_dir), weights(tmp_path / "other"))


def test_metrics_do_not_disturb_training(run_dir, data, tmp_path):
    path = tmp_path / "measured"
    detector = stand_ins.save_detector(stand_ins.Inception(), tmp_path / "small.pt")
    training_loop(**options(path, data, metrics=["fid1k_full"], detector=detector, network_snapshot_ticks=2))
    assert same(weights(run_dir), weights(path))
    (metric_file,) = path.glob("metric-*.jsonl")
    assert metric_file.name == "metric-fid1k_full-small.jsonl"
    assert json.loads(metric_file.read_text().splitlines()[-1])["snapshot_pkl"] == "network-snapshot-000000.pkl"


def test_training_moves_weights_and_the_average_lags(run_dir):
    tensors = weights(run_dir)
    assert tensors["G.synthesis.b8.conv0.noise_strength"] != 0
    assert not torch.equal(tensors["G.synthesis.b4.const"], tensors["G_ema.synthesis.b4.const"])


def test_conditional_run_with_augmentation_and_frozen_layers(data, tmp_path):
    changed = options(
        tmp_path / "run",
        data,
        augment_kwargs={"class_name": "training.augment.AugmentPipe", "xflip": 1, "brightness": 1},
        ada_target=-1,  # D is always more confident than this, so p can only rise
        ada_kimg=0.1,
        D_kwargs={"class_name": "training.networks.Discriminator", "block_kwargs": {"freeze_layers": 2}, **WIDTHS},
    )
    changed["training_set_kwargs"]["use_labels"] = True
    training_loop(**changed)
    snap = load_snapshot(tmp_path / "run" / "network-snapshot-000000.pkl")
    assert snap["G"].c_dim == snap["D"].c_dim == 3
    assert float(snap["augment_pipe"].p) == pytest.approx(8 * 4 / 100)
    first = load_snapshot(tmp_path / "run" / "network-snapshot-000000.pkl")["D"]
    assert "b16.fromrgb.weight" not in dict(first.named_parameters())


def test_resume_takes_over_weights(run_dir, data, tmp_path):
    source = run_dir / "network-snapshot-000000.pkl"
    frozen = dict(ADAM, lr=0.0)
    changed = options(tmp_path / "run", data, resume_pkl=str(source), G_opt_kwargs=frozen, D_opt_kwargs=frozen)
    training_loop(**changed, random_seed=5)
    expected, resumed = weights(run_dir), weights(tmp_path / "run")
    for name in ("G.synthesis.b16.conv1.weight", "D.b4.out.weight"):
        assert torch.equal(expected[name], resumed[name]), name


@pytest.mark.slow
def test_resume_from_other_widths_takes_what_fits(run_dir, data, tmp_path, capsys):
    changed = options(tmp_path / "run", data, resume_pkl=str(run_dir / "network-snapshot-000000.pkl"))
    changed["G_kwargs"]["synthesis_kwargs"] = {"channel_base": 64, "channel_max": 4}
    training_loop(**changed)
    out = capsys.readouterr().out
    assert re.search(
        r"^Notice: --resume: \d+ of \d+ tensors of G taken over; \d+, such as synthesis", out, re.MULTILINE
    )
    changed["D_kwargs"].update(channel_base=64, channel_max=4)
    with pytest.raises(UserError, match="--resume"):
        training_loop(**changed)


def test_damaged_image_met_in_training_is_named(data, tmp_path):
    with zipfile.ZipFile(data) as archive:
        archive.extractall(tmp_path / "images")
    path = tmp_path / "images" / "00000" / "img00000005.png"
    png = bytearray(path.read_bytes())
    start = png.index(b"IDAT") + 4
    png[start : start + 20] = bytes(20)
    path.write_bytes(png)
    changed = options(tmp_path / "run", tmp_path / "images", data_loader_kwargs={"num_workers": 1})
    with pytest.raises(UserError, match=r"img00000005\.png") as caught:
        training_loop(**changed)
    assert "\n" not in str(caught.value) and "DatasetError" not in str(caught.value)


def test_abort_ends_with_a_snapshot(data, tmp_path):
    seen = []
    training_loop(
        abort_fn=lambda: True, progress_fn=lambda *a: seen.append(a), **options(tmp_path / "run", data, total_kimg=100)
    )
    assert (tmp_path / "run" / "network-snapshot-000000.pkl").exists()
    assert seen == [(0.008, 100)]


def test_old_snapshots_are_dropped(data, tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    for kimg in (1, 2, 10):
        (path / f"network-snapshot-9999{kimg:02d}.pkl").touch()
    training_loop(**options(path, data, total_kimg=0.008, snapshots_keep=2))
    assert [p.name for p in sorted(path.glob("*.pkl"))] == [
        "network-snapshot-999902.pkl",
        "network-snapshot-999910.pkl",
    ]


def test_micro_batches_give_the_same_losses_as_one_batch(data, tmp_path):
    """Without minibatch statistics, noise, mixing and path length, accumulation must not change the update."""
    results = []
    for batch_gpu in (8, 2):
        changed = options(tmp_path / str(batch_gpu), data, batch_gpu=batch_gpu, total_kimg=0.008)
        changed["loss_kwargs"].update(style_mixing_prob=0, pl_weight=0)
        changed["G_kwargs"]["synthesis_kwargs"]["use_noise"] = False
        changed["D_kwargs"]["epilogue_kwargs"] = {"mbstd_num_channels": 0}
        changed["G_opt_kwargs"] = changed["D_opt_kwargs"] = dict(
            ADAM, betas=[0, 0.99], eps=1.0
        )  # close to plain gradient descent
        training_loop(**changed)
        results.append(weights(tmp_path / str(batch_gpu)))
    for name, tensor in results[0].items():
        if not name.endswith("w_avg"):
            torch.testing.assert_close(results[1][name], tensor, **tolerances.MICRO_BATCHES, msg=name)


def train_in_group(rank: int, settings: dict) -> None:
    """One process of several; at top level so that a fresh process can import it."""
    distributed.init(rank, settings["num_gpus"], torch.device("cpu"))
    training_loop(rank=rank, **settings)


@pytest.mark.slow
def test_two_processes_train_one_network(data, tmp_path):
    """The loop itself compares the processes' weights before each snapshot; statistics count the images of both."""
    path = tmp_path / "run"
    distributed.launch(train_in_group, 2, options(path, data, num_gpus=2, batch_gpu=4, total_kimg=0.016))
    first = json.loads((path / "stats.jsonl").read_text().splitlines()[0])
    assert first["Loss/scores/real"]["num"] == 16  # 8 images in Dmain and again in Dreg
    assert all(tensor.isfinite().all() for tensor in weights(path).values())


def test_unknown_option_is_an_error():
    with pytest.raises(TypeError, match="no_such_option"):
        training_loop(no_such_option=1)
    assert TrainingOptions().total_kimg == 25000


HALF = {"num_fp16_res": 2, "conv_clamp": 256}


def test_snapshots_do_not_depend_on_the_precision(data, tmp_path, capsys):
    snaps = {}
    for precision in ("fp32", "bf16"):
        changed = options(tmp_path / precision, data, total_kimg=0.016, precision=precision)
        changed["G_kwargs"]["synthesis_kwargs"].update(HALF)
        changed["D_kwargs"].update(HALF)
        training_loop(**changed)
        assert f"kimg on cpu in {precision}" in capsys.readouterr().out
        snaps[precision] = load_snapshot(tmp_path / precision / "network-snapshot-000000.pkl")
    for key in ("G", "D", "G_ema"):
        ours, theirs = snaps["fp32"][key], snaps["bf16"][key]
        assert ours.init_kwargs == theirs.init_kwargs and ours.init_args == theirs.init_args
        tensors = theirs.state_dict()
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
        assert not same(ours.state_dict(), tensors)  # the two runs did differ


def test_loss_of_another_project_needs_no_knowledge_of_precision(data, tmp_path):
    changed = options(tmp_path / "run", data, total_kimg=0.008, precision="auto")
    changed["loss_kwargs"]["class_name"] = f"{__name__}.OlderLoss"
    training_loop(**changed)
    assert (tmp_path / "run" / "network-snapshot-000000.pkl").exists()


def test_a_dataset_of_another_project_trains(data, tmp_path):
    changed = options(tmp_path / "run", data, total_kimg=0.008)
    changed["training_set_kwargs"].update(class_name="tests.training.plain_dataset.ImageFolderDataset", use_labels=True)
    training_loop(**changed)
    assert load_snapshot(tmp_path / "run" / "network-snapshot-000000.pkl")["D"].c_dim == 3


class OlderLoss(StyleGAN2Loss):
    """Takes the arguments that losses had before the choice of precision."""

    def __init__(self, device, G_mapping, G_synthesis, D, augment_pipe=None, r1_gamma=10):
        super().__init__(device, G_mapping, G_synthesis, D, augment_pipe, r1_gamma=r1_gamma)


def test_a_trainer_that_nobody_uses_ends_its_data_workers_at_once(data, tmp_path):
    """It refers to itself, so that the garbage collector finds it, in no order that its data loader could rely on."""
    others = set(multiprocessing.active_children())
    trainer = Trainer(TrainingOptions(**options(tmp_path / "run", data, data_loader_kwargs={"num_workers": 1})))
    trainer.reals.fetch()
    (worker,) = set(multiprocessing.active_children()) - others
    del trainer
    start = time.monotonic()
    gc.collect()
    assert time.monotonic() - start < 4 and not worker.is_alive()
