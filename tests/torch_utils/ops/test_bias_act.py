# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from scipy import special

from tests import tolerances
from tests.support import rnd
from torch_utils.ops.bias_act import activation_funcs, bias_act

NAIVE = {  # name: (function of x and alpha, default alpha, default gain), written out in NumPy
    "linear": (lambda x, a: x, 0, 1),
    "relu": (lambda x, a: np.maximum(x, 0), 0, math.sqrt(2)),
    "lrelu": (lambda x, a: np.where(x > 0, x, a * x), 0.2, math.sqrt(2)),
    "tanh": (lambda x, a: np.tanh(x), 0, 1),
    "sigmoid": (lambda x, a: special.expit(x), 0, 1),
    "elu": (lambda x, a: np.where(x > 0, x, np.expm1(x)), 0, 1),
    "selu": (
        lambda x, a: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)),
        0,
        1,
    ),
    "softplus": (lambda x, a: np.logaddexp(x, 0), 0, 1),
    "swish": (lambda x, a: x * special.expit(x), 0, math.sqrt(2)),
}
TOLERANCE = tolerances.BIAS_ACT


def naive(x, b, dim, act, alpha, gain, clamp):
    x = x.double().numpy()
    func, def_alpha, def_gain = NAIVE[act]
    if b is not None:
        x = x + np.expand_dims(b.double().numpy(), [axis for axis in range(x.ndim) if axis != dim % x.ndim])
    y = func(x, def_alpha if alpha is None else alpha) * (def_gain if gain is None else gain)
    return y if clamp is None else np.clip(y, -clamp, clamp)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("act", NAIVE)
def test_equals_its_definition(act, dtype):
    shapes = [((3, 5, 7, 2), 1), ((4, 3), -1), ((6,), 0), ((2, 3, 4, 2, 2), 2)]
    for shape, dim in shapes:
        for bias in (True, False):
            for alpha, gain, clamp in ((None, None, None), (0.5, 1.7, 0.6), (0, 0, 0), (None, -1, None)):
                x = (rnd(f"x{act}", shape) * 2).to(dtype)
                b = rnd("b", (shape[dim],)).to(dtype) if bias else None
                y = bias_act(x, b, dim, act, alpha, gain, clamp)
                assert y.dtype == dtype
                expected = torch.as_tensor(naive(x, b, dim, act, alpha, gain, clamp))
                torch.testing.assert_close(y.double(), expected, rtol=TOLERANCE[dtype], atol=2 * TOLERANCE[dtype])


@pytest.mark.parametrize("act", NAIVE)
def test_first_and_second_derivatives(act):
    x = rnd("x", (2, 3, 4), torch.float64).requires_grad_()
    b = rnd("b", (3,), torch.float64).requires_grad_()
    for clamp in (None, 0.9):
        assert torch.autograd.gradcheck(lambda x, b, c=clamp: bias_act(x, b, act=act, clamp=c), (x, b))
        assert torch.autograd.gradgradcheck(lambda x, b, c=clamp: bias_act(x, b, act=act, clamp=c), (x, b))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("act", NAIVE)
def test_half_precision_differentiates_on_the_cpu(act, dtype):
    x = rnd("x", (2, 3, 4, 4)).to(dtype).requires_grad_()
    y = bias_act(x, torch.ones(3, dtype=dtype), act=act, clamp=4)
    (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    (h,) = torch.autograd.grad(g.sum(), x)
    assert g.dtype == h.dtype == dtype
    assert h.isfinite().all()


def test_keeps_channels_last():
    x = rnd("x", (2, 8, 4, 4)).to(memory_format=torch.channels_last)
    y = bias_act(x, torch.ones(8), act="lrelu", clamp=1)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_implementations_agree():
    x, b = rnd("x", (2, 3, 4, 4)), rnd("b", (3,))
    assert torch.equal(bias_act(x, b, act="swish", impl="ref"), bias_act(x, b, act="swish", impl="cuda"))


def test_defaults_of_the_activations():
    assert set(activation_funcs) == set(NAIVE)
    for name, (func, def_alpha, def_gain) in NAIVE.items():
        spec = activation_funcs[name]
        assert spec.def_alpha == def_alpha
        assert spec.def_gain == pytest.approx(def_gain)
        x = torch.linspace(-3, 3, 11, dtype=torch.float64)
        torch.testing.assert_close(spec.func(x, alpha=0.3), torch.as_tensor(func(x.numpy(), 0.3)))


@pytest.mark.parametrize(
    "kwargs, words",
    [
        ({"act": "gelu"}, "gelu"),
        ({"impl": "triton"}, "triton"),
        ({"clamp": -1}, "clamp"),
        ({"clamp": float("nan")}, "clamp"),
        ({"b": torch.zeros(4)}, r"\[3\]"),
        ({"b": torch.zeros(3, 1)}, r"\[3\]"),
        ({"b": torch.zeros(3), "dim": 4}, "dim 4"),
    ],
    ids=str,
)
def test_refuses_what_does_not_fit(kwargs, words):
    with pytest.raises(ValueError, match=words):
        bias_act(torch.zeros(2, 3, 4, 4), **kwargs)
