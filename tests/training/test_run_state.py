# SPDX-License-Identifier: Apache-2.0
"""A run that was stopped and continued equals one that was not, bit for bit."""

import json
import os
import pathlib
import signal

import numpy as np
import pytest
import torch

from dnnlib import signals
from dnnlib.util import UserError
from tests.dgl import tiny_biggan
from tests.dgl.tiny import save_teacher
from tests.support import make_image_zip
from tests.training.test_training_loop import options
from torch_utils import distributed, training_stats
from training import checkpoint, stopping
from training.loss import StyleGAN2Loss
from training.loss_biggan import BigGANLoss
from training.training_loop import training_loop

AUGMENT = {"class_name": "training.augment.AugmentPipe", "xflip": 1, "scale": 1, "brightness": 1}
ADA = {"augment_kwargs": AUGMENT, "ada_target": -2, "ada_interval": 3, "ada_kimg": 0.5}
ITERATIONS = 12

ADAM = {"class_name": "torch.optim.Adam", "lr": 0.001, "betas": [0, 0.99]}  # of teachers that go on training


class Interrupts:
    """Sends its process a signal in iteration `at`, from 0, of the first attempt."""

    nimg = 8  # of an iteration

    def __init__(self, *args, at: int, flag: str, signum: int = signal.SIGTERM, **kwargs):
        super().__init__(*args, **kwargs)
        stopping.AGREE_EVERY = 0.0  # processes agree after each iteration, however fast
        self.at, self.flag, self.signum = at, pathlib.Path(flag), signum

    def begin_iteration(self, cur_nimg, new_tick):
        super().begin_iteration(cur_nimg, new_tick)
        if cur_nimg == self.at * self.nimg and not self.flag.exists():
            self.flag.touch()
            os.kill(os.getpid(), self.signum)


class Interrupted(Interrupts, StyleGAN2Loss):
    """StyleGAN2's loss."""


class InterruptedBigGAN(Interrupts, BigGANLoss):
    """BigGAN's loss, in an iteration of two steps of D."""

    nimg = 16


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_image_zip(tmp_path_factory.mktemp("data") / "toy.zip", resolution=16, num_images=20, num_labels=3)


def made(path: pathlib.Path, data, **changes) -> dict:
    """Twelve iterations of 8 images; ticks of two iterations, pictures and networks at the end."""
    base = {"total_kimg": ITERATIONS * 0.008, "image_snapshot_ticks": 100, "network_snapshot_ticks": 100}
    return options(path, data, family_kwargs={}, **base, **changes)


def interrupted(settings: dict, at: int) -> dict:
    """The same run, which gets a signal in iteration `at`."""
    loss = settings["loss_kwargs"]
    flag = str(pathlib.Path(settings["run_dir"]) / "interrupted")
    key = "base_class" if "base_class" in loss or "teachers" in loss else "class_name"
    name = "InterruptedBigGAN" if settings["family_kwargs"] else "Interrupted"
    return {**settings, "loss_kwargs": {**loss, key: f"{__name__}.{name}", "at": at, "flag": flag}}


