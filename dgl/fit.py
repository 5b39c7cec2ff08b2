# SPDX-License-Identifier: Apache-2.0
"""Fit a student's generator to its teacher's before adversarial training: a regression, without real images or a D.

A pruned generator makes ruins of the teacher's images. As the same z and label should give the same image, its weights
can be found by regression, which needs a fraction of the time that a game with a discriminator needs. Images are
compared pixel by pixel and in the features of the teacher's discriminator, which take the place of VGG in LPIPS.
Shapes: N images in a batch, C channels, H W image, Z width of z, K width of labels.
"""

import io
import math
import sys
from collections.abc import Callable
from typing import Any

import torch

from dgl.distill import feature_distance, l1_distance
from dgl.schedule import cosine_decay
from dgl.teacher import scores_and_features
from dnnlib.progress import Progress
from torch_utils import distributed
from training import families
from training.phases import Phase, run_phase

# Many small steps at a high rate: a regression on noiseless targets tolerates what a game between networks does not.
BATCH = 16  # images a step, over all processes
RATE = 12  # largest learning rate, as a multiple of G's in training
FEATURES = 0.3  # weight of the distance in features
WARMUP = 50  # steps in which the learning rate rises
LAST_RATE = 0.05  # of the learning rate
PRINT_EVERY = 10.0  # seconds between progress lines where the output is not a terminal

Draw = Callable[[int], tuple[torch.Tensor, torch.Tensor]]


class FitLoss:
    """The loss of the phase 'fit': mean |x - x̄| + FEATURES · Σ_l d(φ_l(x), φ_l(x̄)) of images made without noise.

    x is the image of `G` and x̄ that of the frozen generator `source`; φ_l are the features of the frozen
    discriminator `D` (dgl.distill.feature_distance).
    """

    def __init__(self, G: torch.nn.Module, source: torch.nn.Module, D: torch.nn.Module):
        self.G, self.source, self.D = G, source, D
        self.sample = families.of(G).sample
        self.distance = torch.zeros([])  # mean |x - x̄| of the last batch

    def accumulate_gradients(self, phase: str, z: torch.Tensor, c: torch.Tensor, sync: bool, gain: float) -> None:
        """Gradients for latents `z` [N, Z] and labels `c` [N, K]."""
        with torch.no_grad():
            target = self.sample(self.source, z, c, noise_mode="none")
            _scores, target_features = scores_and_features(self.D, target, c)
        img = self.sample(self.G, z, c, noise_mode="none")
        _scores, features = scores_and_features(self.D, img, c)
        distance = l1_distance(img, target)
        self.distance = distance.detach().mean()
        loss = distance + FEATURES * feature_distance(features, target_features)
        # Adam does not depend on the scale; this one keeps gradients of large images within fp16.
        (loss.mean() * math.sqrt(target[0].numel()) * gain).backward()


def rate(step: int, steps: int) -> float:
    """Learning rate of a step, as a share of the largest: rises over WARMUP steps, falls as a cosine to LAST_RATE."""
    return min(1.0, (step + 1) / WARMUP) * (LAST_RATE + (1 - LAST_RATE) * cosine_decay(step / steps))


def fit(
    G: torch.nn.Module,
    source: torch.nn.Module,
    D: torch.nn.Module,
    draw: Draw,
    kimg: float,
    lr: float,
    batch: int,
    batch_gpu: int,
) -> float:
    """Train `G` on the images of `source`, seen by `D`, for `kimg` thousand; returns the last mean |x - x̄|.

    All three are on one device. `draw(n)` gives z [n, Z] and labels [n, K]. `batch` images a step in this process, in
    pieces of at most `batch_gpu`; gradients are averaged over processes. `lr` is the largest learning rate. The mean w
    stays as it is; a G with batch norm is fitted with the statistics of its batches, as it trains, and ends with
    running statistics of its own, equal in all processes.
    """
    family = families.of(G)
    group = families.of(D).batch_group(D)
    batch, batch_gpu = (_whole_groups(size, group) for size in (batch, batch_gpu))
    training = G.training
    G.train(family.batch_statistics)
    for frozen in (source, D):
        frozen.eval().requires_grad_(False)
    optimizer = torch.optim.Adam(G.parameters(), lr=lr, betas=(0.9, 0.99), eps=1e-8)
    phase, loss = Phase("fit", G, optimizer, interval=1), FitLoss(G, source, D)
    steps = max(round(kimg * 1000 / (batch * distributed.world_size())), 1)
    with _progress(steps * batch * distributed.world_size()) as progress:
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = lr * rate(step, steps)
            pieces = zip(*(x.split(batch_gpu) for x in draw(batch)))
            run_phase(phase, loss, [{"z": z, "c": c} for z, c in pieces])
            progress.update(batch * distributed.world_size())
    if family.settle is not None:
        family.settle(G, 0)
    G.train(training)
    return loss.distance.item()


def _whole_groups(size: int, group: int | None) -> int:
    """The largest number of images up to `size` that D can compare in groups of `group`, or in a single smaller one."""
    return size if group is None or size < group else size - size % group


def _progress(images: int) -> Progress:
    stream = sys.stderr if distributed.rank() == 0 else io.StringIO()
    return Progress(images, "fitting", "img", stream, None if stream.isatty() else PRINT_EVERY)


def settings(kimg: float, options: dict[str, Any], least: int = 1) -> dict[str, Any]:
    """Arguments of `fit` that follow from the options of a run; `least` images in each process."""
    processes = options.get("num_gpus", 1)
    share = max(min(options["batch_size"], BATCH) // processes, least)
    return {
        "kimg": kimg,
        "lr": options["G_opt_kwargs"]["lr"] * RATE,
        "batch": share,
        "batch_gpu": min(options["batch_gpu"], share),
    }
