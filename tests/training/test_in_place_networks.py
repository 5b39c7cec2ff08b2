# SPDX-License-Identifier: Apache-2.0
"""Networks of another project that change the outputs of our operations in place train here."""

import copy
import importlib.util
import sys

import pytest
import torch

from tests.support import make_image_zip
from tests.training import in_place_networks as theirs
from tests.training.test_training_loop import options
from torch_utils import persistence
from training.training_loop import Trainer, TrainingOptions

MODULE = theirs.__name__


@pytest.fixture
def data(tmp_path):
    return make_image_zip(tmp_path / "toy.zip", resolution=16, num_images=12, num_labels=3)


def train(tmp_path, data, module):
    """One iteration, which runs all phases, with the networks of `module`; the trainer."""
    made = options(tmp_path / "run", data, total_kimg=0.008)
    made["training_set_kwargs"]["use_labels"] = True
    made["G_kwargs"]["class_name"], made["D_kwargs"]["class_name"] = f"{module}.Generator", f"{module}.Discriminator"
    trainer = Trainer(TrainingOptions(**made))
    before = copy.deepcopy([trainer.G.state_dict(), trainer.D.state_dict()])
    trainer.run()
    for old, network in zip(before, (trainer.G, trainer.D)):
        for name, value in network.named_parameters():
            assert value.isfinite().all() and not torch.equal(old[name], value), name
    return trainer


def test_a_module_named_in_the_options_trains(tmp_path, data):
    assert type(train(tmp_path, data, MODULE).G) is theirs.Generator


def test_a_file_that_replaces_training_networks_trains(tmp_path, data, monkeypatch):
    monkeypatch.setattr(persistence, "_classes", {})
    spec = importlib.util.spec_from_file_location("training.networks", theirs.__file__)
    replacement = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "training.networks", replacement)
    spec.loader.exec_module(replacement)
    trainer = train(tmp_path, data, "training.networks")
    assert type(trainer.G) is replacement.Generator and type(trainer.D) is replacement.Discriminator
