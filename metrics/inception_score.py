# SPDX-License-Identifier: Apache-2.0
"""Inception score (Salimans et al. 2016, "Improved Techniques for Training GANs", section 4)."""

import itertools

import numpy as np
import scipy.special

from metrics import detectors, metric_utils


def inception_score(probs: np.ndarray, num_splits: int) -> tuple[float, float]:
    """Mean and standard deviation over `num_splits` consecutive parts of exp(E KL(p(y|x) ‖ p(y))), in float64.

    `probs` [n, classes]: class probabilities; probabilities of exactly 0 contribute 0. n must be >= `num_splits`.
    """
    probs = np.asarray(probs, dtype=np.float64)
    bounds = [len(probs) * i // num_splits for i in range(num_splits + 1)]
    scores = []
    for first, last in itertools.pairwise(bounds):
        part = probs[first:last]
        marginal = part.mean(axis=0, keepdims=True)
        scores.append(np.exp(scipy.special.rel_entr(part, marginal).sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def compute_is(opts: metric_utils.MetricOptions, num_gen: int, num_splits: int) -> tuple[float, float]:
    """Inception score (mean, std over splits) of `num_gen` fakes. NaN on ranks other than 0."""
    spec = detectors.resolve(opts.detector, "inception")
    detector = metric_utils.get_feature_detector(spec, opts.device, opts.num_gpus, opts.rank)
    kwargs = {"no_output_bias": True} if "no_output_bias" in detectors.accepted_arguments(detector) else {}
    fake = metric_utils.compute_feature_stats_for_generator(opts, spec, kwargs, max_items=num_gen, capture_all=True)
    if opts.rank != 0:
        return float("nan"), float("nan")
    return inception_score(fake.get_all(), num_splits)
