# SPDX-License-Identifier: Apache-2.0
"""Cases of single operations, in the shapes that the networks' highest resolution has.

Each has three parts: the forward pass, the backward pass to all inputs, and the backward pass through that one, as the
gradient penalties take it. A pass is timed without those before it.
"""

import torch

from benchmarks.cases import Case, Part, Setting
from benchmarks.variants import Variant
from torch_utils.ops import bias_act, conv2d_resample, grid_sample_gradfix, upfirdn2d
from training.networks import modulated_conv2d

TAPS = [1, 3, 3, 1]


class Shapes:
    """Tensors of the highest resolution R: `wide` channels there, `deep` at half of it, from one seed."""

    def __init__(self, setting: Setting, variant: Variant):
        kwargs = setting.options(variant)["D_kwargs"]
        self.batch, self.size = setting.batch_size, setting.resolution
        self.wide = min(kwargs["channel_base"] // self.size, kwargs["channel_max"])
        self.deep = min(kwargs["channel_base"] * 2 // self.size, kwargs["channel_max"])
        self.dtype, self.device = variant.dtype, setting.device
        self.filter = upfirdn2d.setup_filter(TAPS, device=self.device)
        self._rng = torch.Generator(self.device).manual_seed(0)

    def tensor(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Normal random numbers, with gradient, of the variant's type if no other is given."""
        values = torch.randn(shape, device=self.device, generator=self._rng)
        return values.to(dtype or self.dtype).requires_grad_()

    def image(self, channels: int, size: int) -> torch.Tensor:
        """`tensor` of a batch of images."""
        return self.tensor(self.batch, channels, size, size)


def _bias_act(s: Shapes):
    x, b = s.image(s.wide, s.size), s.tensor(s.wide)
    return lambda x, b: bias_act.bias_act(x, b, act="lrelu", clamp=256), (x, b)


def _upsample(s: Shapes):
    return lambda x: upfirdn2d.upsample2d(x, s.filter), (s.image(s.wide, s.size // 2),)


def _downsample(s: Shapes):
    return lambda x: upfirdn2d.downsample2d(x, s.filter), (s.image(s.wide, s.size),)


def _filter(s: Shapes):
    return lambda x: upfirdn2d.filter2d(x, s.filter), (s.image(s.wide, s.size),)


def _conv(s: Shapes):
    inputs = s.image(s.wide, s.size), s.tensor(s.wide, s.wide, 3, 3)
    return lambda x, w: conv2d_resample.conv2d_resample(x, w, padding=1), inputs


def _conv_up(s: Shapes):
    inputs = s.image(s.deep, s.size // 2), s.tensor(s.wide, s.deep, 3, 3)
    return lambda x, w: conv2d_resample.conv2d_resample(x, w, s.filter, up=2, padding=1, flip_weight=False), inputs


def _conv_down(s: Shapes):
    inputs = s.image(s.wide, s.size), s.tensor(s.deep, s.wide, 3, 3)
    return lambda x, w: conv2d_resample.conv2d_resample(x, w, s.filter, down=2, padding=1), inputs


def _modulated(s: Shapes, deep: int, up: int):
    """As in training: styles on the activations, demodulated, with noise; weights and styles are fp32 always."""
    fp32 = torch.float32
    x, w = s.image(deep, s.size // up), s.tensor(s.wide, deep, 3, 3, dtype=fp32)
    styles, noise = s.tensor(s.batch, deep, dtype=fp32), s.tensor(s.batch, 1, s.size, s.size, dtype=fp32).detach()
    options = {"up": up, "padding": 1, "resample_filter": s.filter, "flip_weight": up == 1, "fused_modconv": False}
    return lambda x, w, styles: modulated_conv2d(x, w, styles, noise, **options), (x, w, styles)


def _grid_sample(s: Shapes):
    """Images turned by a little, as the augmentations do."""
    x = s.image(3, s.size)
    turn = torch.tensor([[0.98, 0.17, 0.0], [-0.17, 0.98, 0.0]], device=s.device).expand(s.batch, 2, 3)
    grid = torch.nn.functional.affine_grid(turn, list(x.shape), align_corners=False)
    return lambda x: grid_sample_gradfix.grid_sample(x, grid), (x,)


def _parts(make):
    """The builder of the three parts of an operation; `make(shapes)` returns the function and its inputs."""

    def build(setting: Setting, variant: Variant) -> dict[str, Part]:
        run, inputs = make(Shapes(setting, variant))
        y = run(*inputs)
        gy = torch.randn_like(y).requires_grad_()
        (dx, *_) = torch.autograd.grad(y, inputs, gy, create_graph=True)
        direction = torch.randn_like(dx)
        behind = (gy, *inputs[1:])  # what dx depends on, x aside, in which most operations are linear

        def backward():
            torch.autograd.grad(y, inputs, gy, retain_graph=True)

        def double_backward():
            torch.autograd.grad(dx, behind, direction, retain_graph=True, allow_unused=True)

        moved = sum(tensor.numel() * tensor.element_size() for tensor in (*inputs, y))
        memory_bound = make in MEMORY_BOUND
        return {
            "forward": Part(lambda: run(*inputs), moved if memory_bound else None),
            "backward": Part(backward),
            "double backward": Part(double_backward),
        }

    return build


MEMORY_BOUND = (_bias_act, _upsample, _downsample, _filter)

OPS = {
    "bias_act": _bias_act,
    "upfirdn2d/up2": _upsample,
    "upfirdn2d/down2": _downsample,
    "upfirdn2d/filter": _filter,
    "conv2d_resample/plain": _conv,
    "conv2d_resample/up2": _conv_up,
    "conv2d_resample/down2": _conv_down,
    "modulated_conv2d/plain": lambda s: _modulated(s, s.wide, up=1),
    "modulated_conv2d/up2": lambda s: _modulated(s, s.deep, up=2),
    "grid_sample": _grid_sample,
}
# Augmentation runs on images, which are fp32 always.
OP_CASES = [Case(f"op/{name}", _parts(make), plan=15, half=name != "grid_sample") for name, make in OPS.items()]


def copy_bandwidth(device: torch.device, seconds_of) -> float:
    """Bytes a second that a copy of a large tensor reads and writes; `seconds_of(work)` times it."""
    source = torch.ones(2**28 if device.type == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * source.element_size() / seconds_of(lambda: target.copy_(source))
