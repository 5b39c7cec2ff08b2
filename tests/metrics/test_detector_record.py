# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest
import torch

from dnnlib.util import UserError
from metrics import detector_record, detectors, small_detector


@pytest.fixture
def features():
    """Features [90, 5] of three classes around different means, and the classes."""
    rng = np.random.RandomState(0)
    seen = np.repeat([0, 1, 3], [20, 30, 40])
    return rng.randn(90, 5) + 10 * seen[:, None], seen


def record(features, seen):
    return detector_record.Record("toy", [1, 8, 8], 90, 4, 0.5, 10, **detector_record.statistics(features, seen, 4))


def test_the_mixture_in_the_proportions_of_the_data_has_its_mean_and_covariance(features):
    mean, cov = record(*features).mixture(np.array([20, 30, 0, 40]) / 90)
    np.testing.assert_allclose(mean, features[0].mean(0), rtol=1e-5)
    np.testing.assert_allclose(cov, np.cov(features[0].T, bias=True), rtol=1e-4)


def test_a_single_class(features):
    only = features[0][features[1] == 3]
    mean, cov = record(*features).mixture(np.array([0, 0, 0, 1]))
    np.testing.assert_allclose(mean, only.mean(0), rtol=1e-5)
    np.testing.assert_allclose(cov, np.cov(only.T, bias=True), rtol=1e-3, atol=1e-4)


def test_the_bound_is_half_the_scatter_within_classes(features):
    assert record(*features).bound == pytest.approx(5 / 2, rel=0.2)


@pytest.mark.parametrize(
    "changes",
    [
        *({"bound": "1"}, {"bound": float("nan")}, {"bound": 0}, {"classes": 3}, {"classes": "2"}, {"dataset": None}),
        *({"image_shape": [2, 8, 8]}, {"image_shape": 3}, {"image_shape": [1, -8, 8]}, {"num_images": []}),
    ],
    ids=repr,
)
def test_a_record_whose_values_do_not_fit_is_refused(features, changes):
    changed = dataclasses.replace(record(*features), **changes)
    with pytest.raises((ValueError, TypeError)):
        detector_record.from_files(detector_record.to_files(changed))


@pytest.mark.parametrize("change", [{"record.npz": b""}, {"record.json": b"{}"}, {"record.json": b"\xff"}])
def test_a_damaged_record_is_refused_in_one_sentence(features, change, tmp_path, monkeypatch):
    files = {**detector_record.to_files(record(*features)), **change}
    monkeypatch.setattr(detector_record, "to_files", lambda _: files)
    (tmp_path / "net.pt").write_bytes(small_detector.export(small_detector.SmallNet(width=16), record(*features)))
    detectors.trust(str(tmp_path / "net.pt"))
    with pytest.raises(UserError, match=r"net\.pt has a damaged record.*--detector"):
        detectors.load(str(tmp_path / "net.pt"), torch.device("cpu"))
