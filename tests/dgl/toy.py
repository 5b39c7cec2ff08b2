# SPDX-License-Identifier: Apache-2.0
"""A loss of another family, and a term that trains a network: the interface of terms at its smallest."""

import math

import torch
from torch.nn.functional import relu

from torch_utils import misc
from training.loss import Fakes, Loss, StyleGAN2Loss, Term
from training.phases import build_phases

ADAM = {"class_name": "torch.optim.Adam", "lr": 0.05, "betas": [0, 0.99], "eps": 1e-8}


class HingeLoss(Loss):
    """A GAN with hinge losses, without ws, regularisers or statistics; phases Gboth and Dboth."""

    takes_terms = True

    def __init__(self, device, G_mapping, G_synthesis, D, augment_pipe=None):
        self.device, self.D, self.augment_pipe = device, D, augment_pipe
        self.G_mapping, self.G_synthesis = G_mapping, G_synthesis

    def run_G(self, z, c, sync):
        return self.G_synthesis(self.G_mapping(z, c)), None

    def accumulate_gradients(self, phase, real_img, real_c, gen_z, gen_c, sync, gain):
        if phase not in ("Gboth", "Dboth"):
            self.train_term(phase, real_img, real_c, gen_z, gen_c, gain)
            return
        img, ws = self.run_G(gen_z, gen_c, sync)
        logits = self.D(self.augment(img), gen_c)
        if phase == "Gboth":
            loss = self.with_terms(Fakes(gen_z, gen_c, ws, img, logits, -logits))
        else:
            loss = relu(1 + logits) + relu(1 - self.D(self.augment(real_img), real_c))
        loss.mean().mul(gain).backward()


class Head(Term):
    """weight · E[-h(G(z))] with a linear critic h, trained on the student's fakes against the reals."""

    def __init__(self, shape: tuple[int, int, int], weight: float, device: torch.device, joint: bool = True):
        self.weight = weight
        self.head = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(math.prod(shape), 1))
        self.head.to(device).requires_grad_(False)
        self._phases = build_phases("head", self.head, ADAM, reg_interval=None if joint else 2)
        self.seen = []  # (phase, real images, fakes) of each call

    def __call__(self, fakes):
        return -self.weight * self.head(fakes.img)

    def phases(self):
        return self._phases

    def accumulate_gradients(self, phase, real_img, real_c, fakes, gain):
        self.seen.append((phase, real_img, fakes))
        if phase == "headreg":
            return
        loss = relu(1 + self.head(fakes.img)) + relu(1 - self.head(real_img))
        loss.mean().mul(gain).backward()

    def state_dict(self):
        return {"head": self.head.state_dict(), "optimizer": self._phases[0].optimizer.state_dict()}

    def load_state_dict(self, state):
        self.head.load_state_dict(state["head"])
        self._phases[0].optimizer.load_state_dict(state["optimizer"])


class LossWithHead(StyleGAN2Loss):
    """StyleGAN2's loss with a head, which must be equal in all processes."""

    def __init__(self, *args, head_weight=0.1, **kwargs):
        super().__init__(*args, **kwargs)
        self.terms = [Head((self.D.img_channels, *[self.D.img_resolution] * 2), head_weight, self.device)]

    def begin_iteration(self, cur_nimg, new_tick):
        super().begin_iteration(cur_nimg, new_tick)
        misc.check_ddp_consistency(self.terms[0].head)
