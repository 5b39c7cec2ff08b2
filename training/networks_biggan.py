# SPDX-License-Identifier: Apache-2.0
"""BigGAN (Brock et al., arXiv 1809.11096): a class-conditional residual generator and a projection discriminator.

Like training/networks.py this is one file whose text travels in snapshots. The names of parameters and buffers are
those of the public PyTorch implementation's checkpoints.
Letters: N batch, C channels, H W image, Z latent width, K classes, E width of the class vector, Q width of a block's
condition, R resolution. Images are in [-1, 1]; class labels c [N, K] are one-hot, or mix classes.
"""

import itertools

import torch
import torch.nn.functional as F

from torch_utils import persistence
from torch_utils.ops import conv2d_gradfix

# Widths in multiples of `ch`: G's first layer and each block's output, one block per doubling from 4x4.
G_WIDTHS = {
    32: (4, 4, 4, 4),
    64: (16, 16, 8, 4, 2),
    128: (16, 16, 8, 4, 2, 1),
    256: (16, 16, 8, 8, 4, 2, 1),
}
# Outputs of D's blocks, and how many of the first blocks halve the resolution.
D_WIDTHS = {
    32: (4, 4, 4, 4),
    64: (1, 2, 4, 8, 16),
    128: (1, 2, 4, 8, 16, 16),
    256: (1, 2, 4, 8, 8, 16, 16),
}
D_POOLED = {32: 2, 64: 4, 128: 5, 256: 6}
BN_EPS, BN_MOMENTUM = 1e-5, 0.1


def _initial_weight(shape, init: str) -> torch.Tensor:
    """Orthogonal as a matrix [out, rest] ('ortho'; arXiv 1809.11096, section 3), or N(0, 0.02²) ('N02')."""
    if init == "N02":
        return torch.randn(shape) * 0.02
    if init != "ortho":
        raise ValueError(f"init must be 'ortho' or 'N02', not {init!r}")
    rows, columns = shape[0], shape.numel() // shape[0]
    q, r = torch.linalg.qr(torch.randn([max(rows, columns), min(rows, columns)]))
    q = q * r.diagonal().sign()  # without this, QR does not sample orthogonal matrices uniformly
    return (q if rows >= columns else q.t()).reshape(shape).contiguous()


def _unit(x: torch.Tensor, eps: float) -> torch.Tensor:
    return x / x.norm().clamp_min(eps)


@persistence.persistent_class
class SpectralLayer(torch.nn.Module):
    """A weight divided by an estimate of its largest singular value (spectral norm, arXiv 1802.05957), and a bias.

    With a `kernel` it is a convolution [N, in, H, W] -> [N, out, H, W], stride 1, zero padding; without, x [N, in] ->
    [N, out]. Every forward pass makes one power step from `u0`; in training mode the step and the estimate are stored.
    """

    def __init__(self, in_features, out_features, kernel=None, bias=True, eps=1e-6, init="ortho"):
        super().__init__()
        shape = torch.Size([out_features, in_features, *([] if kernel is None else [kernel, kernel])])
        self.eps = eps
        self.padding = 0 if kernel is None else kernel // 2
        self.weight = torch.nn.Parameter(_initial_weight(shape, init))
        bound = (shape.numel() / out_features) ** -0.5
        self.bias = torch.nn.Parameter((torch.rand([out_features]) * 2 - 1) * bound) if bias else None
        self.register_buffer("u0", torch.randn([1, out_features]))
        self.register_buffer("sv0", torch.ones([1]))

    def normalised_weight(self) -> torch.Tensor:
        """The weight over its spectral norm; the gradient of the norm is u'ᵀv, with both vectors constant."""
        weight = self.weight
        # Columns in the order of memory: their order changes nothing, and a channels-last weight is not copied.
        matrix = (weight if weight.is_contiguous() else weight.movedim(1, -1)).flatten(1)
        with torch.no_grad():
            v = _unit(self.u0 @ matrix, self.eps)
        product = F.linear(v, matrix)
        u = _unit(product.detach(), self.eps)
        norm = (product * u).sum()
        if self.training:
            with torch.no_grad():
                self.u0.copy_(u)
                self.sv0.copy_(norm)
        return weight / norm

    def forward(self, x):
        weight = self.normalised_weight()
        if weight.ndim == 4:
            return conv2d_gradfix.conv2d(x, weight, self.bias, padding=self.padding)
        return F.linear(x, weight, self.bias)


