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


def paired(a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    """How the results `b` differ from `a`, run by run: `a[i]` and `b[i]` share a seed.

    `difference`: the mean of b - a; `low`, `high`: its 95 % interval by Student's t; `p`: of the paired t-test,
    two-sided. All but `difference` are None for fewer than two pairs; all are NaN if a value is.
    """
    differences = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    n, mean = len(differences), float(np.mean(differences))
    if n < 2:
        return {"difference": mean, "low": None, "high": None, "p": None}
    error = float(np.std(differences, ddof=1)) / n**0.5
    reach = float(scipy.stats.t.ppf(1 - SIGNIFICANCE / 2, n - 1)) * error
    if error == 0:  # t is 0/0 or infinite
        p = 1.0 if mean == 0 else 0.0
    else:
        p = float(2 * scipy.stats.t.sf(abs(mean) / error, n - 1))
    return {"difference": mean, "low": mean - reach, "high": mean + reach, "p": p}


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values of several tests, adjusted so that all hold at once (Holm 1979); None and NaN are no tests and stay.

    The k-th smallest of m is multiplied by m - k + 1, is at least the ones before it, and at most 1.
    """
    adjusted = list(p_values)
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None and not np.isnan(p))
    smallest = 0.0
    for k, (p, i) in enumerate(order):
        smallest = max(smallest, min(p * (len(order) - k), 1.0))
        adjusted[i] = smallest
    return adjusted
