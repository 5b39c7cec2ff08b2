# SPDX-License-Identifier: Apache-2.0
"""The guided loss: StyleGAN2's losses plus the verdict of frozen teacher discriminators in the generator's.

Notation of DGL-GAN (arXiv 2112.06502): s = D(G(z)) the student's own score, s̄_i = D̄_i(G(z)) that of teacher i, λ the
weight of the teachers. Shapes: N images in a batch, C image channels, H = W resolution, K label dimensions.
"""

from collections.abc import Sequence

import torch
from torch.nn.functional import softplus

from dgl.teacher import Teacher, open_teacher
from dnnlib.util import UserError
from torch_utils import training_stats
from training.loss import StyleGAN2Loss


def logistic_term(scores: torch.Tensor) -> torch.Tensor:
    """softplus(-s̄), per sample: the push fades as the teacher comes to believe the image (section 3.1)."""
    return softplus(-scores)


def hinge_term(scores: torch.Tensor) -> torch.Tensor:
    """-s̄, per sample: the same term for GANs with a hinge loss (BigGAN), where the push never fades."""
    return -scores


def score_weight(scores: torch.Tensor) -> torch.Tensor:
    """max(0, -s̄), per sample, without gradient: zero for images the teacher already takes for real."""
    return (-scores).clamp_min(0).detach()


def teacher_term(scores: torch.Tensor, weighting: str = "plain") -> torch.Tensor:
    """One teacher's share of the generator's loss before λ, per sample: w·softplus(-s̄).

    `scores`: s̄ [N, 1]. `weighting`: 'plain' is w = 1, 'score' is w = max(0, -s̄) without gradient.
    """
    term = logistic_term(scores)
    return term * score_weight(scores) if weighting == "score" else term


def gradient_norm(loss: torch.Tensor, img: torch.Tensor) -> torch.Tensor:
    """‖∂ Σ loss / ∂ img‖ over the whole batch, a scalar; leaves the graph and every `.grad` as they were."""
    (gradient,) = torch.autograd.grad(loss.sum(), img, retain_graph=True)
    return gradient.norm()


