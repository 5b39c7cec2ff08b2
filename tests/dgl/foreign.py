# SPDX-License-Identifier: Apache-2.0
"""A discriminator as other projects store theirs; its own code runs when the pickle is trusted."""

import torch

from torch_utils import persistence


@persistence.persistent_class
class Discriminator(torch.nn.Module):
    """Half precision means float16, on every device; there is no `half_dtype`."""

    def __init__(self, c_dim, img_resolution, img_channels, num_fp16_res=0, conv_clamp=None):
        super().__init__()
        self.c_dim, self.img_resolution, self.img_channels = c_dim, img_resolution, img_channels
        self.use_fp16 = num_fp16_res > 0
        self.weight = torch.nn.Parameter(torch.randn([img_channels, img_resolution, img_resolution]))
        self.features = torch.nn.Identity()

    def forward(self, img, c, force_fp32=False):
        dtype = torch.float16 if self.use_fp16 and not force_fp32 else torch.float32
        return self.features(img.to(dtype) * self.weight.to(dtype)).float().mean([1, 2, 3]).unsqueeze(1)
