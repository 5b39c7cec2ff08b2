# SPDX-License-Identifier: Apache-2.0
"""BigGAN's loss guided by teachers: -s - λ Σ_i w_i s̄_i (DGL-GAN, arXiv 2112.06502)."""

from dgl.loss import DGLLoss


class DGLBigGANLoss(DGLLoss):
    """`DGLLoss` around `training.loss_biggan.BigGANLoss`, with the hinge form for the teachers."""

    def __init__(self, device, G, D, augment_pipe=None, **kwargs):
        base = {"base_class": "training.loss_biggan.BigGANLoss", "dgl_form": "hinge"}
        super().__init__(device, G=G, D=D, augment_pipe=augment_pipe, **{**base, **kwargs})
