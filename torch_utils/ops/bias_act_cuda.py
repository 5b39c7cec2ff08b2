# SPDX-License-Identifier: Apache-2.0
"""`bias_act` as operations of the dispatcher, so that autograd, `torch.compile` and `torch.export` see through it.

With p(u) = clamp(gain * a(u), ±clamp) for an activation a, the three operations compute

    bias_act         y   = p(x + b)
    bias_act_grad    dx  = g * p'(x + b)
    bias_act_grad2   ddx = g * dy * p''(x + b)

On CUDA they are the kernels of csrc/bias_act.cu; elsewhere plain PyTorch, by which tests hold the formulas and the
derivatives to the reference in bias_act.py.

Activations of straight pieces keep their output for the backward pass, which the next layer keeps anyway: its sign
tells the slope, and a magnitude at the bound that it was clamped. The others keep their input.
"""

import math
from collections.abc import Callable

import torch

from torch_utils.ops import _plugin
from torch_utils.ops.bias_act import _along, _bias_act_ref, _or_default, activation_funcs

_PIECEWISE = ("linear", "relu", "lrelu")
_NUMBERS = {name: number for number, name in enumerate(activation_funcs)}  # `enum class Act` of csrc/activation.h
_ATTRIBUTES = "int dim, str act, float alpha, float gain, float? clamp"


def bias_act(
    x: torch.Tensor,
    b: torch.Tensor | None,
    dim: int,
    act: str,
    alpha: float | None,
    gain: float | None,
    clamp: float | None,
) -> torch.Tensor:
    """`torch_utils.ops.bias_act.bias_act` through the operations above, on arguments that it has checked.

    Differentiable twice; a third derivative raises RuntimeError.
    """
    alpha, gain = _or_default(act, alpha, gain)
    if act == "lrelu" and alpha < 0:  # The output's sign would not tell the input's.
        return _bias_act_ref(x, b, dim, act, alpha, gain, clamp)
    b = None if b is None else b.to(x.dtype)
    return _value(x, b, dim % max(x.ndim, 1), act, alpha, gain, None if clamp is None else float(clamp))


@torch.library.custom_op(
    "stylegan2_ada::bias_act", mutates_args=(), schema=f"(Tensor x, Tensor? b, {_ATTRIBUTES}) -> Tensor"
)
def _value(x, b, dim, act, alpha, gain, clamp):
    return _like(x, _bias_act_ref(x, b, dim, act, alpha, gain, clamp))


@torch.library.custom_op(
    "stylegan2_ada::bias_act_grad",
    mutates_args=(),
    schema=f"(Tensor g, Tensor saved, Tensor? b, {_ATTRIBUTES}) -> Tensor",
)
def _grad(g, saved, b, dim, act, alpha, gain, clamp):
    if act in _PIECEWISE:
        slope = torch.where(saved * math.copysign(1, gain) > 0, 1.0, {"linear": 1.0, "relu": 0.0, "lrelu": alpha}[act])
        inside = True if clamp is None else saved.abs() < _stored(clamp, saved.dtype)
    else:
        u = saved if b is None else saved + _along(b, dim, saved.ndim)
        slope = _SMOOTH[act][0](u)
        inside = True if clamp is None else (activation_funcs[act].func(u, alpha) * gain).abs() <= clamp
    return _like(saved, g * slope * gain * inside)


@torch.library.custom_op(
    "stylegan2_ada::bias_act_grad2",
    mutates_args=(),
    schema=f"(Tensor g, Tensor dy, Tensor x, Tensor? b, {_ATTRIBUTES}) -> Tensor",
)
def _grad2(g, dy, x, b, dim, act, alpha, gain, clamp):
    u = x if b is None else x + _along(b, dim, x.ndim)
    inside = True if clamp is None else (activation_funcs[act].func(u, alpha) * gain).abs() <= clamp
    return _like(x, g * dy * _SMOOTH[act][1](u) * gain * inside)


