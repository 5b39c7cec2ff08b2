# SPDX-License-Identifier: Apache-2.0
"""The operations of the dispatcher, on the CPU: values, derivatives, tracing, and the way to them."""

import itertools
import re
import types

import pytest
import torch
import torch.utils.cpp_extension

from tests.support import ROOT, rnd
from torch_utils import custom_ops, distributed
from torch_utils.ops import _plugin, backend, bias_act_cuda, upfirdn2d_cuda
from torch_utils.ops.bias_act import _bias_act_ref, activation_funcs, bias_act
from torch_utils.ops.upfirdn2d import _upfirdn2d_ref, downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d

LAYOUTS = [torch.contiguous_format, torch.channels_last]
OPS = torch.ops.stylegan2_ada


def doubles(*named_shapes):
    return [rnd(key, shape, torch.float64).requires_grad_() for key, shape in named_shapes]


def derivatives(fn, inputs):
    """Value, first derivatives, and derivatives of those, along fixed directions."""
    y = fn(*inputs)
    first = torch.autograd.grad(y, inputs, rnd("dy", y.shape, y.dtype), create_graph=True)
    curved = [grad for grad in first if grad.requires_grad]
    second = torch.autograd.grad(curved, inputs, [torch.ones_like(grad) for grad in curved], allow_unused=True)
    return y, *first, *[torch.zeros_like(x) if grad is None else grad for x, grad in zip(inputs, second)]


@pytest.mark.parametrize("act", activation_funcs)
def test_bias_act_and_its_derivatives_equal_the_reference(act):
    for clamp, (alpha, gain), layout in itertools.product((None, 0.8), ((None, None), (0.1, -1.5), (0, 0.5)), LAYOUTS):
        x, b = doubles(("x", (2, 3, 4, 2)), ("b", (3,)))
        x = x.detach().to(memory_format=layout).requires_grad_()

        def directions(g, bias_act, x=x, b=b, attributes=(1, act, alpha, gain, clamp)):
            return derivatives(lambda x, b, g: (bias_act(x, b, *attributes) * g).sum(0), [x, b, g])

        (g,) = doubles(("g", (2, 3, 4, 2)))
        for actual, expected in zip(directions(g, bias_act_cuda.bias_act), directions(g, _bias_act_ref)):
            torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("act", activation_funcs)
def test_the_derivatives_of_bias_act_are_those_of_its_values(act):
    x, b = doubles((f"x {act}", (2, 3, 2)), ("b", (3,)))

    def fn(x, b):
        return bias_act_cuda.bias_act(x, b, 1, act, None, 0.9, 1.1)

    assert torch.autograd.gradcheck(fn, (x, b)) and torch.autograd.gradgradcheck(fn, (x, b))


def test_bias_act_with_a_negative_slope():
    (x,) = doubles(("x", (4, 5)))
    args = (None, 1, "lrelu", -0.5, None, None)
    for actual, expected in zip(
        derivatives(lambda x: bias_act_cuda.bias_act(x, *args) ** 2, [x]),
        derivatives(lambda x: _bias_act_ref(x, *args) ** 2, [x]),
    ):
        torch.testing.assert_close(actual, expected)


