# SPDX-License-Identifier: Apache-2.0
"""The definition of `upfirdn2d`, literally: the inserted zeros are stored, which makes upsampling slow."""

import torch
import torch.nn.functional as F

FEW_CHANNELS = 16  # Below, depthwise convolutions run much faster over the channels of all samples at once.

Pair = tuple[int, int]  # y, x


def resample_ref(
    x: torch.Tensor, f: torch.Tensor, up: Pair, down: Pair, pad: Pair, size: Pair, flip: bool, gain: float
) -> torch.Tensor:
    """Insert zeros, pad, filter, keep every `down`-th pixel.

    All implementations of `upfirdn2d` take these arguments; pairs are y, then x.

    Args:
        x: Images [N, C, H, W].
        f: Filter [fh, fw], float32 or, for images of that type, float64.
        up: up-1 zeros follow each pixel.
        down: Every down-th pixel stays.
        pad: Zeros before the first pixel; negative = crop.
        size: Height and width of the result. They determine the padding after the last pixel.
        flip: False = convolution, True = correlation.
        gain: Factor on the result.

    Returns:
        Images [N, C, *size], of `x`'s type.
    """
    N, C, H, W = x.shape
    if C < FEW_CHANNELS:
        x = x.reshape(1, N * C, H, W)
    if up != (1, 1):
        x = F.pad(x.reshape(*x.shape[:2], H, 1, W, 1), [0, up[1] - 1, 0, 0, 0, up[0] - 1])
        x = x.reshape(*x.shape[:2], H * up[0], W * up[1])
    length = tuple((size[i] - 1) * down[i] + f.shape[i] for i in (0, 1))
    after = tuple(length[i] - pad[i] - x.shape[2 + i] for i in (0, 1))
    if pad != after or min(pad) < 0:
        x, pad = window(x, (-pad[0], -pad[1]), length), (0, 0)
    channels = x.shape[1]
    f = ((f if flip else f.flip([0, 1])) * gain).to(x.dtype).expand(channels, 1, *f.shape)
    return F.conv2d(x, f, stride=down, padding=pad, groups=channels).reshape(N, C, *size)


def window(x: torch.Tensor, start: Pair, length: Pair) -> torch.Tensor:
    """Rows and columns start .. start+length-1 of images `x` [N, C, H, W] with zeros all around them.

    The result is `x` itself if that is all of it, else new memory.
    """
    sides = []
    for i in (1, 0):  # F.pad begins with the last axis.
        pixels, before, after = x.shape[2 + i], -start[i], start[i] + length[i] - x.shape[2 + i]
        # F.pad crops no more than the image: the rest comes off the zeros on the other side.
        if before < -pixels:
            before, after = -pixels, length[i]
        elif after < -pixels:
            before, after = length[i], -pixels
        sides += [before, after]
    return F.pad(x, sides) if any(sides) else x
