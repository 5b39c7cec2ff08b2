# SPDX-License-Identifier: Apache-2.0
"""Networks of another project, built like StyleGAN2's and with its interface, that save memory by working in place.

Whatever an operation of `torch_utils.ops` returns is changed there and differentiated afterwards, except for
activations, which autograd keeps. Pickles contain the text of this file.
"""

import math

import torch

from torch_utils import misc, persistence
from torch_utils.ops import bias_act, conv2d_gradfix, conv2d_resample, fma, upfirdn2d

FILTER = [1, 3, 3, 1]


def width_at(resolution, channel_base, channel_max):
    return min(channel_base // resolution, channel_max)


@persistence.persistent_class
class MappingNetwork(torch.nn.Module):
    def __init__(self, z_dim, c_dim, w_dim, num_ws, num_layers=1):
        super().__init__()
        self.num_ws, self.w_avg_beta = num_ws, 0.9
        widths = [z_dim + c_dim, *[w_dim] * (num_layers - 1)]
        self.layers = torch.nn.ModuleList(torch.nn.Linear(width, w_dim) for width in widths)
        self.register_buffer("w_avg", torch.zeros([w_dim]))

    def forward(self, z, c, truncation_psi=1, truncation_cutoff=None, skip_w_avg_update=False):
        w = torch.cat([z, c], 1)
        for layer in self.layers:
            w = bias_act.bias_act(torch.nn.functional.linear(w, layer.weight), layer.bias, act="lrelu")
        if self.training and not skip_w_avg_update:
            self.w_avg.copy_(w.detach().mean(0).lerp(self.w_avg, self.w_avg_beta))
        return self.w_avg.lerp(w, truncation_psi).unsqueeze(1).repeat(1, self.num_ws, 1)


@persistence.persistent_class
class SynthesisLayer(torch.nn.Module):
    def __init__(self, in_channels, out_channels, w_dim, resolution, kernel_size=3, up=1, activation="lrelu"):
        super().__init__()
        self.up, self.padding, self.activation = up, kernel_size // 2, activation
        shape = [out_channels, in_channels, kernel_size, kernel_size]
        self.weight = torch.nn.Parameter(torch.randn(shape) / math.sqrt(in_channels * kernel_size**2))
        self.bias = torch.nn.Parameter(torch.zeros([out_channels]))
        self.noise_strength = torch.nn.Parameter(torch.full([], 0.1))
        self.affine = torch.nn.Linear(w_dim, in_channels)
        self.register_buffer("noise_const", torch.randn([resolution, resolution]))
        self.register_buffer("resample_filter", upfirdn2d.setup_filter(FILTER))

    def forward(self, x, w, noise_mode="random"):
        scale = self.affine(w).add_(1)[:, :, None, None]
        x = fma.fma(x, scale, torch.zeros_like(scale)).mul_(0.9)
        x = conv2d_resample.conv2d_resample(
            x, self.weight, f=self.resample_filter, up=self.up, padding=self.padding, flip_weight=self.up == 1
        )
        noise = torch.randn_like(x[:, :1]) if noise_mode == "random" else self.noise_const
        x = x.add_(noise * self.noise_strength)
        return bias_act.bias_act(x, self.bias, act=self.activation)


@persistence.persistent_class
class SynthesisBlock(torch.nn.Module):
    def __init__(self, in_channels, out_channels, w_dim, resolution, img_channels):
        super().__init__()
        self.conv = SynthesisLayer(in_channels, out_channels, w_dim, resolution, up=2)
        self.skip = SynthesisLayer(in_channels, out_channels, w_dim, resolution, 1, up=2, activation="linear")
        self.torgb = torch.nn.Conv2d(out_channels, img_channels, 1)
        self.register_buffer("resample_filter", upfirdn2d.setup_filter(FILTER))

    def forward(self, x, img, w, noise_mode):
        x = self.skip(x, w, noise_mode).add_(self.conv(x, w, noise_mode)).mul_(0.5)
        rgb = conv2d_gradfix.conv2d(x, self.torgb.weight).add_(self.torgb.bias[:, None, None])
        return x, rgb if img is None else upfirdn2d.upsample2d(img, self.resample_filter).add_(rgb)


@persistence.persistent_class
class SynthesisNetwork(torch.nn.Module):
    def __init__(self, w_dim, img_resolution, img_channels, channel_base, channel_max):
        super().__init__()
        self.block_resolutions = [2**i for i in range(3, int(math.log2(img_resolution)) + 1)]
        self.num_ws = len(self.block_resolutions)
        widths = [width_at(resolution // 2, channel_base, channel_max) for resolution in self.block_resolutions]
        self.const = torch.nn.Parameter(torch.randn([widths[0], 4, 4]))
        for resolution, width, after in zip(self.block_resolutions, widths, [*widths[1:], widths[-1]]):
            setattr(self, f"b{resolution}", SynthesisBlock(width, after, w_dim, resolution, img_channels))

    def forward(self, ws, noise_mode="random", force_fp32=False):
        x, img = self.const.repeat(len(ws), 1, 1, 1), None
        for resolution, w in zip(self.block_resolutions, ws.unbind(1)):
            x, img = getattr(self, f"b{resolution}")(x, img, w, noise_mode)
        return upfirdn2d.filter2d(img, self.b8.resample_filter).add_(img).mul_(0.5)


@persistence.persistent_class
class Generator(torch.nn.Module):
    def __init__(self, z_dim, c_dim, w_dim, img_resolution, img_channels, mapping_kwargs={}, synthesis_kwargs={}):
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim = z_dim, c_dim, w_dim
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.synthesis = SynthesisNetwork(w_dim, img_resolution, img_channels, **synthesis_kwargs)
        self.num_ws = self.synthesis.num_ws
        self.mapping = MappingNetwork(z_dim, c_dim, w_dim, self.num_ws, **mapping_kwargs)

    def forward(self, z, c, truncation_psi=1, truncation_cutoff=None, **synthesis_kwargs):
        return self.synthesis(self.mapping(z, c, truncation_psi, truncation_cutoff), **synthesis_kwargs)


@persistence.persistent_class
class DiscriminatorBlock(torch.nn.Module):
    def __init__(self, in_channels, out_channels, img_channels):
        super().__init__()
        self.fromrgb = torch.nn.Conv2d(img_channels, in_channels, 1)
        self.conv = torch.nn.Conv2d(in_channels, out_channels, 3)
        self.skip = torch.nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.register_buffer("resample_filter", upfirdn2d.setup_filter(FILTER))

    def forward(self, x, img):
        y = conv2d_gradfix.conv2d(img, self.fromrgb.weight).add_(self.fromrgb.bias[:, None, None])
        y = y if x is None else y.add_(x)
        main = conv2d_resample.conv2d_resample(y, self.conv.weight, f=self.resample_filter, down=2, padding=1)
        main = bias_act.bias_act(main.mul_(0.5), self.conv.bias, act="lrelu")
        x = conv2d_resample.conv2d_resample(y, self.skip.weight, f=self.resample_filter, down=2).add_(main)
        return x, upfirdn2d.downsample2d(img, self.resample_filter).mul_(0.5)


@persistence.persistent_class
class Discriminator(torch.nn.Module):
    def __init__(self, c_dim, img_resolution, img_channels, channel_base, channel_max):
        super().__init__()
        self.c_dim, self.img_resolution, self.img_channels = c_dim, img_resolution, img_channels
        self.block_resolutions = [2**i for i in range(int(math.log2(img_resolution)), 2, -1)]
        for resolution in self.block_resolutions:
            widths = [width_at(side, channel_base, channel_max) for side in (resolution, resolution // 2)]
            setattr(self, f"b{resolution}", DiscriminatorBlock(*widths, img_channels))
        self.out = torch.nn.Linear(widths[1] * 16 + c_dim, 1)

    def forward(self, img, c, force_fp32=False):
        misc.assert_shape(img, [None, self.img_channels, self.img_resolution, self.img_resolution])
        x = None
        for resolution in self.block_resolutions:
            x, img = getattr(self, f"b{resolution}")(x, img)
        return self.out(torch.cat([x.flatten(1), c], 1))
