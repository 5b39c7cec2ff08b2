# SPDX-License-Identifier: Apache-2.0
"""What teachers make of real images: how strongly they may guide, and whether they know their training set by heart.

With an ideal D, a generator that minimises E[softplus(-s) + λ softplus(-s̄)] ends at

    p_G(x) = p_data(x) (2 σ(s̄(x))^λ / E_data[σ(s̄)^λ] - 1)₊,

since softplus(-s) + λ softplus(-s̄) is constant where it generates, and s = log p_data/p_G. Images that the teacher
scores low are drawn too rarely, and never where λ (softplus(-s̄(x)) - E_data[softplus(-s̄)]) is above about ln 2.
Letters: N images, T teachers.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import softplus

from dgl.teacher import Teacher
from torch_utils.images import from_uint8
from training.dataset import Dataset

MIN_IMAGES, MAX_IMAGES = 32, 512
MAX_PIXELS = {"cpu": 2**22}  # of all images together: 64 of 256x256; elsewhere 256 of 1024x1024
MAX_PIXELS_ELSEWHERE = 2**28


def safe_lambda(losses: torch.Tensor) -> float:
    """ln 2 / (q99[ℓ] - mean ℓ) of ℓ = Σ_i softplus(-s̄_i) [N] on real images: up to this λ about 1 % are given up.

    To first order in λ. Infinite where all images have the same loss.
    """
    losses = losses.double()
    spread = float(torch.quantile(losses, 0.99) - losses.mean())
    return math.log(2) / spread if spread > 0 else math.inf


def auc(higher: torch.Tensor, lower: torch.Tensor) -> float:
    """Probability that a score of `higher` [N] is above one of `lower` [M], ties counting half: 0.5 for equal sets."""
    lower = lower.sort().values
    below = torch.searchsorted(lower, higher.contiguous())
    not_above = torch.searchsorted(lower, higher.contiguous(), right=True)
    return float((below + not_above).double().mean() / (2 * lower.numel()))


def number_of_images(resolution: int, batch: int, device: torch.device) -> int:
    """How many images of resolution² pixels to score: seconds of work, in whole batches."""
    wanted = MAX_PIXELS.get(device.type, MAX_PIXELS_ELSEWHERE) // resolution**2
    return max(min(max(wanted, MIN_IMAGES), MAX_IMAGES) // batch, 1) * batch


@torch.no_grad()
def score_reals(teachers: Sequence[Teacher], dataset: Dataset, batch: int, device: torch.device) -> torch.Tensor:
    """Scores [N, T] on the CPU of random images of `dataset`, the same ones each time, `batch` at a time.

    A dataset of fewer than `batch` images is repeated, since teachers compare images in groups.
    """
    count = number_of_images(dataset.resolution, batch, device)
    order = np.random.RandomState(0).permutation(len(dataset))[:count]
    order = np.resize(order, max(len(order) // batch, 1) * batch)
    scores = []
    modes = [teacher.D.training for teacher in teachers]
    for teacher in teachers:
        teacher.D.eval()  # one that goes on training may change with each pass otherwise
    for indices in order.reshape(-1, batch):
        images, labels = (torch.from_numpy(np.stack(part)).to(device) for part in zip(*(dataset[i] for i in indices)))
        scores.append(torch.cat([teacher.scores(from_uint8(images), labels) for teacher in teachers], dim=1))
    for teacher, training in zip(teachers, modes):
        teacher.D.train(training)
    return torch.cat(scores).float().cpu()


def describe(
    teachers: Sequence[Teacher],
    training_set: Dataset,
    held_out: Dataset | None,
    batch: int,
    device: torch.device,
    weight: float | None = None,
) -> list[str]:
    """Lines to print before training: each teacher's mean scores, its AUC, and the safe λ.

    Held-out images, if any, decide the safe λ; a teacher may be too sure of its training images. With a `weight` λ, the
    safe one is given, and a notice if λ is above it; None: λ acts in another way than the formula above.
    """
    seen = score_reals(teachers, training_set, batch, device)
    unseen = None if held_out is None else score_reals(teachers, held_out, batch, device)
    lines = []
    for i in range(len(teachers)):
        line = f"Teacher {i}: mean score {float(seen[:, i].mean()):.2f} of {len(seen)} training images"
        if unseen is not None:
            line += f", {float(unseen[:, i].mean()):.2f} of {len(unseen)} held-out images; "
            line += f"AUC {auc(seen[:, i], unseen[:, i]):.2f} (0.5: it has not memorised its training images)"
        lines.append(f"{line}.")
    if weight is not None:
        source, reals = ("training", seen) if unseen is None else ("held-out", unseen)
        limit = safe_lambda(softplus(-reals).sum(dim=1))
        lines.append(f"Safe --dgl-weight, by {source} images: up to {limit:.2g}.")
        if weight > limit:
            lines.append(
                f"Notice: --dgl-weight={weight:g} is above that, which loses images that the teacher scores low; "
                "lower it, or let it decay with --dgl-stop."
            )
    return lines
