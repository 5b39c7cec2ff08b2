# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in rosinality's layout in the scripts: pictures, first weights, teachers, and files with code in them."""

import argparse

import numpy as np
import pytest
import torch
from PIL import Image

import generate
import legacy
import train
from dgl.teacher import Teacher
from tests.compat import canary
from tests.support import make_image_zip
from tests.training.files import rosinality_checkpoint as checkpoint
from torch_utils import images
from training.files.snapshot import load_snapshot
from training.sampling import seed_to_z

TRAIN = {"cfg": "auto", "batch": 4, "batch_gpu": 4, "metrics": "none", "device": "cpu", "z_dim": 64, "w_dim": 64}


@pytest.fixture
def path(tmp_path):
    return checkpoint.save(tmp_path / "x.pt", checkpoint.from_training("r32"))


@pytest.fixture
def data(tmp_path):
    return make_image_zip(tmp_path / "data.zip", resolution=32, num_images=8)


def test_pictures(run, path, tmp_path):
    status, _, err = run(generate, network=path, seeds="3", trunc=0.7, outdir=tmp_path / "out", device="cpu")
    assert status == 0, err
    assert "no latent_avg: estimated from 10,000 z" in err
    G = load_snapshot(path)["G_ema"]
    with torch.no_grad():
        expected = images.to_uint8(G(seed_to_z(3, 64), None, truncation_psi=0.7, noise_mode="const"))[0]
    found = np.asarray(Image.open(tmp_path / "out" / "seed0003.png")).astype(int)
    assert np.abs(found - expected.permute(1, 2, 0).numpy()).max() <= 1


def test_resume_starts_from_the_weights(run, path, tmp_path, data, monkeypatch):
    trainers = []
    monkeypatch.setattr("training.training_loop.Trainer.run", lambda trainer, *_: trainers.append(trainer))
    status, out, err = run(train, data=data, resume=path, outdir=tmp_path / "runs", cbase=256, **TRAIN)
    assert status == 0, err
    assert f"Resuming from {path}" in out
    snap = load_snapshot(path)
    for ours, theirs in ((trainers[0].D.b4, snap["D"].b4), (trainers[0].G.synthesis.b32, snap["G"].synthesis.b32)):
        found, expected = ours.state_dict(), theirs.state_dict()
        fitting = [name for name in expected if found[name].shape == expected[name].shape]
        assert fitting and all(torch.equal(found[name], expected[name]) for name in fitting)


def test_a_checkpoint_is_a_teacher(run, path, tmp_path, data, monkeypatch):
    scores, asked = Teacher.scores, []

    def one_step(trainer, *_):
        trainer.step(True)

    monkeypatch.setattr("training.training_loop.Trainer.run", one_step)
    monkeypatch.setattr(Teacher, "scores", lambda self, *args: asked.append(self) or scores(self, *args))
    flags = {"dgl_teacher": path, "dgl_recipe": "paper", "cbase": 0.5}
    status, _, err = run(train, data=data, outdir=tmp_path / "runs", **flags, **TRAIN)
    assert status == 0, err
    (teacher,) = set(asked)
    assert torch.equal(teacher.D.b4.out.weight, checkpoint.state("r32", "D")["final_linear.1.weight"])


class Harmful:
    def __reduce__(self):
        return print, ("code from the file ran",)


@pytest.mark.parametrize("where", ["args", "g_optim", "inside args", "g_ema"])
@pytest.mark.parametrize("zipped", [False, True])
def test_code_in_a_file_does_not_run(run, tmp_path, where, zipped):
    content = checkpoint.from_training("r16")
    content[where.split()[-1]] = argparse.Namespace(x=Harmful()) if where == "inside args" else Harmful()
    path = checkpoint.save(tmp_path / "x.pt", content, zipped)
    with canary.watched() as heard:
        status, out, err = run(legacy, source=path, dest=tmp_path / "out.pkl")
    assert status == 2 and "print'" in err and str(path) in err and "code from" not in out
    assert not [event for event in heard if event.startswith("pickle.find_class")]
    assert not (tmp_path / "out.pkl").exists()
