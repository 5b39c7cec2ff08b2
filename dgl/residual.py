# SPDX-License-Identifier: Apache-2.0
"""A residual critic: the student's D adds to what frozen teachers say, and one score trains both players.

Letters: N batch, C channels, H W image, K label width; s̄_i(x) the score of teacher i, δ(x) that of the student's D.
"""

from collections.abc import Sequence

import torch

from dgl.teacher import Teacher

TAU = 4.0


def saturated(scores: torch.Tensor, tau: float = TAU) -> torch.Tensor:
    """τ tanh(s̄/τ): s̄ for small scores, within ±τ for all, so that δ can outweigh a wrong verdict."""
    return tau * torch.tanh(scores / tau)


class ResidualCritic:
    """s(x) = δ(x) + κ Σ_i τ tanh(s̄_i(x)/τ), called like a discriminator; takes the place of D in a loss.

    D:        δ, the network that is trained; attributes of the critic are those of D.
    teachers: their `scores(img, c)` gives s̄_i [N, 1]; frozen, but their gradients reach the images, R1's too.
    kappa:    κ >= 0.
    start:    in kimg; before it, s = δ.

    Real and generated images are judged by the same s, so δ learns what the teachers lack or get wrong. A discriminator
    that is optimal for p_G = p_data has s = 0 whatever the teachers say: p_data stays the fixed point, unlike with a
    frozen teacher in the generator's loss alone.
    """

    def __init__(
        self, D: torch.nn.Module, teachers: Sequence[Teacher], kappa: float, start: float = 0, tau: float = TAU
    ):
        self.D = D
        self.teachers = teachers
        self.kappa = kappa
        self.start = start
        self.tau = tau
        self.begin_iteration(cur_nimg=0)

    def begin_iteration(self, cur_nimg: int) -> None:
        """The teachers take part in the iterations that begin at or after `start`."""
        self.active = self.kappa > 0 and cur_nimg >= self.start * 1000

    def __call__(self, img: torch.Tensor, c: torch.Tensor, **kwargs) -> torch.Tensor:
        """s [N, 1] of images [N, C, H, W] with labels [N, K]; `kwargs` go to D."""
        logits = self.D(img, c, **kwargs)
        if self.active:
            for teacher in self.teachers:
                logits = logits + self.kappa * saturated(teacher.scores(img, c), self.tau)
        return logits

    def __getattr__(self, name: str):
        if name == "D":  # not there yet
            raise AttributeError(name)
        return getattr(self.D, name)
