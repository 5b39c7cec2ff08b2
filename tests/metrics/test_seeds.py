# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import scipy.stats

from metrics import seeds


def test_mean_and_sample_deviation():
    assert seeds.summarise([60.0, 64.0, 68.0]) == {"mean": 64.0, "std": 4.0}
    assert seeds.summarise([5.0]) == {"mean": 5.0, "std": None}


def test_the_difference_is_that_of_the_second_to_the_first():
    found = seeds.difference([60.0, 64.0, 68.0], [81.0, 89.0, 85.0])
    assert found["difference"] == 21 and found["within_noise"] is False
    t = 21 / math.sqrt(16 / 3 + 16 / 3)  # with 4 degrees of freedom, as the deviations are equal
    s = t / math.sqrt(4 + t**2)
    assert found["p"] == pytest.approx(1 - s * (3 - s**2) / 2)


@pytest.mark.parametrize(("other", "within"), [([61.0, 69.0, 65.0], True), ([math.nan, 60.0], False), ([64.0], None)])
def test_what_is_within_the_noise(other, within):
    assert seeds.difference([60.0, 64.0, 68.0], other)["within_noise"] is within


def test_paired_results_compare_run_by_run():
    a, b = [1.0, 2.0, 3.0, 4.0], [1.5, 2.1, 3.6, 4.8]  # differences 0.5, 0.1, 0.6, 0.8
    found = seeds.paired(a, b)
    error = math.sqrt(0.26 / 3 / 4)  # their squared deviations from 0.5 sum to 0.26
    assert found["difference"] == pytest.approx(0.5)
    # 3.182446 is the 97.5 % quantile of Student's t with 3 degrees of freedom.
    assert (found["low"], found["high"]) == pytest.approx((0.5 - 3.182446 * error, 0.5 + 3.182446 * error), abs=1e-6)
    assert found["p"] == pytest.approx(scipy.stats.ttest_rel(b, a).pvalue)


def test_pairs_that_cannot_be_tested():
    assert seeds.paired([2.0], [3.0]) == {"difference": 1.0, "low": None, "high": None, "p": None}
    assert all(math.isnan(value) for value in seeds.paired([1.0, 2.0], [math.nan, 3.0]).values())
    assert seeds.paired([1.0, 2.0], [1.0, 2.0])["p"] == 1
    assert seeds.paired([1.0, 2.0], [2.0, 3.0])["p"] == 0


def test_holm_multiplies_by_the_tests_that_are_left_and_keeps_the_order():
    found = seeds.holm([0.04, None, 0.01, 0.03, math.nan])
    assert found[:4] == [pytest.approx(0.06), None, pytest.approx(0.03), pytest.approx(0.06)]
    assert math.isnan(found[4])
    assert seeds.holm([0.9, 0.8]) == [1, 1]
