# SPDX-License-Identifier: Apache-2.0
"""train.py with files of another project in place of training/dataset.py and training/loss.py."""

import json
import sys
import types

import pytest

import train
import training
from dnnlib.util import UserError
from tests.metrics import stand_ins
from tests.support import make_image_zip
from tests.training import other_projects, plain_dataset
from training.files.snapshot import load_snapshot
from training.options import build


@pytest.fixture
def replace(monkeypatch):
    """`replace("dataset", module)`: put a module in the place of `training.dataset`."""

    def put(name, module):
        monkeypatch.setitem(sys.modules, f"training.{name}", module)
        monkeypatch.setattr(training, name, module, raising=False)

    return put


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(make_image_zip(tmp_path_factory.mktemp("data") / "toy.zip", resolution=16, num_images=12, num_labels=3))


@pytest.mark.parametrize(
    "flags", [{}, {"cond": True}, {"subset": 5, "seed": 3}, {"mirror": True}, {"subset": 12, "mirror": True}], ids=str
)
def test_another_dataset_gives_the_same_options(flags, data, replace):
    expected = build(data=data, **flags)
    replace("dataset", plain_dataset)
    assert build(data=data, **flags) == expected
    with pytest.raises(UserError, match="--subset must be between 1 and 12"):
        build(data=data, **{**flags, "subset": 13})


def test_what_another_dataset_refuses_is_a_user_error(data, replace):
    replace("dataset", plain_dataset)
    with pytest.raises(UserError, match=r"--data=.*none\.zip cannot be used: Path must point to a zip"):
        build(data=f"{data}.none.zip")


@pytest.mark.slow
def test_a_run_with_another_dataset_and_loss(data, replace, run_script, tmp_path):
    loss = types.ModuleType("training.loss")
    loss.Loss, loss.StyleGAN2Loss = other_projects.Loss, other_projects.LossOfItsOwn
    replace("dataset", plain_dataset)
    replace("loss", loss)
    small = {"kimg": 1, "batch": 256, "cbase": 0.01, "z_dim": 8, "w_dim": 8, "workers": 1, "metrics": "fid1k_full"}
    detector = stand_ins.save_detector(stand_ins.Inception(), tmp_path / "small.pt")
    status, out, err, outdir = run_script(train.main, data=data, cond=1, mirror=1, detector=detector, **small)
    assert status == 0, err
    assert "Training set: 24 images [3, 16, 16], labels [3]" in out
    (run_dir,) = outdir.iterdir()
    assert load_snapshot(run_dir / "network-snapshot-000001.pkl")["G_ema"].c_dim == 3
    (metric,) = map(json.loads, (run_dir / "metric-fid1k_full-small.jsonl").read_text().splitlines())
    assert metric["results"]["fid1k_full-small"] > 0