def same(a, b) -> bool:
    """Equal nests of dicts and lists, tensors bit for bit, NaN equal to NaN."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a.nan_to_num(), b.nan_to_num()) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


LASTING = ("networks", "optimizers", "loss", "cur_nimg", "cur_tick", "iteration", "batches", "tick_start_nimg")


def differences(first: pathlib.Path, second: pathlib.Path) -> list[str]:
    """Parts of the last states of two runs that differ; and lines of statistics, times aside."""
    states = [checkpoint.load(path) for path in (first, second)]
    found = [name for name in LASTING if not same(*(state[name] for state in states))]
    found += ["ada"] * (not same(*([rank["ada"] for rank in state["ranks"]] for state in states)))
    lines = [[json.loads(line) for line in (path / "stats.jsonl").read_text().splitlines()] for path in (first, second)]
    first, second = ([_reported(line) for line in run] for run in lines)
    return found + ["stats.jsonl"] * (first != second)


def _reported(line: dict) -> dict:
    """What a line says of training, without times."""
    return {k: v for k, v in line.items() if k.startswith(("Loss/", "Progress/")) and v["num"]}


def check_exact(tmp_path, data, stops, make=made, **changes) -> None:
    """Run straight and with a stop in each of the iterations `stops`, and compare."""
    straight = make(tmp_path / "straight", data, **changes)
    assert training_loop(**straight) is None
    for at in stops:
        path = tmp_path / f"stopped{at}"
        settings = interrupted(make(path, data, **changes), at)
        assert training_loop(**settings) == signal.SIGTERM
        assert checkpoint.load(path)["iteration"] == at + 1
        np.random.seed(1)  # what another process would begin with
        torch.manual_seed(1)
        training_stats.load_pending([], torch.device("cpu"))
        assert training_loop(**settings, resume=True) is None
        assert differences(tmp_path / "straight", path) == []


@pytest.mark.slow
def test_a_plain_run_goes_on_exactly(tmp_path, data):
    """Within a tick and between two, in the first iteration and near the end."""
    check_exact(tmp_path, data, stops=(0, 4, 5, 10))


def test_a_run_with_ada_and_labels_goes_on_exactly(tmp_path, data):
    settings = made(tmp_path / "x", data)
    labelled = {**settings["training_set_kwargs"], "use_labels": True, "xflip": True}
    check_exact(tmp_path, data, stops=(4,), **ADA, training_set_kwargs=labelled, precision="bf16")


@pytest.mark.slow
def test_workers_and_joint_phases_make_no_difference(tmp_path, data):
    loader = {"data_loader_kwargs": {"num_workers": 1}}
    check_exact(tmp_path, data, stops=(6,), G_reg_interval=None, D_reg_interval=None, **loader)
    run = made(tmp_path / "none", data, G_reg_interval=None, D_reg_interval=None)
    training_loop(**run)
    assert differences(tmp_path / "straight", tmp_path / "none") == []


@pytest.mark.slow
@pytest.mark.parametrize(("update", "stops"), [(None, (7,)), (ADAM, (2, 7))])
def test_a_guided_run_goes_on_exactly(tmp_path, data, update, stops):
    teacher = save_teacher(tmp_path)
    loss = {
        "class_name": "dgl.loss.DGLLoss", "teachers": [{"path": str(teacher)}], "dgl_weight": 1, "r1_gamma": 1,
        "dgl_start": 0.03, "dgl_ratio": 0.5, **({} if update is None else {"dgl_update": update}),
    }  # fmt: skip
    labelled = {**made(tmp_path / "x", data)["training_set_kwargs"], "use_labels": True}
    check_exact(tmp_path, data, stops, loss_kwargs=loss, training_set_kwargs=labelled)


@pytest.fixture(scope="module")
def data32(tmp_path_factory):
    return make_image_zip(tmp_path_factory.mktemp("data32") / "toy.zip", resolution=32, num_images=20, num_labels=3)


@pytest.mark.slow
def test_a_biggan_goes_on_exactly(tmp_path, data32):
    """Within a tick and between two, before and after its average begins; two batches of reals in each iteration."""
    check_exact(tmp_path, data32, stops=(1, 3), make=tiny_biggan.run_options, **ADA)
    state = checkpoint.load(tmp_path / "straight")
    assert (state["iteration"], state["cur_nimg"], state["batches"]) == (5, 80, 10)
    assert float(state["ranks"][0]["ada"]["p"]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("update", [None, ADAM])
def test_a_guided_biggan_goes_on_exactly(tmp_path, data32, update):
    loss = {
        "class_name": "dgl.loss_biggan.DGLBigGANLoss", "base_class": "training.loss_biggan.BigGANLoss", "dgl_weight": 1,
        "teachers": [{"path": tiny_biggan.save_teacher(tmp_path)}], "dgl_start": 0.01, "dgl_ratio": 0.5,
        "dgl_update": update, "terms": [{"class_name": "dgl.heads.HeadsTerm", "weight": 1}],
    }  # fmt: skip
    check_exact(tmp_path, data32, stops=(2,), make=tiny_biggan.run_options, loss_kwargs=loss)


class BreaksOnce(BigGANLoss):
    """Makes a statistic of G infinite in the fourth iteration of the first attempt."""

    def __init__(self, *args, flag: str, **kwargs):
        super().__init__(*args, **kwargs)
        self.flag = pathlib.Path(flag)

    def begin_iteration(self, cur_nimg, new_tick):
        super().begin_iteration(cur_nimg, new_tick)
        if cur_nimg == 48 and not self.flag.exists():
            self.flag.touch()
            self.G.blocks.get_submodule("0.0").bn1.stored_var.fill_(float("inf"))


def test_a_biggan_is_rolled_back_to_its_last_state(tmp_path, data32, capsys):
    loss = {"class_name": f"{__name__}.BreaksOnce", "flag": str(tmp_path / "broken")}
    run = {"on_nan": "rollback", "network_snapshot_ticks": 1, "loss_kwargs": loss}
    assert training_loop(**tiny_biggan.run_options(tmp_path / "run", data32, **run)) is None
    assert "became infinite or NaN" in capsys.readouterr().out
    state = checkpoint.load(tmp_path / "run")
    assert (state["attempt"], state["cur_nimg"], state["iteration"]) == (1, 80, 5)


def test_handlers_are_those_of_before_after_a_signal(tmp_path, data):
    settings = interrupted(made(tmp_path / "run", data), 3)
    settings["loss_kwargs"]["signum"] = signal.SIGINT
    before = [signal.getsignal(signum) for signum in signals.ENDING]
    assert training_loop(**settings) == signal.SIGINT
    assert [signal.getsignal(signum) for signum in signals.ENDING] == before


def test_a_second_interrupt_ends_at_once_also_after_another_signal():
    with stopping.stop_request() as request:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert request.signum == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def run_in_group(rank: int, settings: dict, resume: bool) -> None:
    distributed.init(rank, settings["num_gpus"], torch.device("cpu"))
    training_loop(rank=rank, resume=resume, **settings)


@pytest.mark.slow
def test_two_processes_go_on_exactly(tmp_path, data):
    runs = {name: made(tmp_path / name, data, num_gpus=2, batch_gpu=2, **ADA) for name in ("straight", "stopped")}
    distributed.launch(run_in_group, 2, runs["straight"], False)
    distributed.launch(run_in_group, 2, interrupted(runs["stopped"], 4), False)
    assert checkpoint.load(tmp_path / "stopped")["iteration"] < ITERATIONS
    distributed.launch(run_in_group, 2, runs["stopped"], True)
    assert differences(tmp_path / "straight", tmp_path / "stopped") == []
    assert float(checkpoint.load(tmp_path / "stopped")["ranks"][1]["ada"]["p"]) > 0


def test_another_data_set_is_refused(tmp_path, data):
    other = make_image_zip(tmp_path / "other.zip", resolution=16, num_images=20)
    settings = interrupted(made(tmp_path / "run", data), 3)
    training_loop(**settings)
    settings["training_set_kwargs"] = {**settings["training_set_kwargs"], "path": str(other)}
    with pytest.raises(UserError, match=r"other\.zip is another one than when the run began \(contents\)"):
        training_loop(**settings, resume=True)
