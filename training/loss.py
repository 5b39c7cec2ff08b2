# SPDX-License-Identifier: Apache-2.0
"""Losses of StyleGAN2 (arXiv 1912.04958, appendix B): non-saturating logistic, R1 and path-length regularisation.

The formulas come first, as pure functions of logits and gradients. `Loss` and `Term` are the interfaces of a family's
loss and of additions to its generator's loss. `StyleGAN2Loss` applies the formulas phase by phase.
Letters: N batch, C channels, H W image, Z latent width, K label width, L number of w vectors, W their width. Images are
in [-1, 1]; logits [N, 1], high means real.
"""

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch.nn.functional import softplus

from torch_utils import misc
from torch_utils.ops import conv2d_gradfix
from torch_utils.training_stats import report
from training.phases import Phase


def g_nonsaturating(fake_logits: torch.Tensor) -> torch.Tensor:
    """-log σ(D(G(z))), the generator's loss per sample (arXiv 1406.2661, section 3)."""
    return softplus(-fake_logits)


def d_logistic_fake(fake_logits: torch.Tensor) -> torch.Tensor:
    """-log(1 - σ(D(G(z)))), the discriminator's loss per generated sample."""
    return softplus(fake_logits)


def d_logistic_real(real_logits: torch.Tensor) -> torch.Tensor:
    """-log σ(D(x)), the discriminator's loss per real sample."""
    return softplus(-real_logits)


def r1_penalty(img_grad: torch.Tensor) -> torch.Tensor:
    """Squared norm per sample [N] of ∂D(x)/∂x [N, C, H, W] (arXiv 1801.04406)."""
    return img_grad.square().sum(dim=[1, 2, 3])


def path_lengths(ws_grad: torch.Tensor) -> torch.Tensor:
    """‖Jᵀy‖ per sample [N] from ∂Σ(img·y)/∂ws [N, L, W]: squares summed over W, averaged over L (section 3.2)."""
    return ws_grad.square().sum(dim=2).mean(dim=1).sqrt()


@dataclasses.dataclass(frozen=True)
class Fakes:
    """One batch of generated images, as a loss hands it to its terms."""

    z: torch.Tensor  # latents [N, Z]
    c: torch.Tensor  # labels [N, K]
    ws: torch.Tensor | None  # [N, L, W], input of the synthesis, style mixing included; None for a family without ws
    img: torch.Tensor  # [N, C, H, W], not augmented; with the graph of G in G's main phase, detached elsewhere
    logits: torch.Tensor | None = None  # of the student's D [N, 1]; None outside G's main phase
    loss: torch.Tensor | None = None  # the family's own generator loss [N, 1]; None outside G's main phase
    noise_state: torch.Tensor | None = None  # of the random generator before the synthesis drew its noise, if known


