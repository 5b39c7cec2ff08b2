# SPDX-License-Identifier: Apache-2.0
"""`torch.nn.functional`'s 2-D convolutions, with a way to leave out the weight gradients of a backward pass.

The gradient penalties differentiate a network with respect to its input, keeping the graph, and have no use for the
weight gradients of that first pass.

A convolution of x with w, weighted by g and summed, is one number that is linear in each of the three. Its derivative
by g is the convolution, by x the transposed convolution, by w the weight gradient, and the derivatives of these are
again among the three. So one autograd function with three faces differentiates to any order, by the fast route each
time; PyTorch's own second derivative takes slower ones.

Letters: N batch, C H W wide side (input of a convolution), O h w narrow side (its output), K taps.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from torch_utils.ops import backend

enabled = True  # False: the plain functions, whose weight gradients cannot be left out.

# One flag for all threads: a backward pass runs its nodes on threads of its own.
_weight_gradients_disabled = False


@contextlib.contextmanager
def no_weight_gradients() -> Iterator[None]:
    """Backward passes that run inside leave out the gradients of this module's convolutions to their weights.

    Convolutions that PyTorch's own functions serve (see `_plain`: the reference path, autocast, odd geometries) have
    them all the same, so ask only for gradients that are wanted: `torch.autograd.grad`, not `backward`.
    """
    global _weight_gradients_disabled
    before = _weight_gradients_disabled
    _weight_gradients_disabled = True
    try:
        yield
    finally:
        _weight_gradients_disabled = before


def conv2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> torch.Tensor:
    """`torch.nn.functional.conv2d` that `no_weight_gradients` governs; differentiable to any order."""
    if _plain(input, padding):
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    x, w = _fast_layout(input), _fast_layout(weight)
    if not _differentiated(x, w):
        return _plus(F.conv2d(x, w, None, stride, padding, dilation, groups), bias)
    form = _Form(x.shape, w.shape, _pair(stride), _pair(padding), _pair(dilation), groups)
    return _plus(_Derivative.apply("g", form, x, w), bias)


def conv_transpose2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> torch.Tensor:
    """`torch.nn.functional.conv_transpose2d` that `no_weight_gradients` governs; differentiable to any order."""
    stride, output_padding = _pair(stride), _pair(output_padding)
    if _plain(input, padding) or any(rest >= step for rest, step in zip(output_padding, stride)):
        return F.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    g, w = _fast_layout(input), _fast_layout(weight)
    if not _differentiated(g, w):
        return _plus(F.conv_transpose2d(g, w, None, stride, padding, output_padding, groups, dilation), bias)
    padding, dilation = _pair(padding), _pair(dilation)
    wide = [
        (g.shape[2 + i] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (w.shape[2 + i] - 1) + output_padding[i] + 1
        for i in (0, 1)
    ]
    x_shape = torch.Size([g.shape[0], w.shape[1] * groups, *wide])
    form = _Form(x_shape, w.shape, stride, padding, dilation, groups)
    return _plus(_Derivative.apply("x", form, w, g), bias)


def _plain(input: torch.Tensor, padding) -> bool:
    """Whether PyTorch's own function is to serve: where it is asked for, or can do what `_Derivative` cannot."""
    if not enabled or backend.is_reference() or torch.is_autocast_enabled(input.device.type):
        return True
    return input.ndim != 4 or isinstance(padding, str)


class _Form(NamedTuple):
    """The trilinear form of a convolution: shapes of x [N, C, H, W] and w [O, C / groups, K, K], and its geometry."""

    x_shape: torch.Size
    w_shape: torch.Size
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


