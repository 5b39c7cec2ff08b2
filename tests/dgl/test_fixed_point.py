# SPDX-License-Identifier: Apache-2.0
"""Where guidance leads: a table of outcomes with an ideal D, trained with the project's own loss functions and term.

The generator is a softmax over K outcomes, "images" are one-hot, and D is ideal: s = log p_data/p_G. Derivation of the
expected distribution: dgl.diagnostics.
"""

import pytest
import torch
from torch.nn.functional import softplus

from dgl.diagnostics import safe_lambda
from dgl.terms import AdversarialTerm
from training.loss import Fakes, g_nonsaturating

K = 8
P_DATA = torch.tensor([0.02, 0.05, 0.08, 0.1, 0.15, 0.15, 0.2, 0.25], dtype=torch.float64)
SCORES = torch.tensor([-1.5, 3.0, 0.5, -0.5, 1.0, 2.5, 0.0, 1.5], dtype=torch.float64)  # of the teacher, by outcome


class TableTeacher:
    """Scores outcome k with `table[k]`."""

    def __init__(self, table: torch.Tensor):
        self.table = table.unsqueeze(1)

    def scores(self, img, c):
        return img.flatten(1) @ self.table


def train(term: AdversarialTerm, steps: int = 80, nimg_per_step: int = 0):
    """The generator's distribution after `steps` natural-gradient steps, each against the ideal D of the moment."""
    theta = P_DATA.flip(0).log()
    for step in range(steps):
        term.begin_iteration(cur_nimg=step * nimg_per_step, new_tick=step == 0)
        theta = theta.detach().requires_grad_(True)
        p_G = theta.softmax(0)
        img = torch.eye(K, dtype=torch.float64).reshape(K, 1, 1, K).requires_grad_(True)
        s = img.flatten(1) @ (P_DATA / p_G.detach().clamp_min(1e-300)).log().unsqueeze(1)
        fakes = Fakes(img, img, None, img, s, g_nonsaturating(s))
        per_sample = fakes.loss + term(fakes) if term.active else fakes.loss
        (gradient,) = torch.autograd.grad((p_G * per_sample.squeeze(1).detach()).sum(), theta)
        theta = theta - gradient / p_G.detach().clamp_min(1e-30)
    return theta.detach().softmax(0)


def expected(weight: float, table: torch.Tensor) -> torch.Tensor:
    tilt = torch.sigmoid(table) ** weight
    return P_DATA * (2 * tilt / (P_DATA * tilt).sum() - 1).clamp_min(0)


def distance(p: torch.Tensor, q: torch.Tensor) -> float:
    """Total variation."""
    return 0.5 * float((p - q).abs().sum())


@pytest.mark.parametrize("weight", [0.1, 0.3])
def test_guidance_tilts_the_fixed_point_by_the_formula(weight):
    p_G = train(AdversarialTerm([TableTeacher(SCORES)], weight))
    assert distance(p_G, expected(weight, SCORES)) < 1e-6
    assert distance(p_G, P_DATA) > 0.1 * weight


def test_without_weight_the_fixed_point_is_the_data():
    assert distance(train(AdversarialTerm([TableTeacher(SCORES)], weight=0)), P_DATA) < 1e-6


def test_the_bias_vanishes_after_the_stop():
    """The second half of the steps comes after the stop; in the first the generator is led astray."""
    halfway, after = (
        train(AdversarialTerm([TableTeacher(SCORES)], weight=0.5, stop=10), steps, nimg_per_step=250)
        for steps in (20, 80)
    )
    assert distance(halfway, P_DATA) > 0.02
    assert distance(after, P_DATA) < 1e-6


@pytest.mark.parametrize(("factor", "lost"), [(0.7, False), (3.0, True)])
def test_the_safe_weight_keeps_what_the_teacher_scores_low(factor, lost):
    """The outcome with the lowest score is 2 % of the reals, so it is the quantile that the safe weight protects."""
    table = SCORES - 3
    reals = table.repeat_interleave((P_DATA * 1000).round().long())
    weight = factor * safe_lambda(softplus(-reals))
    p_G = train(AdversarialTerm([TableTeacher(table)], weight), steps=400)
    assert (float(p_G[0]) < 1e-3 * float(P_DATA[0])) is lost
    assert float(expected(weight, table)[0] == 0) == lost
