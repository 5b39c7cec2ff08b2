# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest
import torch
from scipy import signal

from tests import tolerances
from tests.support import rnd
from torch_utils.ops import upfirdn2d as ops
from torch_utils.ops.upfirdn2d import setup_filter, upfirdn2d

TOLERANCE = tolerances.UPFIRDN2D


def naive(x, f, up, down, padding, flip_filter, gain):
    """The definition, step by step: stuff with zeros, pad or crop, convolve, decimate, scale."""
    up_x, up_y = (up, up) if isinstance(up, int) else up
    down_x, down_y = (down, down) if isinstance(down, int) else down
    padding = [padding] * 2 if isinstance(padding, int) else padding
    x0, x1, y0, y1 = padding if len(padding) == 4 else (padding[0], padding[0], padding[1], padding[1])
    x = x.double().numpy()
    f = np.ones([1, 1]) if f is None else f.double().numpy()
    f = np.outer(f, f) if f.ndim == 1 else f
    f = f[::-1, ::-1] if flip_filter else f
    N, C, H, W = x.shape
    stuffed = np.zeros([N, C, H * up_y, W * up_x])
    stuffed[:, :, ::up_y, ::up_x] = x
    padded = np.pad(stuffed, [(0, 0), (0, 0), (max(y0, 0), max(y1, 0)), (max(x0, 0), max(x1, 0))])
    padded = padded[:, :, max(-y0, 0) : padded.shape[2] - max(-y1, 0), max(-x0, 0) : padded.shape[3] - max(-x1, 0)]
    planes = [signal.convolve2d(plane, f, mode="valid") for plane in padded.reshape(N * C, *padded.shape[2:])]
    y = np.stack(planes).reshape(N, C, *planes[0].shape)
    return torch.as_tensor(y[:, :, ::down_y, ::down_x].copy() * gain)


def check(y, x, *args):
    tolerance = TOLERANCE[x.dtype]
    expected = naive(x, *args)
    assert y.dtype == x.dtype
    scale = max(1, expected.abs().max().item())
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance * scale)


FILTERS = {
    "none": None,
    "1x1": torch.tensor([[0.7]]),
    "4": setup_filter([1, 3, 3, 1], separable=True),
    "12": rnd("taps", (12,)),
    "3x2": rnd("taps", (2, 3)),
    "4x4": setup_filter([1, 3, 3, 1]),
}
SIZES = [(1, 1), (2, 1), (1, 2), (2, 3), ((2, 3), (3, 1)), ((1, 2), 1), (1, (1, 2))]
PADDINGS = [6, [12, 11], [11, 13, 14, 11], [12, -1, 13, -2]]


@pytest.mark.parametrize("channels", [3, 17])
@pytest.mark.parametrize("name", FILTERS)
def test_equals_its_definition(name, channels):
    for (up, down), padding, flip_filter in itertools.product(SIZES, PADDINGS, (False, True)):
        x = rnd("x", (2, channels, 7, 5))
        args = (FILTERS[name], up, down, padding, flip_filter, 1.5)
        check(upfirdn2d(x, *args), x, *args)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_types_and_layouts(dtype, layout):
    for channels, (up, down) in itertools.product((1, 3, 24), ((1, 1), (2, 1), (1, 2), (3, 2))):
        for name in ("none", "4", "4x4", "3x2"):
            x = rnd("x", (2, channels, 9, 6)).to(dtype).to(memory_format=layout)
            args = (FILTERS[name], up, down, [3, 1, 2, 2], False, 4)
            check(upfirdn2d(x, *args), x, *args)


def test_keeps_channels_last_where_there_are_many_channels():
    x = rnd("x", (2, 32, 8, 8)).to(memory_format=torch.channels_last)
    for y in (ops.upsample2d(x, FILTERS["4x4"]), ops.downsample2d(x, FILTERS["4x4"])):
        assert y.is_contiguous(memory_format=torch.channels_last)


def test_crops_to_less_than_the_image():
    x = rnd("x", (1, 2, 12, 10))
    for name, up in itertools.product(("none", "4x4", "4"), (1, 2)):
        args = (FILTERS[name], up, 1, -3, False, 1)
        check(upfirdn2d(x, *args), x, *args)


@pytest.mark.parametrize("name", ["none", "4", "3x2"])
@pytest.mark.parametrize("up, down", [(1, 1), (2, 1), (1, 2), ([2, 3], [3, 2])], ids=str)
def test_derivatives(name, up, down):
    x = rnd("x", (1, 1, 4, 5), torch.float64).requires_grad_()

    def func(x):
        return upfirdn2d(x, FILTERS[name], up, down, [2, 1, -1, 3], gain=2)

    assert torch.autograd.gradcheck(func, x)
    assert torch.autograd.gradgradcheck(lambda x: func(x).square(), x)


