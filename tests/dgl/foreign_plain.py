# SPDX-License-Identifier: Apache-2.0
"""A discriminator of another project without half precision and without arguments for it."""

import torch

from torch_utils import persistence


@persistence.persistent_class
class Discriminator(torch.nn.Module):
    def __init__(self, c_dim, img_resolution, img_channels):
        super().__init__()
        self.c_dim, self.img_resolution, self.img_channels = c_dim, img_resolution, img_channels
        self.features = torch.nn.Conv2d(img_channels, 1, img_resolution)

    def forward(self, img, c):
        return self.features(img).flatten(1)