def _sigmoid_slope(u: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(u) * torch.sigmoid(-u)


_SELU_SCALE = 1.0507009873554804934193349852946
_SELU_ALPHA = 1.6732632423543772848170429916717

# First and second derivatives of the activations that have a second one.
_SMOOTH: dict[str, tuple[Callable, Callable]] = {
    "tanh": (lambda u: 1 - u.tanh() ** 2, lambda u: -2 * u.tanh() * (1 - u.tanh() ** 2)),
    "sigmoid": (_sigmoid_slope, lambda u: _sigmoid_slope(u) * (1 - 2 * u.sigmoid())),
    "elu": (lambda u: torch.where(u > 0, 1.0, u.exp()), lambda u: torch.where(u < 0, u.exp(), 0.0)),
    "selu": (
        lambda u: _SELU_SCALE * torch.where(u > 0, 1.0, _SELU_ALPHA * u.exp()),
        lambda u: _SELU_SCALE * torch.where(u < 0, _SELU_ALPHA * u.exp(), 0.0),
    ),
    "softplus": (torch.sigmoid, _sigmoid_slope),
    "swish": (
        lambda u: u.sigmoid() + u * _sigmoid_slope(u),
        lambda u: _sigmoid_slope(u) * (2 + u * (1 - 2 * u.sigmoid())),
    ),
}


def _stored(clamp: float, dtype: torch.dtype) -> float:
    """The bound as clamped outputs of `dtype` hold it."""
    return torch.tensor(clamp, dtype=dtype).item()


def _like(x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """`values` in fresh memory of `x`'s type and of the layout that the fake kernels and CUDA give."""
    return torch.empty_like(x).copy_(values)


@_value.register_fake
def _(x, b, dim, act, alpha, gain, clamp):
    return torch.empty_like(x)


@_grad.register_fake
def _(g, saved, b, dim, act, alpha, gain, clamp):
    return torch.empty_like(saved)


@_grad2.register_fake
def _(g, dy, x, b, dim, act, alpha, gain, clamp):
    return torch.empty_like(x)


@_value.register_kernel("cuda")
def _(x, b, *attributes):
    return _launch(0, x, b, None, None, *attributes)


@_grad.register_kernel("cuda")
def _(g, saved, b, *attributes):
    return _launch(1, saved, b, g, None, *attributes)


@_grad2.register_kernel("cuda")
def _(g, dy, x, b, *attributes):
    return _launch(2, x, b, g, dy, *attributes)


def _launch(order, x, b, g, dy, dim, act, alpha, gain, clamp) -> torch.Tensor:
    out = torch.empty_like(x)
    if out.numel() == 0:
        return out
    x, g, dy = (_in_layout_of(out, tensor) for tensor in (x, g, dy))
    b = None if b is None else _in_layout_of(out.new_empty(b.shape), b)
    step, size = (out.stride(dim), out.shape[dim]) if b is not None else (1, 1)
    with torch.cuda.device(out.device):
        _plugin.load().bias_act(
            _plugin.TYPES[out.dtype],
            order,
            *(0 if tensor is None else tensor.data_ptr() for tensor in (out, x, b, g, dy)),
            *(out.numel(), step, size, _NUMBERS[act], alpha, gain, -1.0 if clamp is None else clamp),
            torch.cuda.current_stream().cuda_stream,
        )
    return out


def _in_layout_of(out: torch.Tensor, tensor: torch.Tensor | None) -> torch.Tensor | None:
    """`tensor` with the strides of `out`, which is dense, where they matter; copied if it has others."""
    if tensor is None:
        return None
    if tensor.device != out.device or tensor.dtype != out.dtype or tensor.shape != out.shape:
        raise RuntimeError("bias_act: all tensors must be on one device and of one type, gradients of x's shape")
    pairs = zip(out.shape, out.stride(), tensor.stride())
    if all(size == 1 or stride == other for size, stride, other in pairs):
        return tensor
    return torch.empty_like(out).copy_(tensor)


def _keep_for_value(ctx, inputs, output) -> None:
    x, b, *ctx.attributes = inputs
    ctx.save_for_backward(*((output, None) if ctx.attributes[1] in _PIECEWISE else (x, b)))


def _value_backward(ctx, dy):
    saved, b = ctx.saved_tensors
    dx = _grad(dy, saved, b, *ctx.attributes)
    return dx, _bias_grad(ctx.needs_input_grad[1], dx, ctx.attributes[0]), *[None] * 5


def _keep_for_grad(ctx, inputs, output) -> None:
    g, saved, b, *ctx.attributes = inputs
    ctx.save_for_backward(None if ctx.attributes[1] in _PIECEWISE else g, saved, b)


def _grad_backward(ctx, gg):
    g, saved, b = ctx.saved_tensors
    curved = ctx.attributes[1] not in _PIECEWISE and any(ctx.needs_input_grad[1:3])
    dg = _grad(gg, saved, b, *ctx.attributes) if ctx.needs_input_grad[0] else None
    dx = _grad2(gg, g, saved, b, *ctx.attributes) if curved else None
    return dg, dx, _bias_grad(curved and ctx.needs_input_grad[2], dx, ctx.attributes[0]), *[None] * 5


def _bias_grad(needed: bool, dx: torch.Tensor | None, dim: int) -> torch.Tensor | None:
    return dx.sum([axis for axis in range(dx.ndim) if axis != dim]) if needed else None


_value.register_autograd(_value_backward, setup_context=_keep_for_value)
_grad.register_autograd(_grad_backward, setup_context=_keep_for_grad)
