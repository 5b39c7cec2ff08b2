# SPDX-License-Identifier: Apache-2.0
import os

import numpy as np
import pytest
import torch

from metrics.feature_stats import FeatureStats
from tests import tolerances
from tests.support import rnd


def test_mean_and_covariance_do_not_depend_on_the_batches():
    x = rnd("x", (100, 5)).numpy()
    stats = FeatureStats(capture_mean_cov=True)
    for batch in np.split(x, [1, 40, 41, 90]):
        stats.append(batch)
    mean, cov = stats.get_mean_cov()
    np.testing.assert_allclose(mean, x.mean(axis=0, dtype=np.float64), **tolerances.MEAN_COV)
    np.testing.assert_allclose(cov, np.cov(x.T.astype(np.float64), bias=True), **tolerances.MEAN_COV)
    assert mean.dtype == cov.dtype == np.float64 and stats.num_items == 100 and stats.num_features == 5


def test_a_large_mean_does_not_lose_accuracy():
    x = (rnd("x", (1000, 3)) + 4e4).numpy()
    stats = FeatureStats(capture_mean_cov=True)
    for batch in np.split(x, 50):
        stats.append(batch)
    exact = np.cov(x.T.astype(np.float64), bias=True)
    np.testing.assert_allclose(stats.get_mean_cov()[1], exact, rtol=0, atol=1e-10)


def test_items_beyond_the_limit_are_ignored():
    x = rnd("x", (10, 2))
    stats = FeatureStats(capture_all=True, capture_mean_cov=True, max_items=7)
    stats.append_torch(x[:4])
    assert not stats.is_full()
    stats.append_torch(x[4:])
    stats.append_torch(x)
    assert stats.is_full() and stats.num_items == 7
    assert torch.equal(stats.get_all_torch(), x[:7])
    np.testing.assert_allclose(stats.get_mean_cov()[0], x[:7].double().mean(dim=0).numpy(), rtol=1e-12)


@pytest.mark.parametrize("settings", [{"capture_all": True}, {"capture_mean_cov": True, "max_items": 8}])
def test_saved_statistics_can_be_loaded_and_extended(tmp_path, settings):
    path = str(tmp_path / "stats.npz")
    x = rnd("x", (10, 2)).numpy()
    whole, part = FeatureStats(**settings), FeatureStats(**settings)
    whole.append(x[:5])
    whole.append(x[5:])
    part.append(x[:5])
    part.save(path)
    loaded = FeatureStats.load(path)
    loaded.append(x[5:])
    assert (loaded.num_items, loaded.max_items) == (whole.num_items, whole.max_items)
    if "capture_all" in settings:
        np.testing.assert_array_equal(loaded.get_all(), x)
    else:
        np.testing.assert_array_equal(loaded.get_mean_cov()[1], whole.get_mean_cov()[1])
    assert os.listdir(tmp_path) == ["stats.npz"]
