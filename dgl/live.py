# SPDX-License-Identifier: Apache-2.0
"""Live teachers: discriminators that guide G and go on training against it (DGL-GAN, arXiv 2112.06502).

Letters: N batch, C channels, H W image, K label width; r̄ and s̄ are a teacher's scores of reals and fakes.
"""

import copy

import torch
from torch.nn.functional import relu

from dgl.terms import AdversarialTerm
from torch_utils.ops import conv2d_gradfix
from torch_utils.training_stats import report
from training.loss import Fakes, d_logistic_fake, d_logistic_real, r1_penalty
from training.phases import Phase, build_phases, load_optimizer

# The discriminator's loss per real and per generated image; the generator's forms are dgl.terms.FORMS.
CRITIC_LOSSES = {
    "logistic": (d_logistic_real, d_logistic_fake),
    "hinge": (lambda scores: relu(1 - scores), lambda scores: relu(1 + scores)),
}


class LiveTerm(AdversarialTerm):
    """The adversarial term of teachers that are trained: each minimises f_real(r̄) + f_fake(s̄) + γ/2 ‖∂r̄/∂x‖².

    opt_kwargs:   optimiser of each teacher, as for D: class_name, lr, betas, eps.
    r1_gamma:     γ; at 0 there is no R1 phase.
    reg_interval: R1 is applied in every such iteration, `training.phases.build_phases` corrects the optimiser.
    form:         also of the teachers' own loss, see `CRITIC_LOSSES`.
    augment:      applied to the fakes that guide G, and to reals and fakes in the teachers' phases.

    Other arguments are those of `AdversarialTerm`. The teachers train in the iterations in which they guide. They are
    in training mode, like the student's D, and frozen outside their phases, teacher<i>main and teacher<i>reg. The files
    they come from are not written.
    Also reports Loss/DGL/real_scores<i>, Loss/DGL/D_loss<i>, Loss/DGL/r1_penalty<i>.
    """

    def __init__(
        self, *args, opt_kwargs: dict, r1_gamma: float = 0, reg_interval: int = 16, form: str = "logistic", **kwargs
    ):
        super().__init__(*args, form=form, **kwargs)
        self.losses = CRITIC_LOSSES[form]
        self.r1_gamma = r1_gamma
        self._phases: list[list[Phase]] = []  # of each teacher
        for i, teacher in enumerate(self.teachers):
            teacher.D.train()
            interval = reg_interval if r1_gamma > 0 else None
            self._phases.append(build_phases(f"teacher{i}", teacher.D, opt_kwargs, interval))

    def phases(self) -> list[Phase]:
        return [phase for phases in self._phases for phase in phases]

    def accumulate_gradients(
        self, phase: str, real_img: torch.Tensor, real_c: torch.Tensor, fakes: Fakes, gain: float
    ) -> None:
        i = next(i for i, phases in enumerate(self._phases) if phase in (own.name for own in phases))
        if phase.endswith("reg"):
            self._r1(i, real_img, real_c, gain)
        else:
            self._main(i, real_img, real_c, fakes, gain)

    def _main(self, i: int, real_img: torch.Tensor, real_c: torch.Tensor, fakes: Fakes, gain: float) -> None:
        """Fakes and reals in separate passes: a minibatch-stddev group holds one kind."""
        on_real, on_fake = self.losses
        fake_loss = on_fake(self._scores(i, fakes.img, fakes.c))
        fake_loss.mean().mul(gain).backward()
        scores = self._scores(i, real_img, real_c)
        report(f"Loss/DGL/real_scores{i}", scores)
        real_loss = on_real(scores)
        report(f"Loss/DGL/D_loss{i}", fake_loss + real_loss)
        real_loss.mean().mul(gain).backward()

    def _r1(self, i: int, real_img: torch.Tensor, real_c: torch.Tensor, gain: float) -> None:
        img = real_img.detach().requires_grad_(True)
        scores = self._scores(i, img, real_c)
        with conv2d_gradfix.no_weight_gradients():
            (img_grad,) = torch.autograd.grad(scores.sum(), [img], create_graph=True)
        penalty = r1_penalty(img_grad)
        report(f"Loss/DGL/r1_penalty{i}", penalty)
        # The scores enter with weight 0, so that parameters without influence on the penalty are stepped as well.
        loss = scores * 0 + (penalty * (self.r1_gamma / 2)).unsqueeze(1)
        loss.mean().mul(gain).backward()

    def _scores(self, i: int, img: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return self.teachers[i].scores(img if self.augment is None else self.augment(img), c)

    def state_dict(self) -> dict:
        """As `AdversarialTerm.state_dict`, with weights and optimiser of each teacher."""
        networks = [
            {"D": teacher.D.state_dict(), "optimizer": phases[0].optimizer.state_dict()}
            for teacher, phases in zip(self.teachers, self._phases)
        ]
        return {**super().state_dict(), "teachers": copy.deepcopy(networks)}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        for teacher, phases, saved in zip(self.teachers, self._phases, state["teachers"], strict=True):
            teacher.D.load_state_dict(saved["D"])
            # An optimiser keeps the tensors that it is given.
            load_optimizer(phases[0].optimizer, saved["optimizer"])