@persistence.persistent_class
class Embedding(torch.nn.Module):
    """A vector for each class, c [N, K] -> [N, features]: a lookup for one-hot c, a mixture of vectors otherwise."""

    def __init__(self, c_dim, features, init="ortho"):
        super().__init__()
        self.weight = torch.nn.Parameter(_initial_weight(torch.Size([c_dim, features]), init))

    def forward(self, c):
        return c @ self.weight


@persistence.persistent_class
class SpectralEmbedding(SpectralLayer):
    """An `Embedding` [K, features] divided by its spectral norm."""

    def __init__(self, c_dim, features, eps=1e-6, init="ortho"):
        super().__init__(features, c_dim, bias=False, eps=eps, init=init)

    def forward(self, c):
        return c @ self.normalised_weight()


@persistence.persistent_class
class BatchNorm(torch.nn.Module):
    """Batch norm without affine parameters. Running statistics have the names of the reference.

    `sum_processes`: a differentiable sum of a tensor over all processes, set for a run on several whose statistics are
    those of the images of all of them; None: each its own.
    """

    sum_processes = None

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("stored_mean", torch.zeros([channels]))
        self.register_buffer("stored_var", torch.ones([channels]))

    def __getstate__(self):
        """Neither files nor copies, which one process may run alone, wait for the other processes of a run."""
        return {name: value for name, value in self.__dict__.items() if name != "sum_processes"}

    def normalise(self, x):
        """x [N, C, H, W] with the batch's statistics in training mode, the running ones otherwise."""
        if self.training and self.sum_processes is not None:
            return self._normalise_over_processes(x)
        mean, var = self.stored_mean, self.stored_var
        return F.batch_norm(x, mean, var, training=self.training, momentum=BN_MOMENTUM, eps=BN_EPS)

    def _normalise_over_processes(self, x):
        count = x.new_full([1], x.shape[0] * x.shape[2] * x.shape[3])
        total = self.sum_processes(torch.cat([x.sum(dim=[0, 2, 3]), count]))
        count = total[-1].detach()
        mean = total[:-1] / count
        centred = x - mean[:, None, None]
        var = self.sum_processes(centred.square().sum(dim=[0, 2, 3])) / count
        with torch.no_grad():
            self.stored_mean.lerp_(mean, BN_MOMENTUM)
            self.stored_var.lerp_(var * (count / (count - 1)), BN_MOMENTUM)
        return centred * (var + BN_EPS).rsqrt()[:, None, None]


@persistence.persistent_class
class ConditionalNorm(BatchNorm):
    """Batch norm with gain and bias of the class: gain(q)·x̂ + bias(q), both starting near 1 and 0.

    The condition q [N, Q] passes through spectrally normalised linear layers, or, for `tables`, is c itself.
    """

    def __init__(self, channels, condition, tables=False, eps=1e-6, init="ortho"):
        super().__init__(channels)
        for name in ("gain", "bias"):
            layer = (
                Embedding(condition, channels, init=init)
                if tables
                else SpectralLayer(condition, channels, bias=False, eps=eps, init=init)
            )
            self.add_module(name, layer)

    def forward(self, x, q):
        gain, bias = 1 + self.gain(q), self.bias(q)
        return torch.addcmul(bias[:, :, None, None], self.normalise(x), gain[:, :, None, None])


@persistence.persistent_class
class OutputNorm(BatchNorm):
    """Batch norm with a gain and a bias of each channel."""

    def __init__(self, channels):
        super().__init__(channels)
        self.gain = torch.nn.Parameter(torch.ones([channels]))
        self.bias = torch.nn.Parameter(torch.zeros([channels]))

    def forward(self, x):
        return torch.addcmul(self.bias[:, None, None], self.normalise(x), self.gain[:, None, None])


