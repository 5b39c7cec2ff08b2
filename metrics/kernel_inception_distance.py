# SPDX-License-Identifier: Apache-2.0
"""Kernel inception distance (Binkowski et al. 2018, "Demystifying MMD GANs", section 4).

Legend: d feature dimensions.
"""

import numpy as np

from dnnlib.util import UserError
from metrics import metric_utils


def polynomial_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(x·y/d + 1)³ for all pairs of rows: [n, d], [m, d] -> [n, m]."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy of two sets of the same size m >= 2, [m, d] each (eq. 4)."""
    m = len(x)
    within = 0.0
    for points in (x, y):
        kernel = polynomial_kernel(points, points)
        within += (kernel.sum() - np.trace(kernel)) / (m * (m - 1))
    return float(within - 2 * polynomial_kernel(x, y).mean())


def kernel_distance(
    real: np.ndarray, fake: np.ndarray, num_subsets: int, max_subset_size: int, rng: np.random.RandomState
) -> float:
    """Mean `squared_mmd` over `num_subsets` random subsets of `real` [n, d] and `fake` [m, d], in float64.

    For each subset `rng` draws the fakes first, then the reals, both without replacement.
    Raises UserError for fewer than 2 items on either side.
    """
    size = min(len(real), len(fake), max_subset_size)
    if size < 2:
        raise UserError(
            f"KID needs at least 2 images on each side, got {len(real)} reals (--data) and {len(fake)} fakes."
        )
    total = 0.0
    for _ in range(num_subsets):
        fake_subset = fake[rng.choice(len(fake), size, replace=False)].astype(np.float64)
        real_subset = real[rng.choice(len(real), size, replace=False)].astype(np.float64)
        total += squared_mmd(fake_subset, real_subset)
    return total / num_subsets


def compute_kid(
    opts: metric_utils.MetricOptions, max_real: int, num_gen: int, num_subsets: int, max_subset_size: int
) -> float:
    """KID of `num_gen` fakes against at most `max_real` reals; `opts.seed` draws the subsets. NaN on ranks but 0."""
    real, fake = metric_utils.compute_feature_stats_of_both(opts, "inception", max_real, num_gen, capture_all=True)
    if opts.rank != 0:
        return float("nan")
    rng = np.random.RandomState(opts.seed)
    return kernel_distance(real.get_all(), fake.get_all(), num_subsets, max_subset_size, rng)
