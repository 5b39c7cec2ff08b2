# SPDX-License-Identifier: Apache-2.0
import math

import pytest

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
