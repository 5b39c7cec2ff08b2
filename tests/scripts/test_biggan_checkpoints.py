# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of BigGAN's public implementation in the scripts: pictures, conversion, first weights, teachers."""

import numpy as np
import pytest
import torch
from PIL import Image

import export
import generate
import legacy
import train
from dgl.teacher import Teacher
from tests.support import make_image_zip
from tests.training.files import biggan_checkpoint
from torch_utils import images
from training.files.snapshot import load_snapshot
from training.sampling import seed_to_z

TEACHER = {**biggan_checkpoint.CIFAR, "z_dim": 128, "ch": 8}  # what --cfg=biggan-auto makes at 32x32, but narrow
TRAIN = {"cfg": "biggan-auto", "cond": 1, "batch": 4, "batch_gpu": 4, "d_steps": 1, "metrics": "none", "device": "cpu"}


@pytest.fixture(scope="module")
def networks():
    return biggan_checkpoint.networks(**TEACHER)


@pytest.fixture
def folder(networks, tmp_path):
    return biggan_checkpoint.write(tmp_path / "weights", networks)


@pytest.fixture
def two_steps(monkeypatch):
    """Runs of train.py end after two iterations; the list gets each `Trainer`."""
    trainers = []

    def steps(trainer, *_):
        trainers.append(trainer)
        trainer.step(True)
        trainer.step(False)

    monkeypatch.setattr("training.training_loop.Trainer.run", steps)
    return trainers


@pytest.fixture
def data(tmp_path):
    return make_image_zip(tmp_path / "data.zip", resolution=32, num_images=8, num_labels=3)


def state(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_pictures(run, folder, networks, tmp_path):
    status, _, err = run(generate, network=folder, seeds="3", **{"class": 2}, outdir=tmp_path / "out", device="cpu")
    assert status == 0, err
    with torch.no_grad():
        expected = images.to_uint8(networks["G_ema"](seed_to_z(3, 128), torch.eye(3)[2:]))[0].permute(1, 2, 0)
    found = np.asarray(Image.open(tmp_path / "out" / "seed0003.png")).astype(int)
    assert np.abs(found - expected.numpy()).max() <= 1


@pytest.mark.parametrize("name", ["G_ema.pth", "D.pth", ""])
def test_conversion_to_a_pickle(run, folder, networks, tmp_path, name):
    status, _, err = run(legacy, source=folder / name, dest=tmp_path / "x.pkl")
    assert status == 0, err
    snap = load_snapshot(tmp_path / "x.pkl")
    assert set(snap) == {"G", "D", "G_ema"}
    assert all(same(state(snap[key]), state(network)) for key, network in networks.items())


def test_safetensors(run, folder, networks, tmp_path):
    pytest.importorskip("safetensors")
    assert run(export, network=folder, dest=tmp_path / "x.safetensors")[0] == 0
    snap = load_snapshot(tmp_path / "x.safetensors")
    assert all(same(state(snap[key]), state(network)) for key, network in networks.items())


@pytest.mark.parametrize("script", [generate, legacy, export, train])
def test_the_configuration_of_a_run_is_refused(run, folder, tmp_path, data, script):
    path = folder / "state_dict.pth"
    flags = {
        generate: {"network": path, "seeds": 1, "outdir": tmp_path / "out"},
        legacy: {"source": path, "dest": tmp_path / "out"},
        export: {"network": path, "dest": tmp_path / "out.safetensors"},
        train: {"data": data, "resume": path, "outdir": tmp_path / "out", **TRAIN},
    }[script]
    status, _, err = run(script, **flags)
    message = err[err.index("Error: ") :]
    assert status == 2 and message.count("\n") == 1 and "Traceback" not in err
    assert f"{path} is the configuration of a run" in message and "G_ema.pth" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("converted", [False, True])
def test_resume_starts_from_the_weights(run, folder, networks, tmp_path, data, monkeypatch, converted):
    path = folder
    if converted:
        path = tmp_path / "x.pkl"
        assert run(legacy, source=folder, dest=path)[0] == 0
    trainers = []
    monkeypatch.setattr("training.training_loop.Trainer.run", lambda trainer, *_: trainers.append(trainer))
    status, out, err = run(train, data=data, resume=path, ch=8, outdir=tmp_path / "runs", **TRAIN)
    assert status == 0, err
    assert f"Resuming from {path}" in out
    assert all(same(state(getattr(trainers[0], key)), state(network)) for key, network in networks.items())


def test_resume_of_another_width_is_refused(run, folder, tmp_path, data):
    status, _, err = run(train, data=data, resume=folder, ch=4, outdir=tmp_path / "runs", **TRAIN)
    assert status == 2 and f"--resume={folder / 'G_ema.pth'}: none of the weights of its G fit this run's G" in err
    assert not (tmp_path / "runs").exists()


def test_resume_of_a_folder_without_networks_continues_a_run(run, tmp_path):
    status, _, err = run(train, resume=biggan_checkpoint.write(tmp_path / "empty", {}))
    assert status == 2 and "is no run directory" in err


@pytest.mark.parametrize("name", ["", "G_ema.pth"])
def test_a_checkpoint_is_a_teacher_and_stays_as_it_is(
    run, folder, networks, tmp_path, data, two_steps, monkeypatch, name
):
    scores, asked = Teacher.scores, []
    monkeypatch.setattr(Teacher, "scores", lambda self, *args: asked.append(self) or scores(self, *args))
    flags = {"dgl_teacher": folder / name, "dgl_recipe": "paper", "dgl_weight": 0.1, "ch": 4}
    status, out, err = run(train, data=data, outdir=tmp_path / "runs", **flags, **TRAIN)
    assert status == 0, err
    assert "teacher G         126,787" in out
    (trainer,) = two_steps
    (teacher,) = set(asked)
    assert same(state(teacher.D), state(networks["D"])), "weights and spectral vectors, bit for bit"
    assert not teacher.D.training and not any(parameter.requires_grad for parameter in teacher.D.parameters())
    assert trainer.iteration == 2 and len(asked) >= 2 and trainer.G.init_kwargs["ch"] == 4
