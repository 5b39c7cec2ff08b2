# SPDX-License-Identifier: Apache-2.0
"""Perceptual path length (Karras et al. 2019, "A Style-Based Generator Architecture", section 4.1; without cropping and
at path ends only: Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN"). StyleGAN2 only.

Legend: n pairs, h = w image side.
"""

import numpy as np
import torch

from dnnlib.util import UserError
from metrics import detectors, metric_utils
from torch_utils.images import on_white
from training import families
from training.sampling import slerp

_EPSILON = 1e-4
_LPIPS_RESOLUTION = 256


def trimmed_mean(values: np.ndarray) -> float:
    """Mean of the `values` [n] between their 1st and 99th percentiles (both included)."""
    low = np.percentile(values, 1, method="lower")
    high = np.percentile(values, 99, method="higher")
    return float(values[(values >= low) & (values <= high)].mean())


def central_crop(images: torch.Tensor) -> torch.Tensor:
    """Rows 3/8..7/8 and columns 2/8..6/8 of `images` [n, c, h, h]: the face in an aligned portrait."""
    unit = images.shape[2] // 8
    return images[:, :, unit * 3 : unit * 7, unit * 2 : unit * 6]


def lpips_input(images: torch.Tensor, resolution: int, crop: bool) -> torch.Tensor:
    """`images` [n, C, h, h] in [-1, 1] as input of the distance network: [n, 3, ...] float in [0, 255].

    Grey images are repeated to RGB, RGBA ones are seen on white.
    Above 256x256 they are box-averaged by `resolution` / 256, where `resolution` is G's; crops by the same factor.
    """
    images = on_white(images)
    if crop:
        images = central_crop(images)
    factor = resolution // _LPIPS_RESOLUTION
    if factor > 1:
        images = torch.nn.functional.avg_pool2d(images, factor)
    images = (images + 1) * (255 / 2)
    return images if images.shape[1] == 3 else images.repeat(1, 3, 1, 1)


def _redraw_noise(synthesis: torch.nn.Module, generator: torch.Generator) -> None:
    for name, buffer in synthesis.named_buffers():
        if name.endswith(".noise_const"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator))


def _path_ends(
    G: torch.nn.Module, z: torch.Tensor, c: torch.Tensor, t: torch.Tensor, space: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """ws at `t` [n, 1] and at `t` + epsilon of the paths between the two halves of `z` [2n, z_dim]."""
    if space == "w":
        w0, w1 = G.mapping(z=z, c=torch.cat([c, c])).chunk(2)
        t = t.unsqueeze(2)
        return w0.lerp(w1, t), w0.lerp(w1, t + _EPSILON)
    z0, z1 = z.chunk(2)
    ends = torch.cat([slerp(z0, z1, t), slerp(z0, z1, t + _EPSILON)])
    return G.mapping(z=ends, c=torch.cat([c, c])).chunk(2)


@torch.no_grad()
def path_lengths(
    G: torch.nn.Module,
    detector: torch.nn.Module,
    z: torch.Tensor,
    c: torch.Tensor,
    t: torch.Tensor,
    space: str,
    crop: bool,
    G_kwargs: dict,
) -> torch.Tensor:
    """LPIPS distance / epsilon² [n] of one step of epsilon at `t` [n, 1] of each path.

    `z` [2n, z_dim] holds all starts, then all ends; `c` [n, c_dim]; `space` is 'z' (great arcs) or 'w' (lines).
    Both images of a pair use the current noise buffers of G, so they share their noise.
    """
    ws = torch.cat(_path_ends(G, z, c, t, space))
    images = G.synthesis(ws=ws, noise_mode="const", force_fp32=True, **G_kwargs)
    images = lpips_input(images.float(), G.img_resolution, crop)
    features = detectors.apply(detector, images, most=None, resize_images=False, return_lpips=True)
    start, end = features.float().chunk(2)
    return (start - end).square().sum(1) / _EPSILON**2


def compute_ppl(
    opts: metric_utils.MetricOptions, num_samples: int, space: str, sampling: str, crop: bool, batch_size: int = 4
) -> float:
    """PPL over `num_samples` paths. `space`: 'z' or 'w'; `sampling`: 'full' (t uniform in [0, 1)) or 'end' (t = 0).

    NaN on ranks other than 0.
    """
    families.require_w(opts.G, "Perceptual path length")
    spec = detectors.resolve(opts.detector, "vgg16")
    detector = metric_utils.get_feature_detector(spec, opts.device, opts.num_gpus, opts.rank)
    G = metric_utils.evaluation_copy(opts)
    if crop and G.img_resolution < 8:
        raise UserError(
            f"Path length with a crop needs images of at least 8x8 pixels, got {G.img_resolution}x{G.img_resolution}."
        )
    sampler = metric_utils.LatentSampler(opts, G)
    stats = metric_utils.FeatureStats(capture_all=True, max_items=num_samples)
    progress = opts.progress.sub(tag="path length", num_items=num_samples)
    noise = torch.Generator().manual_seed(opts.seed + opts.rank)
    while not stats.is_full():
        z, c, t = sampler.paths(batch_size, full=sampling == "full")
        _redraw_noise(G.synthesis, noise)
        lengths = path_lengths(G, detector, z, c, t, space, crop, opts.G_kwargs)
        stats.append_torch(lengths.unsqueeze(1), opts.num_gpus, opts.rank)
        progress.update(stats.num_items)
    opts.record(spec, num_fakes=stats.num_items)
    return trimmed_mean(stats.get_all()[:, 0].astype(np.float64)) if opts.rank == 0 else float("nan")
