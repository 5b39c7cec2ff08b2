# SPDX-License-Identifier: Apache-2.0
"""The kernels on a GPU, against the reference in double precision: make test-gpu."""

import itertools

import pytest
import torch

from tests import tolerances
from torch_utils.ops import _plugin, backend
from torch_utils.ops.bias_act import activation_funcs, bias_act
from torch_utils.ops.upfirdn2d import setup_filter, upfirdn2d

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

TOLERANCE = tolerances.KERNELS_ON_GPU
LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture(scope="module", autouse=True)
def kernels():
    module = _plugin.load()
    assert module is not None, "the kernels could not be built"
    return module


@pytest.fixture
def randn():
    seed = torch.seed() % 2**31
    print(f"seed {seed}")
    generator = torch.Generator("cuda").manual_seed(seed)
    return lambda *shape, dtype=torch.float32: torch.randn(shape, device="cuda", generator=generator).to(dtype)


def derivatives(fn, x, g):
    """Output of fn(x), its first derivative along `g`, and the derivative of that derivative's square."""
    x = x.detach().requires_grad_()
    y = fn(x)
    (first,) = torch.autograd.grad(y, x, g.to(y.dtype), create_graph=True)
    second = torch.zeros_like(x)
    if first.requires_grad:
        second = torch.autograd.grad(first.square().sum(), x, allow_unused=True)[0]
    return y, first, torch.zeros_like(x) if second is None else second


def compare(fn, x, randn, layout=None):
    """`fn(x)` by the kernels against the reference path in double precision."""
    with torch.no_grad():
        g = randn(*fn(x).shape, dtype=x.dtype)
    g = g if layout is None else g.to(memory_format=layout)
    actual = derivatives(fn, x, g)
    with backend.reference_path():
        expected = derivatives(fn, x.double(), g.double())
    for order, (one, other) in enumerate(zip(actual, expected)):
        assert one.dtype == x.dtype
        error = (one.double() - other).norm() / other.norm().clamp(min=1e-6)
        assert error <= TOLERANCE[x.dtype] * (1 + order), f"derivative {order}: relative error {error:.2e}"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("act", activation_funcs)
def test_bias_act(act, dtype, randn):
    shapes = [(4, 32, 16, 16), (3, 7, 5, 9), (2, 24, 1, 1), (1, 3, 65, 33)]
    for shape, layout, gain, with_bias in itertools.product(shapes, LAYOUTS, (None, -0.7), (True, False)):
        x = randn(*shape, dtype=dtype).to(memory_format=layout)
        b = randn(shape[1], dtype=dtype) if with_bias else None
        compare(lambda x: bias_act(x, b, act=act, gain=gain), x, randn)  # noqa: B023
    # Far from the bound a rounded value cannot cross it.
    x = randn(4, 32, 16, 16, dtype=dtype).round() * 2 + 0.5
    compare(lambda x: bias_act(x, act=act, alpha=0.25, gain=1, clamp=1.25 if act != "softplus" else 2), x, randn)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_bias_act_gradient_of_the_bias(dtype, randn):
    x, b = randn(4, 16, 8, 8, dtype=dtype), randn(16, dtype=dtype)
    for act in activation_funcs:
        compare(lambda b: bias_act(x.to(b.dtype), b, act=act), b, randn)  # noqa: B023


@pytest.mark.parametrize("shape", [(5, 12), (12,), (2, 12, 3), (2, 3, 4, 5, 12)])
def test_bias_act_of_any_rank(shape, randn):
    for dim in range(len(shape)):
        b = randn(shape[dim])
        compare(lambda x: bias_act(x, b, dim=dim, act="swish"), randn(*shape), randn)  # noqa: B023


def test_bias_act_passes_nan_and_infinity_on():
    x = torch.tensor([float("nan"), float("inf"), -float("inf")], device="cuda")
    for act in ("linear", "relu", "lrelu"):
        y = bias_act(x, act=act, gain=1, clamp=4)
        with backend.reference_path():
            torch.testing.assert_close(y, bias_act(x, act=act, gain=1, clamp=4), equal_nan=True)


