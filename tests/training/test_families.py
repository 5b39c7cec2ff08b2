# SPDX-License-Identifier: Apache-2.0
"""The family interface: a third family, known only to this test, works with every tool unchanged."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import calc_metrics
import dnnlib.cli
import generate
import style_mixing
import train
from dnnlib.util import UserError
from tests.support import make_image_zip
from tests.training.toy_family import TOY
from training import families
from training.files import snapshot
from training.networks import Generator
from training.options import build


@pytest.fixture
def toy(monkeypatch):
    """The family is registered, and --cfg of train.py knows its preset, until the test ends."""
    monkeypatch.setattr(families, "_FAMILIES", dict(families._FAMILIES))
    families.register(TOY)
    (cfg,) = (parameter for parameter in train.main.params if parameter.name == "cfg")
    monkeypatch.setattr(cfg, "type", type(cfg.type)(families.presets()))


@pytest.fixture
def run(monkeypatch, capsys):
    """`run(script, flag=value, ...)` -> (exit status, stdout, stderr)."""

    def call(script, **flags):
        argv = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
        monkeypatch.setattr("sys.argv", [f"{script.__name__}.py", *argv])
        with pytest.raises(SystemExit) as exit_info:
            dnnlib.cli.run(script.main)
        return (exit_info.value.code, *capsys.readouterr())

    return call


def snapshot_of(outdir):
    (path,) = outdir.glob("*/network-snapshot-000001.pkl")
    return path


def test_a_third_family_trains_resumes_generates_and_is_measured(toy, run, tmp_path):
    data = make_image_zip(tmp_path / "grey.zip", resolution=16, num_images=24, channels=1)
    flags = {"data": data, "cfg": "toy", "aug": "noaug", "metrics": "none", "device": "cpu", "workers": 1}
    status, _, err = run(train, outdir=tmp_path / "first", **flags)
    assert status == 0, err
    first = snapshot_of(tmp_path / "first")
    assert "-toy" in first.parent.name
    trained = snapshot.load_snapshot(first)
    assert type(trained["G_ema"]).__name__ == "ToyG" and type(trained["D"]).__name__ == "ToyD"

    status, out, err = run(train, outdir=tmp_path / "second", resume=first, seed=1, **flags)
    assert status == 0, err
    assert f"Resuming from {first}" in out

    status, _, err = run(generate, network=first, seeds="0-1", outdir=tmp_path / "images", device="cpu")
    assert status == 0, err
    images = [np.asarray(Image.open(tmp_path / "images" / f"seed000{seed}.png")) for seed in (0, 1)]
    assert images[0].shape == (16, 16) and not np.array_equal(*images)

    flags = {"network": first, "data": data, "metrics": "fid1k_full", "detector": "mnist", "device": "cpu"}
    status, out, err = run(calc_metrics, **flags)
    assert status == 0, err
    assert json.loads(out)["results"]["fid1k_full-mnist"] > 0

    status, _, err = run(style_mixing, network=first, rows="1", cols="2", styles="0", outdir=tmp_path / "mixed")
    assert status == 2 and "Style mixing needs a latent space w" in err


def test_resume_starts_from_the_weights_of_the_file(toy, run, tmp_path, monkeypatch):
    data = make_image_zip(tmp_path / "grey.zip", resolution=16, num_images=8, channels=1)
    shape = {"c_dim": 0, "img_resolution": 16, "img_channels": 1}
    nets = {name: families.class_of(f"Toy{name}")(**shape) for name in ("G", "D")}
    snapshot.save_snapshot(tmp_path / "start.pkl", {**nets, "G_ema": nets["G"]})
    trainers = []
    monkeypatch.setattr("training.training_loop.Trainer.run", lambda self, *_: trainers.append(self))
    flags = {"data": data, "cfg": "toy", "metrics": "none", "device": "cpu"}
    assert run(train, outdir=tmp_path / "runs", resume=tmp_path / "start.pkl", **flags)[0] == 0
    for name, tensor in nets["G"].state_dict().items():
        assert torch.equal(trainers[0].G.state_dict()[name], tensor)


def test_guidance_wraps_the_loss_of_the_family(toy, tmp_path):
    data = make_image_zip(tmp_path / "grey.zip", resolution=16, num_images=8, channels=1)
    shape = {"c_dim": 0, "img_resolution": 16, "img_channels": 1}
    snapshot.save_snapshot(tmp_path / "teacher.pkl", {"D": families.class_of("ToyD")(**shape)})
    _, made = build(data=str(data), cfg="toy", dgl_teacher=[str(tmp_path / "teacher.pkl")])
    assert made["loss_kwargs"]["class_name"] == "dgl.loss.DGLLoss"
    assert made["loss_kwargs"]["base_class"] == "tests.training.toy_family.ToyLoss"
    assert made["loss_kwargs"]["dgl_form"] == "logistic"


def test_names_are_not_shared_between_families(toy):
    with pytest.raises(ValueError, match="stylegan2 has Generator already"):
        families.register(type(TOY)(**{**vars(TOY), "name": "other", "generators": {"Generator": "x.Generator"}}))


def test_a_network_of_unknown_name_counts_as_stylegan2(toy):
    class Renamed(Generator):
        pass

    G = Renamed(4, 0, 4, 8, 1, synthesis_kwargs={"channel_max": 2})
    assert families.of(G).name == "stylegan2"
    families.require_w(G, "Projection")


def test_a_family_without_w_is_named(toy):
    G = families.class_of("ToyG")(c_dim=0, img_resolution=16, img_channels=1)
    assert families.of(G) is TOY
    with pytest.raises(UserError, match=r"Projection needs a latent space w, which a ToyG \(toy\) does not have"):
        families.require_w(G, "Projection")
