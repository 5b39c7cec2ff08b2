# SPDX-License-Identifier: Apache-2.0
"""The family interface: a third family, known only to this test, works with every tool unchanged."""

import dataclasses
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
from training.options import build
from training.training_loop import training_loop

SHAPE = {"c_dim": 0, "img_resolution": 16, "img_channels": 1}


@pytest.fixture
def toy():
    """The toy family is registered until the test ends."""
    families.register(TOY)
    yield
    families.unregister(TOY.name)


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
    resumed = snapshot.load_snapshot(snapshot_of(tmp_path / "second"))["G_ema"]
    assert not torch.equal(resumed.l0.weight, trained["G_ema"].l0.weight)

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
    nets = {name: families.class_of(f"Toy{name}")(**SHAPE) for name in ("G", "D")}
    snapshot.save_snapshot(tmp_path / "start.pkl", {**nets, "G_ema": nets["G"]})
    trainers = []
    monkeypatch.setattr("training.training_loop.Trainer.run", lambda self, *_: trainers.append(self))
    flags = {"data": data, "cfg": "toy", "metrics": "none", "device": "cpu"}
    assert run(train, outdir=tmp_path / "runs", resume=tmp_path / "start.pkl", **flags)[0] == 0
    for name, tensor in nets["G"].state_dict().items():
        assert torch.equal(trainers[0].G.state_dict()[name], tensor)


@pytest.mark.slow
def test_guidance_reaches_the_generator_of_the_family(toy, run, tmp_path):
    """The same run with a heavy teacher ends with other weights of G, and says so in its statistics."""
    data = make_image_zip(tmp_path / "grey.zip", resolution=16, num_images=8, channels=1)
    torch.manual_seed(1)
    snapshot.save_snapshot(tmp_path / "teacher.pkl", {"D": families.class_of("ToyD")(**SHAPE)})
    flags = {"data": data, "cfg": "toy", "aug": "noaug", "metrics": "none", "device": "cpu", "workers": 1}
    weights = []
    teacher = {"dgl_teacher": tmp_path / "teacher.pkl", "dgl_recipe": "paper", "dgl_weight": 1000}
    for guidance in ({}, teacher):
        outdir = tmp_path / f"runs{len(weights)}"
        status, _, err = run(train, outdir=outdir, **flags, **guidance)
        assert status == 0, err
        weights.append(snapshot.load_snapshot(snapshot_of(outdir))["G"].l0.weight)
        stats = json.loads((snapshot_of(outdir).parent / "stats.jsonl").read_text().splitlines()[-1])
        assert (stats.get("Loss/DGL/scores0", {"num": 0})["num"] > 0) == bool(guidance)
    assert not torch.equal(*weights)


@pytest.mark.parametrize(("flag", "value"), [("gamma", 1), ("freezed", 1), ("cbase", 0.5), ("fp32", 1), ("nhwc", 1)])
def test_flags_of_other_families_are_refused(toy, run, tmp_path, flag, value):
    data = make_image_zip(tmp_path / "grey.zip", resolution=16, num_images=8, channels=1)
    status, _, err = run(train, outdir=tmp_path / "runs", data=data, cfg="toy", metrics="none", **{flag: value})
    assert status == 2 and f"--{flag} has no meaning for the family toy" in err
    assert not (tmp_path / "runs").exists()


def test_presets_are_known_while_their_family_is(run, tmp_path):
    data = make_image_zip(tmp_path / "grey.zip", resolution=16, num_images=8, channels=1)
    status, _, err = run(train, outdir=tmp_path / "runs", data=data, cfg="toy", metrics="none")
    assert status == 2 and "'toy' is not one of auto, stylegan2" in err


def test_a_schedule_that_starts_without_real_images_is_refused(toy, run, tmp_path):
    data = make_image_zip(tmp_path / "grey.zip", resolution=16, num_images=8, channels=1)
    families.register(dataclasses.replace(TOY, phases=lambda *args: TOY.phases(*args)[::-1]))
    options = build(data=str(data), cfg="toy", aug="noaug", device="cpu", metrics=[])[1]
    with pytest.raises(ValueError, match="the first phase of the family toy must take fresh reals"):
        training_loop(run_dir=str(tmp_path), **{**options, "data_loader_kwargs": {}})


def test_names_are_not_shared_between_families(toy):
    with pytest.raises(ValueError, match="stylegan2 has Generator already"):
        families.register(type(TOY)(**{**vars(TOY), "name": "other", "generators": {"Generator": "x.Generator"}}))


def test_a_network_of_unknown_name_counts_as_stylegan2(toy):
    class Renamed(torch.nn.Module):
        pass

    G = Renamed()
    assert families.of(G).name == "stylegan2"
    families.require_w(G, "Projection")


def test_a_family_without_w_is_named(toy):
    class Renamed(families.class_of("ToyG")):
        pass

    G = families.class_of("ToyG")(**SHAPE)
    assert families.of(G) is TOY and families.of(Renamed(**SHAPE)) is TOY
    with pytest.raises(UserError, match=r"Projection needs a latent space w, which a ToyG \(toy\) does not have"):
        families.require_w(G, "Projection")
