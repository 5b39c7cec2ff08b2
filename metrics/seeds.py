# SPDX-License-Identifier: Apache-2.0
"""Results of runs that differ in their seeds: mean, deviation, and whether two settings differ by more than noise."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats

SIGNIFICANCE = 0.05


def summarise(values: Sequence[float]) -> dict[str, float | None]:
    """`mean` and sample standard deviation `std`, None for a single value."""
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1 else None}


def difference(a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    """How the results `b` differ from `a`: `difference` of the means, `p` of Welch's test, `within_noise`.

    `p` and `within_noise` are None if either has fewer than two values. NaN, from a diverged run, is not within noise.
    """
    p = float(scipy.stats.ttest_ind(a, b, equal_var=False).pvalue) if min(len(a), len(b)) > 1 else None
    within_noise = None if p is None else p > SIGNIFICANCE
    return {"difference": float(np.mean(b)) - float(np.mean(a)), "p": p, "within_noise": within_noise}
