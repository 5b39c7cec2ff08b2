# SPDX-License-Identifier: Apache-2.0
"""The kernels' bodies and the code that launches them, run on the CPU by g++ (host_kernels.py)."""

import contextlib
import itertools
import mmap
import os
import pathlib
import subprocess
import sys
import types

import pytest
import torch

from tests import tolerances
from tests.support import ROOT, rnd
from tests.torch_utils.ops import host_kernels
from tests.torch_utils.ops.cuda_ops_on_cpu import OPS, SMOOTH, launched
from torch_utils.ops import _plugin
from torch_utils.ops.bias_act_ref import activation_funcs, bias_act_ref
from torch_utils.ops.upfirdn2d import setup_filter
from torch_utils.ops.upfirdn2d_ref import resample_ref

pytestmark = pytest.mark.slow

TOLERANCE = tolerances.KERNELS_ON_HOST
LAST = torch.channels_last
PACK = {torch.float64: 1, torch.float32: 4, torch.bfloat16: 8}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return host_kernels.build(tmp_path_factory.mktemp("host"))


@pytest.fixture
def kernels(library, monkeypatch):
    """The kernels on the host, behind the code that launches them on a GPU."""
    library.chosen, library.wide = [], False
    monkeypatch.setattr(_plugin, "load", lambda: library)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: types.SimpleNamespace(cuda_stream=0))
    with launched():
        yield library


def assert_close(actual, expected, dtype):
    assert actual.dtype == dtype
    scale = max(1, expected.abs().max().item()) if expected.numel() else 1
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance * scale)


def bias_act_orders(x, b, dim, act, alpha, gain, clamp, g, dy):
    """Value, first and second derivative of the reference, in double precision."""
    x = x.double().requires_grad_()
    y = bias_act_ref(x, None if b is None else b.double(), dim, act, alpha, gain, clamp)
    first = torch.autograd.grad(y, x, g.double(), retain_graph=True)[0]
    graph = torch.autograd.grad(y, x, dy.double(), create_graph=True)[0]
    second = torch.autograd.grad(graph, x, g.double())[0] if graph.requires_grad else torch.zeros_like(x)
    return y.detach(), first, second


def check_bias_act(x, b, dim, act, alpha, gain, clamp):
    g, dy = torch.empty_like(x).copy_(rnd("g", x.shape)), torch.empty_like(x).copy_(rnd("dy", x.shape))
    attributes = dim, act, alpha, gain, clamp
    value, first, second = bias_act_orders(x, b, *attributes, g, dy)
    y = OPS.bias_act(x, b, *attributes)
    assert y.stride() == torch.empty_like(x).stride()
    assert_close(y, value, x.dtype)
    if act in SMOOTH:
        assert_close(OPS.bias_act_grad(g, x, b, *attributes), first, x.dtype)
        assert_close(OPS.bias_act_grad2(g, dy, x, b, *attributes), second, x.dtype)
        return
    dx = OPS.bias_act_grad(g, y, None, *attributes)
    # Values that round to the bound count as clamped.
    at_bound = torch.zeros_like(value, dtype=torch.bool) if clamp is None else y.double().abs() >= clamp * (1 - 2**-9)
    assert_close(dx.masked_fill(at_bound, 0), first.masked_fill(at_bound, 0), x.dtype)
    beyond = torch.zeros_like(at_bound) if clamp is None else value.abs() >= clamp
    assert not dx[beyond].any()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("act", activation_funcs)
def test_bias_act(act, dtype, kernels):
    for clamp, (alpha, gain) in itertools.product((None, 0.75), ((0.2, 1.5), (0.0, -0.5), (0.3, 0))):
        x = rnd(f"{act} {clamp}", (2, 8, 3, 8)).to(dtype) * 3
        b = rnd("b", (8,)).to(dtype)
        check_bias_act(x, b, 1, act, alpha, gain, clamp)
        check_bias_act(x.to(memory_format=LAST), b, 1, act, alpha, gain, clamp)
        check_bias_act(x, None, 1, act, alpha, gain, clamp)
    assert set(kernels.chosen) == {PACK[dtype]}


def test_bias_act_far_from_zero(kernels):
    x = torch.tensor([-1e4, -90, -30, -1e-30, 0, 1e-30, 21, 90, 1e4, 3])
    for act in activation_funcs:
        check_bias_act(x, None, 0, act, 0.2, 1.0, None)