FILTERS = {
    "4": lambda: setup_filter([1, 3, 3, 1]),
    "4 separable": lambda: setup_filter([1, 3, 3, 1], separable=True),
    "12": lambda: setup_filter(list(range(1, 13))),
    "3x2": lambda: setup_filter([[1, 2], [3, 1], [0, 2]]),
    "7x5": lambda: setup_filter(torch.arange(35.0).reshape(7, 5)),
}


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", FILTERS)
def test_upfirdn2d(name, dtype, layout, randn):
    f = FILTERS[name]().cuda()
    factors = [(1, 1), (2, 1), (1, 2), ([3, 1], [1, 2]), (2, 3)]
    paddings = [6, [12, 11, 11, 12], [13, -2, -1, 14]]
    sizes = [(2, 3, 17, 13), (2, 32, 16, 24), (1, 64, 9, 8), (1, 2, 70, 136)]
    for (up, down), padding, size in itertools.product(factors, paddings, sizes):
        x = randn(*size, dtype=dtype).to(memory_format=layout)

        def fn(x, up=up, down=down, padding=padding):
            return upfirdn2d(x, f, up, down, padding, flip_filter=padding == 6, gain=1.5)

        compare(fn, x, randn, layout)


def test_upfirdn2d_of_views(randn):
    x = randn(4, 32, 24, 24, dtype=torch.float16)
    last = x.to(memory_format=torch.channels_last)
    f = setup_filter([1, 3, 3, 1]).cuda()
    for view in (x[:, :, 1:-1, 1:-3], x[..., ::2], x.transpose(2, 3), last[:, 8:16], last[:, 1:9], last[:, :, 1:, ::2]):
        for up, down in ((1, 1), (2, 1), (1, 2)):
            compare(lambda x: upfirdn2d(x, f, up, down, [2, 1, 2, 1]), view, randn)  # noqa: B023
    with pytest.raises(RuntimeError, match="its filter on cpu"):
        upfirdn2d(x, f.cpu())


def test_the_current_stream_is_used(randn):
    x, f = randn(8, 64, 128, 128), setup_filter([1, 3, 3, 1]).cuda()
    expected = bias_act(upfirdn2d(x, f, padding=2), act="lrelu")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        late = x * 0
        torch.cuda._sleep(10_000_000)
        late += x
        actual = bias_act(upfirdn2d(late, f, padding=2), act="lrelu")
    torch.cuda.current_stream().wait_stream(side)
    torch.testing.assert_close(actual, expected)


def test_the_kernels_are_recorded_in_a_graph(randn):
    x, f = randn(2, 8, 32, 32), setup_filter([1, 3, 3, 1]).cuda()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = bias_act(upfirdn2d(x, f, up=2, padding=[2, 1, 2, 1]), act="lrelu")
    x.copy_(randn(2, 8, 32, 32))
    graph.replay()
    torch.testing.assert_close(y, bias_act(upfirdn2d(x, f, up=2, padding=[2, 1, 2, 1]), act="lrelu"))


def test_compiled_graphs_hold_the_kernels(randn):
    x, f = randn(2, 8, 32, 32).requires_grad_(), setup_filter([1, 3, 3, 1]).cuda()

    def layer(x):
        return bias_act(upfirdn2d(x, f, up=2, padding=[2, 1, 2, 1]), act="lrelu")

    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    (actual,), (expected,) = (torch.autograd.grad(fn(x).square().sum(), x) for fn in (compiled, layer))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_more_than_2_to_the_31_elements(layout, randn):
    if torch.cuda.get_device_properties(0).total_memory < 24 * 2**30:
        pytest.skip("takes 18 GiB of GPU memory")
    shape = (2, 8, 8192, 16640)  # 2.2e9 elements, 4.4 GB
    x = torch.zeros(shape, dtype=torch.bfloat16, device="cuda").to(memory_format=layout)
    corner = randn(1, 8, 16, 16, dtype=torch.bfloat16)
    x[1:, :, -16:, -16:] = corner
    b = randn(8, dtype=torch.bfloat16)
    y = bias_act(x, b, act="lrelu")
    with backend.reference_path():
        expected = bias_act(corner, b, act="lrelu")
    torch.testing.assert_close(y[1:, :, -16:, -16:], expected, rtol=1e-2, atol=1e-2)
    if layout == torch.contiguous_format:  # the elements after the last pack are computed one by one
        y = bias_act(x.view(-1)[1:], act="relu", gain=2)
        torch.testing.assert_close(y[-16:], x.view(-1)[-16:].relu() * 2)
    del y
    for f in (setup_filter([1, 3, 3, 1]), setup_filter([1, 2, 1])):
        taps = f.shape[0]
        y = upfirdn2d(x, f.cuda(), padding=[taps - 1, 0, taps - 1, 0])
        with backend.reference_path():
            expected = upfirdn2d(corner, f.cuda(), padding=0)
        inner = 17 - taps
        torch.testing.assert_close(y[1:, :, -inner:, -inner:], expected, rtol=2e-2, atol=2e-2)
        del y
