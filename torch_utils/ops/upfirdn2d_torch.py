# SPDX-License-Identifier: Apache-2.0
"""`upfirdn2d` by depthwise convolutions of PyTorch, differentiable to any order.

Resampling is linear in the image, and its adjoint is resampling again, so every derivative is. Autograd's own second
derivative of a depthwise convolution would loop over the channels.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from torch_utils.ops import backend, layout
from torch_utils.ops.upfirdn2d_ref import FEW_CHANNELS, Pair, window


def resample(
    x: torch.Tensor,
    f: torch.Tensor,
    up: Pair,
    down: Pair,
    pad: Pair,
    size: Pair,
    flip: bool,
    gain: float,
    on_cpu: bool,
) -> torch.Tensor:
    """`upfirdn2d_ref.resample_ref`, with derivatives in `f` only if `f` requires them."""
    N, C = x.shape[:2]
    # A CPU's depthwise convolution of images that are already channels-last suits 8 channels as well.
    suits = C >= FEW_CHANNELS or (C >= 8 and on_cpu and x.is_contiguous(memory_format=torch.channels_last))
    few = not suits and isinstance(N, int)  # an exported program leaves N open
    form = _Form(up, down, pad, size, flip, gain, on_cpu, few)
    if not few:
        return _resample(x, f, form)
    # The views are made here, outside of the autograd function, whose result must not be one: callers may change it in
    # place.
    y = _resample(x.reshape(1, N * C, *x.shape[2:]), f, form)
    return y.contiguous().reshape(N, C, *size)


class _Form(NamedTuple):
    """The arguments of `resample`, and whether images have the channels of all samples on one axis."""

    up: Pair
    down: Pair
    pad: Pair
    size: Pair
    flip: bool
    gain: float
    on_cpu: bool
    joined: bool

    def adjoint(self, x: torch.Tensor, f: torch.Tensor) -> "_Form":
        pad = adjoint_padding(f, self.pad)
        return self._replace(up=self.down, down=self.up, pad=pad, size=x.shape[2:], flip=not self.flip)

    def converts(self, channels: int) -> bool:
        """Whether a CPU convolves faster if images are first converted to channels-last.

        Of other images oneDNN makes blocks of 16 channels. Where it has to fill some up, it generates code for each
        size of images, which takes it 1 to 100 ms, and augmentations have ever new sizes. Otherwise the conversion only
        pays if the result is larger: then convolutions are 3 times faster.
        """
        return self.on_cpu and (channels % 16 != 0 if self.joined else self.up != (1, 1) and self.down == (1, 1))


def _resample(x: torch.Tensor, f: torch.Tensor, form: _Form) -> torch.Tensor:
    if torch.is_grad_enabled() and x.requires_grad and not f.requires_grad:
        return _Resample.apply(x, f, form)
    return _convolve(x, f, form)


class _Resample(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, f: torch.Tensor, form: _Form) -> torch.Tensor:
        ctx.save_for_backward(f)
        ctx.adjoint = form.adjoint(x, f)
        return _convolve(x, f, form)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (f,) = ctx.saved_tensors
        return _resample(grad, f, ctx.adjoint), None, None


def adjoint_padding(f: torch.Tensor, pad: Pair) -> Pair:
    """Padding before the first pixel in the adjoint, in which `up` and `down` change places and `f` is flipped.

    Output o reads input i through the tap o·down - i·up + taps - 1 - pad, and the adjoint reads o from i through it.
    """
    return f.shape[0] - 1 - pad[0], f.shape[1] - 1 - pad[1]


def _convolve(x: torch.Tensor, f: torch.Tensor, form: _Form) -> torch.Tensor:
    """Resample in one convolution, which neither stores inserted zeros nor computes pixels that are not kept (unless
    both `up` and `down` exceed 1). The result is never a view."""
    up, down, pad, size = form.up, form.down, form.pad, form.size
    C, shape, taps = x.shape[1], x.shape[2:], f.shape
    transposed = up != (1, 1)
    if form.converts(C):
        x = layout.channels_last(x)
    if transposed == form.flip:
        f = f.flip([0, 1])  # A transposed convolution convolves, the other correlates.
    f = (f * form.gain).to(x.dtype).expand(C, 1, *taps)  # With the gain in the taps, half precision rounds once.
    if not transposed:
        length = [(size[i] - 1) * down[i] + taps[i] for i in (0, 1)]
        # The convolution itself adds the padding that both sides have in common.
        common = [max(min(pad[i], length[i] - pad[i] - shape[i]), 0) for i in (0, 1)]
        x = window(x, [common[i] - pad[i] for i in (0, 1)], [length[i] - 2 * common[i] for i in (0, 1)])
        return F.conv2d(x, f, stride=down, padding=common, groups=C)
    # The transposed convolution has every position that any tap reaches; the first is taps - 1 before the first pixel.
    start = [taps[i] - 1 - pad[i] for i in (0, 1)]
    length = [(size[i] - 1) * down[i] + 1 for i in (0, 1)]
    full = [(shape[i] - 1) * up[i] + taps[i] for i in (0, 1)]
    # What is cropped on both sides is not computed at all.
    common = [max(min(start[i], full[i] - start[i] - length[i]), 0) for i in (0, 1)]
    dtype = backend.transposed_depthwise_type(x)
    y = F.conv_transpose2d(x.to(dtype), f.to(dtype), stride=up, padding=common, groups=C).to(x.dtype)
    y = window(y, [start[i] - common[i] for i in (0, 1)], length)
    return y if down == (1, 1) else y[:, :, :: down[0], :: down[1]].clone()