def test_bias_act_passes_nan_on(kernels):
    x = torch.tensor([float("nan"), 1.0])
    for act in activation_funcs:
        y = OPS.bias_act(x, None, 0, act, 0.2, 1.0, 0.5)
        assert y[0].isnan() and y[1] == activation_funcs[act].func(x[1:], alpha=0.2).clamp(max=0.5)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("shape", "dim", "packed"),
    [
        ((2, 16, 1, 1), 1, True),  # the bias runs along the fastest axis
        ((3, 24), 1, True),
        ((2, 3, 4, 4), 1, True),  # it is the same for a whole plane
        ((16, 5), 0, False),
        ((2, 16, 8), 2, True),
        ((2, 3, 5, 7), 1, False),
        ((2, 12, 3, 1), 1, False),
        ((5, 3), 1, False),
        ((1, 1, 1, 1), 1, False),
        ((0, 4), 1, None),
    ],
)
def test_every_position_of_the_bias(shape, dim, packed, dtype, kernels):
    x, b = rnd("x", shape).to(dtype), rnd("b", (shape[dim],)).to(dtype)
    check_bias_act(x, b, dim, "lrelu", 0.2, 1.25, None)
    kernels.chosen = []
    check_bias_act(x, b, dim, "swish", 0.0, 1.25, None)
    assert kernels.chosen == ([] if packed is None else [PACK[dtype] if packed else 1] * 3)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_incomplete_and_unaligned_packs(dtype, kernels):
    for count in (1, 7, 8, 9, 31, 32, 33):
        memory = rnd("x", (count + 1,)).to(dtype)
        for x, packed in ((memory[:-1], PACK[dtype]), (memory[1:], 1)):
            kernels.chosen = []
            check_bias_act(x, None, 0, "lrelu", 0.2, 1.0, 0.5)
            assert kernels.chosen[0] == packed
    channels = rnd("b", (17,)).to(dtype)
    check_bias_act(rnd("x", (2, 16)).to(dtype), channels[1:], 1, "swish", 0.0, 1.0, None)


def test_views_and_gradients_of_other_layouts(kernels):
    x = rnd("x", (4, 6, 5, 8))
    b = rnd("b", (6,))
    for view in (x[:, :, ::2], x.permute(0, 1, 3, 2), x.to(memory_format=LAST)[:, :, 1:], x[:1].expand(3, -1, -1, -1)):
        check_bias_act(view, b, 1, "sigmoid", 0.0, 1.0, None)
    y = OPS.bias_act(x, b, 1, "lrelu", 0.2, 1.0, None)
    for g in (torch.ones([]).expand_as(y), rnd("g", y.shape).to(memory_format=LAST)):
        expected = g * torch.where(y > 0, 1.0, 0.2)
        torch.testing.assert_close(OPS.bias_act_grad(g, y, None, 1, "lrelu", 0.2, 1.0, None), expected)
    with pytest.raises(RuntimeError, match="one device and of one type"):
        OPS.bias_act(x, b.double(), 1, "lrelu", 0.2, 1.0, None)


def check_upfirdn2d(x, f, up, down, padding, flip=False, gain=1.0):
    """`up`, `down`: (y, x); `padding`: (y0, y1, x0, x1)."""
    y0, y1, x0, x1 = padding
    size = (
        (x.shape[2] * up[0] + y0 + y1 - f.shape[0]) // down[0] + 1,
        (x.shape[3] * up[1] + x0 + x1 - f.shape[1]) // down[1] + 1,
    )
    f = f.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    y = OPS.upfirdn2d(x, f, up, down, (y0, x0), size, flip, gain)
    assert_close(y, resample_ref(x.double(), f.double(), up, down, (y0, x0), size, flip, gain), x.dtype)
    channels_last = x.stride(1) == 1 and x.shape[1] > 1 and not x.is_contiguous()
    assert y.is_contiguous(memory_format=LAST if channels_last else torch.contiguous_format)


CASES = {  # taps, up, down, each y, then x
    "4, same": ((4, 4), 1, 1),
    "4, up 2": ((4, 4), 2, 1),
    "4, down 2": ((4, 4), 1, 2),
    "12 across, up 2": ((1, 12), (1, 2), 1),
    "12 down, up 2": ((12, 1), (2, 1), 1),
    "12 across, down 2": ((1, 12), 1, (1, 2)),
    "12 down, down 2": ((12, 1), 1, (2, 1)),
}
OTHERS = {
    "3x5, up 2, down 3": ((3, 5), 2, 3),
    "1x1, up (1, 3)": ((1, 1), (1, 3), 1),
    "5x2, down (4, 1)": ((5, 2), 1, (4, 1)),
    "12x12, same": ((12, 12), 1, 1),
    "4, up 2, down 2": ((4, 4), 2, 2),
}


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES | OTHERS)
def test_upfirdn2d(case, dtype, kernels):
    taps, up, down = (CASES | OTHERS)[case]
    f = rnd("f", taps)
    paddings = [(11, 12, 13, 11), (12, 11, 11, 12), (-1, 14, 13, -2), (14, -3, -2, 15), (2, 11, 1, 11)]
    for number, padding in enumerate(paddings):
        for height, width in ((9, 8), (5, 13)):
            x = rnd(f"x{number}", (2, 3, height, width)).to(dtype)
            check_upfirdn2d(x, f, pair(up), pair(down), padding, flip=number % 2 == 0, gain=1.5)
    fast = case in CASES and dtype != torch.float64
    assert set(kernels.chosen) == {"plane" if fast else "any, 32-bit"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_upfirdn2d_over_several_tiles(case, dtype, kernels):
    """Tiles are up to 64 outputs wide and 128 high; rows that are whole packs, and rows that are not."""
    taps, up, down = CASES[case]
    for height, width in ((70, 136), (133, 67)):
        x = rnd("x", (1, 2, height, width)).to(dtype)
        check_upfirdn2d(x, rnd("f", taps), pair(up), pair(down), (2, 3, 5, 6))
    assert set(kernels.chosen) == {"plane"}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES | OTHERS)
