# SPDX-License-Identifier: Apache-2.0
"""A whole family of networks in one file: an unconditional DCGAN (arXiv 1511.06434) for 16x16 images."""

import torch
import torch.nn.functional as F
from torch import nn

from torch_utils import persistence
from training.families.family import Data, Family, batch_sizes
from training.loss import Fakes, Loss, d_logistic_fake, d_logistic_real, g_nonsaturating
from training.phases import Phase


@persistence.persistent_class
class ToyLayer(nn.Module):
    """Convolution, or transposed convolution if `up`, with batch statistics as a buffer that processes do not share."""

    def __init__(self, inputs, outputs, stride, padding, up):
        super().__init__()
        self.geometry, self.up = {"stride": stride, "padding": padding}, up
        self.weight = nn.Parameter(torch.randn([inputs, outputs, 4, 4] if up else [outputs, inputs, 4, 4]) * 0.1)
        self.register_buffer("mean", torch.zeros([outputs]))

    def forward(self, x):
        x = (F.conv_transpose2d if self.up else F.conv2d)(x, self.weight, **self.geometry)
        if self.training:
            self.mean.lerp_(x.detach().mean(dim=(0, 2, 3)), 0.1)
        return x - self.mean[:, None, None]


@persistence.persistent_class
class ToyG(nn.Module):
    """z [N, Z], c (ignored) -> images [N, C, 16, 16]."""

    def __init__(self, c_dim, img_resolution, img_channels, z_dim=8, width=8):
        super().__init__()
        self.c_dim, self.img_resolution, self.img_channels, self.z_dim = c_dim, img_resolution, img_channels, z_dim
        self.l0 = ToyLayer(z_dim, width, 1, 0, up=True)
        self.l1 = ToyLayer(width, width, 2, 1, up=True)
        self.l2 = ToyLayer(width, img_channels, 2, 1, up=True)

    def forward(self, z, c):
        return self.l2(self.l1(self.l0(z[:, :, None, None]).relu()).relu()).tanh()


@persistence.persistent_class
class ToyD(nn.Module):
    """Images [N, C, 16, 16], c (ignored) -> logits [N, 1]."""

    def __init__(self, c_dim, img_resolution, img_channels, width=8):
        super().__init__()
        self.c_dim, self.img_resolution, self.img_channels = c_dim, img_resolution, img_channels
        self.l0 = ToyLayer(img_channels, width, 2, 1, up=False)
        self.l1 = ToyLayer(width, width, 2, 1, up=False)
        self.l2 = ToyLayer(width, 1, 1, 0, up=False)

    def forward(self, img, c):
        return self.l2(F.leaky_relu(self.l1(F.leaky_relu(self.l0(img))))).flatten(1)


class ToyLoss(Loss):
    """Phases D, on real images, and G, to whose loss terms may be added."""

    takes_terms = True

    def __init__(self, device, G, D, augment_pipe=None):
        self.G, self.D = G, D

    def accumulate_gradients(self, phase, real_img, real_c, gen_z, gen_c, sync, gain):
        img = self.G(gen_z, gen_c)
        if phase == "G":
            logits = self.D(img, gen_c)
            loss = self.with_terms(Fakes(gen_z, gen_c, None, img, logits, g_nonsaturating(logits)))
        else:
            loss = d_logistic_fake(self.D(img.detach(), gen_c)) + d_logistic_real(self.D(real_img, real_c))
        loss.mean().mul(gain).backward()


def options(flags, preset, data: Data, teacher=None):
    batch_size, batch_gpu = batch_sizes(flags, batch=8, gpus=1, group=1)
    adam = {"class_name": "torch.optim.Adam", "lr": 2e-4, "betas": [0.5, 0.999]}
    return {
        "G_kwargs": {"class_name": f"{__name__}.ToyG", "width": preset},
        "D_kwargs": {"class_name": f"{__name__}.ToyD", "width": preset},
        "G_opt_kwargs": dict(adam),
        "D_opt_kwargs": dict(adam),
        "loss_kwargs": {"class_name": f"{__name__}.ToyLoss"},
        "total_kimg": 1,
        "batch_size": batch_size,
        "batch_gpu": batch_gpu,
        "ema_kimg": 1,
        "ema_rampup": None,
    }


def phases(G, D, options):
    """Two steps of D, each on new reals, then one of G."""
    optimizers = {net: torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999)) for net in (G, D)}
    step = Phase("D", D, optimizers[D], interval=1, fresh_reals=True)
    return [step, step, Phase("G", G, optimizers[G], interval=1)]


def sample(G, z, c, truncation_psi=1, noise_mode="random", **kwargs):
    return G(z, c)


def check_truncation(G, psi):
    """Truncation has no meaning here and is ignored."""


TOY = Family(
    name="toy",
    generators={"ToyG": f"{__name__}.ToyG"},
    discriminators={"ToyD": f"{__name__}.ToyD"},
    presets={"toy": 8},
    flags=frozenset(),
    options=options,
    stored_arguments=lambda class_name, module_src, args, kwargs, tensor_names: (args, kwargs),
    half_precision=lambda class_name, kwargs, like: kwargs,
    loss_arguments=lambda G, D: {"G": G, "D": D},
    phases=phases,
    sample=sample,
    check_truncation=check_truncation,
    prune_plan=lambda G: [],
    macs=lambda G: G.l0.weight.numel(),
    batch_group=lambda D: None,
    feature_blocks=lambda D: [],
    differs_by_process=r".*\.mean",
)