class Term:
    """Something added to the main loss of a generator. It sees fakes only and is independent of their family.

    An inactive term is neither evaluated nor trained. A term that trains networks does so in its `phases`; outside
    them the networks are frozen. Subclasses override what they need.
    """

    active = True
    needs_teacher_G = False  # whether it draws images from the teachers' generators, which otherwise are freed

    def __call__(self, fakes: Fakes) -> torch.Tensor:
        """The addition to the generator's loss per sample [N, 1], its weight included."""
        raise NotImplementedError

    def begin_iteration(self, cur_nimg: int, new_tick: bool) -> None:
        """Called before the phases of each iteration: `cur_nimg` images are done, `new_tick` says a tick begins."""

    def phases(self) -> list[Phase]:
        """Phases in which this term trains its own networks, run after those of G and D; the same objects each time."""
        return []

    def accumulate_gradients(
        self, phase: str, real_img: torch.Tensor, real_c: torch.Tensor, fakes: Fakes, gain: float
    ) -> None:
        """Add the gradients of one of its own `phases`; as in `Loss`, with detached `fakes` for gen_z and gen_c."""
        raise NotImplementedError

    def state_dict(self) -> dict:
        """Everything the term needs to continue exactly, including the state of its networks and optimisers."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""


class Loss:
    """Interface of a loss for the training loop. For losses of other projects only `accumulate_gradients` is needed.

    `terms` are added to the generator's main loss. A family that `takes_terms` calls `with_terms` there, `train_term`
    for phases that are not its own, implements `run_G`, and has an attribute `D`.
    """

    takes_terms = False
    terms: Sequence[Term] = ()
    own_statistics: Sequence[torch.Tensor] = ()  # follow a process's own images; averaged over them
    augment_pipe: torch.nn.Module | None = None

    def accumulate_gradients(self, phase, real_img, real_c, gen_z, gen_c, sync, gain):
        """Add the gradients of one micro-batch in `phase` to the parameters that require them.

        real_img [N, C, H, W] in [-1, 1], real_c and gen_c [N, K], gen_z [N, Z]; `sync` is true for the last micro-batch
        of a step; `gain` multiplies the loss (a lazily applied phase passes its interval).
        """
        raise NotImplementedError

    def run_G(self, z, c, sync):
        """Images [N, C, H, W] and ws [N, L, W], or None for ws, of latents z and labels c; `sync` as above."""
        raise NotImplementedError

    def augment(self, img: torch.Tensor) -> torch.Tensor:
        """Apply the augmentations that the discriminator sees."""
        return img if self.augment_pipe is None else self.augment_pipe(img)

    def begin_iteration(self, cur_nimg: int, new_tick: bool) -> None:
        """Called before the phases of each iteration: `cur_nimg` images are done, `new_tick` says a tick begins."""
        for term in self.terms:
            term.begin_iteration(cur_nimg, new_tick)

    def extra_phases(self) -> list[Phase]:
        """The phases in which terms train networks, to be run after those of G and D."""
        return [phase for term in self.terms for phase in term.phases()]

    def add_terms(self, terms: Sequence[Term]) -> None:
        """Add `terms` to those that the loss has."""
        self.terms = [*self.terms, *terms]

    def with_terms(self, fakes: Fakes) -> torch.Tensor:
        """The generator's main loss per sample [N, 1]: the family's own plus every active term."""
        loss = fakes.loss
        for term in self.terms:
            if term.active:
                loss = loss + term(fakes)
        return loss

    def train_term(self, phase, real_img, real_c, gen_z, gen_c, gain) -> None:
        """Hand `phase` to the term it belongs to. Raises ValueError for a phase of no term."""
        term = next((term for term in self.terms if phase in (own.name for own in term.phases())), None)
        if term is None:
            raise ValueError(f"unknown phase {phase!r}")
        if not term.active:
            return
        with torch.no_grad():
            gen_img, ws = self.run_G(gen_z, gen_c, sync=True)
        term.accumulate_gradients(phase, real_img, real_c, Fakes(gen_z, gen_c, ws, gen_img), gain)

    def state_dict(self) -> dict:
        """Everything the loss needs to continue exactly, equal in all processes between two iterations.

        Tensors and plain values in dicts and lists; families add their own state.
        """
        return {"terms": [term.state_dict() for term in self.terms]}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned. Raises ValueError for a state with another number of terms."""
        for term, saved in zip(self.terms, state["terms"], strict=True):
            term.load_state_dict(saved)


# phase: network, main loss, regularisation
_PHASES = {
    "Gmain": ("G", True, False),
    "Greg": ("G", False, True),
    "Gboth": ("G", True, True),
    "Dmain": ("D", True, False),
    "Dreg": ("D", False, True),
    "Dboth": ("D", True, True),
}


