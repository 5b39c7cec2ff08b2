# SPDX-License-Identifier: Apache-2.0
"""Losses of StyleGAN2 (arXiv 1912.04958, appendix B): non-saturating logistic, R1 and path-length regularisation.

The formulas stand first as pure functions of logits and gradients; `StyleGAN2Loss` applies them phase by phase.
Letters: N batch, L number of w vectors, D width of w. Images are in [-1, 1]; logits [N, 1], high means real.
"""

import math

import torch
from torch.nn.functional import softplus

from torch_utils import misc
from torch_utils.ops import conv2d_gradfix
from torch_utils.training_stats import report


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
    """‖Jᵀy‖ per sample [N] from ∂Σ(img·y)/∂ws [N, L, D]: squares summed over D, averaged over L (section 3.2)."""
    return ws_grad.square().sum(dim=2).mean(dim=1).sqrt()


class Loss:
    """What the training loop asks of a loss."""

    def accumulate_gradients(self, phase, real_img, real_c, gen_z, gen_c, sync, gain):
        """Add one micro-batch's gradients of `phase` to the parameters that require them.

        real_img [N, C, H, W] in [-1, 1], real_c and gen_c [N, c_dim], gen_z [N, z_dim]; `sync` is true on the last
        micro-batch; `gain` multiplies the loss (a lazily applied phase passes its interval).
        """
        raise NotImplementedError

    def begin_iteration(self, cur_nimg: int, new_tick: bool) -> None:
        """Called before the phases of each iteration: `cur_nimg` images are done, `new_tick` says a tick begins."""

    def state_dict(self) -> dict:
        """What must be kept for the loss to go on exactly where it was."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""


class StyleGAN2Loss(Loss):
    """Phases Gmain, Greg, Gboth, Dmain, Dreg, Dboth of StyleGAN2 with adaptive augmentation."""

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

    def state_dict(self) -> dict:
        return {"pl_mean": self.pl_mean.clone()}

    def load_state_dict(self, state: dict) -> None:
        self.pl_mean.copy_(state["pl_mean"])

    def run_G(self, z, c, sync):
        """Images [N, C, H, W] and ws [N, L, D] for latents `z`, with style mixing (1812.04948, section 3.1)."""
        with misc.ddp_sync(self.G_mapping, sync):
            ws = self.G_mapping(z, c)
            if self.style_mixing_prob > 0:
                ws = self._mix_styles(ws, c, z)
        with misc.ddp_sync(self.G_synthesis, sync):
            return self.G_synthesis(ws), ws

    def _mix_styles(self, ws, c, z):
        # Every draw happens whether or not mixing fires, and on the device, so that no iteration waits for the host.
        num_ws = ws.shape[1]
        first_mixed = torch.randint(1, num_ws, [], device=ws.device)
        fires = torch.rand([], device=ws.device) < self.style_mixing_prob
        other = self.G_mapping(torch.randn_like(z), c, skip_w_avg_update=True)
        mixed = fires & (torch.arange(num_ws, device=ws.device) >= first_mixed)
        return torch.where(mixed.reshape(1, -1, 1), other, ws)

    def augment(self, img):
        """`img` as a discriminator is to see it."""
        return img if self.augment_pipe is None else self.augment_pipe(img)

    def run_D(self, img, c, sync):
        """Logits [N, 1] of the student's own discriminator for `img`, through the augmentations."""
        img = self.augment(img)
        with misc.ddp_sync(self.D, sync):
            return self.D(img, c)

    def generator_loss(self, gen_img, gen_c, gen_logits):
        """The generator's main loss per sample [N, 1]. `gen_img` is what D scored, before augmentation."""
        return g_nonsaturating(gen_logits)

    def accumulate_gradients(self, phase, real_img, real_c, gen_z, gen_c, sync, gain):
        if phase not in ("Gmain", "Greg", "Gboth", "Dmain", "Dreg", "Dboth"):
            raise ValueError(f"unknown phase {phase!r}")
        main = phase.endswith(("main", "both"))
        weight = self.pl_weight if phase.startswith("G") else self.r1_gamma
        reg = phase.endswith(("reg", "both")) and weight != 0
        if phase.startswith("G"):
            if main:
                self._g_main(gen_z, gen_c, sync=sync and not reg, gain=gain)
            if reg:
                self._g_path_length(gen_z, gen_c, sync=sync, gain=gain)
            return
        fake_loss = self._d_fake(gen_z, gen_c, gain=gain) if main else None
        if main or reg:
            self._d_real(real_img, real_c, sync=sync, gain=gain, fake_loss=fake_loss, reg=reg)

    def _g_main(self, gen_z, gen_c, sync, gain):
        gen_img, _ws = self.run_G(gen_z, gen_c, sync=sync)
        gen_logits = self.run_D(gen_img, gen_c, sync=False)
        report("Loss/scores/fake", gen_logits)
        report("Loss/signs/fake", gen_logits.sign())
        loss = self.generator_loss(gen_img, gen_c, gen_logits)
        report("Loss/G/loss", loss)
        loss.mean().mul(gain).backward()

    def _g_path_length(self, gen_z, gen_c, sync, gain):
        batch = max(gen_z.shape[0] // self.pl_batch_shrink, 1)
        gen_img, ws = self.run_G(gen_z[:batch], gen_c[:batch], sync=sync)
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
        # The image enters with weight 0: parameters that the penalty does not touch get a gradient of zero instead of
        # none, so that the optimiser steps all of them alike and DDP sees every one.
        (gen_img[:, 0, 0, 0] * 0 + loss).mean().mul(gain).backward()

    def _d_fake(self, gen_z, gen_c, gain):
        with torch.no_grad():
            gen_img, _ws = self.run_G(gen_z, gen_c, sync=False)
        gen_logits = self.run_D(gen_img, gen_c, sync=False)
        report("Loss/scores/fake", gen_logits)
        report("Loss/signs/fake", gen_logits.sign())
        loss = d_logistic_fake(gen_logits)
        loss.mean().mul(gain).backward()
        return loss.detach()

    def _d_real(self, real_img, real_c, sync, gain, fake_loss, reg):
        """Gradients for reals: the main term where its other half, `fake_loss` [N, 1], is given; R1 where `reg`."""
        real_img = real_img.detach().requires_grad_(reg)
        real_logits = self.run_D(real_img, real_c, sync=sync)
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
