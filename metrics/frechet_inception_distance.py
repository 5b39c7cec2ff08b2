# SPDX-License-Identifier: Apache-2.0
"""Fréchet inception distance (Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", section 3, eq. 6).

Legend: d feature dimensions.
"""

import numpy as np
import scipy.linalg

from metrics import metric_utils


def _factor(cov: np.ndarray) -> np.ndarray:
    """F [d, rank] with F Fᵀ = cov, without the directions that are zero up to rounding."""
    values, vectors = scipy.linalg.eigh(cov)
    kept = values > max(values[-1], 0) * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])


def frechet_distance(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """‖μ1-μ2‖² + tr(Σ1 + Σ2 - 2(Σ1Σ2)^½) of two Gaussians, in float64.

    tr (Σ1Σ2)^½ is the sum of the singular values of F1ᵀF2 with Σi = Fi Fiᵀ. This takes no square root of a number
    that is mostly rounding error, so the result is accurate for singular covariances (fewer items than dimensions).
    """
    mean1, cov1, mean2, cov2 = (np.asarray(a, dtype=np.float64) for a in (mean1, cov1, mean2, cov2))
    overlap = _factor(cov1).T @ _factor(cov2)
    trace_sqrt = scipy.linalg.svdvals(overlap).sum() if overlap.size else 0.0
    offset = mean1 - mean2
    return float(offset @ offset + np.trace(cov1) + np.trace(cov2) - 2 * trace_sqrt)


def compute_fid(opts: metric_utils.MetricOptions, max_real: int | None, num_gen: int) -> float:
    """FID of `num_gen` fakes against at most `max_real` reals (None: all). NaN on ranks other than 0."""
    real, fake = metric_utils.compute_feature_stats_of_both(opts, "inception", max_real, num_gen, capture_mean_cov=True)
    if opts.rank != 0:
        return float("nan")
    return frechet_distance(*fake.get_mean_cov(), *real.get_mean_cov())
