# SPDX-License-Identifier: Apache-2.0
import random

import numpy as np
import pytest
import torch

from training import randomness


def draws(*place: int) -> list[float]:
    randomness.seed(*place)
    return [torch.rand([]).item(), np.random.rand(), random.random()]


@pytest.mark.parametrize("has_accelerator", [True, False])
def test_draws_depend_on_the_place_only(monkeypatch, has_accelerator):
    expected = draws(1, 2, 3)
    monkeypatch.setattr(randomness, "_has_accelerator", lambda: has_accelerator)
    assert draws(1, 2, 3) == expected
    assert not set(draws(1, 2, 4)) & set(expected)
