# SPDX-License-Identifier: Apache-2.0
"""The guided loss: the loss of any family of networks plus terms (dgl.terms), by composition.

Source: DGL-GAN (arXiv 2112.06502).
"""

from collections.abc import Sequence

import torch

from dgl import diagnostics
from dgl.live import LiveTerm
from dgl.residual import ResidualCritic
from dgl.teacher import Teacher, open_teacher
from dgl.terms import AdversarialTerm
from dnnlib.util import UserError, construct_class_by_name
from training.dataset import Dataset


class DGLLoss:
    """A base loss whose generator is also guided by teachers: own loss + λ Σ_i w_i f(s̄_i), see dgl.terms.

    teachers:      one {'path', 'sha256'} per teacher, or an opened one; with a SHA-256, the file must match it.
    dgl_weight:    λ >= 0. At 0 no teacher is evaluated and every update equals that of the base loss, bit for bit.
    dgl_start:     in kimg; iterations that start at or after it are guided (stage 2). 'auto': see dgl.schedule.
    dgl_stop:      in kimg; λ decays to 0 there, and no teacher is evaluated from then on. None: λ is constant.
    dgl_ratio:     bound on the teachers' push on the images, relative to that of the student's D. None: no bound.
    dgl_weighting: w: 'plain' or 'score'.
    dgl_form:      f: 'logistic' or 'hinge', as in the base loss.
    dgl_augment:   show the teachers augmented fakes, in a separate draw of the base loss's augmentation.
    dgl_update:    optimiser of teachers that go on training (dgl.live), as D's: class_name, lr, ...; None: frozen. R1
                   has the base loss's `r1_gamma`.
    dgl_residual:  κ of the residual critic (dgl.residual), which replaces the base's D from `dgl_start` on. It adds to
                   the term of `dgl_weight`, which usually is 0 then. At 0 it equals no critic, bit for bit.
    trust_pickle:  open the teachers with their own code.
    held_out:      a dataset of images that the teachers have not seen, or its constructor arguments with 'class_name';
                   only for `describe_teachers`.
    terms:         further terms, each {'class_name', ...}: a `training.loss.Term` made with `teachers` and the rest.
    base_class:    name of the base loss; all other arguments are passed to it.

    Everything else is asked of the base: phases, attributes, the discriminator's loss, the lazy regularisers. No
    snapshot holds a teacher, and no optimiser a frozen one. Raises UserError if a teacher cannot be opened or its file
    has changed, and for a base loss that takes no terms.
    """

    def __init__(
        self,
        device: torch.device,
        *args,
        teachers: Sequence[dict | Teacher],
        dgl_weight: float = 0.1,
        dgl_start: float | str = 0,
        dgl_stop: float | None = None,
        dgl_ratio: float | None = None,
        dgl_weighting: str = "plain",
        dgl_form: str = "logistic",
        dgl_augment: bool = False,
        dgl_update: dict | None = None,
        dgl_residual: float = 0,
        trust_pickle: bool = False,
        held_out: dict | Dataset | None = None,
        terms: Sequence[dict] = (),
        base_class: str = "training.loss.StyleGAN2Loss",
        **kwargs,
    ):
        self.base = construct_class_by_name(device, *args, class_name=base_class, **kwargs)
        if not getattr(self.base, "takes_terms", False):
            raise UserError(f"--dgl-teacher: guidance cannot be added to {base_class}, which takes no terms")
        self._device = torch.device(device)
        self.dgl_weight = dgl_weight
        self._held_out = held_out
        # Whether the formula of dgl.diagnostics for the bias of a frozen verdict holds
        self._biased = (dgl_form, dgl_weighting, dgl_update) == ("logistic", "plain", None) and dgl_weight > 0
        self.teachers = [_open_for_run(spec, device, trust_pickle) for spec in teachers]
        for teacher in self.teachers:
            teacher.match_precision(self.base.D)
        augment = self.base.augment if dgl_augment else None
        make, live = AdversarialTerm, {}
        if dgl_update is not None:
            make, live = LiveTerm, {"opt_kwargs": dgl_update, "r1_gamma": getattr(self.base, "r1_gamma", 0)}
        guidance = make(
            self.teachers,
            weight=dgl_weight,
            start=dgl_start,
            stop=dgl_stop,
            ratio=dgl_ratio,
            form=dgl_form,
            weighting=dgl_weighting,
            augment=augment,
            **live,
        )
        added = [guidance, *(construct_class_by_name(teachers=self.teachers, **spec) for spec in terms)]
        self.base.add_terms(added)
        self.critic = None
        if dgl_residual > 0:
            self.critic = self.base.D = ResidualCritic(self.base.D, self.teachers, dgl_residual, dgl_start)
        if not any(term.needs_teacher_G for term in added):
            for teacher in self.teachers:
                teacher.without_G()

    def __getattr__(self, name: str):
        if name == "base":  # not there yet
            raise AttributeError(name)
        return getattr(self.base, name)

    def describe_teachers(self, training_set: Dataset, batch: int) -> list[str]:
        """Lines to print before training: what the teachers make of real images, and how strongly they may guide.

        They score `batch` images at a time. Takes seconds, changes nothing; no line where λ is 0 and nothing asks.
        """
        held_out = self._held_out
        if self.dgl_weight == 0 and self.critic is None and held_out is None:
            return []
        if isinstance(held_out, dict):
            held_out = construct_class_by_name(**held_out)
        weight = self.dgl_weight if self._biased else None
        lines = diagnostics.describe(self.teachers, training_set, held_out, batch, self._device, weight)
        if held_out is not None:
            held_out.close()
        return lines

    def begin_iteration(self, cur_nimg: int, new_tick: bool) -> None:
        """Called before the phases of each iteration, see `training.loss.Loss`."""
        self.base.begin_iteration(cur_nimg, new_tick)
        if self.critic is not None:
            self.critic.begin_iteration(cur_nimg)

    def state_dict(self) -> dict:
        """State of the base loss with its terms, and which teachers guide it with which weight."""
        return {**self.base.state_dict(), "dgl": {"teachers": self._teacher_record(), "weight": self.dgl_weight}}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned; raises UserError if it was saved with other teachers."""
        saved = state["dgl"]["teachers"]
        if [record["sha256"] for record in saved] != [teacher.sha256 for teacher in self.teachers]:
            before = ",".join(record["path"] for record in saved)
            raise UserError(f"--dgl-teacher: the saved run was guided by other teachers; continue it with {before}")
        self.base.load_state_dict(state)

    def _teacher_record(self) -> list[dict]:
        return [{"path": teacher.path, "sha256": teacher.sha256} for teacher in self.teachers]


def _open_for_run(spec: dict | Teacher, device: torch.device, trust: bool) -> Teacher:
    """The teacher of `spec`, or an opened one, on `device`."""
    if isinstance(spec, Teacher):
        return spec.to(device)
    teacher = open_teacher(spec["path"], trust=trust, device=device)
    expected = spec.get("sha256")
    if expected is not None and teacher.sha256 != expected:
        raise UserError(
            f"--dgl-teacher: {teacher.path} has changed since this run was set up (its SHA-256 was {expected}, "
            f"now {teacher.sha256}); restore the original file or start a new run"
        )
    return teacher
