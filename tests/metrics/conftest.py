# SPDX-License-Identifier: Apache-2.0
"""Every test here gets a separate cache folder."""

import pytest

from metrics import catalogue
from tests.metrics import stand_ins


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def own_metrics(monkeypatch):
    """Metrics registered in the test exist only there."""
    monkeypatch.setattr(catalogue, "METRICS", dict(catalogue.METRICS))


@pytest.fixture
def options(tmp_path):
    """Arguments of calc_metric: a conditional network, 30 images and a detector."""
    data = stand_ins.write_zip(tmp_path / "data.zip", stand_ins.make_images(30), [i % 2 for i in range(30)])
    return {
        "G": stand_ins.tiny_generator(c_dim=2),
        "dataset_kwargs": stand_ins.dataset_options(data, use_labels=True, max_size=20, xflip=True),
        "device": "cpu",
        "detector": stand_ins.save_detector(stand_ins.Inception(), tmp_path / "digits.pt"),
    }
