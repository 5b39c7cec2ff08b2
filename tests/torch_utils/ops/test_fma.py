# SPDX-License-Identifier: Apache-2.0
import itertools

import pytest
import torch

from tests import tolerances
from tests.support import rnd
from torch_utils.ops.fma import fma

SHAPES = [(2, 3, 4, 4), (2, 3, 1, 1), (2, 1, 4, 4), (4, 1), ()]
TOLERANCE = tolerances.FMA


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_equals_its_definition(dtype):
    for shapes in itertools.product(SHAPES, repeat=3):
        a, b, c = (rnd(name, shape).to(dtype) for name, shape in zip("abc", shapes))
        y = fma(a, b, c)
        expected = a.double() * b.double() + c.double()
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), expected, rtol=TOLERANCE[dtype], atol=2 * TOLERANCE[dtype])


@pytest.mark.parametrize("shapes", [SHAPES[:3], [SHAPES[3], SHAPES[0], SHAPES[4]]], ids=str)
def test_derivatives(shapes):
    tensors = [rnd(name, shape, torch.float64).requires_grad_() for name, shape in zip("abc", shapes)]
    assert torch.autograd.gradcheck(fma, tensors)
    assert torch.autograd.gradgradcheck(fma, tensors)
