# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for code of other projects: losses, networks and an augmentation.

They have StyleGAN2-ADA's public interface (constructor arguments, methods, keywords) without this project's additions.
"""

import torch
from torch.nn.functional import softplus

from training.loss import StyleGAN2Loss


class Loss:
    """The interface of a loss in another project."""

    def accumulate_gradients(self, phase, real_img, real_c, gen_z, gen_c, sync, gain):
        raise NotImplementedError


class DuckTypedLoss:
    """Has `accumulate_gradients` and nothing else: no base class, no other method that the loop could call."""

    def __init__(self, device, G_mapping, G_synthesis, D, augment_pipe=None, r1_gamma=10):
        self.G_mapping, self.G_synthesis, self.D = G_mapping, G_synthesis, D
        self.augment = augment_pipe or torch.nn.Identity()

    def accumulate_gradients(self, phase, real_img, real_c, gen_z, gen_c, sync, gain):
        if phase not in ("Gmain", "Dmain"):
            return
        fake = self.D(self.augment(self.G_synthesis(self.G_mapping(gen_z, gen_c))), gen_c)
        if phase == "Gmain":
            loss = softplus(-fake)
        else:
            loss = softplus(fake) + softplus(-self.D(self.augment(real_img), real_c))
        loss.mean().mul(gain).backward()


class LossOfItsOwn(DuckTypedLoss, Loss):
    """Has a base class that is not ours."""


class LossWithOwnRuns(StyleGAN2Loss):
    """Overrides how networks are called, with StyleGAN2-ADA's arguments in constructor and methods."""

    def __init__(self, device, G_mapping, G_synthesis, D, augment_pipe=None, r1_gamma=10):
        super().__init__(device, G_mapping, G_synthesis, D, augment_pipe, style_mixing_prob=0, r1_gamma=r1_gamma)

    def run_G(self, z, c, sync):
        ws = self.G_mapping(z, c)
        return self.G_synthesis(ws), ws

    def run_D(self, img, c, sync):
        return self.D(img, c)


class Pipe(torch.nn.Module):
    """An augmentation: mirrors with probability p."""

    def __init__(self, flip=0):
        super().__init__()
        self.flip = flip
        self.register_buffer("p", torch.ones([]))

    def forward(self, images):
        flipped = torch.rand([len(images), 1, 1, 1], device=images.device) < self.p * self.flip
        return torch.where(flipped, images.flip(3), images)


class Mapping(torch.nn.Module):
    def __init__(self, z_dim, c_dim, w_dim, num_ws):
        super().__init__()
        self.num_ws = num_ws
        self.layer = torch.nn.Linear(z_dim + c_dim, w_dim)

    def forward(self, z, c, truncation_psi=1, truncation_cutoff=None, skip_w_avg_update=False):
        return self.layer(torch.cat([z, c], 1)).relu().unsqueeze(1).repeat(1, self.num_ws, 1)


class Synthesis(torch.nn.Module):
    use_fp16 = True  # as in blocks of StyleGAN2-ADA, which have no `half_dtype`

    def __init__(self, w_dim, img_resolution, img_channels):
        super().__init__()
        self.shape = (img_channels, img_resolution, img_resolution)
        self.layer = torch.nn.Linear(w_dim, img_channels * img_resolution**2)

    def forward(self, ws, noise_mode="random", force_fp32=False):
        return self.layer(ws.mean(1)).reshape(-1, *self.shape)


class Generator(torch.nn.Module):
    """Another architecture with the interface of StyleGAN2's generator."""

    def __init__(self, z_dim, c_dim, w_dim, img_resolution, img_channels):
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim, self.num_ws = z_dim, c_dim, w_dim, 2
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.mapping = Mapping(z_dim, c_dim, w_dim, self.num_ws)
        self.synthesis = Synthesis(w_dim, img_resolution, img_channels)

    def forward(self, z, c, truncation_psi=1, truncation_cutoff=None, noise_mode="random", force_fp32=False):
        return self.synthesis(self.mapping(z, c), noise_mode, force_fp32)


class Discriminator(torch.nn.Module):
    use_fp16 = True

    def __init__(self, c_dim, img_resolution, img_channels):
        super().__init__()
        self.c_dim, self.img_resolution, self.img_channels = c_dim, img_resolution, img_channels
        self.conv = torch.nn.Conv2d(img_channels, 4, 4, stride=4)
        self.out = torch.nn.Linear(4 * (img_resolution // 4) ** 2 + c_dim, 1)

    def forward(self, img, c, force_fp32=False):
        return self.out(torch.cat([self.conv(img).relu().flatten(1), c], 1))
