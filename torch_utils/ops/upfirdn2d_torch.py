# SPDX-License-Identifier: Apache-2.0
"""`upfirdn2d` by depthwise convolutions of PyTorch, differentiable to any order.

Resampling is linear in the image, and its adjoint is resampling again, so every derivative is. Autograd's own second
derivative of a depthwise convolution would loop over the channels.
"""

import torch
import torch.nn.functional as F

from torch_utils.ops import layout
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
    if few:
        # Here, outside of the autograd function, whose result must not be a view: callers may change it in place.
        x = x.reshape(1, N * C, *x.shape[2:])
    y = _resample(x, f, up, down, pad, size, flip, gain, on_cpu and not few)
    return y.reshape(N, C, *size) if few else y


def _resample(x, f, up, down, pad, size, flip, gain, may_convert):
    if torch.is_grad_enabled() and x.requires_grad and not f.requires_grad:
        return _Resample.apply(x, f, up, down, pad, size, flip, gain, may_convert)
    return _convolve(x, f, up, down, pad, size, flip, gain, may_convert)


class _Resample(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, f, up, down, pad, size, flip, gain, may_convert):
        ctx.save_for_backward(f)
        ctx.adjoint = down, up, adjoint_padding(f, pad), x.shape[2:], not flip, gain, may_convert
        return _convolve(x, f, up, down, pad, size, flip, gain, may_convert)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (f,) = ctx.saved_tensors
        return _resample(grad, f, *ctx.adjoint), *[None] * 8


def adjoint_padding(f: torch.Tensor, pad: Pair) -> Pair:
    """Padding before the first pixel in the adjoint, in which `up` and `down` change places and `f` is flipped.

    Output o reads input i through the tap o·down - i·up + taps - 1 - pad, and the adjoint reads o from i through it.
    """
    return f.shape[0] - 1 - pad[0], f.shape[1] - 1 - pad[1]


def _convolve(x, f, up, down, pad, size, flip, gain, may_convert) -> torch.Tensor:
    """Resample in one convolution, which neither stores inserted zeros nor computes pixels that are not kept (unless
    both `up` and `down` exceed 1). The result is never a view.

    `may_convert`: whether images may be converted to channels-last, where depthwise convolutions are 3 times faster on
    a CPU. The conversion only pays if the result is larger than `x`.
    """
    C, shape, taps = x.shape[1], x.shape[2:], f.shape
    transposed = up != (1, 1)
    if may_convert and transposed and down == (1, 1):
        x = layout.channels_last(x)
    if transposed == flip:
        f = f.flip([0, 1])  # A transposed convolution convolves, the other correlates.
    f = (f * gain).to(x.dtype).expand(C, 1, *taps)  # With the gain in the taps, half precision rounds once.
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
    y = F.conv_transpose2d(x, f, stride=up, padding=common, groups=C)
    y = window(y, [start[i] - common[i] for i in (0, 1)], length)
    return y if down == (1, 1) else y[:, :, :: down[0], :: down[1]].clone()
