# SPDX-License-Identifier: Apache-2.0
"""The operations of the dispatcher, on a CPU: values, derivatives, tracing, and when they are used."""

import itertools
import re

import pytest
import torch
import torch.utils.cpp_extension
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support import ROOT, rnd
from tests.torch_utils.ops.cuda_ops_on_cpu import OPS
from tests.torch_utils.ops.implementations import chosen
from torch_utils import custom_ops, distributed
from torch_utils.ops import _plugin, backend
from torch_utils.ops.bias_act import activation_funcs, bias_act
from torch_utils.ops.upfirdn2d import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d

LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture(autouse=True)
def as_on_a_gpu():
    with chosen(backend.KERNELS):
        yield


class Calls(TorchDispatchMode):
    """Inside, collects the names of the operations that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "stylegan2_ada":
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def doubles(*named_shapes):
    return [rnd(key, shape, torch.float64).requires_grad_() for key, shape in named_shapes]


def derivatives(fn, inputs):
    """Value, first derivatives, and derivatives of those, along fixed directions."""
    y = fn(*inputs)
    first = torch.autograd.grad(y, inputs, rnd("dy", y.shape, y.dtype), create_graph=True)
    curved = [grad for grad in first if grad.requires_grad]
    second = torch.autograd.grad(curved, inputs, [torch.ones_like(grad) for grad in curved], allow_unused=True)
    return y, *first, *[torch.zeros_like(x) if grad is None else grad for x, grad in zip(inputs, second)]


def assert_same(fn, inputs, names):
    """`fn` runs the operations `names`, and its value and derivatives are those of the reference path."""
    with Calls() as calls:
        actual = derivatives(fn, inputs)
    assert set(calls.names) == set(names)
    with backend.reference_path():
        expected = derivatives(fn, inputs)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("act", activation_funcs)
def test_bias_act_and_its_derivatives_equal_the_reference(act):
    names = ["bias_act", "bias_act_grad"]
    names += [] if act in ("linear", "relu", "lrelu") else ["bias_act_grad2"]
    for clamp, (alpha, gain), layout in itertools.product((None, 0.8), ((None, None), (0.1, -1.5), (0, 0.5)), LAYOUTS):
        if act == "linear" and gain is None and clamp is None:
            gain = 1.5
        x, b, g = doubles(("x", (2, 3, 4, 2)), ("b", (3,)), ("g", (2, 3, 4, 2)))
        x = x.detach().to(memory_format=layout).requires_grad_()
        attributes = (1, act, alpha, gain, clamp)
        assert_same(lambda x, b, g: (bias_act(x, b, *attributes) * g).sum(0), [x, b, g], names)  # noqa: B023
        assert_same(lambda x, g: (bias_act(x, None, *attributes) * g).sum(0), [x, g], names)  # noqa: B023


@pytest.mark.parametrize("act", activation_funcs)
def test_the_derivatives_of_bias_act_are_those_of_its_values(act):
    x, b = doubles(("x", (3, 4)), ("b", (4,)))
    for clamp in (None, 0.7):

        def fn(x, b, clamp=clamp):
            return bias_act(x, b, -1, act, 0.3, 1.5, clamp)

        assert torch.autograd.gradcheck(fn, (x, b)) and torch.autograd.gradgradcheck(fn, (x, b))


@pytest.mark.parametrize("shape", [(), (5,), (4, 5), (2, 3, 5, 2)])
def test_bias_act_takes_any_rank(shape):
    x, b = rnd("x", shape), rnd("b", (5,))
    for dim in [dim for dim in range(-len(shape), len(shape)) if shape[dim] == 5]:
        y = bias_act(x, b, dim, "lrelu")
        torch.testing.assert_close(y, bias_act(x, b, dim, "lrelu", impl="ref"))
    torch.testing.assert_close(bias_act(x, act="tanh"), x.tanh())


def test_bias_act_with_a_negative_slope_has_no_kernel():
    (x,) = doubles(("x", (4, 5)))
    assert_same(lambda x: bias_act(x, None, 1, "lrelu", -0.5) ** 2, [x], [])


def test_bias_act_has_no_third_derivative():
    (x,) = doubles(("x", (4,)))
    y = bias_act(x, None, 0, "tanh")
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        torch.autograd.grad(second.sum(), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_types_and_layouts_are_kept(dtype):
    f, b = setup_filter([1, 3, 3, 1]), rnd("b", (8,))
    for layout in LAYOUTS:
        x = rnd("x", (2, 8, 6, 4)).to(dtype).to(memory_format=layout).requires_grad_()
        for y in (bias_act(x, b, 1, "lrelu", None, None, 256), upsample2d(x, f)):
            (dx,) = torch.autograd.grad(y.square().sum(), x)
            for tensor in (y, dx):
                assert tensor.dtype == dtype and tensor.is_contiguous(memory_format=layout)


RESAMPLINGS = [  # taps (y, x), up (x, y), down (x, y), padding (x0, x1, y0, y1)
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
        assert_same(lambda x: upfirdn2d(x, f, up, down, padding, flip, 1.5) ** 2, [x], ["upfirdn2d"])  # noqa: B023


def test_the_derivatives_of_upfirdn2d_are_those_of_its_values():
    (x,) = doubles(("x", (1, 2, 3, 4)))

    def fn(x):
        return upfirdn2d(x, rnd("f", (2, 3)), (3, 2), (1, 2), (-1, 4, 3, -2), False, 1.5)

    assert torch.autograd.gradcheck(fn, (x,)) and torch.autograd.gradgradcheck(fn, (x,))


def test_upfirdn2d_has_derivatives_of_any_order():
    (x,) = doubles(("x", (1, 1, 4, 4)))
    f = setup_filter([1, 3, 3, 1])
    grad = upfirdn2d(x, f, 2, 1, (2, 1, 2, 1)).pow(4).sum()
    expected = upfirdn2d(x, f, 2, 1, (2, 1, 2, 1), impl="ref").pow(4).sum()
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
        if act != "lrelu":  # which has no second derivative
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
        return bias_act(upsample2d(x, f), b, 1, "lrelu", None, None, 256)


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("names", "fn"),
    [
        (["bias_act"], lambda x, **kw: bias_act(x, rnd("b", (3,)), act="lrelu", clamp=1, **kw)),
        (["bias_act"], lambda x, **kw: bias_act(x, act="swish", gain=2, **kw)),
        (["upfirdn2d"], lambda x, **kw: upsample2d(x, setup_filter([1, 3, 3, 1]), **kw)),
        (["upfirdn2d"], lambda x, **kw: downsample2d(x, setup_filter([1, 3, 3, 1]), **kw)),
        (["upfirdn2d"] * 2, lambda x, **kw: filter2d(x, setup_filter([1, 4, 1], separable=True), gain=3, **kw)),
        (["upfirdn2d"], lambda x, **kw: upfirdn2d(x, rnd("f", (4, 4)), [2, 1], [1, 3], [1, 2, 3, -1], True, **kw)),
    ],
)
def test_the_public_functions_use_the_operations(names, fn):
    x = rnd("x", (2, 3, 8, 8))
    with Calls() as calls:
        fast = fn(x)
    assert calls.names == names
    with Calls() as calls:
        with backend.reference_path():
            torch.testing.assert_close(fn(x), fast)
        torch.testing.assert_close(fn(x, impl="ref"), fast)
    assert calls.names == []


def test_filters_that_are_trained_and_no_filter_need_no_kernel():
    x = rnd("x", (2, 3, 8, 8))
    f = rnd("f", (3, 3)).requires_grad_()
    with Calls() as calls:
        torch.autograd.grad(upfirdn2d(x, f).sum(), f)
        upfirdn2d(x, None, padding=1)
    assert calls.names == []


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


def test_the_sources_are_installed_with_the_package():
    pyproject = (ROOT / "pyproject.toml").read_text()
    declared = re.search(r'^"stylegan2_dgl\.project\.torch_utils\.ops" = \["(.*)"\]$', pyproject, re.M)
    installed = set((ROOT / "torch_utils/ops").glob(declared[1]))
    assert set(_plugin.SOURCES) <= installed and {path.suffix for path in installed} == {".h", ".cpp", ".cu"}


def test_a_failed_build_is_reported_once(fresh, capsys):
    assert _plugin.load() is None and _plugin.load() is None
    out, err = capsys.readouterr()
    assert fresh == [_plugin.NAME] and out == ""
    assert err == (
        "bias_act and upfirdn2d run in plain PyTorch, slower but with the same results, because their CUDA kernels "
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


def test_nothing_is_printed_when_silent_or_by_other_processes(fresh, monkeypatch, capsys):
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
