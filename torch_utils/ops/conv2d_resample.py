# SPDX-License-Identifier: Apache-2.0
"""2-D convolution with up- or downsampling (StyleGAN2, arXiv 1912.04958, appendix B).

Letters: N batch, C input channels, O output channels, H W image, kh kw kernel, fh fw filter taps.
"""

from collections.abc import Sequence

import torch

from torch_utils.ops import conv2d_gradfix
from torch_utils.ops.upfirdn2d import (
    add_padding,
    downsampling_padding,
    padding_sides,
    upfirdn2d,
    upsampling_padding,
)


def conv2d_resample(
    x: torch.Tensor,
    w: torch.Tensor,
    f: torch.Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
) -> torch.Tensor:
    """Upsample (zeros, then FIR), convolve, downsample (FIR, then decimate), with all padding at the start.

    That is the definition. The result equals it to rounding, computed by the cheapest of several equivalent routes.

    Args:
        x: Images or features [N, C, H, W].
        w: Kernel [O, C // groups, kh, kw].
        f: Filter from `upfirdn2d.setup_filter`, or None = identity.
        up: Upsampling factor.
        down: Downsampling factor.
        padding: Padding of the upsampled image, in addition to what keeps it centred: number, [x, y] or
            [x0, x1, y0, y1].
        groups: Number of groups of channels that are convolved separately.
        flip_weight: True = correlation, as `torch.nn.functional.conv2d`; False = convolution.
        flip_filter: True = correlate with `f`; False = convolve.

    Returns:
        [N, O, outH, outW], of `x`'s type.

    Raises:
        ValueError: arguments of the wrong form or shape.
    """
    _check(x, w, up, down, groups)
    sides = _total_padding(padding, f, up, down)
    fir = {"f": f, "flip_filter": flip_filter}
    kh, kw = w.shape[2:]
    if kh == kw == 1:
        return _pointwise(x, w, fir, up, down, sides, groups)
    if up > 1:
        x = _transposed(x, w, fir, up, sides, groups, flip_weight)
        return upfirdn2d(x, down=down, **fir) if down > 1 else x
    if down > 1:
        x = upfirdn2d(x, padding=sides, **fir)
        return _conv(x, w, groups, flip_weight, stride=down)
    x0, x1, y0, y1 = sides
    if x0 == x1 >= 0 and y0 == y1 >= 0:
        return _conv(x, w, groups, flip_weight, padding=(y0, x0))
    return _conv(upfirdn2d(x, None, padding=sides), w, groups, flip_weight)


def _check(x: torch.Tensor, w: torch.Tensor, up: int, down: int, groups: int) -> None:
    if x.ndim != 4 or w.ndim != 4:
        raise ValueError(f"conv2d_resample: x and w must have four axes, got {list(x.shape)} and {list(w.shape)}")
    for name, value in (("up", up), ("down", down), ("groups", groups)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"conv2d_resample: {name} must be a whole number from 1 up, got {value!r}")
    if x.shape[1] != w.shape[1] * groups or w.shape[0] % groups != 0:
        raise ValueError(
            f"conv2d_resample: kernel {list(w.shape)} in {groups} group(s) does not fit {x.shape[1]} input channels"
        )


def _total_padding(padding, f: torch.Tensor | None, up: int, down: int) -> tuple[int, int, int, int]:
    """The caller's padding plus the padding that keeps the up- and downsampled image centred."""
    if up > 1:
        padding = add_padding(padding, f, upsampling_padding, (up, up))
    if down > 1:
        padding = add_padding(padding, f, downsampling_padding, (down, down))
    return padding_sides(padding)


def _conv(x, w, groups: int, flip_weight: bool, stride: int = 1, padding: tuple[int, int] = (0, 0)) -> torch.Tensor:
    if not flip_weight and w.shape[2:] != (1, 1):
        w = w.flip([2, 3])
    return conv2d_gradfix.conv2d(x, w, stride=stride, padding=padding, groups=groups)


def _pointwise(x, w, fir: dict, up: int, down: int, sides, groups: int) -> torch.Tensor:
    """A 1x1 kernel commutes with resampling, so it is applied where the image is smallest."""
    if up >= down:
        x = conv2d_gradfix.conv2d(x, w, groups=groups)
    if up > 1:
        x = upfirdn2d(x, up=up, padding=sides, gain=up**2, **fir)
        sides = 0
    if down > 1:
        x = upfirdn2d(x, down=down, padding=sides, **fir)
    elif up == 1:
        x = upfirdn2d(x, None, padding=sides) if any(sides) else x
    return x if up >= down else conv2d_gradfix.conv2d(x, w, groups=groups)


def _transposed(x, w, fir: dict, up: int, sides, groups: int, flip_weight: bool) -> torch.Tensor:
    """Convolve with the kernel before the filter: convolutions commute, and a transposed one inserts the zeros."""
    O, C_group, kh, kw = w.shape
    x0, x1, y0, y1 = sides
    # The transposed convolution pads fully, where the definition does not pad, and it ends at the last pixel, without
    # the up-1 zeros that follow.
    x0, x1 = x0 - (kw - 1), x1 - (kw - up)
    y0, y1 = y0 - (kh - 1), y1 - (kh - up)
    # What is cropped on both sides is not computed at all.
    crop_x = max(min(-x0, -x1), 0)
    crop_y = max(min(-y0, -y1), 0)
    if flip_weight:
        w = w.flip([2, 3])  # A transposed convolution convolves.
    w = w.reshape(groups, O // groups, C_group, kh, kw).transpose(1, 2).reshape(-1, O // groups, kh, kw)
    x = conv2d_gradfix.conv_transpose2d(x, w, stride=up, padding=(crop_y, crop_x), groups=groups)
    sides = (x0 + crop_x, x1 + crop_x, y0 + crop_y, y1 + crop_y)
    return upfirdn2d(x, padding=sides, gain=up**2, **fir)
