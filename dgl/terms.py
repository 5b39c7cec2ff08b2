# SPDX-License-Identifier: Apache-2.0
"""Additions to a generator's loss, for any family of networks: first the formulas, then the terms that apply them.

Notation of DGL-GAN (arXiv 2112.06502): s = D(G(z)) the student's own score, s̄_i = D̄_i(G(z)) the score of teacher i,
λ the weight of the teachers. Shapes: N images in a batch, C channels, H W image.
"""

import math
from collections.abc import Callable, Sequence

import torch

from dgl.schedule import AutoStart, RatioCap, cosine_decay
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
    start:     in kimg; active in the iterations that start at or after it. 'auto': see `dgl.schedule.AutoStart`, which
               has the teachers score one batch a tick until then.
    stop:      in kimg; λ falls from the start to 0 there, along a cosine, and the term is inactive from then on.
    ratio:     λ is reduced so that the push of the teachers on the images is at most `ratio` times that of the
               student's own D: see `dgl.schedule.RatioCap`. The decay multiplies the reduced λ.
    form:      f, a name in `FORMS`.
    weighting: w, a name in `WEIGHTINGS`.
    augment:   applied to the fakes before the teachers see them; None: they see the fakes themselves.

    Raises UserError for an unknown form or weighting.
    Reports Loss/DGL/scores<i>, Loss/DGL/loss<i> (before λ) and, once a tick, Loss/DGL/grad_ratio; with a stop or a
    ratio also Loss/DGL/weight, the λ of each batch.
    """

    def __init__(
        self,
        teachers: Sequence[Teacher],
        weight: float = 0.1,
        start: float | str = 0,
        form: str = "logistic",
        weighting: str = "plain",
        augment: Callable[[torch.Tensor], torch.Tensor] | None = None,
        stop: float | None = None,
        ratio: float | None = None,
    ):
        self.teachers = teachers
        self.weight = weight
        self.start = start
        self.stop = stop
        self.form = _choose("form", form, FORMS)
        self.weighting = _choose("weighting", weighting, WEIGHTINGS)
        self.augment = augment
        self._auto = AutoStart() if start == "auto" else None
        self._cap = None if ratio is None else RatioCap(ratio)
        self._ratio_due = True
        self._schedule(cur_nimg=0)

    def begin_iteration(self, cur_nimg: int, new_tick: bool) -> None:
        """Follows the schedule of λ; the gradient ratio is measured once after each new tick."""
        if self._auto is not None and new_tick:
            self._auto.begin_tick(cur_nimg)
        self._schedule(cur_nimg)
        self._ratio_due = self._ratio_due or new_tick
        if self._cap is not None and self._guiding:
            self._cap.begin_iteration()

    def _schedule(self, cur_nimg: int) -> None:
        start = self.start * 1000 if self._auto is None else self._auto.nimg
        stop = math.inf if self.stop is None else self.stop * 1000
        possible = self.weight > 0 and cur_nimg < stop
        self._guiding = possible and start is not None and cur_nimg >= start
        self._decay = cosine_decay((cur_nimg - start) / (stop - start)) if self._guiding else 0.0
        self.active = self._guiding or (possible and self._auto is not None and self._auto.wants_scores)

    def __call__(self, fakes: Fakes) -> torch.Tensor:
        """λ Σ_i w(s̄_i) f(s̄_i), per sample [N, 1]; zeros while it waits for its automatic start."""
        if not self._guiding:
            self._watch(fakes)
            return torch.zeros_like(fakes.loss)
        loss = self._sum_over_teachers(fakes)
        capping = self._cap is not None and self._cap.due
        if capping or self._ratio_due:
            own, teachers = gradient_norm(fakes.loss, fakes.img), gradient_norm(loss, fakes.img)
        if capping:
            self._cap.measure(own, teachers)
        weight = (self.weight if self._cap is None else self._cap.apply(self.weight)) * self._decay
        if self._ratio_due:
            self._report_gradient_ratio(weight * teachers / own)
            self._ratio_due = False
        if self._cap is not None or self.stop is not None:
            training_stats.report("Loss/DGL/weight", weight)
        return weight * loss

    def _score_all(self, img: torch.Tensor, c: torch.Tensor) -> list[torch.Tensor]:
        img = img if self.augment is None else self.augment(img)
        scores = [teacher.scores(img, c) for teacher in self.teachers]
        for i, of_teacher in enumerate(scores):
            training_stats.report(f"Loss/DGL/scores{i}", of_teacher)
        return scores

    def _sum_over_teachers(self, fakes: Fakes) -> torch.Tensor:
        total = torch.zeros([], device=fakes.img.device)
        for i, scores in enumerate(self._score_all(fakes.img, fakes.c)):
            loss = self.weighting(scores) * self.form(scores)
            training_stats.report(f"Loss/DGL/loss{i}", loss)
            total = total + loss
        return total

    def _watch(self, fakes: Fakes) -> None:
        """Score a batch without a trace in the gradients or the random draws; further batches of the tick need not."""
        with torch.no_grad(), torch.random.fork_rng([fakes.img.device] if fakes.img.is_cuda else []):
            self._auto.observe(torch.stack(self._score_all(fakes.img, fakes.c)))
        self.active = False

    @staticmethod
    def _report_gradient_ratio(ratio: torch.Tensor) -> None:
        """‖∂ term / ∂ img‖ / ‖∂ own loss / ∂ img‖: the teachers' push relative to that of the student's own D."""
        # Without a gradient of D there is no ratio; the name is still reported, so that all processes have it.
        training_stats.report("Loss/DGL/grad_ratio", ratio[ratio.isfinite()])

    def state_dict(self) -> dict:
        """Whether the gradient ratio of this tick is still to be measured, and the state of the schedule."""
        parts = {"start": self._auto, "cap": self._cap}
        state = {name: part.state_dict() for name, part in parts.items() if part is not None}
        return {"ratio_due": self._ratio_due, **state}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned. A part that the saved run did not have starts anew."""
        self._ratio_due = state["ratio_due"]
        for name, part in {"start": self._auto, "cap": self._cap}.items():
            if part is not None and name in state:
                part.load_state_dict(state[name])
