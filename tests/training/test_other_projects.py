# SPDX-License-Identifier: Apache-2.0
"""Code of other projects trains in every precision, on every CPU, in the types that the log names."""

import copy
import sys
import types

import pytest
import torch

from tests.support import make_image_zip
from tests.training import other_projects
from tests.training.test_training_loop import HALF, options
from torch_utils import precision
from training.files.snapshot import load_snapshot
from training.training_loop import Trainer, TrainingOptions

THEIRS = other_projects.__name__

# --precision, fast bf16 instructions, and the type of the half-precision resolutions that follows
CASES = [
    ("auto", True, torch.bfloat16),
    pytest.param("auto", False, torch.float32, marks=pytest.mark.slow),
    pytest.param("fp32", True, torch.float32, marks=pytest.mark.slow),
    pytest.param("bf16", False, torch.bfloat16, marks=pytest.mark.slow),
]
WORDS = {torch.float32: "fp32", torch.bfloat16: "bf16 (lower resolutions in fp32)"}

pytestmark = pytest.mark.parametrize(("name", "fast", "dtype"), CASES)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_image_zip(tmp_path_factory.mktemp("data") / "toy.zip", resolution=16, num_images=12, num_labels=3)


def types_of_one_step(trainer: Trainer) -> dict[str, set[torch.dtype]]:
    """The types of activations at the highest resolution of our own networks."""
    seen, handles = {"G": set(), "D": set()}, []
    for key, network in (("G", trainer.G.synthesis), ("D", trainer.D)):
        if hasattr(network, "b16"):
            layer = network.b16.conv1
            handles.append(layer.register_forward_hook(lambda _layer, _in, out, key=key: seen[key].add(out.dtype)))
    trainer.step(new_tick=True)
    for handle in handles:
        handle.remove()
    return seen


@pytest.fixture
def train(tmp_path, data, monkeypatch, capsys):
    """`train(name, fast, **options)`: a run of two iterations; its trainer, the types seen in G and D, its output."""

    def run(name: str, fast: bool, loss_class: str = "training.loss.StyleGAN2Loss", **changes):
        monkeypatch.setenv(precision.FAST_BF16_VARIABLE, str(int(fast)))
        made = options(tmp_path / "run", data, total_kimg=0.008, precision=name, **changes)
        made["loss_kwargs"]["class_name"] = loss_class
        for kwargs, target in ((made["G_kwargs"], "synthesis_kwargs"), (made["D_kwargs"], None)):
            if kwargs["class_name"].startswith("training.networks"):
                (kwargs[target] if target else kwargs).update(HALF)
        trainer = Trainer(TrainingOptions(**made))
        before = copy.deepcopy([trainer.G.state_dict(), trainer.D.state_dict()])
        seen = types_of_one_step(trainer)
        trainer.run()
        for old, network in zip(before, (trainer.G, trainer.D)):
            assert any(not torch.equal(old[key], value) for key, value in network.state_dict().items())
        return trainer, seen, capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    "loss_class",
    [
        f"{THEIRS}.DuckTypedLoss",
        f"{THEIRS}.LossWithOwnRuns",
        "tests.training.test_training_loop.OlderLoss",
        "training.loss.StyleGAN2Loss",
    ],
)
def test_a_loss_trains_in_the_precision_that_the_log_names(train, name, fast, dtype, loss_class):
    _trainer, seen, out = train(name, fast, loss_class)
    assert seen == {"G": {dtype}, "D": {dtype}}
    assert f"kimg on cpu in {WORDS[dtype]}..." in out


def test_a_file_that_replaces_training_loss_needs_no_other_name(train, monkeypatch, name, fast, dtype):
    replacement = types.ModuleType("training.loss")
    replacement.Loss, replacement.StyleGAN2Loss = other_projects.Loss, other_projects.LossOfItsOwn
    monkeypatch.setitem(sys.modules, "training.loss", replacement)
    trainer, seen, _out = train(name, fast)
    assert type(trainer.loss) is other_projects.LossOfItsOwn
    assert seen == {"G": {dtype}, "D": {dtype}}


@pytest.mark.parametrize("loss_class", [f"{THEIRS}.DuckTypedLoss", "training.loss.StyleGAN2Loss"])
def test_networks_train_in_their_own_precision(train, tmp_path, name, fast, dtype, loss_class):
    _trainer, _seen, out = train(
        name,
        fast,
        loss_class,
        G_kwargs={"class_name": f"{THEIRS}.Generator", "z_dim": 8, "w_dim": 8},
        D_kwargs={"class_name": f"{THEIRS}.Discriminator"},
    )
    assert "kimg on cpu in their own precision..." in out
    stored = load_snapshot(tmp_path / "run" / "network-snapshot-000000.pkl", trust=True)
    assert isinstance(stored["G_ema"], other_projects.Generator)


def test_a_discriminator_beside_our_generator(train, name, fast, dtype):
    _trainer, seen, out = train(name, fast, D_kwargs={"class_name": f"{THEIRS}.Discriminator"})
    assert seen["G"] == {dtype}
    assert f"with G in {WORDS[dtype]}, D in its own precision..." in out


def test_an_augmentation_trains(train, name, fast, dtype):
    trainer, seen, _out = train(name, fast, augment_kwargs={"class_name": f"{THEIRS}.Pipe", "flip": 0.5}, augment_p=0.5)
    assert float(trainer.augment_pipe.p) == 0.5
    assert seen == {"G": {dtype}, "D": {dtype}}


def test_the_average_and_the_snapshot_do_not_take_the_precision_of_the_run(train, tmp_path, name, fast, dtype):
    trainer, _seen, _out = train(name, fast)
    stored = load_snapshot(tmp_path / "run" / "network-snapshot-000000.pkl", trust=True)
    assert precision.get_half_dtype(trainer.G) == precision.get_half_dtype(trainer.D) == dtype
    networks = [trainer.G_ema, copy.deepcopy(trainer.G_ema), stored["G"], stored["D"], stored["G_ema"]]
    blocks = [module for network in networks for module in network.modules() if hasattr(type(module), "half_dtype")]
    assert len(blocks) == 4 * 3 + 2
    assert not any("half_dtype" in vars(block) for block in blocks)
