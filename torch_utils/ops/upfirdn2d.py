# SPDX-License-Identifier: Apache-2.0
"""Upsample, pad, filter and downsample images: the resampling of StyleGAN2 (arXiv 1912.04958, appendix B).

Letters: N batch, C channels, H W image, fh fw filter taps.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from torch_utils.ops import _plugin, backend

SEPARABLE_FROM = 8  # From this many taps on, two 1-D passes beat one 2-D pass.
FEW_CHANNELS = 16  # Below, depthwise kernels run much faster over all samples' channels at once.


def setup_filter(
    f: torch.Tensor | np.ndarray | Sequence | float | None,
    device: torch.device | str | None = None,
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1,
    separable: bool | None = None,
) -> torch.Tensor:
    """Make a filter for `upfirdn2d` from taps.

    Args:
        f: Taps, [fh, fw] or [taps]; a number or None stands for a single tap (None = 1).
        device: Where the result lives; None: torch's default device.
        normalize: Scale to sum 1.
        flip_filter: Reverse the taps.
        gain: Overall factor on a signal that is filtered along both axes.
        separable: Keep 1-D taps 1-D; None = from 8 taps on. Otherwise they become their outer product.

    Returns:
        float32 [fh, fw], or [taps] where separable.

    Raises:
        ValueError: no taps, or more than two axes.
    """
    f = torch.as_tensor(1 if f is None else f, dtype=torch.float32, device=device)
    if f.ndim > 2 or f.numel() == 0:
        raise ValueError(f"setup_filter: f must hold taps along one or two axes, got shape {list(f.shape)}")
    f = f.reshape(1) if f.ndim == 0 else f
    if separable is None:
        separable = f.ndim == 1 and f.numel() >= SEPARABLE_FROM
    if separable and f.ndim != 1:
        raise ValueError("setup_filter: separable=True takes 1-D taps, got a 2-D filter")
    if f.ndim == 1 and not separable:
        f = torch.outer(f, f)
    if normalize:
        f = f / f.sum()
    if flip_filter:
        f = f.flip(list(range(f.ndim)))
    return f * gain ** (f.ndim / 2)


def upfirdn2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> torch.Tensor:
    """Upsample with zeros, pad, filter, keep every `down`-th pixel; differentiable to any order.

    Args:
        x: Images [N, C, H, W], any floating-point type.
        f: Filter [fh, fw], or [taps] to filter along both axes, or None = identity.
        up: up-1 zeros follow each pixel; number or [x, y].
        down: Every down-th pixel stays; number or [x, y].
        padding: Zeros around the upsampled image, negative = crop; number, [x, y] or [x0, x1, y0, y1].
        flip_filter: False = convolution, True = correlation.
        gain: Factor on the result.
        impl: 'cuda' (the fastest that is available) or 'ref' (plain PyTorch).

    Returns:
        [N, C, (H * up_y + y0 + y1 - fh) // down_y + 1, (W * up_x + x0 + x1 - fw) // down_x + 1], of `x`'s type.

    Raises:
        ValueError: arguments of the wrong form, or a padded image smaller than the filter.
    """
    if impl not in ("ref", "cuda"):
        raise ValueError(f"upfirdn2d: impl must be 'ref' or 'cuda', got {impl!r}")
    if x.ndim != 4:
        raise ValueError(f"upfirdn2d: x must have shape [N, C, H, W], got {list(x.shape)}")
    up_x, up_y = axis_factors(up, "up")
    padded_w = x.shape[3] * up_x + sum(padding_sides(padding)[:2])
    padded_h = x.shape[2] * up_y + sum(padding_sides(padding)[2:])
    fw, fh = filter_size(f)
    if padded_w < fw or padded_h < fh:
        raise ValueError(
            f"upfirdn2d: the upsampled and padded image, {padded_w}x{padded_h}, is smaller than the {fw}x{fh} filter"
        )
    down_x, down_y = axis_factors(down, "down")
    if impl == "ref" or backend.is_reference() or (f is not None and f.requires_grad):
        return _upfirdn2d_ref(x, f, up, down, padding, flip_filter, gain)
    if f is not None and _plugin.serves(x):
        from torch_utils.ops import upfirdn2d_cuda  # here, because it takes the reference below

        return upfirdn2d_cuda.upfirdn2d(x, f, (up_x, up_y), (down_x, down_y), padding_sides(padding), flip_filter, gain)
    return _resample_fast(x, f, (up_x, up_y), (down_x, down_y), padding_sides(padding), flip_filter, gain)


def _resample_fast(x, f, up, down, sides, flip_filter: bool, gain: float) -> torch.Tensor:
    """`upfirdn2d` of arguments in their full form: (x, y) factors and four sides."""
    if torch.is_grad_enabled() and x.requires_grad:
        return _Upfirdn2d.apply(x, f, up, down, sides, flip_filter, gain)
    if x.device.type == "cpu" and x.shape[1] >= FEW_CHANNELS and up != (1, 1) and down == (1, 1):
        # Depthwise convolutions are 3 times faster there; unless the result is larger than x, converting costs more.
        x = x.contiguous(memory_format=torch.channels_last)
    return _upfirdn2d_ref(x, f, up, down, sides, flip_filter, gain)


class _Upfirdn2d(torch.autograd.Function):
    """Resampling is linear in the image, and its adjoint is resampling again: so is every derivative.

    Autograd's own second derivative of a depthwise convolution would loop over the channels.
    """

    @staticmethod
    def forward(ctx, x, f, up, down, sides, flip_filter, gain):
        ctx.save_for_backward(f)
        ctx.adjoint = down, up, adjoint_padding(x.shape, f, up, down, sides), not flip_filter, gain
        return _resample_fast(x, f, up, down, sides, flip_filter, gain)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (f,) = ctx.saved_tensors
        return _resample_fast(grad, f, *ctx.adjoint), None, None, None, None, None, None


def adjoint_padding(shape, f: torch.Tensor | None, up, down, sides) -> tuple[int, int, int, int]:
    """Padding of the adjoint of an `upfirdn2d` on images of `shape` [N, C, H, W]; `up` and `down` swap roles in it.

    Output o reads input i through the tap o·down - i·up + taps - 1 - before, in either direction. So the adjoint pads
    taps - 1 - before zeros in front, and behind as many (or less than none) as make it as long as the input.
    """
    adjoint = []
    for axis, taps in enumerate(filter_size(f)):
        size, (before, after) = shape[3 - axis], sides[2 * axis : 2 * axis + 2]
        out = (size * up[axis] + before + after - taps) // down[axis] + 1
        adjoint += [taps - 1 - before, size * up[axis] - up[axis] + 1 - out * down[axis] + before]
    return tuple(adjoint)


def _upfirdn2d_ref(
    x: torch.Tensor,
    f: torch.Tensor | None,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> torch.Tensor:
    """`upfirdn2d` in plain PyTorch: depthwise convolutions."""
    (up_x, up_y), (down_x, down_y) = axis_factors(up, "up"), axis_factors(down, "down")
    x0, x1, y0, y1 = padding_sides(padding)
    if f is None and up_x == up_y == 1:
        x = _pad(x, (x0, x1, y0, y1))[:, :, ::down_y, ::down_x]
        return x if gain == 1 else x * gain
    f = x.new_ones([1, 1]) if f is None else f
    # The gain goes into the taps, in the wider of the two types, so that half precision rounds once.
    f = f.to(torch.promote_types(f.dtype, x.dtype))
    if f.ndim == 2:
        return _resample(x, f * gain, (up_x, up_y), (down_x, down_y), (x0, x1, y0, y1), flip_filter)
    x = _resample(x, f[None, :] * gain, (up_x, 1), (down_x, 1), (x0, x1, 0, 0), flip_filter)
    return _resample(x, f[:, None], (1, up_y), (1, down_y), (0, 0, y0, y1), flip_filter)


def _resample(
    x: torch.Tensor,
    f: torch.Tensor,
    up: tuple[int, int],
    down: tuple[int, int],
    sides: tuple[int, int, int, int],
    flip_filter: bool,
) -> torch.Tensor:
    """`upfirdn2d` with a 2-D filter [fh, fw] in one convolution, which neither stores the inserted zeros nor computes
    pixels that are not kept (unless both `up` and `down` exceed 1)."""
    N, C = x.shape[:2]
    if C < FEW_CHANNELS:
        x = x.reshape(1, N * C, *x.shape[2:])
    groups = x.shape[1]
    transposed = up != (1, 1)
    if transposed == flip_filter:
        f = f.flip([0, 1])  # A transposed convolution convolves, the other correlates.
    fh, fw = f.shape
    f = f.to(x.dtype).expand(groups, 1, fh, fw)
    x0, x1, y0, y1 = sides
    if transposed:
        # It is 'full' where ours is 'valid', and ends at the last pixel, without the up-1 zeros after it.
        x0, x1, y0, y1 = x0 - (fw - 1), x1 - (fw - up[0]), y0 - (fh - 1), y1 - (fh - up[1])
        crop_x, crop_y = max(min(-x0, -x1), 0), max(min(-y0, -y1), 0)
        x = F.conv_transpose2d(x, f, stride=up[::-1], padding=(crop_y, crop_x), groups=groups)
        x = _pad(x, (x0 + crop_x, x1 + crop_x, y0 + crop_y, y1 + crop_y))[:, :, :: down[1], :: down[0]]
    else:
        pad_x, pad_y = max(min(x0, x1), 0), max(min(y0, y1), 0)
        x = _pad(x, (x0 - pad_x, x1 - pad_x, y0 - pad_y, y1 - pad_y))
        x = F.conv2d(x, f, stride=down[::-1], padding=(pad_y, pad_x), groups=groups)
    return x.reshape(N, C, *x.shape[2:])


def _pad(x: torch.Tensor, sides: tuple[int, int, int, int]) -> torch.Tensor:
    """Pad with zeros, or crop, each side."""
    return F.pad(x, sides) if any(sides) else x


def filter2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> torch.Tensor:
    """Filter images at unchanged size; `padding` adds to that. Arguments and errors as for `upfirdn2d`."""
    sides = add_padding(padding, f, lambda taps, axis: (taps // 2, (taps - 1) // 2))
    return upfirdn2d(x, f, padding=sides, flip_filter=flip_filter, gain=gain, impl=impl)


def upsample2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    up: int | Sequence[int] = 2,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> torch.Tensor:
    """Enlarge images `up` times at unchanged brightness; `padding` adds to that. Arguments as for `upfirdn2d`."""
    factors = axis_factors(up, "up")
    sides = add_padding(padding, f, lambda taps, axis: upsampling_padding(taps, factors[axis]))
    gain = gain * factors[0] * factors[1]
    return upfirdn2d(x, f, up=up, padding=sides, flip_filter=flip_filter, gain=gain, impl=impl)


def downsample2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    down: int | Sequence[int] = 2,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> torch.Tensor:
    """Shrink images `down` times; `padding` adds to that. Arguments as for `upfirdn2d`."""
    factors = axis_factors(down, "down")
    sides = add_padding(padding, f, lambda taps, axis: downsampling_padding(taps, factors[axis]))
    return upfirdn2d(x, f, down=down, padding=sides, flip_filter=flip_filter, gain=gain, impl=impl)


def upsampling_padding(taps: int, up: int) -> tuple[int, int]:
    """Padding (before, after) that makes an axis exactly `up` times longer, centred."""
    return (taps + up - 1) // 2, (taps - up) // 2


def downsampling_padding(taps: int, down: int) -> tuple[int, int]:
    """Padding (before, after) that makes an axis exactly `down` times shorter, centred."""
    return (taps - down + 1) // 2, (taps - down) // 2


def add_padding(padding, f: torch.Tensor | None, rule) -> tuple[int, int, int, int]:
    """`padding` plus rule(taps, axis) = (before, after) along each axis, x first."""
    x0, x1, y0, y1 = padding_sides(padding)
    fw, fh = filter_size(f)
    (ax0, ax1), (ay0, ay1) = rule(fw, 0), rule(fh, 1)
    return x0 + ax0, x1 + ax1, y0 + ay0, y1 + ay1


def axis_factors(factor: int | Sequence[int], name: str) -> tuple[int, int]:
    """A factor, or [x, y], as (x, y)."""
    pair = tuple(factor) if isinstance(factor, Sequence) else (factor, factor)
    if len(pair) != 2 or not all(isinstance(value, int) and value >= 1 for value in pair):
        raise ValueError(f"{name} must be a whole number from 1 up or [x, y] of them, got {factor!r}")
    return pair


def padding_sides(padding: int | Sequence[int]) -> tuple[int, int, int, int]:
    """Padding as a number, [x, y] or [x0, x1, y0, y1], as the last."""
    sides = tuple(padding) if isinstance(padding, Sequence) else (padding, padding)
    if len(sides) == 2:
        sides = (sides[0], sides[0], sides[1], sides[1])
    if len(sides) != 4 or not all(isinstance(side, int) for side in sides):
        raise ValueError(f"padding must be a whole number, [x, y] or [x0, x1, y0, y1], got {padding!r}")
    return sides


def filter_size(f: torch.Tensor | None) -> tuple[int, int]:
    """Taps (fw, fh) of a filter."""
    if f is None:
        return 1, 1
    if not isinstance(f, torch.Tensor) or f.ndim not in (1, 2) or f.numel() == 0 or not f.is_floating_point():
        raise ValueError("f must be None or a floating-point tensor of shape [fh, fw] or [taps] (see setup_filter)")
    return f.shape[-1], f.shape[0]