@pytest.mark.parametrize("taps", [1, 2, 3, 4, 5, 12])
def test_wrappers_keep_proportions_and_brightness(taps):
    f = setup_filter(np.ones(taps))
    x = torch.ones(1, 1, 24, 30)
    assert ops.filter2d(x, f).shape == x.shape
    for factor in (1, 2, 3, [2, 3]):
        fx, fy = (factor, factor) if isinstance(factor, int) else factor
        if taps >= max(fx, fy):
            assert ops.upsample2d(x, f, factor).shape == (1, 1, 24 * fy, 30 * fx)
            assert ops.downsample2d(x, f, factor).shape == (1, 1, 24 // fy, 30 // fx)
        if taps % fx == taps % fy == 0:  # Otherwise a box filter causes ripples on the inserted zeros.
            centre = ops.upsample2d(x, f, factor)[..., 12 * fy, 15 * fx]
            torch.testing.assert_close(centre, torch.ones(1, 1))
    torch.testing.assert_close(ops.downsample2d(x, f)[..., 6, 7], torch.ones(1, 1))


@pytest.mark.parametrize("name", ["12", "3x2"])
def test_wrappers_pass_their_arguments_on(name):
    f = FILTERS[name]
    x = rnd("x", (1, 2, 15, 14))
    fw, fh = f.shape[-1], f.shape[0]
    more = [1, 2, 0, 3]

    def added(rule):
        return [a + b for a, b in zip([*rule(fw), *rule(fh)], more)]

    kwargs = {"padding": more, "flip_filter": True, "gain": 3}
    sides = added(lambda n: (n // 2, (n - 1) // 2))
    check(ops.filter2d(x, f, **kwargs), x, f, 1, 1, sides, True, 3)
    sides = added(lambda n: ((n + 1) // 2, (n - 2) // 2))
    check(ops.upsample2d(x, f, 2, **kwargs), x, f, 2, 1, sides, True, 12)
    sides = added(lambda n: ((n - 1) // 2, (n - 2) // 2))
    check(ops.downsample2d(x, f, 2, **kwargs), x, f, 1, 2, sides, True, 3)


def test_setup_filter():
    f = setup_filter([1, 3, 3, 1])
    assert f.shape == (4, 4)
    assert f.dtype == torch.float32
    assert f.sum().item() == pytest.approx(1)
    torch.testing.assert_close(f[1], torch.tensor([1.0, 3, 3, 1]) * 3 / 64)
    assert setup_filter(range(1, 8)).shape == (7, 7)
    assert setup_filter(range(1, 9)).shape == (8,)
    assert setup_filter([1, 2], separable=True).shape == (2,)
    assert setup_filter(np.ones(9), separable=False).shape == (9, 9)
    assert setup_filter(None).tolist() == [[1]]
    assert setup_filter(5, normalize=False, gain=3).tolist() == [[75]]
    assert setup_filter([1, 2], normalize=False, flip_filter=True).tolist() == [[4, 2], [2, 1]]
    assert setup_filter([[1, 2], [0, 1]], normalize=False, gain=3).tolist() == [[3, 6], [0, 3]]
    assert setup_filter([1, 2], normalize=False, separable=True, gain=9).tolist() == [3, 6]


@pytest.mark.parametrize("f, kwargs", [([], {}), (np.ones([2, 2, 2]), {}), ([[1, 2]], {"separable": True})], ids=str)
def test_setup_filter_refuses(f, kwargs):
    with pytest.raises(ValueError, match="taps"):
        setup_filter(f, **kwargs)


@pytest.mark.parametrize(
    "kwargs, words",
    [
        ({"x": torch.zeros(3, 8, 8)}, "shape"),
        ({"f": torch.ones(2, 2, 2)}, "setup_filter"),
        ({"f": [1, 3, 3, 1]}, "setup_filter"),
        ({"up": 0}, "up"),
        ({"down": [1, 2, 3]}, "down"),
        ({"down": -1}, "down"),
        ({"up": 1.5}, "up"),
        ({"padding": [1, 2, 3]}, "padding"),
        ({"padding": 0.5}, "padding"),
        ({"padding": -3}, "smaller than the 4x4 filter"),
        ({"impl": "fast"}, "fast"),
    ],
    ids=str,
)
def test_refuses_what_does_not_fit(kwargs, words):
    kwargs = {"x": torch.zeros(1, 3, 8, 8), "f": setup_filter([1, 3, 3, 1]), **kwargs}
    with pytest.raises(ValueError, match=words):
        upfirdn2d(**kwargs)
