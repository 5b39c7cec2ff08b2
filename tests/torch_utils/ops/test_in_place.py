# SPDX-License-Identifier: Apache-2.0
"""Callers may change the output of an operation in place and differentiate afterwards, as other projects' networks do.

The exceptions are outputs of `bias_act` whose values autograd needs (`SAVED`); there PyTorch reports the change.
"""

import itertools

import pytest
import torch

import tests.torch_utils.ops.cuda_ops_on_cpu  # noqa: F401, which registers the CUDA operations for CPU tensors
from tests.support import rnd
from tests.torch_utils.ops.implementations import ALL, chosen
from torch_utils.ops import backend, conv2d_gradfix
from torch_utils.ops.bias_act import activation_funcs, bias_act
from torch_utils.ops.conv2d_resample import conv2d_resample
from torch_utils.ops.fma import fma
from torch_utils.ops.grid_sample_gradfix import grid_sample
from torch_utils.ops.upfirdn2d import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d

LAYOUTS = (torch.contiguous_format, torch.channels_last)
F4, F12 = setup_filter([1, 3, 3, 1]), setup_filter(list(range(1, 13)))


def weight(*shape):
    return lambda x: rnd("w", shape).to(x.dtype)


def probes():
    """(name, function of x, channels of x)"""
    for act in activation_funcs:
        yield f"bias_act {act}", lambda x, act=act: bias_act(x, rnd("b", (4,)), act=act), 4
        yield f"bias_act {act} clamped", lambda x, act=act: bias_act(x, act=act, gain=2, clamp=0.1), 4
    yield "bias_act of nothing", lambda x: bias_act(x), 4
    yield "bias_act gain", lambda x: bias_act(x, gain=0.5), 4
    yield "bias_act within the clamp", lambda x: bias_act(x, rnd("b", (4,)), clamp=1e6), 4
    for channels in (3, 16):
        yield f"upsample2d {channels}", lambda x: upsample2d(x, F4), channels
        yield f"downsample2d {channels}", lambda x: downsample2d(x, F4), channels
        yield f"filter2d {channels}", lambda x: filter2d(x, F4), channels
        yield f"upsample2d 12 taps {channels}", lambda x: upsample2d(x, F12), channels
        yield f"downsample2d 12 taps {channels}", lambda x: downsample2d(x, F12), channels
        yield f"upfirdn2d up and down {channels}", lambda x: upfirdn2d(x, F4, up=2, down=2, padding=3), channels
        yield f"upfirdn2d crop {channels}", lambda x: upfirdn2d(x, F4, up=2, padding=-2), channels
        yield f"upfirdn2d no filter {channels}", lambda x: upfirdn2d(x, None), channels
        for kwargs in ({"up": 2}, {"down": 2}, {"padding": 1}, {"padding": -1}):
            yield f"upfirdn2d no filter {kwargs} {channels}", lambda x, kw=kwargs: upfirdn2d(x, None, **kw), channels
    for size in (1, 3):
        for name, kwargs in {"": {}, "up": {"up": 2}, "down": {"down": 2}, "both": {"up": 2, "down": 2}}.items():
            for groups in (1, 2):

                def resampled(x, size=size, kwargs=kwargs, groups=groups):
                    w = rnd("w", (6, 4 // groups, size, size)).to(x.dtype)
                    return conv2d_resample(x, w, F4, padding=size // 2, groups=groups, **kwargs)

                yield f"conv2d_resample {size}x{size} {name} groups {groups}", resampled, 4
    yield "conv2d_resample crop", lambda x: conv2d_resample(x, weight(6, 4, 3, 3)(x), padding=[0, 1, -1, 0]), 4
    yield "conv2d", lambda x: conv2d_gradfix.conv2d(x, weight(6, 4, 3, 3)(x), padding=1), 4
    yield "conv2d bias", lambda x: conv2d_gradfix.conv2d(x, weight(6, 4, 3, 3)(x), weight(6)(x)), 4
    yield "conv_transpose2d", lambda x: conv2d_gradfix.conv_transpose2d(x, weight(4, 6, 3, 3)(x), stride=2), 4
    yield "fma", lambda x: fma(x, rnd("a", (2, 4, 1, 1)).to(x.dtype), rnd("c", (1, 4, 1, 1)).to(x.dtype)), 4
    yield "grid_sample", lambda x: grid_sample(x, rnd("grid", (2, 5, 5, 2)).to(x.dtype)), 4
    grid = rnd("grid", (2, 5, 5, 2)).requires_grad_()
    yield "grid_sample of a trained grid", lambda x: grid_sample(x, grid.to(x.dtype)), 4


PROBES = {name: (func, channels) for name, func, channels in probes()}
# The outputs that autograd keeps, for each implementation. Elsewhere, what follows the activation makes a new tensor.
SAVED = {
    backend.CPU: {"bias_act relu", "bias_act lrelu", "bias_act tanh", "bias_act sigmoid"},
    backend.REFERENCE: {"bias_act tanh", "bias_act sigmoid"},
    backend.GENERIC: {"bias_act tanh", "bias_act sigmoid"},
    backend.KERNELS: {
        *("bias_act relu", "bias_act lrelu", "bias_act linear clamped", "bias_act relu clamped"),
        *("bias_act lrelu clamped", "bias_act within the clamp"),
    },
}


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize("name", PROBES)
def test_outputs_can_be_changed_in_place_before_backward(name, implementation):
    func, channels = PROBES[name]
    for dtype, layout in itertools.product((torch.float64, torch.bfloat16), LAYOUTS):
        values = rnd("x", (2, channels, 8, 8)).to(dtype).contiguous(memory_format=layout)
        x = values.clone(memory_format=torch.preserve_format).requires_grad_()
        with chosen(implementation):
            (expected,) = torch.autograd.grad(func(x).square().sum(), x)
            y = func(x)
            y.add_(1)
            assert torch.equal(x, values)
            if name in SAVED[implementation]:
                with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                    torch.autograd.grad(y.sum(), x)
                continue
            (actual,) = torch.autograd.grad(y.sub(1).square().sum(), x)
        tolerance = {torch.float64: 1e-9, torch.bfloat16: 0.1}[dtype]
        assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize("name", [name for name in PROBES if not name.startswith("bias_act")])
def test_gradients_can_be_changed_in_place_before_backward(name, implementation):
    func, channels = PROBES[name]
    x = rnd("x", (2, channels, 8, 8), torch.float64).requires_grad_()
    with chosen(implementation):
        y = func(x)
        direction = torch.ones_like(y, requires_grad=True)
        (g,) = torch.autograd.grad(y, x, direction, create_graph=True)
        g.add_(1)
        (h,) = torch.autograd.grad(g.sum(), direction)
    assert h.shape == y.shape


def test_weight_gradients_can_be_changed_in_place_before_backward():
    for stride, size in ((1, 8), (2, 8), (1, 3)):
        x, w = rnd("x", (1, 16, size, size)).requires_grad_(), rnd("w", (64, 16, 3, 3)).requires_grad_()
        y = conv2d_gradfix.conv2d(x, w, stride=stride)
        (g,) = torch.autograd.grad(y.square().sum(), w, create_graph=True)
        g.mul_(2)
        torch.autograd.grad(g.sum(), x)