def test_upfirdn2d_with_channels_last(case, dtype, kernels):
    taps, up, down = (CASES | OTHERS)[case]
    for channels in (8, 24, 64, 80):
        for padding in ((11, 12, 13, 11), (2, 11, -1, 14), (12, 11, 12, 12)):
            x = rnd("x", (2, channels, 6, 5)).to(dtype).to(memory_format=LAST)
            check_upfirdn2d(x, rnd("f", taps), pair(up), pair(down), padding)
    fast = case.startswith("4, ") and case in CASES and dtype != torch.float64
    assert set(kernels.chosen) == {"channel" if fast else "any, 32-bit"}


def test_upfirdn2d_with_channels_last_over_several_tiles(kernels):
    for dtype, channels in itertools.product((torch.float32, torch.bfloat16), (8, 64)):
        for taps, up, down in (CASES["4, same"], CASES["4, up 2"], CASES["4, down 2"]):
            x = rnd("x", (2, channels, 35, 37)).to(dtype).to(memory_format=LAST)
            check_upfirdn2d(x, rnd("f", taps), pair(up), pair(down), (1, 2, 3, 0))
    assert set(kernels.chosen) == {"channel"}


def test_upfirdn2d_of_views(kernels):
    f = setup_filter([1, 3, 3, 1])
    x = rnd("x", (2, 16, 12, 20)).to(torch.bfloat16)
    last = x.to(memory_format=LAST)
    views = {
        "plane": [x[:, :, 1:-1, 1:-3], x[:, 1::2], x[:, :, ::2], x[:1].expand(3, -1, -1, -1)],
        "channel": [last[:, :, 1:-1, 2:], last[:, :8], last[:, :, ::2, ::2]],
        "any, 32-bit": [x[..., ::2], x.transpose(2, 3), last[:, 1:9], torch.ones([]).to(x).expand(1, 8, 5, 5)],
    }
    for kernel, those in views.items():
        for view in those:
            kernels.chosen = []
            for up, down in (((1, 1), (1, 1)), ((2, 2), (1, 1)), ((1, 1), (2, 2))):
                check_upfirdn2d(view, f, up, down, (2, 1, 2, 1))
            assert set(kernels.chosen) == {kernel}


@pytest.mark.parametrize("channels_last", [False, True])
def test_upfirdn2d_with_64_bit_numbers(channels_last, kernels):
    kernels.wide = True
    x = rnd("x", (2, 3, 6, 5))
    x = x.to(memory_format=LAST) if channels_last else x
    for taps, up, down in OTHERS.values():
        check_upfirdn2d(x, rnd("f", taps), pair(up), pair(down), (11, 12, -1, 13))


@pytest.mark.parametrize(
    ("taps", "width", "kernel"), [((4, 4), 8, "plane"), ((4, 4), 6, "plane"), ((3, 3), 8, "any, 64-bit")]
)
def test_upfirdn2d_of_samples_far_apart(taps, width, kernel, kernels):
    """Two samples more than 2^31 elements apart, in memory that is reserved and mostly never touched."""
    apart = 2**31 + 8
    memory = torch.frombuffer(mmap.mmap(-1, 2 * (apart + 1024)), dtype=torch.bfloat16)
    x = memory.as_strided((2, 2, 8, width), (apart, 8 * width, width, 1))
    x.copy_(rnd("x", x.shape))
    check_upfirdn2d(x, rnd("f", taps), (2, 2), (1, 1), (2, 1, 2, 1))
    assert kernels.chosen == [kernel]


@pytest.mark.slow
def test_nothing_outside_the_tensors_is_touched():
    """The tests of this file again, compiled with sanitizers for memory accesses and overflows."""
    libraries = []
    for name in ("libasan.so", "libstdc++.so.6"):  # the second for the exceptions that PyTorch throws
        found = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        if not pathlib.Path(found).is_absolute():
            pytest.skip("no address sanitizer")
        libraries.append(found)
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "HOST_KERNEL_FLAGS": "-g -fsanitize=address,undefined -fno-sanitize-recover",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", __file__]
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
