# SPDX-License-Identifier: Apache-2.0
"""Additions to a generator's loss, for any family of networks: first the formulas, then the terms that apply them.

Notation of DGL-GAN (arXiv 2112.06502): s = D(G(z)) the student's own score, s̄_i = D̄_i(G(z)) the score of teacher i,
λ the weight of the teachers. Shapes: N images in a batch, C channels, H W image.
"""

from collections.abc import Callable, Sequence

import torch

from dgl.teacher import Teacher
from dnnlib.util import UserError
from torch_utils import training_stats
from training.loss import Fakes, Term, g_nonsaturating


def hinge(scores: torch.Tensor) -> torch.Tensor:
    """-s̄, per sample: the generator's side of a hinge loss (arXiv 1705.02894, BigGAN); its slope never fades."""
    return -scores


def score_weight(scores: torch.Tensor) -> torch.Tensor:
    """max(0, -s̄), per sample, without gradient: zero for images that the teacher scores as real."""
    return (-scores).clamp_min(0).detach()


def gradient_norm(loss: torch.Tensor, img: torch.Tensor) -> torch.Tensor:
    """‖∂ Σ loss / ∂ img‖ over the whole batch, a scalar; the graph and every `.grad` stay as they are."""
    (gradient,) = torch.autograd.grad(loss.sum(), img, retain_graph=True)
    return gradient.norm()


# f(s̄), the loss of a generator judged by s̄: softplus(-s̄), whose slope fades as the score rises (section 3.1), or -s̄
FORMS = {"logistic": g_nonsaturating, "hinge": hinge}
# w(s̄), without gradient
WEIGHTINGS = {"plain": torch.ones_like, "score": score_weight}


def _choose(what: str, name: str, table: dict[str, Callable]) -> Callable:
    if name not in table:
        raise UserError(f"the {what} of an adversarial term must be one of {', '.join(table)}, not {name!r}")
    return table[name]


class AdversarialTerm(Term):
    """λ Σ_i w(s̄_i) f(s̄_i): frozen teacher discriminators judge the student's fakes (DGL-GAN, section 3).

    teachers:  their `scores(img, c)` gives s̄_i [N, 1].
    weight:    λ >= 0; at 0 no teacher is evaluated.
    start:     in kimg; active in the iterations that start at or after it.
    form:      f, a name in `FORMS`.
    weighting: w, a name in `WEIGHTINGS`.
    augment:   applied to the fakes before the teachers see them; None: they see the fakes themselves.

    Raises UserError for an unknown form or weighting.
    Reports Loss/DGL/scores<i>, Loss/DGL/loss<i> (before λ) and, once a tick, Loss/DGL/grad_ratio.
    """

    def __init__(
        self,
        teachers: Sequence[Teacher],
        weight: float = 0.1,
        start: float = 0,
        form: str = "logistic",
        weighting: str = "plain",
        augment: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        self.teachers = teachers
        self.weight = weight
        self.start = start
        self.form = _choose("form", form, FORMS)
        self.weighting = _choose("weighting", weighting, WEIGHTINGS)
        self.augment = augment
        self._ratio_due = True
        self.begin_iteration(cur_nimg=0, new_tick=True)

    def begin_iteration(self, cur_nimg: int, new_tick: bool) -> None:
        """Activates the term at its kimg; the gradient ratio is measured once after each new tick."""
        self.active = self.weight > 0 and cur_nimg >= self.start * 1000
        self._ratio_due = self._ratio_due or new_tick

    def __call__(self, fakes: Fakes) -> torch.Tensor:
        """λ Σ_i w(s̄_i) f(s̄_i), per sample [N, 1]."""
        loss = self.weight * self._sum_over_teachers(fakes)
        if self._ratio_due:
            self._report_gradient_ratio(loss, fakes)
            self._ratio_due = False
        return loss

    def _sum_over_teachers(self, fakes: Fakes) -> torch.Tensor:
        img = fakes.img if self.augment is None else self.augment(fakes.img)
        total = torch.zeros([], device=img.device)
        for i, teacher in enumerate(self.teachers):
            scores = teacher.scores(img, fakes.c)
            loss = self.weighting(scores) * self.form(scores)
            training_stats.report(f"Loss/DGL/scores{i}", scores)
            training_stats.report(f"Loss/DGL/loss{i}", loss)
            total = total + loss
        return total

    def _report_gradient_ratio(self, loss: torch.Tensor, fakes: Fakes) -> None:
        """‖∂ term / ∂ img‖ / ‖∂ own loss / ∂ img‖: the teachers' push relative to that of the student's own D."""
        ratio = gradient_norm(loss, fakes.img) / gradient_norm(fakes.loss, fakes.img)
        # Without a gradient of D there is no ratio; the name is still reported, so that all processes have it.
        training_stats.report("Loss/DGL/grad_ratio", ratio[ratio.isfinite()])

    def state_dict(self) -> dict:
        """Whether the gradient ratio of this tick is still to be measured."""
        return {"ratio_due": self._ratio_due}

    def load_state_dict(self, state: dict) -> None:
        self._ratio_due = state["ratio_due"]