class StyleGAN2Loss(Loss):
    """Phases Gmain, Greg, Gboth, Dmain, Dreg, Dboth of StyleGAN2 with adaptive augmentation.

    Subclasses of other projects override `run_G(z, c, sync)` and `run_D(img, c, sync)`. `sync` has no effect here:
    gradients are averaged over processes after the last micro-batch (training.phases).
    """

    takes_terms = True

    def __init__(
        self,
        device,
        G_mapping,
        G_synthesis,
        D,
        augment_pipe=None,
        style_mixing_prob=0.9,
        r1_gamma=10,
        pl_batch_shrink=2,
        pl_decay=0.01,
        pl_weight=2,
    ):
        self.device = device
        self.G_mapping = G_mapping
        self.G_synthesis = G_synthesis
        self.D = D
        self.augment_pipe = augment_pipe
        self.style_mixing_prob = style_mixing_prob
        self.r1_gamma = r1_gamma
        self.pl_batch_shrink = pl_batch_shrink
        self.pl_decay = pl_decay
        self.pl_weight = pl_weight
        self.pl_mean = torch.zeros([], device=device)
        self.own_statistics = [self.pl_mean]
        self._noise_state = None

    def state_dict(self) -> dict:
        return {**super().state_dict(), "pl_mean": self.pl_mean.clone()}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.pl_mean.copy_(state["pl_mean"])

    def run_G(self, z, c, sync=True):
        """Images [N, C, H, W] and ws [N, L, W] for latents `z`, with style mixing (1812.04948, section 3.1)."""
        ws = self.G_mapping(z, c)
        if self.style_mixing_prob > 0:
            ws = self._mix_styles(ws, c, z)
        self._noise_state = misc.random_state(ws.device) if any(term.needs_teacher_G for term in self.terms) else None
        return self.G_synthesis(ws), ws

    def _mix_styles(self, ws, c, z):
        # All draws are made whether or not styles are mixed, and on the device, so that the host never waits for them.
        num_ws = ws.shape[1]
        first_mixed = torch.randint(1, num_ws, [], device=ws.device)
        fires = torch.rand([], device=ws.device) < self.style_mixing_prob
        other = self.G_mapping(torch.randn_like(z), c, skip_w_avg_update=True)
        mixed = fires & (torch.arange(num_ws, device=ws.device) >= first_mixed)
        return torch.where(mixed.reshape(1, -1, 1), other, ws)

    def run_D(self, img, c, sync=True):
        """Logits [N, 1] of D for `img` [N, C, H, W], which is augmented first."""
        return self.D(self.augment(img), c)

    def accumulate_gradients(self, phase, real_img, real_c, gen_z, gen_c, sync, gain):
        if phase not in _PHASES:
            self.train_term(phase, real_img, real_c, gen_z, gen_c, gain)
            return
        network, main, reg = _PHASES[phase]
        if network == "G":
            if main:
                self._g_main(gen_z, gen_c, gain)
            if reg and self.pl_weight != 0:
                self._g_path_length(gen_z, gen_c, gain)
        else:
            reg = reg and self.r1_gamma != 0
            fake_loss = self._d_fake(gen_z, gen_c, gain) if main else None
            if main or reg:
                self._d_real(real_img, real_c, gain, fake_loss, reg)

    def _g_main(self, gen_z, gen_c, gain):
        gen_img, ws = self.run_G(gen_z, gen_c, sync=True)
        gen_logits = self.run_D(gen_img, gen_c, sync=True)
        report("Loss/scores/fake", gen_logits)
        report("Loss/signs/fake", gen_logits.sign())
        own_loss = g_nonsaturating(gen_logits)
        loss = self.with_terms(Fakes(gen_z, gen_c, ws, gen_img, gen_logits, own_loss, self._noise_state))
        report("Loss/G/loss", loss)
        loss.mean().mul(gain).backward()

    def _g_path_length(self, gen_z, gen_c, gain):
        batch = max(gen_z.shape[0] // self.pl_batch_shrink, 1)
        gen_img, ws = self.run_G(gen_z[:batch], gen_c[:batch], sync=True)
        noise = torch.randn_like(gen_img) / math.sqrt(gen_img.shape[2] * gen_img.shape[3])
        with conv2d_gradfix.no_weight_gradients():
            (ws_grad,) = torch.autograd.grad((gen_img * noise).sum(), [ws], create_graph=True)
        lengths = path_lengths(ws_grad)
        mean = self.pl_mean.lerp(lengths.mean(), self.pl_decay)
        self.pl_mean.copy_(mean.detach())
        penalty = (lengths - mean).square()
        report("Loss/pl_penalty", penalty)
        loss = penalty * self.pl_weight
        report("Loss/G/reg", loss)
        # The image enters with weight 0: parameters without influence on the penalty get a gradient of zero instead of
        # none, so that the optimiser steps all of them.
        (gen_img[:, 0, 0, 0] * 0 + loss).mean().mul(gain).backward()

    def _d_fake(self, gen_z, gen_c, gain):
        with torch.no_grad():
            gen_img, _ws = self.run_G(gen_z, gen_c, sync=True)
        gen_logits = self.run_D(gen_img, gen_c, sync=True)
        report("Loss/scores/fake", gen_logits)
        report("Loss/signs/fake", gen_logits.sign())
        loss = d_logistic_fake(gen_logits)
        loss.mean().mul(gain).backward()
        return loss.detach()

    def _d_real(self, real_img, real_c, gain, fake_loss, reg):
        """Gradients for reals: the main loss if its other half, `fake_loss` [N, 1], is given; R1 if `reg`."""
        real_img = real_img.detach().requires_grad_(reg)
        real_logits = self.run_D(real_img, real_c, sync=True)
        report("Loss/scores/real", real_logits)
        report("Loss/signs/real", real_logits.sign())
        if fake_loss is None:
            loss = real_logits * 0  # as in _g_path_length
        else:
            loss = d_logistic_real(real_logits)
            report("Loss/D/loss", fake_loss + loss)
        if reg:
            with conv2d_gradfix.no_weight_gradients():
                (img_grad,) = torch.autograd.grad(real_logits.sum(), [real_img], create_graph=True)
            penalty = r1_penalty(img_grad)
            report("Loss/r1_penalty", penalty)
            r1_loss = penalty * (self.r1_gamma / 2)
            report("Loss/D/reg", r1_loss)
            loss = loss + r1_loss.unsqueeze(1)
        loss.mean().mul(gain).backward()
