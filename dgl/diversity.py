# SPDX-License-Identifier: Apache-2.0
"""Rank the channels of a generator by latent sensitivity, for --dgl-prune=diversity.

A channel that matters for diversity takes part in some changes of the image and not in others. So images are changed
along several directions of w, and a channel's score is how much the sensitivity to its weights varies between them.

Source: diversity-aware channel pruning (Chung et al., CVPR 2024), for widths that several tensors share. Letters: C
channels, L number of w vectors, D width of w, I directions.
"""

import copy
from collections.abc import Sequence

import torch

from dnnlib.progress import Progress
from torch_utils import misc, precision
from torch_utils.ops import layout
from training.families.family import Axis

SAMPLES = 32  # latents; each takes DIRECTIONS forward and backward passes of two images
DIRECTIONS = 10
STEP = 2.0  # standard deviations of W along the direction
PCA_SAMPLES = 10000


def diversity_scores(
    G: torch.nn.Module, plan: Sequence[Sequence[Axis]], seed: int = 0, device: torch.device | str = "cpu"
) -> list[torch.Tensor]:
    """Scores [C] of the channels of each width of `plan` on the CPU, computed on `device` in fp32.

    With d_i the principal directions of W and g_{c,i}(w) the mean of |∂/∂W Σ|G(w + d_i) - G(w)|| over the entries of a
    weight W that write or read channel c: the score is Σ_{w,i} (g_{c,i} - mean_i g_{c,i})² for each weight, divided by
    its mean over the channels and summed over the weights that share the width. Latents, and labels of a conditional G
    (one-hot), follow from `seed`; the global random state does not change. `G` has a latent space w and is not changed.
    """
    G = layout.prepare(copy.deepcopy(G).eval().requires_grad_(False), torch.device(device))
    precision.set_half_dtype(G, torch.float32)  # small gradients vanish in fp16
    ws = _latents(G, seed, device)
    directions = principal_directions(ws[:, 0])
    tensors = dict(misc.named_params_and_buffers(G))
    axes = [axis for width in plan for axis in width if axis.ranked]
    weights = {axis.tensor: tensors[axis.tensor].requires_grad_(True) for axis in axes}
    totals = [torch.zeros([axis.channels(weights[axis.tensor])], device=device) for axis in axes]
    with Progress(SAMPLES * len(directions), "Ranking channels", "gradients") as progress:
        for w in ws[:SAMPLES]:
            rows: list[list[torch.Tensor]] = [[] for _ in axes]
            for direction in directions:
                images = G.synthesis(torch.stack([w, w + direction]), noise_mode="const")
                grads = torch.autograd.grad((images[1] - images[0]).abs().sum(), list(weights.values()))
                sizes = {name: grad.abs() for name, grad in zip(weights, grads)}
                for row, axis in zip(rows, axes):
                    sums = axis.sums(sizes[axis.tensor])
                    row.append(sums * (len(sums) / sizes[axis.tensor].numel()))
                progress.update()
            for total, row in zip(totals, rows):
                sensitivity = torch.stack(row)  # [I, C]
                total += (sensitivity - sensitivity.mean(dim=0)).square().sum(dim=0)
    of_axis = {axis: total.cpu() for axis, total in zip(axes, totals)}
    return [sum(_mean_one(of_axis[axis]) for axis in width if axis.ranked) for width in plan]


def principal_directions(w: torch.Tensor) -> torch.Tensor:
    """The first principal components of w [N, D], each STEP standard deviations long: [I, D], I at most DIRECTIONS.

    Their sign is fixed, so that they do not depend on the machine: the entry of largest magnitude is positive.
    """
    centred = (w - w.mean(dim=0)).cpu().double()
    variances, vectors = torch.linalg.eigh(centred.T @ centred / (len(w) - 1))  # ascending; vectors are columns
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    steps = (vectors * largest.sign() * STEP * variances.clamp_min(0).sqrt()).T
    return steps.flip(0)[:DIRECTIONS].to(w.device, w.dtype)


def _latents(G: torch.nn.Module, seed: int, device: torch.device | str) -> torch.Tensor:
    """ws [PCA_SAMPLES, L, D] of random z and labels."""
    random = torch.Generator().manual_seed(seed)
    z = torch.randn([PCA_SAMPLES, G.z_dim], generator=random)
    c = torch.zeros([PCA_SAMPLES, G.c_dim])
    if G.c_dim:
        c[torch.arange(len(c)), torch.randint(G.c_dim, [len(c)], generator=random)] = 1
    with torch.no_grad():
        return G.mapping(z.to(device), c.to(device))


def _mean_one(scores: torch.Tensor) -> torch.Tensor:
    return scores / scores.mean().clamp_min(torch.finfo(scores.dtype).tiny)