def test_bias_act_has_no_third_derivative():
    (x,) = doubles(("x", (4,)))
    y = bias_act_cuda.bias_act(x, None, 0, "tanh", None, None, None)
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        torch.autograd.grad(second.sum(), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_types_and_layouts_are_kept(dtype):
    f, b = setup_filter([1, 3, 3, 1]), rnd("b", (8,))
    for layout in LAYOUTS:
        x = rnd("x", (2, 8, 6, 4)).to(dtype).to(memory_format=layout).requires_grad_()
        for y in (
            bias_act_cuda.bias_act(x, b, 1, "lrelu", None, None, 256),
            upfirdn2d_cuda.upfirdn2d(x, f, (2, 2), (1, 1), (2, 1, 2, 1), False, 4),
        ):
            (dx,) = torch.autograd.grad(y.square().sum(), x)
            for tensor in (y, dx):
                assert tensor.dtype == dtype and tensor.is_contiguous(memory_format=layout)


RESAMPLINGS = [
    ((4, 4), (2, 2), (1, 1), (2, 1, 2, 1)),
    ((4, 4), (1, 1), (2, 2), (1, 1, 1, 1)),
    ((4, 4), (1, 1), (1, 1), (2, 1, 2, 1)),
    ((12,), (2, 2), (1, 1), (6, 5, 6, 5)),
    ((12,), (1, 1), (2, 2), (5, 5, 5, 5)),
    ((2, 3), (3, 2), (1, 2), (-1, 4, 3, -2)),
    ((1, 1), (1, 2), (3, 1), (0, 0, -1, -1)),
]


@pytest.mark.parametrize(("taps", "up", "down", "padding"), RESAMPLINGS)
def test_upfirdn2d_and_its_derivatives_equal_the_reference(taps, up, down, padding):
    f = rnd("f", taps)
    for flip, layout in itertools.product((False, True), LAYOUTS):
        (x,) = doubles(("x", (2, 3, 6, 5)))
        x = x.detach().to(memory_format=layout).requires_grad_()
        args = (f, up, down, padding, flip, 1.5)
        for actual, expected in zip(
            derivatives(lambda x: upfirdn2d_cuda.upfirdn2d(x, *args) ** 2, [x]),  # noqa: B023
            derivatives(lambda x: _upfirdn2d_ref(x, *args) ** 2, [x]),  # noqa: B023
        ):
            torch.testing.assert_close(actual, expected)


def test_the_derivatives_of_upfirdn2d_are_those_of_its_values():
    (x,) = doubles(("x", (1, 2, 3, 4)))

    def fn(x):
        return upfirdn2d_cuda.upfirdn2d(x, rnd("f", (2, 3)), (3, 2), (1, 2), (-1, 4, 3, -2), False, 1.5)

    assert torch.autograd.gradcheck(fn, (x,)) and torch.autograd.gradgradcheck(fn, (x,))


def test_upfirdn2d_derivatives_go_on():
    (x,) = doubles(("x", (1, 1, 4, 4)))
    f = setup_filter([1, 3, 3, 1])
    grad = upfirdn2d_cuda.upfirdn2d(x, f, (2, 2), (1, 1), (2, 1, 2, 1), False, 1).pow(4).sum()
    expected = _upfirdn2d_ref(x, f, 2, 1, (2, 1, 2, 1)).pow(4).sum()
    for _ in range(4):
        (grad,), (expected,) = (torch.autograd.grad(y.sum(), x, create_graph=True) for y in (grad, expected))
        torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_operations_are_registered_as_pytorch_expects(layout):
    x, g, dy = (rnd(key, (2, 3, 4, 6)).to(memory_format=layout).requires_grad_() for key in ("x", "g", "dy"))
    b = rnd("b", (3,)).requires_grad_()
    for act, bias, clamp in (("lrelu", b, 0.5), ("swish", b, 0.5), ("tanh", None, None)):
        attributes = (1, act, 0.2, 1.5, clamp)
        torch.library.opcheck(OPS.bias_act.default, (x, bias, *attributes))
        torch.library.opcheck(OPS.bias_act_grad.default, (g, x, bias, *attributes))
        if act != "lrelu":  # whose second derivative nobody asks for
            tensors = [None if tensor is None else tensor.detach() for tensor in (g, dy, x, bias)]
            torch.library.opcheck(OPS.bias_act_grad2.default, (*tensors, *attributes))
    f = rnd("f", (4, 3))
    torch.library.opcheck(OPS.upfirdn2d.default, (x, f, [2, 1], [1, 2], [3, -1], [9, 2], False, 1.5))


def test_fake_tensors_have_the_layouts_of_real_ones():
    x = rnd("x", (2, 6, 5, 8))
    views = [
        x,
        x.to(memory_format=torch.channels_last),
        x[..., ::2],
        x.permute(0, 1, 3, 2),
        x[:, :, 1:].transpose(1, 3),
    ]
    for view in [*views, x.to(memory_format=torch.channels_last)[:, :, 1:], x[:, :1], x[:1].expand(2, -1, -1, -1)]:
        b = rnd("b", (view.shape[1],))
        torch.library.opcheck(OPS.bias_act.default, (view, b, 1, "lrelu", 0.2, 1.0, None), test_utils="test_faketensor")
        args = (view, rnd("f", (3, 3)), [1, 1], [1, 1], [1, 1], list(view.shape[2:]), False, 1.0)
        torch.library.opcheck(OPS.upfirdn2d.default, args, test_utils="test_faketensor")


class Layer(torch.nn.Module):
    def forward(self, x, b, f):
        x = upfirdn2d_cuda.upfirdn2d(x, f, (2, 2), (1, 1), (2, 1, 2, 1), False, 4.0)
        return bias_act_cuda.bias_act(x, b, 1, "lrelu", None, None, 256)


def test_compiled_and_exported_graphs_hold_the_operations():
    b, f = rnd("b", (3,)).requires_grad_(), setup_filter([1, 3, 3, 1])
    layer = Layer()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    for size in (4, 6):
        x = rnd("x", (2, 3, size, size)).requires_grad_()
        values = compiled(x, b, f), layer(x, b, f)
        torch.testing.assert_close(*values)
        torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), [x, b]) for y in values))
    inputs = x.detach(), b.detach(), f
    program = torch.export.export(layer, inputs)
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {"stylegan2_ada.bias_act.default", "stylegan2_ada.upfirdn2d.default"} <= called
    torch.testing.assert_close(program.module()(*inputs), layer(*inputs))


@pytest.fixture
def called(monkeypatch):
    """As on a machine where the kernels load: which of the two operations were called."""
    names = []

    def watch(module, name):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args: names.append(name) or function(*args))

    watch(bias_act_cuda, "bias_act")
    watch(upfirdn2d_cuda, "upfirdn2d")
    monkeypatch.setattr(_plugin, "serves", lambda x: not backend.is_reference())
    return names


