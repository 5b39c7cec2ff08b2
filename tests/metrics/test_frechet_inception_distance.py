# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import scipy.linalg

from metrics.frechet_inception_distance import compute_fid, frechet_distance
from metrics.metric_utils import MetricOptions
from tests import tolerances
from tests.metrics import stand_ins
from tests.metrics.stand_ins import mean_and_covariance
from tests.support import golden_json, rnd


def test_golden_fid():
    golden = golden_json("metrics")
    real = mean_and_covariance(rnd("real_feat", (300, 24)).numpy()[:295])
    fake = mean_and_covariance((rnd("gen_feat", (280, 24)) * 1.2 + 0.3).numpy()[:275])
    np.testing.assert_allclose(real[0], golden["mean_real"], rtol=0, atol=1e-14)
    assert np.trace(real[1]) == pytest.approx(golden["cov_real_trace"], rel=1e-12)
    assert frechet_distance(*fake, *real) == pytest.approx(golden["fid"], rel=tolerances.FID_GOLDEN)


def test_agrees_with_the_eigenvalues_of_the_product_of_covariances():
    seed = np.random.SeedSequence().entropy
    print("seed", seed)
    rng = np.random.default_rng(seed)
    mean1, cov1 = mean_and_covariance(rng.standard_normal((200, 30)) @ rng.standard_normal((30, 30)) + 3)
    mean2, cov2 = mean_and_covariance(rng.standard_normal((150, 30)) @ rng.standard_normal((30, 30)))
    roots = np.sqrt(scipy.linalg.eigvals(cov1 @ cov2).real.clip(0))
    expected = np.sum((mean1 - mean2) ** 2) + np.trace(cov1) + np.trace(cov2) - 2 * roots.sum()
    assert frechet_distance(mean1, cov1, mean2, cov2) == pytest.approx(expected, rel=1e-9)


def test_diagonal_gaussians_have_a_closed_form():
    a, b = np.array([1.0, 4.0, 9.0]), np.array([4.0, 4.0, 0.0])
    distance = frechet_distance(np.zeros(3), np.diag(a), np.array([1.0, 0, 0]), np.diag(b))
    assert distance == pytest.approx(1 + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2), rel=tolerances.FID_CLOSED_FORM)


def test_fewer_items_than_dimensions_do_not_lose_accuracy():
    features = rnd("few", (20, 200)).numpy()
    stats = mean_and_covariance(features)
    # Shifting the whole set changes only the mean: the distance is the squared length of the shift.
    shifted = mean_and_covariance(features.astype(np.float64) + 0.01)
    assert frechet_distance(*stats, *shifted) == pytest.approx(200 * 0.01**2, rel=1e-9)
    assert frechet_distance(*stats, *stats) == pytest.approx(0, abs=1e-11 * np.trace(stats[1]))


def test_few_items_against_many_agree_with_the_data_themselves():
    few, many = (rnd(key, (n, 200)).double().numpy() * 3 for key, n in [("few", 20), ("many", 500)])
    (mean1, cov1), (mean2, cov2) = mean_and_covariance(few), mean_and_covariance(many)
    # tr (Σ1Σ2)^½ from the centred data: without a covariance there are no rounded zero eigenvalues.
    overlap = np.linalg.svd((few - mean1) @ (many - mean2).T, compute_uv=False).sum() / np.sqrt(20 * 500)
    expected = np.sum((mean1 - mean2) ** 2) + np.trace(cov1) + np.trace(cov2) - 2 * overlap
    assert frechet_distance(mean1, cov1, mean2, cov2) == pytest.approx(expected, rel=tolerances.FID_CLOSED_FORM)


def test_sets_in_orthogonal_subspaces_add_their_traces():
    features = rnd("orthogonal", (50, 6)).numpy()
    left, right = np.pad(features, ((0, 0), (0, 6))), np.pad(features, ((0, 0), (6, 0)))
    (mean1, cov1), (mean2, cov2) = mean_and_covariance(left), mean_and_covariance(right)
    expected = np.sum((mean1 - mean2) ** 2) + np.trace(cov1) + np.trace(cov2)
    assert frechet_distance(mean1, cov1, mean2, cov2) == pytest.approx(expected, rel=tolerances.FID_CLOSED_FORM)


def test_constant_images_on_both_sides():
    assert frechet_distance(np.zeros(3), np.zeros((3, 3)), np.ones(3), np.zeros((3, 3))) == 3


def test_compute_fid_from_images(tmp_path):
    detector = stand_ins.save_detector(stand_ins.Inception(), tmp_path / "d.pt")
    data = stand_ins.write_zip(tmp_path / "data.zip", stand_ins.make_images(40))
    opts = MetricOptions(
        G=stand_ins.tiny_generator(), dataset_kwargs=stand_ins.dataset_options(data), device="cpu", detector=detector
    )
    all_reals, fewer_reals = compute_fid(opts, max_real=None, num_gen=100), compute_fid(opts, max_real=20, num_gen=100)
    assert 0 < all_reals < np.inf and all_reals != fewer_reals
