# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from dnnlib.util import UserError
from metrics.kernel_inception_distance import compute_kid, kernel_distance, squared_mmd
from metrics.metric_utils import MetricOptions
from tests import tolerances
from tests.metrics import stand_ins
from tests.support import golden_json, rnd


def test_golden_kid():
    golden = golden_json("metrics")["kid"]
    real = rnd("real_feat", (300, 24)).numpy()[:295]
    fake = (rnd("gen_feat", (280, 24)) * 1.2 + 0.3).numpy()[:275]
    rng = np.random.RandomState(golden["seed"])
    value = kernel_distance(real, fake, golden["num_subsets"], golden["max_subset_size"], rng)
    # The golden number was computed in float32.
    assert value == pytest.approx(golden["value"], rel=tolerances.KID_GOLDEN)


def test_squared_mmd_is_the_sum_over_distinct_pairs():
    x, y = rnd("x", (5, 3)).double().numpy(), rnd("y", (5, 3)).double().numpy()

    def kernel(a, b):
        return (a @ b / 3 + 1) ** 3

    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    within = np.mean([kernel(x[i], x[j]) + kernel(y[i], y[j]) for i, j in pairs])
    between = np.mean([kernel(a, b) for a in x for b in y])
    assert squared_mmd(x, y) == pytest.approx(within - 2 * between, rel=tolerances.KID_DEFINITION)


def test_subsets_are_no_larger_than_the_smaller_side():
    real, fake = rnd("real", (7, 3)).numpy(), rnd("fake", (500, 3)).numpy()
    value = kernel_distance(real, fake, 1, 1000, np.random.RandomState(3))
    rng = np.random.RandomState(3)
    chosen = fake[rng.choice(500, 7, replace=False)].astype(np.float64)
    assert value == pytest.approx(squared_mmd(chosen, real.astype(np.float64)), rel=1e-9)


def test_one_image_is_too_few():
    with pytest.raises(UserError, match=r"at least 2 images.*--data"):
        kernel_distance(np.ones((1, 3)), np.ones((9, 3)), 1, 10, np.random.RandomState(0))


def test_compute_kid_depends_on_the_seed_alone(tmp_path):
    detector = stand_ins.save_detector(stand_ins.Inception(), tmp_path / "d.pt")
    data = stand_ins.write_zip(tmp_path / "data.zip", stand_ins.make_images(20))
    common = {
        "G": stand_ins.tiny_generator(),
        "dataset_kwargs": stand_ins.dataset_options(data),
        "device": "cpu",
        "detector": detector,
    }

    def kid(seed):
        return compute_kid(MetricOptions(**common, seed=seed), 1000, 50, num_subsets=3, max_subset_size=10)

    assert kid(0) == kid(0) != kid(1)
