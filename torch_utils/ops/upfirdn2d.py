# SPDX-License-Identifier: Apache-2.0
"""Upsample, pad, filter and downsample images: the resampling of StyleGAN2 (arXiv 1912.04958, appendix B).

Letters: N batch, C channels, H W image, fh fw filter taps.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch

from torch_utils.ops import backend, upfirdn2d_cuda, upfirdn2d_torch
from torch_utils.ops.upfirdn2d_ref import Pair, resample_ref, window

SEPARABLE_FROM = 8  # From this many taps on, two 1-D passes are faster than one 2-D pass.


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
    # From here on, pairs are y, then x.
    up, down = axis_factors(up, "up"), axis_factors(down, "down")
    x0, x1, y0, y1 = padding_sides(padding)
    fh, fw = filter_size(f)
    padded_h, padded_w = x.shape[2] * up[0] + y0 + y1, x.shape[3] * up[1] + x0 + x1
    if padded_w < fw or padded_h < fh:
        raise ValueError(
            f"upfirdn2d: the upsampled and padded image, {padded_w}x{padded_h}, is smaller than the {fw}x{fh} filter"
        )
    size = (padded_h - fh) // down[0] + 1, (padded_w - fw) // down[1] + 1
    implementation = backend.choose(x, impl, has_kernels=f is not None and not f.requires_grad)
    if f is None:
        if up == (1, 1) and implementation != backend.REFERENCE:
            return _shift(x, down, (y0, x0), size, gain)
        f = x.new_ones([1, 1])
    return _separate(_implementations[implementation], x, f, up, down, (y0, x0), size, flip_filter, float(gain))


_implementations: dict[str, Callable[..., torch.Tensor]] = {
    backend.REFERENCE: resample_ref,
    backend.KERNELS: upfirdn2d_cuda.resample,
    backend.CPU: functools.partial(upfirdn2d_torch.resample, on_cpu=True),
    backend.GENERIC: functools.partial(upfirdn2d_torch.resample, on_cpu=False),
}


def _separate(
    resample, x: torch.Tensor, f: torch.Tensor, up: Pair, down: Pair, pad: Pair, size: Pair, flip: bool, gain: float
) -> torch.Tensor:
    """`resample` with a 2-D filter, or with a 1-D one along x, then y."""
    f = f.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    if f.ndim == 2:
        return resample(x, f, up, down, pad, size, flip, gain)
    x = resample(x, f[None, :], (1, up[1]), (1, down[1]), (0, pad[1]), (x.shape[2], size[1]), flip, gain)
    return resample(x, f[:, None], (up[0], 1), (down[0], 1), (pad[0], 0), size, flip, 1.0)


def _shift(x: torch.Tensor, down: Pair, pad: Pair, size: Pair, gain: float) -> torch.Tensor:
    """`upfirdn2d` that neither filters nor upsamples, in memory that `x` does not share."""
    start, length = [-pad[0], -pad[1]], [(size[i] - 1) * down[i] + 1 for i in (0, 1)]
    y = window(x, start, length)
    own = y is not x
    y = y[:, :, :: down[0], :: down[1]]
    return y if own and gain == 1 else y * gain


def filter2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> torch.Tensor:
    """Filter images at unchanged size; `padding` adds to that. Arguments and errors as for `upfirdn2d`."""
    sides = add_padding(padding, f, downsampling_padding, (1, 1))
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
    sides = add_padding(padding, f, upsampling_padding, factors)
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
    sides = add_padding(padding, f, downsampling_padding, axis_factors(down, "down"))
    return upfirdn2d(x, f, down=down, padding=sides, flip_filter=flip_filter, gain=gain, impl=impl)


def upsampling_padding(taps: int, up: int) -> tuple[int, int]:
    """Padding (before, after) that makes an axis exactly `up` times longer, centred."""
    return (taps + up - 1) // 2, (taps - up) // 2


def downsampling_padding(taps: int, down: int) -> tuple[int, int]:
    """Padding (before, after) that makes an axis exactly `down` times shorter, centred."""
    return (taps - down + 1) // 2, (taps - down) // 2


def add_padding(padding, f: torch.Tensor | None, rule, factors: Pair) -> tuple[int, int, int, int]:
    """`padding` plus rule(taps, factor) = (before, after) along each axis, as [x0, x1, y0, y1]."""
    x0, x1, y0, y1 = padding_sides(padding)
    (more_y0, more_y1), (more_x0, more_x1) = map(rule, filter_size(f), factors)
    return x0 + more_x0, x1 + more_x1, y0 + more_y0, y1 + more_y1


def axis_factors(factor: int | Sequence[int], name: str) -> Pair:
    """A factor, or [x, y], as (y, x)."""
    pair = tuple(factor) if isinstance(factor, Sequence) else (factor, factor)
    if len(pair) != 2 or not all(isinstance(value, int) and value >= 1 for value in pair):
        raise ValueError(f"{name} must be a whole number from 1 up or [x, y] of them, got {factor!r}")
    return pair[::-1]


def padding_sides(padding: int | Sequence[int]) -> tuple[int, int, int, int]:
    """Padding as a number, [x, y] or [x0, x1, y0, y1], as the last."""
    sides = tuple(padding) if isinstance(padding, Sequence) else (padding, padding)
    if len(sides) == 2:
        sides = (sides[0], sides[0], sides[1], sides[1])
    if len(sides) != 4 or not all(isinstance(side, int) for side in sides):
        raise ValueError(f"padding must be a whole number, [x, y] or [x0, x1, y0, y1], got {padding!r}")
    return sides


def filter_size(f: torch.Tensor | None) -> Pair:
    """Taps (fh, fw) of a filter."""
    if f is None:
        return 1, 1
    if not isinstance(f, torch.Tensor) or f.ndim not in (1, 2) or f.numel() == 0 or not f.is_floating_point():
        raise ValueError("f must be None or a floating-point tensor of shape [fh, fw] or [taps] (see setup_filter)")
    return f.shape[0], f.shape[-1]