@persistence.persistent_class
class Attention(torch.nn.Module):
    """x [N, C, H, W] plus self-attention over its positions, with pooled keys and values (SAGAN, arXiv 1805.08318)."""

    def __init__(self, channels, eps=1e-6, init="ortho"):
        super().__init__()
        if channels < 8:
            raise ValueError(f"attention needs at least 8 channels, and ch leaves {channels} at its resolution")
        kwargs = {"kernel": 1, "bias": False, "eps": eps, "init": init}
        self.theta = SpectralLayer(channels, channels // 8, **kwargs)
        self.phi = SpectralLayer(channels, channels // 8, **kwargs)
        self.g = SpectralLayer(channels, channels // 2, **kwargs)
        self.o = SpectralLayer(channels // 2, channels, **kwargs)
        self.gamma = torch.nn.Parameter(torch.zeros([]))

    def forward(self, x):
        query = self.theta(x).flatten(2)  # [N, C / 8, H W]
        key, value = (F.max_pool2d(layer(x), 2).flatten(2) for layer in (self.phi, self.g))  # [N, ·, H W / 4]
        weights = (query.transpose(1, 2) @ key).softmax(dim=2)  # [N, H W, H W / 4]
        attended = (value @ weights.transpose(1, 2)).unflatten(2, x.shape[2:])
        return self.gamma * self.o(attended) + x


@persistence.persistent_class
class Parts(torch.nn.Module):
    """Modules by number, in order (every class in a snapshot has to be persistent, which PyTorch's lists are not)."""

    def append(self, module, number=None):
        """Add `module` as `number`, by default the next one."""
        self.add_module(str(len(list(self.children())) if number is None else number), module)

    def __iter__(self):
        return self.children()


@persistence.persistent_class
class GeneratorBlock(torch.nn.Module):
    """x [N, in, H, W] and condition q [N, Q] -> [N, out, 2H, 2W]."""

    def __init__(self, in_channels, out_channels, condition, tables=False, eps=1e-6, init="ortho"):
        super().__init__()
        spectral = {"eps": eps, "init": init}
        self.conv1 = SpectralLayer(in_channels, out_channels, 3, **spectral)
        self.conv2 = SpectralLayer(out_channels, out_channels, 3, **spectral)
        self.conv_sc = SpectralLayer(in_channels, out_channels, 1, **spectral)
        self.bn1 = ConditionalNorm(in_channels, condition, tables, **spectral)
        self.bn2 = ConditionalNorm(out_channels, condition, tables, **spectral)

    def forward(self, x, q):
        h = self.conv1(_double(self.bn1(x, q).relu()))
        h = self.conv2(self.bn2(h, q).relu())
        return h + _double(self.conv_sc(x))  # a 1x1 convolution commutes with doubling and costs a quarter before it


def _double(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def _check_resolution(img_resolution, widths) -> None:
    if img_resolution not in widths:
        known = ", ".join(map(str, widths))
        raise ValueError(f"BigGAN's resolution must be one of {known}, not {img_resolution}")


@persistence.persistent_class
class BigGANGenerator(torch.nn.Module):
    """z [N, Z], c [N, K] -> images [N, C, R, R].

    ch:           width multiplier; a block has a multiple of it from `G_WIDTHS`.
    shared_dim:   E, width of the class vector that all blocks share; 0: a table of gains and biases in each norm.
    hierarchical: z is cut into equal chunks, one for the first layer and one for each block (needs a shared vector).
    attn_res:     resolutions after whose block there is attention.
    sn_eps:       floor on norms in the power step of spectral norm.
    init:         'ortho' or 'N02', see `_initial_weight`.

    Raises ValueError for arguments that make no such network.
    """

    def __init__(
        self,
        z_dim,
        c_dim,
        img_resolution,
        img_channels,
        ch=96,
        shared_dim=128,
        hierarchical=True,
        attn_res=(64,),
        sn_eps=1e-6,
        init="ortho",
    ):
        super().__init__()
        _check_resolution(img_resolution, G_WIDTHS)
        widths = [ch * width for width in G_WIDTHS[img_resolution]]
        chunks = len(widths) if hierarchical else 1
        if c_dim < 1:
            raise ValueError("BigGAN needs class labels: c_dim must be at least 1")
        if hierarchical and not shared_dim:
            raise ValueError("hierarchical latents need a shared class vector: shared_dim must be at least 1")
        if z_dim % chunks:
            raise ValueError(f"z_dim must be divisible by {chunks}, the layers that take a part of z, and is {z_dim}")
        self.z_dim, self.c_dim = z_dim, c_dim
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.hierarchical, self.chunk = hierarchical, z_dim // chunks
        spectral = {"eps": sn_eps, "init": init}
        self.shared = Embedding(c_dim, shared_dim, init=init) if shared_dim else None
        condition = (shared_dim or c_dim) + (self.chunk if hierarchical else 0)
        self.linear = SpectralLayer(self.chunk, widths[0] * 16, **spectral)
        self.blocks = Parts()
        for number, (before, after) in enumerate(itertools.pairwise(widths)):
            stage = Parts()
            stage.append(GeneratorBlock(before, after, condition, tables=not shared_dim, **spectral))
            if 8 << number in attn_res:
                stage.append(Attention(after, **spectral))
            self.blocks.append(stage)
        self.output_layer = Parts()
        self.output_layer.append(OutputNorm(widths[-1]))
        self.output_layer.append(SpectralLayer(widths[-1], img_channels, 3, **spectral), number=2)

    def forward(self, z, c, **_ignored):
        q = c if self.shared is None else self.shared(c)
        chunks = z.split(self.chunk, dim=1)
        x = self.linear(chunks[0]).unflatten(1, [-1, 4, 4])
        for number, stage in enumerate(self.blocks):
            block, *attention = stage
            x = block(x, torch.cat([q, chunks[number + 1]], dim=1) if self.hierarchical else q)
            for module in attention:
                x = module(x)
        norm, conv = self.output_layer
        return conv(norm(x).relu()).tanh()


@persistence.persistent_class
class DiscriminatorBlock(torch.nn.Module):
    """x [N, in, H, W] -> [N, out, H, W], or half that size if it pools; the `first` block reads the image itself."""

    def __init__(self, in_channels, out_channels, pools, first=False, eps=1e-6, init="ortho"):
        super().__init__()
        spectral = {"eps": eps, "init": init}
        self.first, self.pools = first, pools
        self.conv1 = SpectralLayer(in_channels, out_channels, 3, **spectral)
        self.conv2 = SpectralLayer(out_channels, out_channels, 3, **spectral)
        shortcut = pools or in_channels != out_channels
        self.conv_sc = SpectralLayer(in_channels, out_channels, 1, **spectral) if shortcut else None

    def forward(self, x):
        h = self.conv2(self.conv1(x if self.first else x.relu()).relu())
        if self.pools:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)  # a 1x1 convolution costs a quarter after the pooling
        return h + (x if self.conv_sc is None else self.conv_sc(x))


@persistence.persistent_class
class BigGANDiscriminator(torch.nn.Module):
    """Images [N, C, R, R], c [N, K] -> logits [N, 1] of a projection discriminator (arXiv 1802.05637).

    Arguments and errors are those of `BigGANGenerator`. Logits of an image do not depend on its batch.
    """

    def __init__(self, c_dim, img_resolution, img_channels, ch=96, attn_res=(64,), sn_eps=1e-6, init="ortho"):
        super().__init__()
        _check_resolution(img_resolution, D_WIDTHS)
        if c_dim < 1:
            raise ValueError("BigGAN needs class labels: c_dim must be at least 1")
        self.c_dim, self.img_resolution, self.img_channels = c_dim, img_resolution, img_channels
        spectral = {"eps": sn_eps, "init": init}
        widths = [img_channels, *(ch * width for width in D_WIDTHS[img_resolution])]
        resolution = img_resolution
        self.blocks = Parts()
        for number, (before, after) in enumerate(itertools.pairwise(widths)):
            pools = number < D_POOLED[img_resolution]
            resolution //= 2 if pools else 1
            stage = Parts()
            stage.append(DiscriminatorBlock(before, after, pools, first=number == 0, **spectral))
            if resolution in attn_res:
                stage.append(Attention(after, **spectral))
            self.blocks.append(stage)
        self.linear = SpectralLayer(widths[-1], 1, **spectral)
        self.embed = SpectralEmbedding(c_dim, widths[-1], **spectral)

    def forward(self, img, c, **_ignored):
        x = img
        for stage in self.blocks:
            for module in stage:
                x = module(x)
        h = x.relu().sum(dim=[2, 3])
        return self.linear(h) + (self.embed(c) * h).sum(dim=1, keepdim=True)


Generator, Discriminator = BigGANGenerator, BigGANDiscriminator