class DGLLoss(StyleGAN2Loss):
    """StyleGAN2Loss whose main generator phase is softplus(-s) + λ Σ_i w_i softplus(-s̄_i), on one batch of fakes.

    teachers:      one {'path', 'sha256'} per teacher, or an opened one; a given SHA-256 must still be the file's.
    dgl_weight:    λ >= 0. At 0 no teacher is evaluated and every update equals StyleGAN2Loss's, bit for bit.
    dgl_start:     in kimg; the term is on in the iterations that start at or after it (stage 2).
    dgl_weighting: 'plain' or 'score', see `teacher_term`.
    dgl_augment:   the teachers see the fakes through `augment_pipe` as D does, in a draw of their own.
    trust_pickle:  open the teachers with their own code.

    D's loss and the lazy regularisers have no part in this. The teachers live here alone: no optimiser, DDP wrapper or
    snapshot reaches them. Raises UserError where a teacher cannot be opened or its file has changed.
    """

    def __init__(
        self,
        device: torch.device,
        G_mapping: torch.nn.Module,
        G_synthesis: torch.nn.Module,
        D: torch.nn.Module,
        augment_pipe: torch.nn.Module | None = None,
        *,
        teachers: Sequence[dict | Teacher],
        dgl_weight: float = 0.1,
        dgl_start: float = 0,
        dgl_weighting: str = "plain",
        dgl_augment: bool = False,
        trust_pickle: bool = False,
        **loss_kwargs,
    ):
        super().__init__(device, G_mapping, G_synthesis, D, augment_pipe, **loss_kwargs)
        self.dgl_weight = dgl_weight
        self.dgl_start = dgl_start
        self.dgl_weighting = dgl_weighting
        self.dgl_augment = dgl_augment
        self.teachers = [_open_for_run(spec, device, trust_pickle) for spec in teachers]
        for teacher in self.teachers:
            teacher.match_precision(D)
        self._ratio_due = True
        self.begin_iteration(cur_nimg=0, new_tick=True)

    def begin_iteration(self, cur_nimg: int, new_tick: bool) -> None:
        """Switches the teachers on from `dgl_start` kimg; a new tick measures the gradient ratio once."""
        super().begin_iteration(cur_nimg, new_tick)
        self.guiding = self.dgl_weight > 0 and cur_nimg >= self.dgl_start * 1000
        self._ratio_due = self._ratio_due or new_tick

    def generator_loss(self, gen_img: torch.Tensor, gen_c: torch.Tensor, gen_logits: torch.Tensor) -> torch.Tensor:
        """Loss [N, 1] of the main generator phase: images [N, C, H, W] in [-1, 1], labels [N, K], D's logits [N, 1]."""
        own = super().generator_loss(gen_img, gen_c, gen_logits)
        if not self.guiding:
            return own
        guided = self.dgl_weight * self._teachers_loss(gen_img, gen_c)
        if self._ratio_due:
            self._report_gradient_ratio(guided, own, gen_img)
            self._ratio_due = False
        return own + guided

    def _teachers_loss(self, gen_img: torch.Tensor, gen_c: torch.Tensor) -> torch.Tensor:
        """Σ_i w_i softplus(-s̄_i) [N, 1]."""
        seen = self.augment(gen_img) if self.dgl_augment else gen_img
        total = torch.zeros([], device=gen_img.device)
        for i, teacher in enumerate(self.teachers):
            scores = teacher.scores(seen, gen_c)
            term = teacher_term(scores, self.dgl_weighting)
            training_stats.report(f"Loss/DGL/scores{i}", scores)
            training_stats.report(f"Loss/DGL/loss{i}", term)
            total = total + term
        return total

    def _report_gradient_ratio(self, guided: torch.Tensor, own: torch.Tensor, gen_img: torch.Tensor) -> None:
        """How hard the teachers, λ included, push the images against how hard the student's own D does."""
        ratio = gradient_norm(guided, gen_img) / gradient_norm(own, gen_img)
        # A D without any gradient has no ratio; the name is still reported, so that every process knows it.
        training_stats.report("Loss/DGL/grad_ratio", ratio[ratio.isfinite()])

    def state_dict(self) -> dict:
        """Run state of the base loss, and which teachers guide it with which weight."""
        return {**super().state_dict(), "dgl": {"teachers": self._teacher_record(), "weight": self.dgl_weight}}

    def load_state_dict(self, state: dict) -> None:
        """Takes back what `state_dict` gave; raises UserError where it was saved under other teachers."""
        state = dict(state)
        saved = state.pop("dgl")
        if [t["sha256"] for t in saved["teachers"]] != [t.sha256 for t in self.teachers]:
            before = ",".join(t["path"] for t in saved["teachers"])
            raise UserError(f"--dgl-teacher: the saved run was guided by other teachers; continue it with {before}")
        super().load_state_dict(state)

    def _teacher_record(self) -> list[dict]:
        return [{"path": teacher.path, "sha256": teacher.sha256} for teacher in self.teachers]


def _open_for_run(spec: dict | Teacher, device: torch.device, trust: bool) -> Teacher:
    """The teacher of `spec`, or an opened one, on `device`, holding no more than its D."""
    if isinstance(spec, Teacher):
        spec.release_file()
        return spec.to(device)
    teacher = open_teacher(spec["path"], trust=trust, device=device)
    expected = spec.get("sha256")
    if expected is not None and teacher.sha256 != expected:
        raise UserError(
            f"--dgl-teacher: {teacher.path} has changed since this run was set up (its SHA-256 was {expected}, "
            f"now {teacher.sha256}); put the first file back or start a new run"
        )
    teacher.release_file()
    return teacher
