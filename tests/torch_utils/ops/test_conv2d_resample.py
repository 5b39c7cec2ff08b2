# SPDX-License-Identifier: Apache-2.0
import itertools

import pytest
import torch
import torch.nn.functional as F

from tests import tolerances
from tests.support import rnd
from torch_utils.ops.conv2d_resample import conv2d_resample
from torch_utils.ops.upfirdn2d import setup_filter

FILTERS = {"none": None, "4x4": setup_filter([1, 3, 3, 1]), "3x2": rnd("taps", (2, 3)), "8": rnd("taps", (8,))}
TOLERANCE = tolerances.CONV2D_RESAMPLE


def stuff(x, up):
    y = x.new_zeros([*x.shape[:2], x.shape[2] * up, x.shape[3] * up])
    y[:, :, ::up, ::up] = x
    return y


def fir(x, f, flip_filter):
    C = x.shape[1]
    f = f if flip_filter else f.flip([0, 1])
    return F.conv2d(x, f.expand(C, 1, -1, -1), groups=C)


def naive(x, w, f, up, down, padding, groups, flip_weight, flip_filter):
    """The definition with every step spelled out, in float64."""
    x, w = x.double(), w.double()
    f = torch.ones(1, 1).double() if f is None else f.double()
    f = torch.outer(f, f) if f.ndim == 1 else f
    fh, fw = f.shape
    padding = [padding] * 4 if isinstance(padding, int) else padding
    padding = padding if len(padding) == 4 else [padding[0], padding[0], padding[1], padding[1]]
    sides = list(padding)
    for i, n in ((0, fw), (2, fh)):
        if up > 1:
            sides[i], sides[i + 1] = sides[i] + (n + up - 1) // 2, sides[i + 1] + (n - up) // 2
        if down > 1:
            sides[i], sides[i + 1] = sides[i] + (n - down + 1) // 2, sides[i + 1] + (n - down) // 2
    x = F.pad(stuff(x, up), sides)
    x = fir(x, f, flip_filter) * up**2 if up > 1 else x
    x = F.conv2d(x, w if flip_weight else w.flip([2, 3]), groups=groups)
    return fir(x, f, flip_filter)[:, :, ::down, ::down] if down > 1 else x


def check(x, w, *args, **kwargs):
    y = conv2d_resample(x, w, *args, **kwargs)
    expected = naive(x, w, *args, **kwargs)
    assert y.dtype == x.dtype
    tolerance = TOLERANCE[x.dtype]
    scale = max(1, expected.abs().max().item())
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 3), (5, 4)], ids=str)
def test_equals_its_definition(kernel, name):
    sizes = [(1, 1), (2, 1), (1, 2), (3, 1), (1, 3), (2, 2), (2, 3), (3, 2)]
    paddings = [2, [1, 3], [4, 1, 2, 3], [-1, 2, 0, -2]]
    flips = itertools.cycle(itertools.product((False, True), (False, True), (1, 2)))
    for (up, down), padding in itertools.product(sizes, paddings):
        for flip_weight, flip_filter, groups in itertools.islice(flips, 3):
            x = rnd("x", (2, 4, 9, 10), torch.float64)
            w = rnd("w", (6, 4 // groups, *kernel), torch.float64)
            check(x, w, FILTERS[name], up, down, padding, groups, flip_weight=flip_weight, flip_filter=flip_filter)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_types_and_layouts(dtype, layout):
    for (up, down), size in itertools.product(((1, 1), (2, 1), (1, 2)), (1, 3)):
        x = rnd("x", (2, 16, 7, 8)).to(dtype).to(memory_format=layout)
        w = (rnd("w", (8, 16, size, size)) / 4).to(dtype).to(memory_format=layout)
        check(x, w, FILTERS["4x4"], up, down, size // 2, 1, True, False)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("up, down", [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_derivatives(size, up, down):
    x = rnd("x", (1, 2, 4, 4), torch.float64).requires_grad_()
    w = rnd("w", (2, 1, size, size), torch.float64).requires_grad_()

    def func(x, w):
        return conv2d_resample(x, w, FILTERS["4x4"], up, down, size // 2, groups=2, flip_weight=up == 1)

    assert torch.autograd.gradcheck(func, (x, w))
    assert torch.autograd.gradgradcheck(func, (x, w))


@pytest.mark.parametrize(
    "kwargs, words",
    [
        ({"x": torch.zeros(4, 8, 8)}, "four axes"),
        ({"up": 0}, "up"),
        ({"down": 1.5}, "down"),
        ({"groups": 2}, "4 input channels"),
        ({"w": torch.zeros(5, 2, 3, 3), "groups": 2}, "2 group"),
        ({"padding": [1, 2, 3]}, "padding"),
        ({"f": [1, 3, 3, 1], "up": 2}, "setup_filter"),
    ],
    ids=str,
)
def test_refuses_what_does_not_fit(kwargs, words):
    kwargs = {"x": torch.zeros(1, 4, 8, 8), "w": torch.zeros(6, 4, 3, 3), **kwargs}
    with pytest.raises(ValueError, match=words):
        conv2d_resample(**kwargs)
