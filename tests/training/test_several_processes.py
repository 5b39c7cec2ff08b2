# SPDX-License-Identifier: Apache-2.0
"""Several processes train what one does; a metric that fails ends in all of them."""

import json
import pathlib

import pytest
import torch

from dnnlib.util import UserError
from metrics import catalogue
from tests import tolerances
from tests.support import make_image_zip
from tests.training.test_training_loop import options
from torch_utils import distributed
from training import checkpoint, continuing
from training.settings import OPTIONS_FILE
from training.training_loop import training_loop


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_image_zip(tmp_path_factory.mktemp("data") / "toy.zip", resolution=16, num_images=20, num_labels=3)


def made(path: pathlib.Path, data, processes: int, iterations: int = 4, **changes) -> dict:
    """A run in which nothing depends on how the batch is split but rounding: no noise, no style mixing, no mbstd."""
    quiet = {"image_snapshot_ticks": None, "network_snapshot_ticks": None}
    base = {"num_gpus": processes, "batch_gpu": 8 // processes, "total_kimg": iterations * 0.008, **quiet}
    settings = options(path, data, **{**base, **changes})
    settings["loss_kwargs"].update(style_mixing_prob=0, pl_weight=0)
    settings["G_kwargs"]["synthesis_kwargs"]["use_noise"] = False
    settings["D_kwargs"]["epilogue_kwargs"] = {"mbstd_num_channels": 0}
    return settings


def in_group(rank: int, settings: dict, resume: bool) -> None:
    """One process of several."""
    catalogue.register(catalogue.Metric("fails_in_one", fails_in_one, opens_dataset=True))
    catalogue.register(catalogue.Metric("works", works, opens_dataset=True))
    distributed.init(rank, settings["num_gpus"], torch.device("cpu"))
    training_loop(rank=rank, resume=resume, **settings)


def fails_in_one(opts) -> dict:
    """A metric whose second process fails between two exchanges, like a detector that runs out of memory."""
    distributed.all_reduce_(torch.ones(3))
    if opts.rank == 1:
        raise ValueError("no memory\nfor it")
    distributed.all_reduce_(torch.ones(1000))
    return {"fails_in_one": 1.0}


def works(opts) -> dict:
    """A metric that needs all processes."""
    return {"works": distributed.all_reduce_(torch.ones(1)).item()}


def train(settings: dict, resume: bool = False) -> dict:
    """Train, and return the last state."""
    distributed.launch(in_group, settings["num_gpus"], settings, resume)
    return checkpoint.load(settings["run_dir"])


def test_two_processes_equal_one_up_to_rounding(tmp_path, data):
    one, two = (train(made(tmp_path / str(processes), data, processes)) for processes in (1, 2))
    for name, network in one["networks"].items():
        for key, tensor in network.items():
            torch.testing.assert_close(two["networks"][name][key], tensor, **tolerances.PROCESSES)


@pytest.mark.slow
def test_a_run_goes_on_with_other_numbers_of_processes(tmp_path, data):
    settings = made(tmp_path / "run", data, 2, iterations=1)
    straight = train(made(tmp_path / "straight", data, 1, iterations=3))
    with open(tmp_path / "run" / OPTIONS_FILE, "w") as file:
        json.dump(settings, file)
    train(settings)
    for processes, iterations in ((1, 2), (2, 3)):
        changed = continuing.resume(settings["run_dir"], {"gpus": processes, "kimg": iterations * 0.008})
        changed["batch_gpu"] = 8 // processes
        state = train(changed, resume=True)
        assert (state["iteration"], len(state["ranks"])) == (iterations, processes)
    for name, network in straight["networks"].items():
        for key, tensor in network.items():
            torch.testing.assert_close(state["networks"][name][key], tensor, **tolerances.PROCESSES)


@pytest.mark.slow
def test_a_failing_metric_does_not_end_a_run(tmp_path, data, capfd):
    names = {"metrics": ["fails_in_one", "works", "no_such_metric"], "network_snapshot_ticks": 100}
    state = train(made(tmp_path / "run", data, 2, iterations=2, **names))
    assert state["iteration"] == 2 and state["metric_values"] == {"works": 2.0}
    out = capfd.readouterr().out
    assert out.count("Metric fails_in_one failed, and training goes on without it: ValueError: no memory for it\n") == 1
    assert out.count("Metric no_such_metric failed") == 1


def test_the_newest_run_of_the_same_flags_is_found_whatever_the_preset_says(tmp_path, data):
    """--cfg=auto chooses by --gpus, so a restart with fewer machines resolves to other options."""
    settings = made(tmp_path / "00003-toy", data, 1, iterations=1)
    with open(tmp_path / "00003-toy" / OPTIONS_FILE, "w") as file:
        json.dump(settings, file)
    flags = {"data": str(data), "cfg": "auto", "gpus": 2, "kimg": 1}
    training_loop(**settings, about={"flags": flags})
    other = {**settings, "batch_size": 4, "total_kimg": 1}
    for given, found in (({**flags, "gpus": 1}, True), ({**flags, "cfg": "stylegan2"}, False)):
        run_dir = continuing.newest_unfinished(str(tmp_path), other, given)
        assert run_dir == (settings["run_dir"] if found else None)


def test_micro_batches_that_do_not_suit_d_are_refused(tmp_path, data):
    settings = made(tmp_path / "run", data, 1, iterations=1)
    settings["D_kwargs"] = {**settings["D_kwargs"], "epilogue_kwargs": {"mbstd_num_channels": 1, "mbstd_group_size": 4}}
    training_loop(**settings)
    with pytest.raises(UserError, match=r"--gpus=1: micro-batches of 6 images .* groups of 4"):
        training_loop(**{**settings, "batch_gpu": 6}, resume=True)