def test_the_public_functions_use_the_operations(called):
    x, b, f = rnd("x", (2, 3, 8, 8)), rnd("b", (3,)), setup_filter([1, 3, 3, 1])
    for fn in (
        lambda impl: bias_act(x, b, act="lrelu", clamp=1, impl=impl),
        lambda impl: bias_act(x, act="swish", gain=2, impl=impl),
        lambda impl: upsample2d(x, f, impl=impl),
        lambda impl: downsample2d(x, f, impl=impl),
        lambda impl: filter2d(x, setup_filter([1, 4, 6, 4, 1], separable=True), gain=3, impl=impl),
        lambda impl: upfirdn2d(x, f, up=[2, 1], down=[1, 3], padding=[1, 2, 3, -1], flip_filter=True, impl=impl),
    ):
        called.clear()
        fast = fn("cuda")
        assert len(called) == 1
        with backend.reference_path():
            torch.testing.assert_close(fn("cuda"), fast)
        torch.testing.assert_close(fn("ref"), fast)
        assert len(called) == 1


def test_filters_that_are_trained_and_no_filter_take_the_plain_way(called):
    x = rnd("x", (2, 3, 8, 8))
    f = rnd("f", (3, 3)).requires_grad_()
    torch.autograd.grad(upfirdn2d(x, f).sum(), f)
    upfirdn2d(x, None, padding=1)
    assert not called


def fake_cuda_tensor(dtype=torch.float32):
    return types.SimpleNamespace(is_cuda=True, dtype=dtype)


@pytest.fixture
def fresh(monkeypatch):
    """A process in which nothing has asked for the kernels, on a machine with CUDA's tools."""
    monkeypatch.setattr(_plugin, "_kernels", None)
    monkeypatch.setattr(_plugin, "_attempted", False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.utils.cpp_extension, "CUDA_HOME", "/cuda")
    monkeypatch.setattr(torch.utils.cpp_extension, "is_ninja_available", lambda: True)
    attempts = []

    def get_plugin(name, sources, **kwargs):
        attempts.append(name)
        assert all(path.is_file() for path in sources)
        raise RuntimeError("Error building extension\nand a page of output")

    monkeypatch.setattr(custom_ops, "get_plugin", get_plugin)
    return attempts


def test_what_the_kernels_serve(fresh, monkeypatch):
    monkeypatch.setattr(custom_ops, "get_plugin", lambda *args, **kwargs: fresh.append(args) or types.ModuleType("k"))
    assert not _plugin.serves(torch.zeros(1)) and not _plugin.serves(fake_cuda_tensor(torch.int32)) and not fresh
    with backend.reference_path():
        assert not _plugin.serves(fake_cuda_tensor())
    assert not fresh
    assert all(_plugin.serves(fake_cuda_tensor(dtype)) for dtype in _plugin.TYPES) and len(fresh) == 1


def test_the_sources_are_installed_with_the_package():
    declared = re.search(
        r'^package-data = \{ "torch_utils.ops" = \["(.*)"\] \}$', (ROOT / "pyproject.toml").read_text(), re.M
    )
    installed = set((ROOT / "torch_utils/ops").glob(declared[1]))
    assert set(_plugin.SOURCES) <= installed and {path.suffix for path in installed} == {".h", ".cpp", ".cu"}


def test_a_build_that_fails_is_said_once(fresh, capsys):
    assert not _plugin.serves(fake_cuda_tensor()) and not _plugin.serves(fake_cuda_tensor())
    out, err = capsys.readouterr()
    assert fresh == [_plugin.NAME] and out == ""
    assert err == (
        "bias_act and upfirdn2d run in plain PyTorch, slower and with the same results, because their CUDA kernels "
        "could not be built: Error building extension (torch_utils.custom_ops.verbosity = 'full' shows more).\n"
    )


@pytest.mark.parametrize(
    ("module", "name", "value", "sentence"),
    [
        (torch.version, "cuda", None, "another kind of GPU"),
        (torch.utils.cpp_extension, "CUDA_HOME", None, "no CUDA compiler (nvcc) was found"),
        (torch.utils.cpp_extension, "is_ninja_available", lambda: False, "pip install ninja"),
    ],
)
def test_what_is_missing_is_named_before_anything_is_built(module, name, value, sentence, fresh, monkeypatch, capsys):
    monkeypatch.setattr(module, name, value)
    assert _plugin.load() is None and not fresh
    assert sentence in capsys.readouterr().err


def test_nothing_is_said_when_silent_or_by_other_processes(fresh, monkeypatch, capsys):
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    assert _plugin.load() is None
    monkeypatch.setattr(distributed, "is_main", lambda: True)
    monkeypatch.setattr(custom_ops, "verbosity", "none")
    monkeypatch.setattr(_plugin, "_attempted", False)
    assert _plugin.load() is None and len(fresh) == 2
    assert capsys.readouterr() == ("", "")


def test_nothing_is_built_while_a_graph_is_traced(fresh, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert _plugin.load() is None and not fresh
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: False)
    assert _plugin.load() is None and len(fresh) == 1
