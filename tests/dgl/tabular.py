# SPDX-License-Identifier: Apache-2.0
"""A GAN on six images whose equilibrium is known: distributions are tables, losses are exact expectations."""

import torch
from torch.nn.functional import softplus

from training.loss import Fakes, Loss, Term

DATA = torch.tensor([2, 6, 10, 14, 20, 12]) / 64
IMAGES = torch.eye(len(DATA)).reshape(-1, len(DATA), 1, 1)
LABELS = torch.zeros([len(DATA), 0])
VERDICT = torch.tensor([-2.0, 3.0, 0.5, 1.5, 4.0, -1.0])  # of a teacher that is wrong: an ideal one says 0


class Table(torch.nn.Module):
    """A discriminator, one score per image."""

    def __init__(self, scores: torch.Tensor):
        super().__init__()
        self.table = torch.nn.Parameter(scores.clone(), requires_grad=False)

    def forward(self, img, c):
        return img.flatten(1) @ self.table.unsqueeze(1)


class TableTeacher:
    def __init__(self):
        self.D = Table(VERDICT)

    def scores(self, img, c):
        return self.D(img, c)


class TableLoss(Loss):
    """Fakes are given as latents, so that a phase sees chosen ones."""

    def __init__(self, terms):
        self.terms = terms

    def accumulate_gradients(self, phase, real_img, real_c, gen_z, gen_c, sync, gain):
        self.train_term(phase, real_img, real_c, gen_z, gen_c, gain)

    def run_G(self, z, c, sync):
        return z, None


def batch_of(p: torch.Tensor, size: int = 1024) -> torch.Tensor:
    """`size` images, each as often as `p` says, rounded."""
    counts = torch.cat([torch.zeros(1), (p.cumsum(0) * size).round()]).diff().long()
    return IMAGES.repeat_interleave(counts, 0)


def distance(p: torch.Tensor, q: torch.Tensor = DATA) -> float:
    """Total variation."""
    return float((p - q).abs().sum() / 2)


def equilibrium_of_plain_guidance(weight: float) -> torch.Tensor:
    """p_data (2 σ(s̄)^λ / E_data[σ(s̄)^λ] - 1)_+: where softplus(-s) + λ softplus(-s̄) is constant for an ideal D."""
    power = torch.sigmoid(VERDICT) ** weight
    return DATA * (2 * power / (DATA * power).sum() - 1).clamp_min(0)


def play(D: Table, critic, term: Term | None = None, each_step=None, steps: int = 300) -> torch.Tensor:
    """p_G after `steps` gradient steps that start at p_G = p_data.

    `critic` is D, or judges with it. Before each step of G, D takes ten steps to its optimum, scaled by the bound
    σ(s) σ(-s) <= 1/4 of its curvature. `each_step(p_G)` runs after a step.
    """
    logits = DATA.log().requires_grad_(True)
    for _ in range(steps):
        p = logits.softmax(0)
        D.requires_grad_(True)
        for _inner in range(10):
            s = critic(IMAGES, LABELS).squeeze(1)
            loss = (p.detach() * softplus(s) + DATA * softplus(-s)).sum()
            (slope,) = torch.autograd.grad(loss, D.table)
            with torch.no_grad():
                D.table -= 4 * slope / (p + DATA)
        D.requires_grad_(False)
        img = IMAGES.clone().requires_grad_(True)
        s = critic(img, LABELS)
        loss = softplus(-s)
        if term is not None:
            loss = loss + term(Fakes(img, LABELS, None, img, s, loss))
        (slope,) = torch.autograd.grad((p * loss.detach().squeeze(1)).sum(), logits)
        with torch.no_grad():
            logits -= 5 * slope
        if each_step is not None:
            each_step(p.detach())
    return logits.softmax(0).detach()
