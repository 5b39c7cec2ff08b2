# SPDX-License-Identifier: Apache-2.0
"""Images of four channels and names of classes, from the dataset through a run to pictures, for both families."""

import contextlib
import io

import pytest
import torch
from PIL import Image

import generate
from dnnlib.util import EasyDict
from metrics import metric_main
from tests.metrics import stand_ins
from tests.scripts.conftest import run_script  # noqa: F401 (a fixture)
from tests.support import make_image_zip
from training import options
from training.export import export_network
from training.files import legacy
from training.files.snapshot import load_snapshot
from training.training_loop import training_loop

NAMES = ["Flags", "Food & Drink", "Objects"]
FLAGS = {
    "stylegan2": {"cfg": "cifar", "cbase": 0.005, "aug": "fixed", "p": 0.5, "augpipe": "bgcfnc"},
    "biggan": {"cfg": "biggan-auto", "ch": 2, "z_dim": 4, "d_steps": 1},
}


@pytest.fixture(scope="module", params=FLAGS)
def run_dir(request, tmp_path_factory):
    """The folder of a run of one iteration."""
    path = tmp_path_factory.mktemp("run")
    data = make_image_zip(path / "data.zip", 32, 12, 3, channels=4, class_names=NAMES)
    flags = {"cond": True, "batch": 4, "batch_gpu": 4, "metrics": [], "device": "cpu", **FLAGS[request.param]}
    made = options.build(data=str(data), **flags)[1]
    made |= {"total_kimg": 0.004, "kimg_per_tick": 0.004, "image_snapshot_ticks": 1, "network_snapshot_ticks": 1}
    with contextlib.redirect_stdout(io.StringIO()) as said:
        training_loop(**made | {"run_dir": str(path), "data_loader_kwargs": {"num_workers": 0}})
    assert "images [4, 32, 32], labels [3]\nClasses: 0 Flags, 1 Food & Drink, 2 Objects\n" in said.getvalue()
    return path


def test_grids_and_pictures_are_rgba(run_dir, run_script):  # noqa: F811
    for name in ("reals.png", "fakes000000.png"):
        with Image.open(run_dir / name) as grid:
            assert grid.mode == "RGBA"
    pkl = run_dir / "network-snapshot-000000.pkl"
    status, _, err, outdir = run_script(generate.main, network=pkl, seeds="1", **{"class": "Objects"})
    assert status == 0, err
    with Image.open(outdir / "seed0001.png") as picture:
        assert picture.mode == "RGBA" and picture.size == (32, 32)


def test_names_travel_with_the_networks(run_dir, tmp_path):
    pkl = str(run_dir / "network-snapshot-000000.pkl")
    snapshot = load_snapshot(pkl)
    assert snapshot.class_names == NAMES and "class_names" not in snapshot["training_set_kwargs"]
    export_network(pkl, str(tmp_path / "x.safetensors"), None)
    legacy.convert(str(tmp_path / "x.safetensors"), str(tmp_path / "y.pkl"))
    for name in ("x.safetensors", "y.pkl"):
        assert load_snapshot(tmp_path / name).class_names == NAMES


def test_metrics_see_rgba_on_white(run_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setitem(stand_ins.catalogue.METRICS, "fid50k_full", stand_ins.smaller("fid50k_full", num_fakes=20))
    detector = stand_ins.save_detector(stand_ins.Inception(), tmp_path / "detector.pt")
    G = load_snapshot(run_dir / "network-snapshot-000000.pkl")["G_ema"]
    data = {"class_name": "training.dataset.ImageFolderDataset", "path": str(run_dir / "data.zip"), "use_labels": True}
    result = metric_main.calc_metric(
        "fid50k_full", G=G, dataset_kwargs=EasyDict(data), detector=detector, device=torch.device("cpu")
    )
    assert result.results["fid50k_full-detector"] > 0
