# SPDX-License-Identifier: Apache-2.0
"""No host synchronisation inside an iteration: between two ticks nothing reads the values of a tensor."""

import pytest
import torch

from tests.dgl.tiny import ADAM, Student, save_teacher
from tests.support import make_image_zip
from tests.torch_utils.ops.implementations import chosen
from tests.training.host_reads import watched
from tests.training.test_training_loop import HALF, options
from torch_utils.ops import backend
from training.training_loop import Trainer, TrainingOptions

# All effects but the geometric ones, whose margin depends on the draws.
COLOUR = {
    "brightness": 1,
    "contrast": 1,
    "lumaflip": 1,
    "hue": 1,
    "saturation": 1,
    "imgfilter": 1,
    "noise": 1,
    "cutout": 1,
}


@pytest.fixture(autouse=True)
def as_on_a_gpu():
    """On a CPU, where reading is free, operations may look at values to save work."""
    with chosen(backend.GENERIC):
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_image_zip(tmp_path_factory.mktemp("data") / "toy.zip", resolution=16, num_images=12, num_labels=3)


def make_trainer(folder, data, effects: dict, **changes) -> Trainer:
    """Conditional, with adaptive augmentation; on a GPU in half precision."""
    pipe = {"class_name": "training.augment.AugmentPipe", **effects}
    made = options(folder / "run", data, augment_kwargs=pipe, ada_target=0.6, augment_p=0.5, total_kimg=1, **changes)
    made["training_set_kwargs"]["use_labels"] = True
    made["G_kwargs"]["synthesis_kwargs"].update(HALF)
    made["D_kwargs"].update(HALF)
    return Trainer(TrainingOptions(**made))


def test_no_iteration_reads_a_tensor(data, tmp_path):
    trainer = make_trainer(tmp_path, data, COLOUR, D_reg_interval=4)
    trainer.step(new_tick=True)  # fills caches of constants
    with watched() as found:
        for _ in range(4):  # every phase, and an adjustment of p
            trainer.step(new_tick=False)
    assert found == []


@pytest.mark.parametrize("effect", ["xflip", "scale"])
def test_geometry_reads_its_margin_once_a_call(data, tmp_path, effect):
    trainer = make_trainer(tmp_path, data, {effect: 1})
    calls = []
    trainer.augment_pipe.register_forward_hook(lambda *_: calls.append(1))
    trainer.step(new_tick=True)  # fills caches of constants
    calls.clear()
    with watched() as found:
        trainer.step(new_tick=False)
    assert calls and len(found) == len(calls)
    assert all(" in augment.py:" in place for place in found)


@pytest.mark.parametrize("weighting", ["plain", "score"])
def test_guidance_reads_nothing_but_its_ratio_once_a_tick(tmp_path, weighting):
    student = Student([save_teacher(tmp_path)], dgl_weighting=weighting)
    student.loss.begin_iteration(cur_nimg=0, new_tick=True)
    student.gradients("Gmain")
    student.loss.begin_iteration(cur_nimg=4, new_tick=False)
    student.G.requires_grad_(True)
    with watched() as found:
        student.loss.accumulate_gradients("Gmain", sync=True, gain=1, **student.inputs())
    assert found == []


@pytest.mark.parametrize(
    ("flags", "phases"),
    [
        ({"dgl_update": ADAM}, ["Gmain", "teacher0main", "teacher0reg"]),
        ({"dgl_weight": 0, "dgl_residual": 0.3}, ["Gmain", "Dboth"]),
    ],
    ids=["live", "residual"],
)
def test_teachers_that_take_part_in_d_read_nothing(tmp_path, flags, phases):
    student = Student([save_teacher(tmp_path)], **flags)
    student.gradients("Gmain")  # measures the ratio
    for network in (student.G, student.D, student.loss.teachers[0].D):
        network.requires_grad_(True)
    with watched() as found:
        for phase in phases:
            student.loss.accumulate_gradients(phase, sync=True, gain=1, **student.inputs())
    assert found == []


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.item(),
        lambda x: float(x),
        lambda x: bool(x > 0),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.reshape(1)[x.reshape(1) > 0],
        lambda x: x.reshape(1).nonzero(),
        lambda x: torch.equal(x, x),
    ],
)
def test_reads_are_found(read):
    x = torch.ones([])
    with watched() as found:
        read(x)
    assert len(found) == 1 and "test_host_reads.py" in found[0]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_no_iteration_waits_for_the_gpu(data, tmp_path, precision):
    loader = {"num_workers": 1, "pin_memory": True}
    trainer = make_trainer(tmp_path, data, COLOUR, device="cuda", precision=precision, data_loader_kwargs=loader)
    for i in range(17):  # kernels are built, algorithms chosen, constants cached
        trainer.step(new_tick=i == 0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(16):
            trainer.step(new_tick=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
