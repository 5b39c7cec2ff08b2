# SPDX-License-Identifier: Apache-2.0
"""Projection of images into W: the w whose image is closest to a target (arXiv 1912.04958, section 5, appendix D).

StyleGAN2 only: it optimises w and the noise maps of the synthesis network.

Letters in shape comments: N images, T steps, C channels, D width of w, L number of w vectors, R image side, H noise
map side. Time `t` is the completed fraction of the optimisation, 0 <= t < 1.
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
    """Result of `project`. All tensors are on the CPU.

    Attributes:
        w: [N, T, D], after each step.
        distance: [N, T], distance (LPIPS) at each step, of w with exploration noise.
        noise: Noise maps [N, 1, H, H] that were optimised together with w, by buffer name.
        num_ws: L of the network.
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
    """Step size at time `t`: linear ramp-up over the first 5 %, then 0.1, cosine ramp-down over the last 25 %."""
    down = min(1.0, (1 - t) / _RAMP_DOWN)
    return _PEAK_LR * (0.5 - 0.5 * math.cos(math.pi * down)) * min(1.0, t / _RAMP_UP)


def w_noise_scale(t: float) -> float:
    """Standard deviation of the exploration noise on w at time `t`, as a multiple of that of w."""
    return _W_NOISE * max(0.0, 1 - t / _W_NOISE_END) ** 2


def w_statistics(G: torch.nn.Module, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean [D] of w over 10,000 fixed z with label `c` [1, Y], and the root mean square distance from it (a scalar)."""
    z = np.random.RandomState(_W_SAMPLES_SEED).randn(_W_SAMPLES, G.z_dim).astype(np.float32)
    with torch.no_grad():
        w = G.mapping(torch.from_numpy(z).to(c.device), c.expand(_W_SAMPLES, -1))[:, 0]
    mean = w.mean(dim=0)
    return mean, (w - mean).square().sum(dim=1).mean().sqrt()


def noise_regularizer(noise: torch.Tensor) -> torch.Tensor:
    """Correlation of neighbours in noise maps [N, 1, H, H], [N]; the penalty keeps the image out of the noise maps.

    Σ of squared mean products with the right and lower neighbour (wrapping around) over a pyramid of 2x2 averages down
    to 8x8; smaller maps have one level. (The paper also doubles the values of each level.)
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
    """Find, for each of `targets`, the w whose image is closest in the distance of `features`, usually LPIPS.

    The images of a batch are independent: each has its own w and noise maps, and all use the same random numbers from
    `seed`. So the result for an image does not depend on the batch, up to rounding.

    Args:
        G: Generator; it is copied, not changed. The work is done on its device.
        targets: uint8 [N, C, R, R], with the resolution and channels of the generator.
        features: Maps images [N, C, R, R] in [-1, 1] to features [N, d] whose squared differences sum to the
            distance; see metrics.lpips.open_features.
        c: Label [1, Y] of all images; for a conditional network.
        num_steps: T. The first step has size 0, so a single one finds the mean w.
        seed: Seed of the initial noise maps and the exploration noise.
        progress: Updated after each step.

    Raises UserError if the label is missing, or `features` does not support images of this size.
    """
    _check_arguments(G, targets, num_steps)
    device = next(G.parameters()).device
    c = sampling.class_label(G, None, device) if c is None else c
    G = copy.deepcopy(G).eval().requires_grad_(False)
    wanted = _target_features(features, images.from_uint8(targets.to(device)))
    mean, std = w_statistics(G, c)
    random = torch.Generator().manual_seed(seed)
    noise = _trainable_noise(G.synthesis, len(targets), random)
    w = mean.repeat(len(targets), 1).requires_grad_()  # [N, D]
    optimizer = torch.optim.Adam([w, *noise.values()], betas=(0.9, 0.999))

    path, distances = [], []
    for step in range(num_steps):
        t = step / num_steps
        optimizer.param_groups[0]["lr"] = learning_rate(t)
        offset = torch.randn([1, G.w_dim], generator=random).to(device) * std * w_noise_scale(t)
        ws = (w + offset).unsqueeze(1).repeat(1, G.num_ws, 1)
        # In half precision, gradients of single pixels would underflow.
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


def _trainable_noise(synthesis: torch.nn.Module, num_images: int, random: torch.Generator) -> dict[str, torch.Tensor]:
    """Replace the stored noise maps [H, H] by trainable ones [N, 1, H, H], new and equal for all images."""
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
        raise UserError(
            f"The detector does not support {side}x{side} images: choose another with --detector."
        ) from error
