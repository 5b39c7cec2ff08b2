# SPDX-License-Identifier: Apache-2.0
"""The StyleGAN2 generator and discriminator (arXiv 1912.04958), conditional and in half precision (2006.06676).

Every network pickle contains the text of this file, and other projects run it with their own `torch_utils`. So it stays
one file, imports absolutely, calls only project functions that every StyleGAN2-ADA tree has, and uses only features of
Python 3.7 and PyTorch 1.7.

Letters in shape comments: N batch, C channels (I in, O out), H W image, K kernel size, L number of w vectors,
Z Y D widths of z, label and w. Images are float, nominally in [-1, 1].
"""

from __future__ import annotations

import math

import torch

from torch_utils import misc, persistence
from torch_utils.ops import bias_act, conv2d_resample, fma, upfirdn2d

DEFAULT_FILTER = [1, 3, 3, 1]
ARCHITECTURES = ("orig", "skip", "resnet")


def normalize_2nd_moment(x: torch.Tensor, dim: int = 1, eps: float = 1e-8) -> torch.Tensor:
    """Scale `x` to unit mean square along `dim`: x · rsqrt(mean(x²) + eps). Same shape out."""
    return x * (x.square().mean(dim=dim, keepdim=True) + eps).rsqrt()


def _unit_max(x: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    """Divide by the largest magnitude over `dims`, so that sums of products stay in the half-precision range."""
    return x / x.abs().amax(dim=dims, keepdim=True)


def modulated_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    styles: torch.Tensor,
    noise: torch.Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int = 0,
    resample_filter: torch.Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
    fused_modconv: bool = True,
) -> torch.Tensor:
    """Convolve with input channels scaled per sample and the output scaled back to unit variance (1912.04958, 2.2).

    x [N, I, H, W]; weight [O, I, K, K]; styles [N, I]; noise broadcastable to the output, added last. Returns
    [N, O, H·up/down, W·up/down] for padding K // 2. `fused_modconv` folds the scales into one weight per sample
    (a grouped convolution); otherwise they are applied to the activations around a single shared convolution.
    """
    N, I = styles.shape
    O, _, K, _ = weight.shape
    misc.assert_shape(weight, [O, I, K, K])
    misc.assert_shape(x, [N, I, None, None])
    if x.dtype == torch.float16 and demodulate:
        # Demodulation cancels both scales; without them Σ(x·w·s) can overflow in fp16.
        weight = _unit_max(weight, (1, 2, 3)) / math.sqrt(I * K * K)
        styles = _unit_max(styles, (1,))

    conv = {"f": resample_filter, "up": up, "down": down, "padding": padding, "flip_weight": flip_weight}
    if fused_modconv:
        w = weight.unsqueeze(0) * styles.reshape(N, 1, I, 1, 1)  # [N, O, I, K, K]
        if demodulate:
            w = w * (w.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        stacked = x.reshape(1, N * I, *x.shape[2:])
        y = conv2d_resample.conv2d_resample(stacked, w.reshape(N * O, I, K, K).to(x.dtype), groups=N, **conv)
        y = y.reshape(N, O, *y.shape[2:])
        return y if noise is None else y + noise.to(y.dtype)

    y = x * styles.to(x.dtype).reshape(N, I, 1, 1)
    y = conv2d_resample.conv2d_resample(y, weight.to(x.dtype), **conv)
    if demodulate:
        # Σ over I and taps of (w·s)² separates into (Σ taps w²) times s²: a matrix product instead of N weight tensors.
        energy = styles.square() @ _tap_energy(weight)  # [N, O]
        scale = (energy + 1e-8).rsqrt().to(y.dtype).reshape(N, O, 1, 1)
        return y * scale if noise is None else fma.fma(y, scale, noise.to(y.dtype))
    return y if noise is None else y + noise.to(y.dtype)


def _tap_energy(weight: torch.Tensor) -> torch.Tensor:
    """Σ over taps of w² [I, O], for a weight [O, I, K, K]; summed in memory order, 5 to 20 times faster."""
    if weight.stride(0) < weight.stride(1):  # an upsampling layer on a CPU, stored as [I, O, K, K]
        return weight.square().transpose(0, 1).sum(dim=(2, 3))
    return weight.square().sum(dim=(2, 3)).t()


def _block_dtype(use_fp16: bool, force_fp32: bool, half_dtype: torch.dtype | None, device: torch.device) -> torch.dtype:
    """Type that a block runs in: `half_dtype` for half-precision blocks, by default fp16 on CUDA and fp32 elsewhere."""
    if force_fp32 or not use_fp16:
        return torch.float32
    if half_dtype is not None:
        return half_dtype
    return torch.float16 if device.type == "cuda" else torch.float32


def _block_layout(channels_last: bool, dtype: torch.dtype, device: torch.device) -> torch.memory_format:
    """Layout of a block's activations; on a CPU their current layout, to avoid a conversion."""
    if channels_last and dtype != torch.float32:
        return torch.channels_last
    return torch.preserve_format if device.type == "cpu" else torch.contiguous_format


def _channels_at(resolution: int, channel_base: int, channel_max: int) -> int:
    """Feature maps at `resolution`."""
    return min(int(channel_base) // resolution, int(channel_max))


def _check_resolution(img_resolution: int) -> int:
    """log2 of an image resolution that the networks can produce."""
    log2 = int(math.log2(img_resolution)) if img_resolution >= 4 else 0
    if 2**log2 != img_resolution:
        raise ValueError(f"img_resolution must be a power of two of at least 4, got {img_resolution}")
    return log2


def _first_fp16_resolution(log2_resolution: int, num_fp16_res: int) -> int:
    """Lowest resolution that runs in half precision; blocks below 8x8 never do."""
    return max(2 ** (log2_resolution + 1 - num_fp16_res), 8)


@persistence.persistent_class
class FullyConnectedLayer(torch.nn.Module):
    """Linear layer with equalised learning rate, then bias and activation. x [N, in_features] -> [N, out_features]."""

    def __init__(self, in_features, out_features, bias=True, activation="linear", lr_multiplier=1, bias_init=0):
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.activation = activation
        self.weight = torch.nn.Parameter(torch.randn([out_features, in_features]) / lr_multiplier)
        self.bias = torch.nn.Parameter(torch.full([out_features], float(bias_init))) if bias else None
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier

    def forward(self, x):
        w = self.weight.to(x.dtype) * self.weight_gain
        b = None if self.bias is None else self.bias.to(x.dtype) * self.bias_gain
        if self.activation == "linear":
            return torch.nn.functional.linear(x, w, b)
        return bias_act.bias_act(x.matmul(w.t()), b, act=self.activation)

    def extra_repr(self):
        return f"{self.in_features} -> {self.out_features}, {self.activation}"


@persistence.persistent_class
class Conv2dLayer(torch.nn.Module):
    """Convolution with equalised learning rate and optional 2x resampling, then bias and activation.

    x [N, I, H, W] -> [N, O, H·up/down, W·up/down]. `trainable=False` keeps weight and bias as buffers (Freeze-D).
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        bias=True,
        activation="linear",
        up=1,
        down=1,
        resample_filter=DEFAULT_FILTER,
        conv_clamp=None,
        channels_last=False,
        trainable=True,
    ):
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.activation = activation
        self.up = up
        self.down = down
        self.conv_clamp = conv_clamp
        self.padding = kernel_size // 2
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)
        self.act_gain = bias_act.activation_funcs[activation].def_gain
        self.register_buffer("resample_filter", upfirdn2d.setup_filter(resample_filter))
        layout = torch.channels_last if channels_last else torch.contiguous_format
        weight = torch.randn([out_channels, in_channels, kernel_size, kernel_size]).to(memory_format=layout)
        offset = torch.zeros([out_channels]) if bias else None
        for name, value in (("weight", weight), ("bias", offset)):
            if trainable:
                setattr(self, name, None if value is None else torch.nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def forward(self, x, gain=1):
        w = (self.weight * self.weight_gain).to(x.dtype)
        b = None if self.bias is None else self.bias.to(x.dtype)
        y = conv2d_resample.conv2d_resample(
            x, w, f=self.resample_filter, up=self.up, down=self.down, padding=self.padding, flip_weight=self.up == 1
        )
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        return bias_act.bias_act(y, b, act=self.activation, gain=self.act_gain * gain, clamp=clamp)

    def extra_repr(self):
        return f"{self.in_channels} -> {self.out_channels}, {self.activation}, up={self.up}, down={self.down}"


@persistence.persistent_class
class MappingNetwork(torch.nn.Module):
    """z [N, Z] and label [N, Y] to ws [N, num_ws, D], or [N, D] for `num_ws=None`.

    Keeps `w_avg`, the running mean of w, while in training mode; the truncation trick pulls towards it.
    """

    def __init__(
        self,
        z_dim,
        c_dim,
        w_dim,
        num_ws,
        num_layers=8,
        embed_features=None,
        layer_features=None,
        activation="lrelu",
        lr_multiplier=0.01,
        w_avg_beta=0.995,
    ):
        super().__init__()
        self.z_dim = z_dim
        self.c_dim = c_dim
        self.w_dim = w_dim
        self.num_ws = num_ws
        self.num_layers = num_layers
        self.w_avg_beta = w_avg_beta
        embed_features = 0 if c_dim == 0 else (w_dim if embed_features is None else embed_features)
        hidden = w_dim if layer_features is None else layer_features
        widths = [z_dim + embed_features] + [hidden] * (num_layers - 1) + [w_dim] * min(num_layers, 1)
        if c_dim > 0:
            self.embed = FullyConnectedLayer(c_dim, embed_features)
        for i in range(num_layers):
            layer = FullyConnectedLayer(widths[i], widths[i + 1], activation=activation, lr_multiplier=lr_multiplier)
            setattr(self, f"fc{i}", layer)
        if num_ws is not None and w_avg_beta is not None:
            self.register_buffer("w_avg", torch.zeros([w_dim]))

    def _inputs(self, z, c):
        parts = []
        if self.z_dim > 0:
            misc.assert_shape(z, [None, self.z_dim])
            parts.append(normalize_2nd_moment(z.to(torch.float32)))
        if self.c_dim > 0:
            misc.assert_shape(c, [None, self.c_dim])
            parts.append(normalize_2nd_moment(self.embed(c.to(torch.float32))))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def forward(self, z, c, truncation_psi=1, truncation_cutoff=None, skip_w_avg_update=False):
        w = self._inputs(z, c)
        for i in range(self.num_layers):
            w = getattr(self, f"fc{i}")(w)  # [N, D]
        if self.training and self.w_avg_beta is not None and not skip_w_avg_update:
            self.w_avg.copy_(w.detach().mean(dim=0).lerp(self.w_avg, self.w_avg_beta))
        if self.num_ws is None:
            return w
        ws = w.unsqueeze(1).repeat(1, self.num_ws, 1)  # [N, L, D]
        if truncation_psi == 1:
            return ws
        if self.w_avg_beta is None:
            raise ValueError("truncation needs w_avg, which this mapping network does not track (w_avg_beta is None)")
        cutoff = self.num_ws if truncation_cutoff is None else truncation_cutoff
        return torch.cat([self.w_avg.lerp(ws[:, :cutoff], truncation_psi), ws[:, cutoff:]], dim=1)

    def extra_repr(self):
        return f"z_dim={self.z_dim}, c_dim={self.c_dim}, w_dim={self.w_dim}, num_ws={self.num_ws}"


@persistence.persistent_class
class SynthesisLayer(torch.nn.Module):
    """Style-modulated convolution, noise, bias and activation. x [N, I, H, W], w [N, D] -> [N, O, H·up, W·up].

    `noise_mode`: 'random' draws a fresh map per sample, 'const' uses the stored map, 'none' adds nothing.
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        w_dim,
        resolution,
        kernel_size=3,
        up=1,
        use_noise=True,
        activation="lrelu",
        resample_filter=DEFAULT_FILTER,
        conv_clamp=None,
        channels_last=False,
    ):
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.w_dim = w_dim
        self.resolution = resolution
        self.up = up
        self.use_noise = use_noise
        self.activation = activation
        self.conv_clamp = conv_clamp
        self.padding = kernel_size // 2
        self.act_gain = bias_act.activation_funcs[activation].def_gain
        layout = torch.channels_last if channels_last else torch.contiguous_format
        weight = torch.randn([out_channels, in_channels, kernel_size, kernel_size])
        self.weight = torch.nn.Parameter(weight.to(memory_format=layout))
        if use_noise:
            self.noise_strength = torch.nn.Parameter(torch.zeros([]))
        self.bias = torch.nn.Parameter(torch.zeros([out_channels]))
        self.register_buffer("resample_filter", upfirdn2d.setup_filter(resample_filter))
        if use_noise:
            self.register_buffer("noise_const", torch.randn([resolution, resolution]))
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)

    def _noise(self, batch, noise_mode, device):
        if noise_mode not in ("random", "const", "none"):
            raise ValueError(f"noise_mode must be 'random', 'const' or 'none', got {noise_mode!r}")
        if not self.use_noise or noise_mode == "none":
            return None
        if noise_mode == "const":
            return self.noise_const * self.noise_strength
        return torch.randn([batch, 1, self.resolution, self.resolution], device=device) * self.noise_strength

    def forward(self, x, w, noise_mode="random", fused_modconv=True, gain=1):
        misc.assert_shape(x, [None, self.in_channels, self.resolution // self.up, self.resolution // self.up])
        y = modulated_conv2d(
            x=x,
            weight=self.weight,
            styles=self.affine(w),
            noise=self._noise(x.shape[0], noise_mode, x.device),
            up=self.up,
            padding=self.padding,
            resample_filter=self.resample_filter,
            flip_weight=self.up == 1,
            fused_modconv=fused_modconv,
        )
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        return bias_act.bias_act(y, self.bias.to(y.dtype), act=self.activation, gain=self.act_gain * gain, clamp=clamp)

    def extra_repr(self):
        return f"{self.in_channels} -> {self.out_channels}, {self.resolution}x{self.resolution}, up={self.up}"


@persistence.persistent_class
class ToRGBLayer(torch.nn.Module):
    """Style-modulated projection to image channels, not demodulated. x [N, I, H, W], w [N, D] -> [N, O, H, W]."""

    def __init__(self, in_channels, out_channels, w_dim, kernel_size=1, conv_clamp=None, channels_last=False):
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.conv_clamp = conv_clamp
        self.padding = kernel_size // 2
        layout = torch.channels_last if channels_last else torch.contiguous_format
        weight = torch.randn([out_channels, in_channels, kernel_size, kernel_size])
        self.weight = torch.nn.Parameter(weight.to(memory_format=layout))
        self.bias = torch.nn.Parameter(torch.zeros([out_channels]))
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        # No demodulation follows, so the equalised-learning-rate scale has to be applied here, on the styles.
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)

    def forward(self, x, w, fused_modconv=True):
        y = modulated_conv2d(
            x=x,
            weight=self.weight,
            styles=self.affine(w) * self.weight_gain,
            padding=self.padding,
            demodulate=False,
            fused_modconv=fused_modconv,
        )
        return bias_act.bias_act(y, self.bias.to(y.dtype), clamp=self.conv_clamp)

    def extra_repr(self):
        return f"{self.in_channels} -> {self.out_channels}"


@persistence.persistent_class
class SynthesisBlock(torch.nn.Module):
    """All layers of one resolution: (x, img, ws [N, num_conv + num_torgb, D]) -> (x, img) at this block's resolution.

    The first block (`in_channels=0`) ignores `x` and starts from the learned constant.
    """

    half_dtype = None  # type of half-precision blocks, set for a run; None: fp16 on CUDA, else fp32

    def __init__(
        self,
        in_channels,
        out_channels,
        w_dim,
        resolution,
        img_channels,
        is_last,
        architecture="skip",
        resample_filter=DEFAULT_FILTER,
        conv_clamp=None,
        use_fp16=False,
        fp16_channels_last=False,
        **layer_kwargs,
    ):
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise ValueError(f"architecture must be one of {ARCHITECTURES}, got {architecture!r}")
        self.in_channels = in_channels
        self.w_dim = w_dim
        self.resolution = resolution
        self.img_channels = img_channels
        self.is_last = is_last
        self.architecture = architecture
        self.use_fp16 = use_fp16
        self.channels_last = use_fp16 and fp16_channels_last
        self.num_conv = 1 if in_channels == 0 else 2
        self.num_torgb = int(is_last or architecture == "skip")
        self.register_buffer("resample_filter", upfirdn2d.setup_filter(resample_filter))
        shared = {"conv_clamp": conv_clamp, "channels_last": self.channels_last}
        styled = {**shared, "w_dim": w_dim, "resolution": resolution, **layer_kwargs}
        # As in published networks, only resampling layers take the filter; the others store the default, unused.
        if in_channels == 0:
            self.const = torch.nn.Parameter(torch.randn([out_channels, resolution, resolution]))
        else:
            self.conv0 = SynthesisLayer(in_channels, out_channels, up=2, resample_filter=resample_filter, **styled)
        self.conv1 = SynthesisLayer(out_channels, out_channels, **styled)
        if self.num_torgb:
            self.torgb = ToRGBLayer(out_channels, img_channels, w_dim=w_dim, **shared)
        if in_channels != 0 and architecture == "resnet":
            self.skip = Conv2dLayer(
                in_channels,
                out_channels,
                kernel_size=1,
                bias=False,
                up=2,
                resample_filter=resample_filter,
                channels_last=self.channels_last,
            )

    def _features(self, x, ws, dtype, layer_kwargs):
        """Activations of this resolution, in `dtype` and the block's own layout."""
        layout = _block_layout(self.channels_last, dtype, ws.device)
        if self.in_channels == 0:
            x = self.const.unsqueeze(0).repeat(ws.shape[0], 1, 1, 1).to(dtype=dtype, memory_format=layout)
            return self.conv1(x, ws[:, 0], **layer_kwargs)
        half_res = self.resolution // 2
        misc.assert_shape(x, [None, self.in_channels, half_res, half_res])
        x = x.to(dtype=dtype, memory_format=layout)
        if self.architecture != "resnet":
            return self.conv1(self.conv0(x, ws[:, 0], **layer_kwargs), ws[:, 1], **layer_kwargs)
        branch_gain = math.sqrt(0.5)
        shortcut = self.skip(x, gain=branch_gain)
        y = self.conv0(x, ws[:, 0], **layer_kwargs)
        return shortcut + self.conv1(y, ws[:, 1], gain=branch_gain, **layer_kwargs)

    def forward(self, x, img, ws, force_fp32=False, fused_modconv=None, **layer_kwargs):
        misc.assert_shape(ws, [None, self.num_conv + self.num_torgb, self.w_dim])
        half_dtype = layer_kwargs.pop("half_dtype", None) or self.half_dtype
        dtype = _block_dtype(self.use_fp16, force_fp32, half_dtype, ws.device)
        if fused_modconv is None:
            # One weight per sample: fewer operations but more arithmetic, which is slower on a CPU.
            fused_modconv = not self.training and (dtype == torch.float32 or ws.shape[0] == 1)
            fused_modconv = fused_modconv and ws.device.type != "cpu"
        x = self._features(x, ws, dtype, {"fused_modconv": fused_modconv, **layer_kwargs})
        if img is not None:
            img = upfirdn2d.upsample2d(img, self.resample_filter)
        if self.num_torgb:
            # Images are summed in fp32 over all resolutions; only features may be in half precision.
            rgb = self.torgb(x, ws[:, -1], fused_modconv=fused_modconv)
            rgb = rgb.to(dtype=torch.float32, memory_format=torch.contiguous_format)
            img = rgb if img is None else img + rgb
        return x, img

    def extra_repr(self):
        return f"resolution={self.resolution}, architecture={self.architecture}"


@persistence.persistent_class
class SynthesisNetwork(torch.nn.Module):
    """ws [N, num_ws, D] -> images [N, img_channels, R, R], fp32."""

    def __init__(
        self, w_dim, img_resolution, img_channels, channel_base=32768, channel_max=512, num_fp16_res=0, **block_kwargs
    ):
        super().__init__()
        log2 = _check_resolution(img_resolution)
        self.w_dim = w_dim
        self.img_resolution = img_resolution
        self.img_resolution_log2 = log2
        self.img_channels = img_channels
        self.block_resolutions = [2**i for i in range(2, log2 + 1)]
        first_fp16 = _first_fp16_resolution(log2, num_fp16_res)
        in_channels = 0
        self.num_ws = 1
        for res in self.block_resolutions:
            out_channels = _channels_at(res, channel_base, channel_max)
            block = SynthesisBlock(
                in_channels,
                out_channels,
                w_dim=w_dim,
                resolution=res,
                img_channels=img_channels,
                is_last=res == img_resolution,
                use_fp16=num_fp16_res > 0 and res >= first_fp16,
                **block_kwargs,
            )
            setattr(self, f"b{res}", block)
            self.num_ws += block.num_conv
            in_channels = out_channels

    def forward(self, ws, **block_kwargs):
        misc.assert_shape(ws, [None, self.num_ws, self.w_dim])
        ws = ws.to(torch.float32)
        x = img = None
        first = 0
        for res in self.block_resolutions:
            block = getattr(self, f"b{res}")
            # The w of a block's RGB layer is also the first w of the next block.
            x, img = block(x, img, ws[:, first : first + block.num_conv + block.num_torgb], **block_kwargs)
            first += block.num_conv
        return img

    def extra_repr(self):
        return f"{self.img_channels}x{self.img_resolution}x{self.img_resolution}, num_ws={self.num_ws}"


@persistence.persistent_class
class Generator(torch.nn.Module):
    """z [N, Z] and label [N, Y] -> images [N, img_channels, R, R], fp32, nominally in [-1, 1]."""

    def __init__(self, z_dim, c_dim, w_dim, img_resolution, img_channels, mapping_kwargs={}, synthesis_kwargs={}):
        super().__init__()
        self.z_dim = z_dim
        self.c_dim = c_dim
        self.w_dim = w_dim
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        self.synthesis = SynthesisNetwork(w_dim, img_resolution, img_channels, **synthesis_kwargs)
        self.num_ws = self.synthesis.num_ws
        self.mapping = MappingNetwork(z_dim, c_dim, w_dim, num_ws=self.num_ws, **mapping_kwargs)

    def forward(self, z, c, truncation_psi=1, truncation_cutoff=None, **synthesis_kwargs):
        ws = self.mapping(z, c, truncation_psi=truncation_psi, truncation_cutoff=truncation_cutoff)
        return self.synthesis(ws, **synthesis_kwargs)


@persistence.persistent_class
class DiscriminatorBlock(torch.nn.Module):
    """Layers of one resolution: (x, img) -> (x at half the resolution, img for the next block or None).

    The first block (`in_channels=0`) reads the image only. Layers whose index, counted from `first_layer_idx`, is below
    `freeze_layers` are not trained (Freeze-D, arXiv 2002.10964).
    """

    half_dtype = None  # as in SynthesisBlock

    def __init__(
        self,
        in_channels,
        tmp_channels,
        out_channels,
        resolution,
        img_channels,
        first_layer_idx,
        architecture="resnet",
        activation="lrelu",
        resample_filter=DEFAULT_FILTER,
        conv_clamp=None,
        use_fp16=False,
        fp16_channels_last=False,
        freeze_layers=0,
    ):
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise ValueError(f"architecture must be one of {ARCHITECTURES}, got {architecture!r}")
        self.in_channels = in_channels
        self.resolution = resolution
        self.img_channels = img_channels
        self.first_layer_idx = first_layer_idx
        self.architecture = architecture
        self.use_fp16 = use_fp16
        self.channels_last = use_fp16 and fp16_channels_last
        self.register_buffer("resample_filter", upfirdn2d.setup_filter(resample_filter))
        layers = {}
        if in_channels == 0 or architecture == "skip":
            layers["fromrgb"] = (img_channels, tmp_channels, 1, {"activation": activation})
        layers["conv0"] = (tmp_channels, tmp_channels, 3, {"activation": activation})
        resampled = {"down": 2, "resample_filter": resample_filter}
        layers["conv1"] = (tmp_channels, out_channels, 3, {"activation": activation, **resampled})
        if architecture == "resnet":
            layers["skip"] = (tmp_channels, out_channels, 1, {"bias": False, **resampled})
        self.num_layers = len(layers)
        for index, (name, (width_in, width_out, kernel_size, options)) in enumerate(layers.items(), first_layer_idx):
            if name != "skip":
                options["conv_clamp"] = conv_clamp
            layer = Conv2dLayer(
                width_in,
                width_out,
                kernel_size,
                channels_last=self.channels_last,
                trainable=index >= freeze_layers,
                **options,
            )
            setattr(self, name, layer)

    def forward(self, x, img, force_fp32=False, *, half_dtype=None):
        device = img.device if x is None else x.device
        dtype = _block_dtype(self.use_fp16, force_fp32, half_dtype or self.half_dtype, device)
        layout = _block_layout(self.channels_last, dtype, device)
        if x is not None:
            misc.assert_shape(x, [None, self.in_channels, self.resolution, self.resolution])
            x = x.to(dtype=dtype, memory_format=layout)
        if self.in_channels == 0 or self.architecture == "skip":
            misc.assert_shape(img, [None, self.img_channels, self.resolution, self.resolution])
            features = self.fromrgb(img.to(dtype=dtype, memory_format=layout))
            x = features if x is None else x + features
            img = upfirdn2d.downsample2d(img, self.resample_filter) if self.architecture == "skip" else None
        if self.architecture != "resnet":
            return self.conv1(self.conv0(x)), img
        branch_gain = math.sqrt(0.5)
        return self.skip(x, gain=branch_gain) + self.conv1(self.conv0(x), gain=branch_gain), img

    def extra_repr(self):
        return f"resolution={self.resolution}, architecture={self.architecture}"


@persistence.persistent_class
class MinibatchStdLayer(torch.nn.Module):
    """Append the standard deviation of groups of samples as channels: [N, C, H, W] -> [N, C + num_channels, H, W].

    With group size G (the whole batch for None), sample i shares a group with all samples congruent to it mod N / G.
    """

    def __init__(self, group_size, num_channels=1):
        super().__init__()
        self.group_size = group_size
        self.num_channels = num_channels

    def forward(self, x):
        N, C, H, W = x.shape
        G = N if self.group_size is None else min(int(self.group_size), N)
        F = self.num_channels
        if N % G != 0:
            raise ValueError(f"a batch of {N} does not divide into minibatch-stddev groups of {G}")
        grouped = x.reshape(G, N // G, F, C // F, H, W)
        # Not torch.var: its second derivative, which R1 takes, loses two digits in fp32.
        std = ((grouped - grouped.mean(dim=0)).square().mean(dim=0) + 1e-8).sqrt()
        feature = std.mean(dim=(2, 3, 4))  # [N/G, F]
        return torch.cat([x, feature.repeat(G, 1).reshape(N, F, 1, 1).expand(N, F, H, W)], dim=1)

    def extra_repr(self):
        return f"group_size={self.group_size}, num_channels={self.num_channels}"


@persistence.persistent_class
class DiscriminatorEpilogue(torch.nn.Module):
    """4x4 features [N, I, 4, 4] (and the image, for 'skip') to logits [N, 1]; projected on the label if `cmap_dim`."""

    def __init__(
        self,
        in_channels,
        cmap_dim,
        resolution,
        img_channels,
        architecture="resnet",
        mbstd_group_size=4,
        mbstd_num_channels=1,
        activation="lrelu",
        conv_clamp=None,
    ):
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise ValueError(f"architecture must be one of {ARCHITECTURES}, got {architecture!r}")
        self.in_channels = in_channels
        self.cmap_dim = cmap_dim
        self.resolution = resolution
        self.img_channels = img_channels
        self.architecture = architecture
        if architecture == "skip":
            self.fromrgb = Conv2dLayer(img_channels, in_channels, kernel_size=1, activation=activation)
        if mbstd_num_channels > 0:
            self.mbstd = MinibatchStdLayer(group_size=mbstd_group_size, num_channels=mbstd_num_channels)
        else:
            self.mbstd = None
        self.conv = Conv2dLayer(
            in_channels + mbstd_num_channels, in_channels, kernel_size=3, activation=activation, conv_clamp=conv_clamp
        )
        self.fc = FullyConnectedLayer(in_channels * resolution**2, in_channels, activation=activation)
        self.out = FullyConnectedLayer(in_channels, 1 if cmap_dim == 0 else cmap_dim)

    def forward(self, x, img, cmap, force_fp32=False):
        misc.assert_shape(x, [None, self.in_channels, self.resolution, self.resolution])
        # Always fp32: the batch statistics need the precision.
        x = x.to(dtype=torch.float32, memory_format=torch.contiguous_format)
        if self.architecture == "skip":
            misc.assert_shape(img, [None, self.img_channels, self.resolution, self.resolution])
            x = x + self.fromrgb(img.to(dtype=torch.float32, memory_format=torch.contiguous_format))
        if self.mbstd is not None:
            x = self.mbstd(x)
        logits = self.out(self.fc(self.conv(x).flatten(1)))
        if self.cmap_dim > 0:
            misc.assert_shape(cmap, [None, self.cmap_dim])
            logits = (logits * cmap).sum(dim=1, keepdim=True) / math.sqrt(self.cmap_dim)
        return logits

    def extra_repr(self):
        return f"resolution={self.resolution}, architecture={self.architecture}"


@persistence.persistent_class
class Discriminator(torch.nn.Module):
    """Images [N, img_channels, R, R] and labels [N, Y] -> logits [N, 1], fp32. High means real."""

    def __init__(
        self,
        c_dim,
        img_resolution,
        img_channels,
        architecture="resnet",
        channel_base=32768,
        channel_max=512,
        num_fp16_res=0,
        conv_clamp=None,
        cmap_dim=None,
        block_kwargs={},
        mapping_kwargs={},
        epilogue_kwargs={},
    ):
        super().__init__()
        log2 = _check_resolution(img_resolution)
        self.c_dim = c_dim
        self.img_resolution = img_resolution
        self.img_resolution_log2 = log2
        self.img_channels = img_channels
        self.block_resolutions = [2**i for i in range(log2, 2, -1)]
        widths = {res: _channels_at(res, channel_base, channel_max) for res in [*self.block_resolutions, 4]}
        cmap_dim = 0 if c_dim == 0 else (widths[4] if cmap_dim is None else cmap_dim)
        first_fp16 = _first_fp16_resolution(log2, num_fp16_res)
        shared = {"img_channels": img_channels, "architecture": architecture, "conv_clamp": conv_clamp}
        layers_so_far = 0
        for res in self.block_resolutions:
            block = DiscriminatorBlock(
                widths[res] if res < img_resolution else 0,
                widths[res],
                widths[res // 2],
                resolution=res,
                first_layer_idx=layers_so_far,
                use_fp16=num_fp16_res > 0 and res >= first_fp16,
                **block_kwargs,
                **shared,
            )
            setattr(self, f"b{res}", block)
            layers_so_far += block.num_layers
        if c_dim > 0:
            self.mapping = MappingNetwork(0, c_dim, cmap_dim, num_ws=None, w_avg_beta=None, **mapping_kwargs)
        self.b4 = DiscriminatorEpilogue(widths[4], cmap_dim=cmap_dim, resolution=4, **epilogue_kwargs, **shared)

    def forward(self, img, c, force_fp32=False, *, half_dtype=None):
        x = None
        for res in self.block_resolutions:
            x, img = getattr(self, f"b{res}")(x, img, force_fp32=force_fp32, half_dtype=half_dtype)
        cmap = self.mapping(None, c) if self.c_dim > 0 else None
        return self.b4(x, img, cmap)

    def extra_repr(self):
        return f"c_dim={self.c_dim}, {self.img_channels}x{self.img_resolution}x{self.img_resolution}"
