# SPDX-License-Identifier: Apache-2.0
"""The fast paths of every operation against the reference path: values, first and second derivatives."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from tests import tolerances
from tests.support import rnd
from tests.torch_utils.ops.implementations import chosen
from torch_utils.ops import backend, bias_act, conv2d_gradfix, conv2d_resample, grid_sample_gradfix, layout, upfirdn2d
from training.networks import Discriminator, Generator

LAYOUTS = {"standard": torch.contiguous_format, "channels_last": torch.channels_last}


def derivatives(func, *inputs):
    """Value of `func`, derivatives along a direction, and their derivatives in the inputs and in that direction."""
    inputs = [value.detach().clone(memory_format=torch.preserve_format).requires_grad_() for value in inputs]
    y = func(*inputs)
    direction = rnd("direction", y.shape, y.dtype).requires_grad_()
    first = torch.autograd.grad(y, inputs, direction, create_graph=True)
    penalty = sum((grad * rnd(f"weight{i}", grad.shape, grad.dtype)).sum() for i, grad in enumerate(first))
    inputs.append(direction)
    second = torch.autograd.grad(penalty + penalty.square(), inputs, allow_unused=True)
    return [y, *first, *(torch.zeros_like(v) if grad is None else grad for v, grad in zip(inputs, second))]


def assert_same(func, *inputs):
    with backend.reference_path():
        expected = derivatives(func, *inputs)
    for implementation in (backend.CPU, backend.GENERIC):
        with chosen(implementation):
            found = derivatives(func, *inputs)
        for actual, wanted in zip(found, expected):
            torch.testing.assert_close(actual, wanted, rtol=tolerances.FAST_PATHS, atol=tolerances.FAST_PATHS)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("clamp", [None, 0.3, 1e6])
@pytest.mark.parametrize("act", bias_act.activation_funcs)
def test_bias_act(act, clamp, layout):
    x, b = rnd("x", (2, 5, 3, 4), torch.float64).contiguous(memory_format=layout), rnd("b", (5,), torch.float64)
    for gain, alpha in itertools.product((None, 0.5, 0, -1.5), (None, 0.4)):
        assert_same(lambda x, b, g=gain, a=alpha: bias_act.bias_act(x, b, act=act, alpha=a, gain=g, clamp=clamp), x, b)
        assert_same(lambda x, g=gain, a=alpha: bias_act.bias_act(x, act=act, alpha=a, gain=g, clamp=clamp), x)


@pytest.mark.parametrize("act", ["linear", "relu", "lrelu"])
def test_bias_act_leaves_its_input_alone(act):
    x = rnd("x", (2, 5, 3, 4))
    before = x.clone()
    bias_act.bias_act(x, act=act, gain=1, clamp=0.1)
    bias_act.bias_act(x, torch.ones(5), act=act, clamp=0.1)
    assert torch.equal(x, before)


def test_bias_act_clamps_next_to_a_nan():
    x = torch.tensor([[float("nan"), 5.0, -5.0]])
    y = bias_act.bias_act(x, act="linear", clamp=1)
    assert y[0, 0].isnan() and y[0, 1:].tolist() == [1, -1]


@pytest.mark.parametrize("channels", [3, 16])
@pytest.mark.parametrize("taps", [[1], [1, 3, 3, 1], list(range(1, 13)), [[1, 2, 0], [3, 1, 4]], None])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (2, 2), ([1, 3], [2, 1])])
def test_upfirdn2d(up, down, taps, channels):
    f = None if taps is None else upfirdn2d.setup_filter(taps).double()
    x = rnd("x", (2, channels, 6, 5), torch.float64)
    for padding, flip in [(12, False), ([13, 11, 12, 14], True), ([9, -2, -1, 10], False)]:
        assert_same(
            lambda x, p=padding, flip=flip: upfirdn2d.upfirdn2d(x, f, up, down, p, flip_filter=flip, gain=1.5), x
        )


@pytest.mark.parametrize("channels", [4, 32])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("flip_weight", [False, True])
def test_conv2d_resample(up, down, kernel, channels, flip_weight):
    f = upfirdn2d.setup_filter([1, 3, 3, 1]).double()
    x = rnd("x", (2, channels, 8, 8), torch.float64)
    w = rnd("w", (channels + 1, channels, kernel, kernel), torch.float64)
    arguments = {"f": f, "up": up, "down": down, "padding": kernel // 2, "flip_weight": flip_weight}
    assert_same(lambda x, w: conv2d_resample.conv2d_resample(x, w, **arguments), x, w)


@pytest.mark.parametrize("size", [2, 9])
@pytest.mark.parametrize("stride", [1, 2, (2, 1)])
@pytest.mark.parametrize("padding", [0, (0, 1)])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kernel", [(3, 3), (2, 3)])
def test_convolutions_of_every_geometry(size, stride, padding, dilation, groups, kernel, monkeypatch):
    """With strides, or at size 2, where the kernel is large compared to the image, its gradient is a matrix product."""
    monkeypatch.setattr(conv2d_gradfix, "WIDE", 1)
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    x = rnd("x", (1, 24, size + 4, size + 5), torch.float64)
    w = rnd("w", (26, 24 // groups, *kernel), torch.float64)
    assert_same(lambda x, w: conv2d_gradfix.conv2d(x, w, **geometry), x, w)
    bias = rnd("bias", (26,), torch.float64)  # without gradients, another route is taken
    torch.testing.assert_close(conv2d_gradfix.conv2d(x, w, bias, **geometry), F.conv2d(x, w, bias, **geometry))
    g, w = rnd("g", (1, 24, size, size), torch.float64), rnd("w", (24, 10, *kernel), torch.float64)
    assert_same(lambda g, w: conv2d_gradfix.conv_transpose2d(g, w, **geometry), g, w)
    bias = rnd("bias", (10 * groups,), torch.float64)
    actual = conv2d_gradfix.conv_transpose2d(g, w, bias, **geometry)
    torch.testing.assert_close(actual, F.conv_transpose2d(g, w, bias, **geometry))


@pytest.mark.parametrize(("samples", "size"), [(1, 3), (4, 16), (3, 19)])
def test_weight_gradients_of_wide_layers_with_strides(samples, size):
    """In fp32 they are weight gradients of 1x1 convolutions, if there are 256 pixels or more in 16 equal parts."""
    x = rnd("x", (samples, 128, 2 * size + 1, 2 * size + 1)).requires_grad_()
    w = rnd("w", (128, 128, 3, 3)).requires_grad_()
    (found,) = torch.autograd.grad(conv2d_gradfix.conv2d(x, w, stride=2).sum(), w)
    (expected,) = torch.autograd.grad(F.conv2d(x.double(), w.double(), stride=2).sum(), w)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    ("channels", "size", "kernels"), [(64, 16, [3]), (128, 16, [1, 1, 1]), (128, 2, []), (128, 19, [])]
)
def test_which_weight_gradients_are_asked_of_pytorch(channels, size, kernels, monkeypatch):
    """Its own for narrow layers, in fp32 those of 1x1 convolutions for wide ones, otherwise products."""
    asked = []
    original = torch.nn.grad.conv2d_weight
    monkeypatch.setattr(
        torch.nn.grad, "conv2d_weight", lambda x, shape, *rest: asked.append(shape[-1]) or original(x, shape, *rest)
    )
    x = rnd("x", (1, channels, 2 * size + 1, 2 * size + 1))
    w = rnd("w", (channels, channels, 3, 3)).requires_grad_()
    conv2d_gradfix.conv2d(x, w, stride=2).sum().backward()
    assert asked == kernels


@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize("taps", [None, [1, 3, 3, 1]])
def test_upfirdn2d_of_nothing_but_padding(taps, up):
    """With wide padding on one side and cropping on the other, the stride skips all pixels."""
    f = None if taps is None else upfirdn2d.setup_filter(taps).double()
    x = rnd("x", (1, 2, 3, 2), torch.float64)
    for padding in ([14, -5, -2, 15], [-4, 20, 13, -4]):
        assert_same(lambda x, p=padding: upfirdn2d.upfirdn2d(x, f, up, 7, p), x)


@pytest.mark.parametrize(("samples", "converted"), [(2, True), (16, False)])
@pytest.mark.parametrize("name", ["upsample2d", "downsample2d"])
def test_channels_on_one_axis_are_convolved_in_blocks_of_16_or_channels_last(name, samples, converted, monkeypatch):
    """oneDNN would generate code for every size of images of another number of channels, in both directions."""
    last = []
    for function in ("conv2d", "conv_transpose2d"):
        original = getattr(F, function)

        def spy(x, *args, original=original, function=function, **kwargs):
            last.append(x.is_contiguous(memory_format=torch.channels_last))
            assert x.dtype == (torch.bfloat16 if function == "conv2d" else torch.float32)  # which a CPU is fast at
            return original(x, *args, **kwargs)

        monkeypatch.setattr(F, function, spy)
    x = rnd("x", (samples, 3, 6, 6)).bfloat16().requires_grad_()
    y = getattr(upfirdn2d, name)(x, upfirdn2d.setup_filter([1, 3, 3, 1]))
    y.sum().backward()
    assert last == [converted] * len(last) and len(last) >= 2
    assert y.is_contiguous() and y.dtype == torch.bfloat16


def test_upfirdn2d_with_a_trained_filter():
    x, f = rnd("x", (2, 3, 6, 5), torch.float64), rnd("f", (3, 2), torch.float64)
    for up, down in ((1, 1), (2, 1), (1, 2)):
        assert_same(lambda x, f, up=up, down=down: upfirdn2d.upfirdn2d(x, f, up, down, padding=2), x, f)


def test_grid_sample():
    """Both ways: through PyTorch's sampler, and from elementary operations where the grid needs a gradient as well."""
    x, grid = rnd("x", (2, 3, 6, 7), torch.float64), rnd("grid", (2, 4, 5, 2), torch.float64) * 0.6
    fast = derivatives(lambda x: grid_sample_gradfix.grid_sample(x, grid), x)
    elementary = derivatives(lambda x: grid_sample_gradfix.grid_sample(x, grid.requires_grad_()), x)
    for actual, wanted in zip(fast, elementary, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=tolerances.FAST_PATHS, atol=tolerances.FAST_PATHS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_low_precision_stays_near_the_reference(dtype):
    tolerance = tolerances.FAST_LAYER[dtype]
    x, w, b = rnd("x", (2, 16, 8, 8)).to(dtype), rnd("w", (16, 16, 3, 3)).to(dtype) / 12, rnd("b", (16,)).to(dtype)
    f = upfirdn2d.setup_filter([1, 3, 3, 1])

    def layer(x, w, b):
        y = conv2d_resample.conv2d_resample(x, w, f=f, down=2, padding=1)
        return bias_act.bias_act(y, b, act="lrelu", clamp=256)

    with backend.reference_path():
        expected = derivatives(layer, x, w, b)
    for actual, wanted in zip(derivatives(layer, x, w, b), expected):
        assert (actual - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.slow
def test_networks_can_be_compiled_as_one_graph():
    torch.manual_seed(3)
    G = Generator(16, 0, 16, 32, 3, synthesis_kwargs={"channel_base": 1024}).eval().requires_grad_(False)
    D = Discriminator(0, 32, 3, channel_base=1024).eval().requires_grad_(False)
    whole = layout.prepare(torch.nn.Sequential(G.synthesis, D), torch.device("cpu"))
    ws = G.mapping(torch.randn(2, 16), None)

    def run(synthesis, discriminator):
        return discriminator(synthesis(ws, noise_mode="const"), None)

    compiled = (torch.compile(network, backend="aot_eager", fullgraph=True) for network in whole)
    torch.testing.assert_close(run(*compiled), run(*whole))


@pytest.mark.parametrize(
    ("name", "shape", "arguments"),
    [
        ("conv2d", (2, 4, 5, 5), {"padding": "same"}),
        ("conv2d", (4, 5, 5), {"padding": 1}),
        ("conv_transpose2d", (2, 4, 5, 5), {"stride": 1, "output_padding": 1, "dilation": 2}),
    ],
)
def test_arguments_that_only_pytorch_supports(name, shape, arguments):
    x, w = rnd("x", shape, torch.float64), rnd("w", (4, 4, 3, 3), torch.float64)
    assert_same(lambda x, w: getattr(conv2d_gradfix, name)(x, w, **arguments), x, w)


def test_autocast():
    x, w = rnd("x", (2, 4, 5, 5)).requires_grad_(), rnd("w", (4, 4, 3, 3)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = conv2d_gradfix.conv2d(x, w)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and w.grad.dtype == torch.float32