class _Derivative(torch.autograd.Function):
    """Derivative of the form by `wanted` ('x', 'w' or 'g') at values `a`, `b` of the other two, in that order."""

    @staticmethod
    def forward(ctx, wanted: str, form: _Form, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        ctx.wanted, ctx.form = wanted, form
        ctx.save_for_backward(a, b)
        return _evaluate(wanted, form, **dict(zip(_others(wanted), (a, b))))

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        names = _others(ctx.wanted)
        values = {**dict(zip(names, ctx.saved_tensors)), ctx.wanted: _fast_layout(grad)}
        grads = []
        for name, needed in zip(names, ctx.needs_input_grad[2:]):
            if needed and not (name == "w" and _weight_gradients_disabled):
                grads.append(_derivative(name, ctx.form, **{other: values[other] for other in _others(name)}))
            else:
                grads.append(None)
        return None, None, *grads


def _others(name: str) -> tuple[str, ...]:
    return tuple(other for other in "xwg" if other != name)


def _differentiated(*values: torch.Tensor) -> bool:
    """Whether gradients may be asked for. Where not, the bookkeeping of `_Derivative` would cost small networks 6 %."""
    return torch.is_grad_enabled() and any(value.requires_grad for value in values)


def _derivative(wanted: str, form: _Form, **values: torch.Tensor) -> torch.Tensor:
    """`_Derivative`, or only its value where no gradients are asked for."""
    if _differentiated(*values.values()):
        return _Derivative.apply(wanted, form, *(values[name] for name in _others(wanted)))
    return _evaluate(wanted, form, **values)


def _evaluate(wanted: str, form: _Form, x=None, w=None, g=None) -> torch.Tensor:
    x_shape, w_shape, stride, padding, dilation, groups = form
    if wanted == "g":
        return F.conv2d(x, w, None, stride, padding, dilation, groups)
    if wanted == "x":
        narrow = [(g.shape[i + 2] - 1) * stride[i] - 2 * padding[i] for i in (0, 1)]
        rest = [x_shape[i + 2] - narrow[i] - dilation[i] * (w_shape[i + 2] - 1) - 1 for i in (0, 1)]
        return F.conv_transpose2d(g, w, None, stride, padding, rest, groups, dilation)
    if x.device.type == "cpu" and dilation == (1, 1) and groups == 1 and _products_win(form, g):
        return _weight_gradient_by_products(form, x, g)
    return torch.nn.grad.conv2d_weight(x, w_shape, g, stride, padding, dilation, groups)


def _products_win(form: _Form, g: torch.Tensor) -> bool:
    """Whether matrix products beat a CPU's own weight gradient: with strides, and where w is large beside the image."""
    O, C, kh, kw = form.w_shape
    positions = g.shape[0] * g.shape[2] * g.shape[3]
    large = 16 * positions < O * C
    return (kh, kw) != (1, 1) and (form.stride != (1, 1) or large)


def _weight_gradient_by_products(form: _Form, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """One matrix product for each row of taps; 1.5 to 3 times faster with strides of 2."""
    (O, C, kh, kw), (sy, sx), (py, px) = form.w_shape, form.stride, form.padding
    h, w = g.shape[2:]
    x, g = x.permute(0, 2, 3, 1), g.permute(0, 2, 3, 1).reshape(-1, O)
    if px or py:
        x = F.pad(x, (0, 0, px, px, py, py))
    grad = x.new_empty([O, kh, kw * C])
    for i in range(kh):
        rows = x[:, i : i + sy * (h - 1) + 1 : sy, : sx * (w - 1) + kw]
        seen = rows.unfold(2, kw, sx).transpose(3, 4)  # [N, h, w, kw, C]
        grad[:, i] = g.t() @ seen.reshape(-1, kw * C)
    return grad.reshape(O, kh, kw, C).permute(0, 3, 1, 2)


def _fast_layout(x: torch.Tensor) -> torch.Tensor:
    """`x`, on a CPU in channels-last: its convolutions are 1.3 to 3 times faster there, backward passes above all.

    Their results have the layout of their input and element-wise operations keep it, so only the first of a chain of
    layers converts anything.
    """
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x


def _plus(y: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return y if bias is None else y + bias.reshape(1, -1, 1, 1)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return tuple(value) if isinstance(value, Sequence) else (value, value)
