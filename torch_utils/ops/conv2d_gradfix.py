# SPDX-License-Identifier: Apache-2.0
"""`torch.nn.functional`'s 2-D convolutions, with a way to leave out the weight gradients of a backward pass.

Gradient penalties differentiate a network with respect to its input, keeping the graph, and do not need the weight
gradients of that first pass.

A convolution of x with w, multiplied by g and summed, is linear in each of the three. Its derivatives are

    in g    the convolution of x with w
    in x    the transposed convolution of g with w
    in w    the weight gradient, of x and g

and the derivatives of each of these are the other two. So three autograd functions that call one another differentiate
to any order, each time by a fast routine; PyTorch's own second derivatives use slower ones.

Letters: N batch, C H W input of a convolution, O h w its output, kh kw kernel.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from torch_utils.ops import backend, layout

enabled = True  # False: PyTorch's own functions, whose weight gradients cannot be left out.

WIDE = 128 * 128  # input times output channels from which matrix products may be faster than a CPU's weight gradient

# One flag for all threads, because backward passes run on other threads.
_weight_gradients_disabled = False


@contextlib.contextmanager
def no_weight_gradients(disable: bool = True) -> Iterator[None]:
    """Backward passes inside leave out the gradients of this module's convolutions with respect to their weights.

    With `disable` False it has no effect (the argument is StyleGAN3's).

    This does not hold where PyTorch's own functions run (`enabled = False`, the reference path, autocast, padding by
    name, inputs without a batch axis). So ask only for the gradients you need: `torch.autograd.grad`, not `backward`.
    """
    global _weight_gradients_disabled
    before = _weight_gradients_disabled
    _weight_gradients_disabled = before or disable
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
    """`torch.nn.functional.conv2d` that obeys `no_weight_gradients`; differentiable to any order."""
    implementation = backend.choose_convolution(input, enabled)
    if implementation == backend.REFERENCE or input.ndim != 4 or isinstance(padding, str):
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    form = _Form(
        input.shape, weight.shape, _pair(stride), _pair(padding), _pair(dilation), groups, implementation == backend.CPU
    )
    return _plus(_run(_Conv, form.laid_out(input), form.laid_out(weight), form), bias)


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
    """`torch.nn.functional.conv_transpose2d` that obeys `no_weight_gradients`; differentiable to any order."""
    implementation = backend.choose_convolution(input, enabled)
    stride, output_padding = _pair(stride), _pair(output_padding)
    beyond = any(rest >= step for rest, step in zip(output_padding, stride))  # no convolution has this as its input
    if implementation == backend.REFERENCE or input.ndim != 4 or isinstance(padding, str) or beyond:
        return F.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    padding, dilation = _pair(padding), _pair(dilation)
    full = [(input.shape[2 + i] - 1) * stride[i] + dilation[i] * (weight.shape[2 + i] - 1) + 1 for i in (0, 1)]
    size = [full[i] - 2 * padding[i] + output_padding[i] for i in (0, 1)]
    x_shape = torch.Size([input.shape[0], weight.shape[1] * groups, *size])
    form = _Form(x_shape, weight.shape, stride, padding, dilation, groups, implementation == backend.CPU)
    return _plus(_run(_ConvTranspose, form.laid_out(input), form.laid_out(weight), form), bias)


class _Form(NamedTuple):
    """The form that is linear in x [N, C, H, W], w [O, C / groups, kh, kw] and g [N, O, h, w]: shapes and geometry."""

    x_shape: torch.Size
    w_shape: torch.Size
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    on_cpu: bool

    def laid_out(self, tensor: torch.Tensor) -> torch.Tensor:
        return layout.marked_channels_last(tensor) if self.on_cpu else tensor


class _Conv(torch.autograd.Function):
    @staticmethod
    def compute(x: torch.Tensor, w: torch.Tensor, form: _Form) -> torch.Tensor:
        return F.conv2d(x, w, None, form.stride, form.padding, form.dilation, form.groups)

    @staticmethod
    def forward(ctx, x, w, form):
        ctx.save_for_backward(x, w)
        ctx.form = form
        return _Conv.compute(x, w, form)

    @staticmethod
    def backward(ctx, g):
        (x, w), form, (x_needed, w_needed, _) = ctx.saved_tensors, ctx.form, ctx.needs_input_grad
        g = form.laid_out(g)
        dx = _run(_ConvTranspose, g, w, form) if x_needed else None
        dw = _run(_WeightGradient, x, g, form) if w_needed and not _weight_gradients_disabled else None
        return dx, dw, None


class _ConvTranspose(torch.autograd.Function):
    @staticmethod
    def compute(g: torch.Tensor, w: torch.Tensor, form: _Form) -> torch.Tensor:
        x_shape, w_shape, stride, padding, dilation, groups, _ = form
        full = [(g.shape[2 + i] - 1) * stride[i] + dilation[i] * (w_shape[2 + i] - 1) + 1 for i in (0, 1)]
        rest = [x_shape[2 + i] + 2 * padding[i] - full[i] for i in (0, 1)]
        return F.conv_transpose2d(g, w, None, stride, padding, rest, groups, dilation)

    @staticmethod
    def forward(ctx, g, w, form):
        ctx.save_for_backward(g, w)
        ctx.form = form
        return _ConvTranspose.compute(g, w, form)

    @staticmethod
    def backward(ctx, x):
        (g, w), form, (g_needed, w_needed, _) = ctx.saved_tensors, ctx.form, ctx.needs_input_grad
        x = form.laid_out(x)
        dg = _run(_Conv, x, w, form) if g_needed else None
        dw = _run(_WeightGradient, x, g, form) if w_needed and not _weight_gradients_disabled else None
        return dg, dw, None


class _WeightGradient(torch.autograd.Function):
    @staticmethod
    def compute(x: torch.Tensor, g: torch.Tensor, form: _Form) -> torch.Tensor:
        if form.on_cpu and form.dilation == (1, 1) and form.groups == 1 and _products_are_faster(form, g):
            return _weight_gradient_by_products(form, x, g)
        return torch.nn.grad.conv2d_weight(x, form.w_shape, g, form.stride, form.padding, form.dilation, form.groups)

    @staticmethod
    def forward(ctx, x, g, form):
        ctx.save_for_backward(x, g)
        ctx.form = form
        return _WeightGradient.compute(x, g, form)

    @staticmethod
    def backward(ctx, w):
        (x, g), form, (x_needed, g_needed, _) = ctx.saved_tensors, ctx.form, ctx.needs_input_grad
        w = form.laid_out(w)
        dx = _run(_ConvTranspose, g, w, form) if x_needed else None
        dg = _run(_Conv, x, w, form) if g_needed else None
        return dx, dg, None


def _run(function: type, a: torch.Tensor, b: torch.Tensor, form: _Form) -> torch.Tensor:
    """Apply one of the functions above. Without gradients, its bookkeeping would cost small networks 6 %."""
    if torch.is_grad_enabled() and (a.requires_grad or b.requires_grad):
        return function.apply(a, b, form)
    return function.compute(a, b, form)


def _products_are_faster(form: _Form, g: torch.Tensor) -> bool:
    """Whether matrix products are faster than a CPU's own weight gradient: for wide layers with strides, or with a
    large w and a small image."""
    O, C, kh, kw = form.w_shape
    positions = g.shape[0] * g.shape[2] * g.shape[3]
    large = 16 * positions < O * C
    return (kh, kw) != (1, 1) and O * C >= WIDE and (form.stride != (1, 1) or large)


def _weight_gradient_by_products(form: _Form, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """One matrix product for each row of taps; 1.2 to 3 times faster with strides of 2."""
    (O, C, kh, kw), (sy, sx), (py, px) = form.w_shape, form.stride, form.padding
    h, w = g.shape[2:]
    x, g = x.permute(0, 2, 3, 1), g.permute(0, 2, 3, 1).reshape(-1, O)
    if px or py:
        x = F.pad(x, (0, 0, px, px, py, py))
    grad = torch.empty([O, C, kh, kw], dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    rows_of_taps = grad.permute(0, 2, 3, 1).view(O, kh, kw * C)
    for i in range(kh):
        rows = x[:, i : i + sy * (h - 1) + 1 : sy, : sx * (w - 1) + kw]
        seen = rows.unfold(2, kw, sx).transpose(3, 4)  # [N, h, w, kw, C]
        rows_of_taps[:, i] = _transposed_product(g, seen.reshape(-1, kw * C))
    return grad


def _transposed_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a.T @ b for a [P, O] and b [P, K], on a CPU.

    In fp32 it is the weight gradient of a 1x1 convolution of P pixels, up to 2 times faster: PyTorch's convolutions use
    AVX-512 on every processor that has it, its matrix products (MKL) only on Intel's.
    """
    P = a.shape[0]
    if a.dtype != torch.float32 or P < 256 or P % 16:
        return a.t() @ b
    # As 16 images: with one thread PyTorch takes a slower routine for fewer.
    x, g = (t.reshape(16, 1, P // 16, -1).permute(0, 3, 1, 2) for t in (b, a))
    return torch.nn.grad.conv2d_weight(x, [a.shape[1], b.shape[1], 1, 1], g).flatten(1)


def _plus(y: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return y if bias is None else y + bias.reshape(1, -1, 1, 1)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return tuple(value) if isinstance(value, Sequence) else (value, value)
