# SPDX-License-Identifier: Apache-2.0
"""Projection of images into W: which w makes a generator draw this image? (arXiv 1912.04958, section 5 and appendix D.)

Letters in shape comments: N images, T steps, C channels, D width of w, L number of w vectors, R image side, H noise
map side. Time `t` is the fraction of the optimisation that is over, from 0 to below 1.
"""

import copy
import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch

from dnnlib.progress import Progress
from dnnlib.util import UserError
from torch_utils import images
from training import sampling

_W_SAMPLES = 10000
_W_SAMPLES_SEED = 123
_PEAK_LR = 0.1
_RAMP_UP = 0.05
_RAMP_DOWN = 0.25
_W_NOISE = 0.05
_W_NOISE_END = 0.75
_NOISE_WEIGHT = 1e5
_SMALLEST_NOISE = 8


@dataclasses.dataclass(frozen=True)
class Projection:
    """What `project` found. All on the CPU.

    Fields: `w` [N, T, D] after each step; `distance` [N, T], LPIPS, of what each step looked at (w with exploring
    noise); `noise`, the maps [N, 1, H, H] that were optimised along with w, by buffer name; `num_ws`, L of the network.
    """

    w: torch.Tensor
    distance: torch.Tensor
    noise: dict[str, torch.Tensor]
    num_ws: int

    @property
    def ws(self) -> torch.Tensor:
        """The final latents [N, L, D], as `G.synthesis` takes them."""
        return self.w[:, -1:].repeat(1, self.num_ws, 1)


def learning_rate(t: float) -> float:
    """Step size at time `t`: linear up over the first 5 %, 0.1, and down along a cosine over the last 25 %."""
    down = min(1.0, (1 - t) / _RAMP_DOWN)
    return _PEAK_LR * (0.5 - 0.5 * math.cos(math.pi * down)) * min(1.0, t / _RAMP_UP)


def w_noise_scale(t: float) -> float:
    """Standard deviation, as a multiple of that of w, of the noise that makes w explore at time `t`."""
    return _W_NOISE * max(0.0, 1 - t / _W_NOISE_END) ** 2


