# SPDX-License-Identifier: Apache-2.0
"""Runs in which weights or losses are not finite any more stop with a good state, or return to it."""

import json
import math
import os
import pathlib
import shutil

import pytest
import torch

from dnnlib.util import UserError
from tests.support import make_image_zip
from tests.training.test_training_loop import options
from torch_utils import training_stats
from training import checkpoint, guards
from training.dataset import ImageFolderDataset
from training.loss import StyleGAN2Loss
from training.training_loop import training_loop


class Poisoned(StyleGAN2Loss):
    """From iteration `at` on, for the first `times` attempts, something is NaN: 'latents', 'loss' or 'weights'."""

    def __init__(self, *args, at: int, what: str, count: str, times: int = 1, **kwargs):
        super().__init__(*args, **kwargs)
        self.at, self.what, self.count, self.times, self.bad = at, what, pathlib.Path(count), times, False

    def begin_iteration(self, cur_nimg, new_tick):
        super().begin_iteration(cur_nimg, new_tick)
        attempts = len(self.count.read_text()) if self.count.exists() else 0
        self.bad = cur_nimg == self.at * 8 and attempts < self.times
        if self.bad:
            self.count.write_text("x" * (attempts + 1))
            if self.what == "weights":
                with torch.no_grad():
                    next(self.G_synthesis.parameters())[0] = math.inf

    def accumulate_gradients(self, phase, real_img, real_c, gen_z, gen_c, sync, gain):
        if self.bad and self.what == "latents":
            gen_z = gen_z * math.nan
        super().accumulate_gradients(phase, real_img, real_c, gen_z, gen_c, sync, gain)
        training_stats.report("Loss/x", math.nan if self.bad and self.what == "loss" else 1.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_image_zip(tmp_path_factory.mktemp("data") / "toy.zip", resolution=16, num_images=20)


def poisoned(path: pathlib.Path, data, **changes) -> dict:
    """Ten iterations of 8 images in ticks of two; a network snapshot, and with it a state, every other tick."""
    loss = {"class_name": f"{__name__}.Poisoned", "at": 5, "what": "latents", "count": str(path / "count")}
    loss |= changes.pop("loss", {})
    return options(path, data, total_kimg=0.08, network_snapshot_ticks=2, loss_kwargs=loss, **changes)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        pytest.param("latents", "weights of G|a statistic that the loss keeps", marks=pytest.mark.slow),
        ("weights", "the weights of G"),
        pytest.param("loss", "Loss/x", marks=pytest.mark.slow),
    ],
)
def test_the_run_stops_and_the_good_state_stays(tmp_path, data, what, words):
    settings = poisoned(tmp_path / "run", data, loss={"what": what}, snapshots_keep=1)
    with pytest.raises(
        guards.Diverged, match=rf"({words}) became infinite or NaN after kimg 0\.\d+ and by kimg 0\.\d+"
    ):
        training_loop(**settings)
    state = checkpoint.load(tmp_path / "run")
    tensors = [state["loss"]["pl_mean"], *(tensor for net in state["networks"].values() for tensor in net.values())]
    assert state["cur_nimg"] == 40 and all(tensor.isfinite().all() for tensor in tensors)
    assert [path.name for path in (tmp_path / "run").glob("*.pkl")] == ["network-snapshot-000000.pkl"]


def test_a_rollback_draws_other_numbers_and_goes_on(tmp_path, data, capsys):
    training_loop(**poisoned(tmp_path / "run", data, on_nan="rollback"))
    assert "became infinite or NaN" in (out := capsys.readouterr().out) and "attempt 1" in out
    state = checkpoint.load(tmp_path / "run")
    assert state["attempt"] == 1 and state["cur_nimg"] == 80
    lines = [json.loads(line) for line in (tmp_path / "run" / "stats.jsonl").read_text().splitlines()]
    ticks = [line["Progress/tick"]["mean"] for line in lines]
    assert ticks == sorted(set(ticks)) and all(math.isfinite(line["Loss/G/loss"]["mean"]) for line in lines)


@pytest.mark.slow
def test_a_state_saved_after_a_bad_report_is_good(tmp_path, data):
    """In mid-tick, before the report is noticed: going back to it must not find the report again."""
    settings = poisoned(tmp_path / "run", data, loss={"what": "loss"}, on_nan="rollback", save_every=0)
    training_loop(**settings)
    state = checkpoint.load(tmp_path / "run")
    assert state["attempt"] == 1 and state["cur_nimg"] == 80


def test_a_lost_run_directory_is_a_sentence(tmp_path, data):
    settings = options(tmp_path / "run", data, total_kimg=0.08)

    def lose(kimg, _total):
        shutil.rmtree(tmp_path / "run")

    with pytest.raises(UserError, match=r"run directory .* is gone"):
        training_loop(progress_fn=lose, **settings)


@pytest.mark.slow
def test_rollbacks_come_to_an_end(tmp_path, data):
    settings = poisoned(tmp_path / "run", data, on_nan="rollback", loss={"times": 100})
    with pytest.raises(guards.Diverged):
        training_loop(**settings)
    assert len((tmp_path / "run" / "count").read_text()) == 4  # the first attempt, and three more


def test_what_is_not_finite_is_named():
    module = torch.nn.Linear(2, 2)
    assert guards.not_finite({"D": module}, None, {"Loss/D/loss": 1.0}) is None
    assert guards.not_finite({"D": module}, None, {"Loss/D/loss": math.nan}) == "Loss/D/loss"
    module.bias.data[0] = -math.inf
    assert guards.not_finite({"D": module}, None, {"Loss/D/loss": math.nan}) == "the weights of D"


def test_memory_that_is_not_there_is_a_sentence():
    with pytest.raises(UserError, match=r"out of memory: .*--batch-gpu"), guards.memory_is_a_user_error():
        torch.empty(2**50)
    with pytest.raises(UserError, match=r"out of memory: CUDA"), guards.memory_is_a_user_error():
        raise torch.OutOfMemoryError("CUDA out of memory.\nmore")
    with pytest.raises(RuntimeError, match="other"), guards.memory_is_a_user_error():
        raise RuntimeError("other")


class Fatal(ImageFolderDataset):
    """Its sixth image ends the process that reads it."""

    def _load_raw_image(self, raw_idx):
        if raw_idx == 5 and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), 9)
        return super()._load_raw_image(raw_idx)


def test_a_dead_data_worker_is_a_sentence(tmp_path, data):
    settings = options(tmp_path / "run", data, data_loader_kwargs={"num_workers": 1})
    settings["training_set_kwargs"]["class_name"] = f"{__name__}.Fatal"
    with pytest.raises(UserError, match=r"process that reads the data set has died.*--workers"):
        training_loop(**settings)
