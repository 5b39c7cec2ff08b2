# SPDX-License-Identifier: Apache-2.0
"""Stochastic image augmentations for discriminators (StyleGAN2-ADA, arXiv 2006.06676, appendix B).

The text of this file travels inside every checkpoint, so it depends only on PyTorch, NumPy and a few fixed names, and
runs on Python 3.7 and PyTorch 1.7.

Letters: N batch, C channels, H W image, u source and q output position in pixels. Images are in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from torch_utils import misc, persistence
from torch_utils.ops import conv2d_gradfix, grid_sample_gradfix, upfirdn2d

# Low-pass filters of orthogonal wavelets (Daubechies, "Ten Lectures on Wavelets", tables 6.1 and 6.3), sum sqrt(2).
SYM2 = [(1 - math.sqrt(3)), (3 - math.sqrt(3)), (3 + math.sqrt(3)), (1 + math.sqrt(3))]
SYM2 = [tap / (4 * math.sqrt(2)) for tap in SYM2]
SYM6 = [
    *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633),
    *(0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252),
    *(-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
]

# Share of each frequency band, low to high, in the power of natural images.
BAND_POWER = [10 / 13, 1 / 13, 1 / 13, 1 / 13]

FINITE = 1 - 1e-6  # erfinv is infinite at ±1.


def _filter_bank() -> np.ndarray:
    """Four zero-phase octave bands [4, taps], low to high, whose sum is the identity (appendix B, H_fbank)."""
    low = np.convolve(SYM2, SYM2[::-1]) / 2
    identity = np.zeros_like(low)
    identity[low.size // 2] = 1
    high = identity - low

    def spread(taps: np.ndarray, step: int) -> np.ndarray:
        out = np.zeros((taps.size - 1) * step + 1)
        out[::step] = taps
        return out

    low2 = np.convolve(low, spread(low, 2))
    bands = [
        np.convolve(low2, spread(low, 4)),
        np.convolve(low2, spread(high, 4)),
        np.convolve(low, spread(high, 2)),
        high,
    ]
    width = bands[0].size
    return np.stack([np.pad(band, (width - band.size) // 2) for band in bands])


class _Draws:
    """Random numbers for N samples; with a `percentile`, the values at that percentile of each distribution instead."""

    def __init__(self, images: torch.Tensor, percentile: float | None):
        self.like = images
        self.percentile = percentile

    def uniform(self, *shape: int) -> torch.Tensor:
        """[N, *shape] in [0, 1)."""
        shape = (self.like.shape[0], *shape)
        if self.percentile is not None:
            return self.like.new_full(shape, self.percentile)
        return torch.rand(shape, dtype=self.like.dtype, device=self.like.device)

    def symmetric(self, bound: float, *shape: int) -> torch.Tensor:
        """Uniform in [-bound, bound)."""
        return (self.uniform(*shape) * 2 - 1) * bound

    def integer(self, count: int) -> torch.Tensor:
        """0 .. count-1."""
        return (self.uniform() * count).floor().clamp(max=count - 1)

    def normal(self, std: float, *shape: int) -> torch.Tensor:
        """Normal with mean 0. Percentiles are those of the error function, so they are narrower by sqrt(2)."""
        shape = (self.like.shape[0], *shape)
        if self.percentile is not None:
            return self.like.new_full(shape, 2 * self.percentile - 1).clamp(-FINITE, FINITE).erfinv() * std
        return torch.randn(shape, dtype=self.like.dtype, device=self.like.device) * std

    def lognormal(self, std: float, *shape: int) -> torch.Tensor:
        """2 to the power of a normal variable."""
        return self.normal(std, *shape).exp2()

    def either(self, probability: torch.Tensor, value: torch.Tensor, neutral: float) -> torch.Tensor:
        """Per sample, `value` [N, ...] with the given probability, else `neutral`; with a percentile always `value`."""
        if self.percentile is not None:
            return value
        fires = self.uniform() < probability
        return torch.where(fires.reshape(-1, *[1] * (value.ndim - 1)), value, torch.full_like(value, neutral))


def _matrix(*rows: list) -> torch.Tensor:
    """Matrices [N, len(rows), len(rows[0])] from cells that are numbers or tensors [N]."""
    like = next(cell for row in rows for cell in row if isinstance(cell, torch.Tensor))
    cells = [cell if isinstance(cell, torch.Tensor) else torch.full_like(like, cell) for row in rows for cell in row]
    return torch.stack(cells, dim=-1).reshape(*like.shape, len(rows), len(rows[0]))


def _translate2d(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return _matrix([1, 0, x], [0, 1, y], [0, 0, 1])


def _scale2d(x: torch.Tensor, y: torch.Tensor | float) -> torch.Tensor:
    return _matrix([x, 0, 0], [0, y, 0], [0, 0, 1])


def _rotate2d(angle: torch.Tensor) -> torch.Tensor:
    cos, sin = angle.cos(), angle.sin()
    return _matrix([cos, -sin, 0], [sin, cos, 0], [0, 0, 1])


def _reflected(first: int, last: int, size: int, device: torch.device) -> torch.Tensor:
    """Source of the pixels first .. last of an axis that is mirrored at its end pixels as often as needed."""
    period = max(2 * (size - 1), 1)
    index = torch.arange(first, last + 1, device=device).remainder(period)
    return torch.minimum(index, period - index)


@persistence.persistent_class
class AugmentPipe(torch.nn.Module):
    """Augment images at random, each sample separately; differentiable.

    Each effect has an argument of its name, which multiplies the overall probability `p` (a buffer, initially 1) that
    the effect is applied: xflip, rotate90, xint (pixel blitting), scale, rotate, aniso, xfrac (geometry), brightness,
    contrast, lumaflip, hue, saturation (colour), imgfilter, noise, cutout. 0 disables an effect.

    Args:
        xint_max: Largest whole-pixel translation, as a fraction of the image size.
        scale_std: Standard deviation of log2 of the isotropic scale.
        rotate_max: Largest rotation, 1 = half a turn.
        aniso_std: Standard deviation of log2 of the anisotropic scale.
        xfrac_std: Standard deviation of the translation, as a fraction of the image size.
        brightness_std: Standard deviation of the brightness shift.
        contrast_std: Standard deviation of log2 of the contrast.
        hue_max: Largest hue rotation, 1 = half a turn.
        saturation_std: Standard deviation of log2 of the saturation.
        imgfilter_bands: Multiplier for each of the four frequency bands, low to high.
        imgfilter_std: Standard deviation of log2 of a band's gain.
        noise_std: Standard deviation of the noise's standard deviation.
        cutout_size: Side of the blanked rectangle, as a fraction of the image size.
    """

    def __init__(
        self,
        xflip: float = 0,
        rotate90: float = 0,
        xint: float = 0,
        xint_max: float = 0.125,
        scale: float = 0,
        rotate: float = 0,
        aniso: float = 0,
        xfrac: float = 0,
        scale_std: float = 0.2,
        rotate_max: float = 1,
        aniso_std: float = 0.2,
        xfrac_std: float = 0.125,
        brightness: float = 0,
        contrast: float = 0,
        lumaflip: float = 0,
        hue: float = 0,
        saturation: float = 0,
        brightness_std: float = 0.2,
        contrast_std: float = 0.5,
        hue_max: float = 1,
        saturation_std: float = 1,
        imgfilter: float = 0,
        imgfilter_bands: Sequence[float] = [1, 1, 1, 1],
        imgfilter_std: float = 1,
        noise: float = 0,
        cutout: float = 0,
        noise_std: float = 0.1,
        cutout_size: float = 0.5,
    ) -> None:
        super().__init__()
        self.xflip, self.rotate90, self.xint = float(xflip), float(rotate90), float(xint)
        self.xint_max = float(xint_max)

        self.scale, self.rotate = float(scale), float(rotate)
        self.aniso, self.xfrac = float(aniso), float(xfrac)
        self.scale_std, self.rotate_max = float(scale_std), float(rotate_max)
        self.aniso_std, self.xfrac_std = float(aniso_std), float(xfrac_std)

        self.brightness, self.contrast, self.lumaflip = float(brightness), float(contrast), float(lumaflip)
        self.hue, self.saturation = float(hue), float(saturation)
        self.brightness_std, self.contrast_std = float(brightness_std), float(contrast_std)
        self.hue_max, self.saturation_std = float(hue_max), float(saturation_std)

        self.imgfilter, self.imgfilter_std = float(imgfilter), float(imgfilter_std)
        self.imgfilter_bands = [float(band) for band in imgfilter_bands]

        self.noise, self.noise_std = float(noise), float(noise_std)
        self.cutout, self.cutout_size = float(cutout), float(cutout_size)

        self.register_buffer("p", torch.ones([]))
        self.register_buffer("Hz_geom", upfirdn2d.setup_filter(SYM6))
        self.register_buffer("Hz_fbank", torch.as_tensor(_filter_bank(), dtype=torch.float32))

    def forward(self, images: torch.Tensor, debug_percentile: float | None = None) -> torch.Tensor:
        """Augment a batch.

        Args:
            images: [N, C, H, W]; the colour effects need C = 1, 3, or 4, of which they leave the last (alpha) alone.
            debug_percentile: Number in [0, 1]: apply every enabled effect at that percentile of its distribution (only
                the noise image stays random). None = draw at random.

        Returns:
            Images of the same shape and type.

        Raises:
            ValueError: images of another shape, or a percentile outside [0, 1].
        """
        if images.ndim != 4:
            raise ValueError(f"AugmentPipe: images must have shape [N, C, H, W], got {list(images.shape)}")
        if debug_percentile is not None and not 0 <= debug_percentile <= 1:
            raise ValueError(f"AugmentPipe: debug_percentile must lie in [0, 1], got {debug_percentile}")
        x = images.to(torch.promote_types(images.dtype, torch.float32))
        draws = _Draws(x, debug_percentile)
        if max(self.xflip, self.rotate90, self.xint, self.scale, self.rotate, self.aniso, self.xfrac) > 0:
            x = self._warp(x, self._blit(x, draws) @ self._geometry(x, draws))
        if max(self.brightness, self.contrast, self.lumaflip, self.hue, self.saturation) > 0:
            x = self._recolour(x, self._colour(x, draws))
        if self.imgfilter > 0:
            x = self._filter_bands(x, draws)
        if self.noise > 0:
            sigma = draws.either(self.noise * self.p, draws.normal(self.noise_std, 1, 1, 1).abs(), 0)
            # Not randn_like: its values depend on the layout in memory.
            x = x + torch.randn(x.shape, dtype=x.dtype, device=x.device) * sigma
        if self.cutout > 0:
            x = self._cut_out(x, draws)
        return x.to(images.dtype)

    def _blit(self, x: torch.Tensor, draws: _Draws) -> torch.Tensor:
        """Inverse transforms [N, 3, 3] that map pixels to pixels."""
        H, W = x.shape[2:]
        G_inv = torch.eye(3, dtype=x.dtype, device=x.device)
        if self.xflip > 0:
            flip = draws.either(self.xflip * self.p, draws.integer(2), 0)
            G_inv = G_inv @ _scale2d(1 - 2 * flip, 1)
        if self.rotate90 > 0:
            turns = draws.either(self.rotate90 * self.p, draws.integer(4), 0)
            G_inv = G_inv @ _rotate2d(turns * (math.pi / 2))
        if self.xint > 0:
            x_shift, y_shift = draws.either(self.xint * self.p, draws.symmetric(self.xint_max, 2), 0).unbind(1)
            G_inv = G_inv @ _translate2d(-(x_shift * W).round(), -(y_shift * H).round())
        return G_inv

    def _geometry(self, x: torch.Tensor, draws: _Draws) -> torch.Tensor:
        """Inverse general transforms [N, 3, 3]."""
        H, W = x.shape[2:]
        G_inv = torch.eye(3, dtype=x.dtype, device=x.device)
        # Two rotations, so that the anisotropic scaling between them can have any direction; P(either) = rotate * p.
        p_rotate = 1 - (1 - self.rotate * self.p).clamp(0, 1).sqrt()
        if self.scale > 0:
            scale = draws.either(self.scale * self.p, draws.lognormal(self.scale_std), 1)
            G_inv = G_inv @ _scale2d(1 / scale, 1 / scale)
        if self.rotate > 0:
            angle = draws.either(p_rotate, draws.symmetric(math.pi * self.rotate_max), 0)
            G_inv = G_inv @ _rotate2d(angle)
        if self.aniso > 0:
            scale = draws.either(self.aniso * self.p, draws.lognormal(self.aniso_std), 1)
            G_inv = G_inv @ _scale2d(1 / scale, scale)
        if self.rotate > 0 and draws.percentile is None:  # At a percentile it would only double the first one.
            angle = draws.either(p_rotate, draws.symmetric(math.pi * self.rotate_max), 0)
            G_inv = G_inv @ _rotate2d(angle)
        if self.xfrac > 0:
            x_shift, y_shift = draws.either(self.xfrac * self.p, draws.normal(self.xfrac_std, 2), 0).unbind(1)
            G_inv = G_inv @ _translate2d(-x_shift * W, -y_shift * H)
        return G_inv

    def _warp(self, x: torch.Tensor, G_inv: torch.Tensor) -> torch.Tensor:
        """Resample mirrored images: output position q, measured from the centre, shows source position G_inv q."""
        N, _C, H, W = x.shape
        taps = self.Hz_geom.shape[0]
        # The filter delays by half a pixel at 2x, so pixel i lies at 2i there, and the image's centre at (W - 1) / 2.
        border = taps // 2 - 1  # Pixels at 2x that the downsampling filter reads beyond the image's edge.
        q_x = torch.arange(-border, 2 * W + border, dtype=x.dtype, device=x.device) / 2 - (W - 1) / 2
        q_y = torch.arange(-border, 2 * H + border, dtype=x.dtype, device=x.device) / 2 - (H - 1) / 2
        G_inv = G_inv.expand(N, 3, 3)

        def source(axis: int, size: int, q_x: torch.Tensor, q_y: torch.Tensor) -> torch.Tensor:
            a, b, c = G_inv[:, axis, :, None, None].unbind(1)
            return (a * q_x[None, None, :] + (c + (size - 1) / 2)) + b * q_y[None, :, None]

        corners = torch.stack(
            [source(a, s, q_x[:: q_x.numel() - 1], q_y[:: q_y.numel() - 1]) for a, s in ((0, W), (1, H))]
        ).flatten(1)
        bounds = torch.stack([corners.amin(1), corners.amax(1)], dim=1).floor().tolist()  # The only host sync.

        grid = x.new_empty([N, q_y.numel(), q_x.numel(), 2])
        for axis, size in ((0, W), (1, H)):
            first, last, period = self._window(size, *bounds[axis], reach=taps // 4)
            x = x.index_select(3 - axis, _reflected(first, last, size, x.device))
            # In place, because memory is the limit; a floor is four times as fast as remainder().
            u = source(axis, size, q_x, q_y)
            if period:
                u.sub_((u - 0.25).div_(period).floor_(), alpha=period)
            # The sampler's -1 and 1 are the edges of the 2x image, at first - 1/4 and last + 3/4.
            scale = 2 / (last + 1 - first)
            torch.add(u.new_full([], scale / 4 - 1 - scale * first), u, alpha=scale, out=grid[..., axis])
        x = upfirdn2d.upsample2d(x, self.Hz_geom, up=2)
        x = grid_sample_gradfix.grid_sample(x, grid)
        return upfirdn2d.downsample2d(x, self.Hz_geom, down=2, padding=-border, flip_filter=True)

    @staticmethod
    def _window(size: int, low: float, high: float, reach: int) -> tuple[int, int, int]:
        """First and last pixel of a mirrored axis that positions with floors `low` to `high` need, and `period`.

        A mirrored axis is periodic, so one period is enough for any transform: positions are to be moved into the
        `period` pixels after 1/4, unless `period` is 0.
        """
        first, last = int(low) - reach, int(high) + reach
        period = max(2 * (size - 1), 1)
        if last - first > period + 2 * reach:
            return -reach, period + reach, period
        return first, last, 0

    def _colour(self, x: torch.Tensor, draws: _Draws) -> torch.Tensor:
        """Colour transforms [N, 4, 4] of homogeneous RGB."""
        I_4 = torch.eye(4, dtype=x.dtype, device=x.device)
        C = I_4
        luma = I_4.new_full([4, 4], 1 / 3)  # v v^T for the grey axis v.
        luma[3, :] = 0
        luma[:, 3] = 0
        if self.brightness > 0:
            b = draws.either(self.brightness * self.p, draws.normal(self.brightness_std), 0)
            C = _matrix([1, 0, 0, b], [0, 1, 0, b], [0, 0, 1, b], [0, 0, 0, 1]) @ C
        if self.contrast > 0:
            c = draws.either(self.contrast * self.p, draws.lognormal(self.contrast_std), 1)
            C = _matrix([c, 0, 0, 0], [0, c, 0, 0], [0, 0, c, 0], [0, 0, 0, 1]) @ C
        if self.lumaflip > 0:
            flip = draws.either(self.lumaflip * self.p, draws.integer(2), 0)
            C = (I_4 - 2 * luma * flip[:, None, None]) @ C
        if self.hue > 0:
            angle = draws.either(self.hue * self.p, draws.symmetric(math.pi * self.hue_max), 0)
            C = self._rotate_about_grey(angle) @ C
        if self.saturation > 0:
            s = draws.either(self.saturation * self.p, draws.lognormal(self.saturation_std), 1)
            C = (luma + (I_4 - luma) * s[:, None, None]) @ C
        return C

    @staticmethod
    def _rotate_about_grey(angle: torch.Tensor) -> torch.Tensor:
        """Rotations [N, 4, 4] about the axis R = G = B (Rodrigues' formula)."""
        cos, sin = angle.cos(), angle.sin() / math.sqrt(3)
        same, left, right = (1 + 2 * cos) / 3, (1 - cos) / 3 - sin, (1 - cos) / 3 + sin
        return _matrix([same, left, right, 0], [right, same, left, 0], [left, right, same, 0], [0, 0, 0, 1])

    @staticmethod
    def _recolour(x: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
        """Apply [N, 4, 4] to RGB(A) images, or to grey ones as RGB images whose channels are averaged afterwards."""
        channels = x.shape[1]
        if channels not in (1, 3, 4):
            raise ValueError(f"AugmentPipe: colour effects need images with 1, 3 or 4 channels, these have {channels}")
        matrix, shift = C[:, :3, :3], C[:, :3, 3:]
        if channels == 1:
            matrix, shift = matrix.sum(2, keepdim=True).mean(1, keepdim=True), shift.mean(1, keepdim=True)
        colour, alpha = x[:, :3], x[:, 3:]
        colour = (matrix @ colour.flatten(2) + shift).reshape(colour.shape)
        return torch.cat([colour, alpha], dim=1) if channels == 4 else colour

    def _filter_bands(self, x: torch.Tensor, draws: _Draws) -> torch.Tensor:
        """Amplify or attenuate frequency bands."""
        N, C, H, W = x.shape
        bands = self.Hz_fbank.shape[0]
        power = misc.constant(BAND_POWER, dtype=x.dtype, device=x.device)
        gains = x.new_ones([N, bands])
        for band, multiplier in enumerate(self.imgfilter_bands):
            gain = draws.either(self.imgfilter * self.p * multiplier, draws.lognormal(self.imgfilter_std), 1)
            t = torch.ones_like(gains)
            t[:, band] = gain
            gains = gains * t / (power * t.square()).sum(1, keepdim=True).sqrt()  # Keeps the expected power.
        taps = self.Hz_fbank.shape[1]
        f = (gains @ self.Hz_fbank.to(x.dtype)).repeat_interleave(C, dim=0)[:, None, None, :]
        reach = taps // 2
        x = x.index_select(2, _reflected(-reach, H - 1 + reach, H, x.device))
        x = x.index_select(3, _reflected(-reach, W - 1 + reach, W, x.device)).reshape(1, N * C, H + 2 * reach, -1)
        x = conv2d_gradfix.conv2d(x, f, groups=N * C)
        x = conv2d_gradfix.conv2d(x, f.transpose(2, 3), groups=N * C)
        return x.reshape(N, C, H, W)

    def _cut_out(self, x: torch.Tensor, draws: _Draws) -> torch.Tensor:
        """Blank a rectangle."""
        H, W = x.shape[2:]
        size = draws.either(self.cutout * self.p, x.new_full([x.shape[0], 1, 1, 1], self.cutout_size), 0)
        centre_x, centre_y = draws.uniform(2, 1, 1, 1).unbind(1)
        position_x = (torch.arange(W, device=x.device) + 0.5) / W
        position_y = ((torch.arange(H, device=x.device) + 0.5) / H)[:, None]
        outside_x = (position_x - centre_x).abs() >= size / 2
        outside_y = (position_y - centre_y).abs() >= size / 2
        return x * (outside_x | outside_y)