def w_statistics(G: torch.nn.Module, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean [D] of w over 10,000 fixed z with label `c` [1, Y], and the root mean square distance from it (a scalar)."""
    z = np.random.RandomState(_W_SAMPLES_SEED).randn(_W_SAMPLES, G.z_dim).astype(np.float32)
    with torch.no_grad():
        w = G.mapping(torch.from_numpy(z).to(c.device), c.expand(_W_SAMPLES, -1))[:, 0]
    mean = w.mean(dim=0)
    return mean, (w - mean).square().sum(dim=1).mean().sqrt()


def noise_regularizer(noise: torch.Tensor) -> torch.Tensor:
    """How much neighbours in noise maps [N, 1, H, H] resemble each other, [N]; it keeps the image out of the noise.

    Σ of squared mean products with the right and lower neighbour, around the edges, over a pyramid of 2x2 averages
    down to 8x8; smaller maps count as they are. (The paper also doubles each level's values.)
    """
    total = torch.zeros(noise.shape[0], device=noise.device)
    while True:
        for dim in (2, 3):
            total = total + (noise * noise.roll(1, dim)).mean(dim=(1, 2, 3)).square()
        if noise.shape[-1] <= _SMALLEST_NOISE:
            return total
        noise = torch.nn.functional.avg_pool2d(noise, 2)


@torch.no_grad()
def renormalize_(noise: torch.Tensor) -> None:
    """Give each of the noise maps [N, 1, H, H] zero mean and unit variance, in place."""
    noise -= noise.mean(dim=(1, 2, 3), keepdim=True)
    noise *= noise.square().mean(dim=(1, 2, 3), keepdim=True).rsqrt()


def project(
    G: torch.nn.Module,
    targets: torch.Tensor,
    features: Callable[[torch.Tensor], torch.Tensor],
    *,
    c: torch.Tensor | None = None,
    num_steps: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Projection:
    """Find, for each of `targets`, the w whose image is nearest in LPIPS distance.

    Images of one batch do not touch each other: each has its own w and noise maps, and all see the random numbers that
    `seed` gives, so an image projects to the same w alone and in company, but for rounding.

    Args:
        G: Generator; a copy is worked on. Its device is where the work is done.
        targets: uint8 [N, C, R, R] of the generator's size and channels.
        features: From images [N, C, R, R] in [-1, 1] to features [N, d] whose squared differences sum to the LPIPS
            distance, such as metrics.lpips.open_features gives.
        c: Label [1, Y] shared by all images; needed for a conditional network only.
        num_steps: T. The first step has size 0, so a single one finds the mean w.
        seed: Of the noise maps' initial values and of the exploration of w.
        progress: Is told of each step.

    Raises UserError where the label is missing, or `features` cannot look at images of this size.
    """
    _check_arguments(G, targets, num_steps)
    device = next(G.parameters()).device
    c = sampling.class_label(G, None, device) if c is None else c
    G = copy.deepcopy(G).eval().requires_grad_(False)
    wanted = _target_features(features, images.from_uint8(targets.to(device)))
    mean, std = w_statistics(G, c)
    random = torch.Generator().manual_seed(seed)
    noise = _noise_of_their_own(G.synthesis, len(targets), random)
    w = mean.repeat(len(targets), 1).requires_grad_()  # [N, D]
    optimizer = torch.optim.Adam([w, *noise.values()], betas=(0.9, 0.999))

    path, distances = [], []
    for step in range(num_steps):
        t = step / num_steps
        optimizer.param_groups[0]["lr"] = learning_rate(t)
        offset = torch.randn([1, G.w_dim], generator=random).to(device) * std * w_noise_scale(t)
        ws = (w + offset).unsqueeze(1).repeat(1, G.num_ws, 1)
        # Half precision would lose gradients of single pixels, which are near its smallest numbers.
        img = G.synthesis(ws, noise_mode="const", force_fp32=True)
        distance = (features(img) - wanted).square().sum(dim=1)  # [N]
        loss = distance + _NOISE_WEIGHT * sum(noise_regularizer(n) for n in noise.values())
        optimizer.zero_grad(set_to_none=True)
        loss.sum().backward(inputs=[w, *noise.values()])
        optimizer.step()
        for maps in noise.values():
            renormalize_(maps)
        path.append(w.detach().clone())
        distances.append(distance.detach())
        if progress is not None:
            progress.update()
    final_noise = {name: maps.detach().cpu() for name, maps in noise.items()}
    return Projection(torch.stack(path, 1).cpu(), torch.stack(distances, 1).cpu(), final_noise, G.num_ws)


def _check_arguments(G: torch.nn.Module, targets: torch.Tensor, num_steps: int) -> None:
    if num_steps < 1:
        raise UserError(f"--num-steps={num_steps} is too few: at least 1 is needed.")
    expected = [G.img_channels, G.img_resolution, G.img_resolution]
    if targets.dtype != torch.uint8 or list(targets.shape[1:]) != expected:
        raise ValueError(f"targets must be uint8 of shape [N, *{expected}], not {targets.dtype} {list(targets.shape)}")


def _noise_of_their_own(
    synthesis: torch.nn.Module, num_images: int, random: torch.Generator
) -> dict[str, torch.Tensor]:
    """Put trainable noise maps [N, 1, H, H], fresh and equal for all images, in place of the stored maps [H, H]."""
    noise = {}
    for name, buffer in list(synthesis.named_buffers()):
        layer, _, leaf = name.rpartition(".")
        if leaf == "noise_const":
            start = torch.randn([1, 1, *buffer.shape], generator=random).to(buffer.device)
            noise[name] = start.repeat(num_images, 1, 1, 1).requires_grad_()
            setattr(synthesis.get_submodule(layer), leaf, noise[name])
    return noise


@torch.no_grad()
def _target_features(features: Callable[[torch.Tensor], torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
    try:
        return features(targets)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        side = targets.shape[-1]
        raise UserError(f"The detector cannot look at {side}x{side} images: choose another with --detector.") from error
