# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from metrics.inception_score import compute_is, inception_score
from metrics.metric_utils import LatentSampler, MetricOptions
from tests import tolerances
from tests.metrics import stand_ins
from tests.support import golden_json, rnd
from torch_utils import images


def test_golden_inception_score():
    golden = golden_json("metrics")["inception_score"]
    probs = rnd("probs", (200, 10)).exp()
    mean, std = inception_score((probs / probs.sum(dim=1, keepdim=True)).numpy(), golden["num_splits"])
    # The golden numbers were computed in float32.
    assert mean == pytest.approx(golden["mean"], rel=tolerances.INCEPTION_SCORE[0])
    assert std == pytest.approx(golden["std"], rel=tolerances.INCEPTION_SCORE[1])


def test_sure_and_balanced_classes_score_their_number():
    mean, std = inception_score(np.tile(np.eye(4), (10, 1)), num_splits=10)
    assert (mean, std) == (pytest.approx(4), pytest.approx(0))


def test_equal_probabilities_score_one():
    assert inception_score(np.full((20, 4), 0.25), num_splits=2) == (pytest.approx(1), pytest.approx(0))


@pytest.mark.parametrize(
    ("module", "switch"), [(stand_ins.Inception(), {"no_output_bias": True}), (stand_ins.PlainClassifier(), {})]
)
def test_compute_is_disables_the_output_bias_if_the_detector_has_one(tmp_path, module, switch):
    detector = stand_ins.save_detector(module, tmp_path / "d.pt")
    G = stand_ins.tiny_generator()
    opts = MetricOptions(G=G, G_kwargs={"noise_mode": "const"}, device="cpu", detector=detector)
    z, c = LatentSampler(opts, G).items(100)
    probs = module(images.to_uint8(G(z, c, noise_mode="const")), **switch)
    assert compute_is(opts, num_gen=100, num_splits=10) == pytest.approx(inception_score(probs.numpy(), 10), rel=1e-5)
