# SPDX-License-Identifier: Apache-2.0
"""`bias_act` by CUDA kernels, as operations of the dispatcher: autograd, `torch.compile` and `torch.export` know them.

With p(u) = clamp(gain * a(u), ±clamp) for an activation a, the three operations compute

    bias_act         y   = p(x + b)
    bias_act_grad    dx  = g * p'(x + b)
    bias_act_grad2   ddx = g * dy * p''(x + b)

They are differentiable twice; a third derivative raises RuntimeError. Piecewise linear activations save their output
for the backward pass, which the next layer saves anyway: its sign gives the slope, and a magnitude at the bound means
that it was clamped. 'linear' without a clamp saves nothing, so that its output may be changed in place. The other
activations save their input.
"""

import torch

from torch_utils.ops import _plugin
from torch_utils.ops.bias_act_ref import activation_funcs

_PIECEWISE = ("linear", "relu", "lrelu")
_NUMBERS = {name: number for number, name in enumerate(activation_funcs)}  # `enum class Act` of csrc/activation.h
_VALUE, _FIRST, _SECOND = range(3)  # `enum class Order` of csrc/bias_act.h
_ATTRIBUTES = "int dim, str act, float alpha, float gain, float? clamp"


def supports(act: str, alpha: float) -> bool:
    """Whether there is a kernel: with a negative slope, the sign of lrelu's output does not give that of its input."""
    return act != "lrelu" or alpha >= 0


@torch.library.custom_op(
    "stylegan2_ada::bias_act",
    mutates_args=(),
    device_types="cuda",
    schema=f"(Tensor x, Tensor? b, {_ATTRIBUTES}) -> Tensor",
)
def bias_act(x, b, dim, act, alpha, gain, clamp):
    """`torch_utils.ops.bias_act.bias_act` on checked arguments with the defaults filled in."""
    return launch(_VALUE, x, b, None, None, dim, act, alpha, gain, clamp)


@torch.library.custom_op(
    "stylegan2_ada::bias_act_grad",
    mutates_args=(),
    device_types="cuda",
    schema=f"(Tensor g, Tensor saved, Tensor? b, {_ATTRIBUTES}) -> Tensor",
)
def bias_act_grad(g, saved, b, dim, act, alpha, gain, clamp):
    """Gradient in x; `saved` and `b` are what `bias_act` saved."""
    return launch(_FIRST, saved, b, g, None, dim, act, alpha, gain, clamp)


@torch.library.custom_op(
    "stylegan2_ada::bias_act_grad2",
    mutates_args=(),
    device_types="cuda",
    schema=f"(Tensor g, Tensor dy, Tensor x, Tensor? b, {_ATTRIBUTES}) -> Tensor",
)
def bias_act_grad2(g, dy, x, b, dim, act, alpha, gain, clamp):
    """Gradient of `bias_act_grad` in x, for the activations that have a second derivative."""
    return launch(_SECOND, x, b, g, dy, dim, act, alpha, gain, clamp)


@bias_act.register_fake
def _(x, b, dim, act, alpha, gain, clamp):
    return torch.empty_like(x)


@bias_act_grad.register_fake
def _(g, saved, b, dim, act, alpha, gain, clamp):
    return torch.empty_like(saved)


@bias_act_grad2.register_fake
def _(g, dy, x, b, dim, act, alpha, gain, clamp):
    return torch.empty_like(x)


def launch(order, x, b, g, dy, dim, act, alpha, gain, clamp) -> torch.Tensor:
    """Run the kernel of that order, with tensors as in csrc/bias_act.h."""
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
    """`tensor` with the strides of `out`, which is dense, where they matter; a copy if it has others."""
    if tensor is None:
        return None
    if tensor.device != out.device or tensor.dtype != out.dtype or tensor.shape != out.shape:
        raise RuntimeError("bias_act: all tensors must be on one device and of one type, gradients of x's shape")
    pairs = zip(out.shape, out.stride(), tensor.stride())
    if all(size == 1 or stride == other for size, stride, other in pairs):
        return tensor
    return torch.empty_like(out).copy_(tensor)


def _save_for_value(ctx, inputs, output) -> None:
    x, b, *ctx.attributes = inputs
    _dim, act, _alpha, _gain, clamp = ctx.attributes
    if act == "linear" and clamp is None:
        ctx.save_for_backward(None, None)
    else:
        ctx.save_for_backward(*((output, None) if act in _PIECEWISE else (x, b)))


def _value_backward(ctx, dy):
    saved, b = ctx.saved_tensors
    dx = bias_act_grad(dy, dy if saved is None else saved, b, *ctx.attributes)  # any values give a constant slope
    return dx, _bias_grad(ctx.needs_input_grad[1], dx, ctx.attributes[0]), *[None] * 5


def _save_for_grad(ctx, inputs, output) -> None:
    g, saved, b, *ctx.attributes = inputs
    ctx.save_for_backward(None if ctx.attributes[1] in _PIECEWISE else g, saved, b)


def _grad_backward(ctx, gg):
    g, saved, b = ctx.saved_tensors
    curved = ctx.attributes[1] not in _PIECEWISE and any(ctx.needs_input_grad[1:3])
    dg = bias_act_grad(gg, saved, b, *ctx.attributes) if ctx.needs_input_grad[0] else None
    dx = bias_act_grad2(gg, g, saved, b, *ctx.attributes) if curved else None
    return dg, dx, _bias_grad(curved and ctx.needs_input_grad[2], dx, ctx.attributes[0]), *[None] * 5


def _bias_grad(needed: bool, dx: torch.Tensor | None, dim: int) -> torch.Tensor | None:
    return dx.sum([axis for axis in range(dx.ndim) if axis != dim]) if needed else None


bias_act.register_autograd(_value_backward, setup_context=_save_for_value)
bias_act_grad.register_autograd(_grad_backward, setup_context=_save_for_grad)
