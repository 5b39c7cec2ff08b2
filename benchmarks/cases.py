# SPDX-License-Identifier: Apache-2.0
"""What is measured: versions, the setting they run in, and cases. Networks and options are those of `--cfg=auto`."""

import contextlib
import dataclasses
import functools
import io
import pathlib
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from dgl.student import count_macs
from dnnlib.util import UserError, construct_class_by_name
from torch_utils import precision
from torch_utils.images import save_png
from torch_utils.ops import backend, layout
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.conv2d_resample import conv2d_resample
from torch_utils.ops.grid_sample_gradfix import grid_sample
from torch_utils.ops.upfirdn2d import downsample2d, filter2d, setup_filter, upsample2d
from training.ema import update_ema
from training.networks import modulated_conv2d
from training.options import build
from training.phases import run_phase
from training.training_loop import Trainer, TrainingOptions

REFERENCE = "reference"
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
NUM_IMAGES = 32  # noise, which is slow to decode: no file is slower to read
G_INTERVAL, D_INTERVAL = TrainingOptions.G_reg_interval, TrainingOptions.D_reg_interval
AUGMENT_P = 0.5  # the amount of work does not depend on it


@dataclasses.dataclass(frozen=True)
class Variant:
    """One version of everything: the fast path in `precision`, or, if `plain`, the reference path."""

    name: str
    precision: str
    plain: bool = False

    def path(self) -> contextlib.AbstractContextManager:
        """The context in which this version is built and run."""
        return backend.reference_path() if self.plain else contextlib.nullcontext()

    def half_dtype(self, device: torch.device) -> torch.dtype:
        """Type of the half-precision resolutions. Raises UserError if `device` does not support it."""
        return precision.run_dtype(self.precision, device)

    def is_emulated(self, device: torch.device) -> bool:
        """Whether this is a half precision for which the CPU has no instructions."""
        return self.precision != "fp32" and device.type == "cpu" and not precision.cpu_has_fast_bf16()


def available(device: torch.device, wanted: list[str] | None = None) -> list[Variant]:
    """The reference, then the fast path in the precisions `wanted` (None: all that `device` supports).

    Raises UserError for a precision that is unknown or not supported.
    """
    found = [Variant(REFERENCE, "fp32", plain=True)]
    for name in dict.fromkeys(wanted or PRECISIONS):
        if name not in PRECISIONS:
            raise UserError(f"--precisions must be of {', '.join(PRECISIONS)}, got {name!r}")
        variant = Variant(name, name)
        with contextlib.nullcontext() if wanted else contextlib.suppress(UserError):
            variant.half_dtype(device)
            found.append(variant)
    return found


def auto_choice(device: torch.device) -> str:
    """The precision that --precision=auto, the default, means on `device`."""
    chosen = precision.run_dtype("auto", device)
    return next(name for name, dtype in PRECISIONS.items() if dtype == chosen)


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where cases are built: on `device`, for images of `resolution`, `batch` of them (None: the choice of `auto`).

    `cbase` is the option of train.py. `folder` is for files that are kept until the benchmark ends.
    """

    device: torch.device
    resolution: int
    batch: int | None
    cbase: float | None
    folder: pathlib.Path

    @functools.cached_property
    def data(self) -> pathlib.Path:
        """A dataset of noise."""
        folder = self.folder / f"noise{self.resolution}"
        if not folder.exists():
            folder.mkdir()
            rng = np.random.RandomState(0)
            for i in range(NUM_IMAGES):
                save_png(rng.randint(0, 256, [3, self.resolution, self.resolution], np.uint8), folder / f"{i:02d}.png")
        return folder

    def options(self, variant: Variant) -> dict[str, Any]:
        """Options of the training loop; the reference has an optimiser that steps tensor by tensor.

        Raises UserError if batch or width do not fit.
        """
        flags = {"batch": self.batch, "cbase": self.cbase, "device": self.device.type, "metrics": ()}
        _desc, options = build(data=str(self.data), precision=variant.precision, **flags)
        if variant.plain:
            for name in ("G_opt_kwargs", "D_opt_kwargs"):
                options[name] = dict(options[name], fused=False)
        return options

    @functools.cached_property
    def batch_size(self) -> int:
        """Images per iteration. Raises UserError like `options`."""
        return self.options(Variant("fp32", "fp32"))["batch_size"]

    def images(self, channels: int = 3) -> torch.Tensor:
        """A batch of noise, standard normal."""
        return torch.randn([self.batch_size, channels, self.resolution, self.resolution], device=self.device)

    def network(self, name: str, variant: Variant) -> torch.nn.Module:
        """A new 'G' or 'D' in training mode, with gradients for every weight, in the precision of `variant`."""
        shape = {"c_dim": 0, "img_resolution": self.resolution, "img_channels": 3}
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            network = construct_class_by_name(**self.options(variant)[f"{name}_kwargs"], **shape)
        precision.set_half_dtype(network, variant.half_dtype(self.device))
        return layout.prepare(network, self.device)

    def trainer(self, variant: Variant, reads_data: bool) -> Trainer:
        """A silent training run before its first iteration; with `reads_data` its data-loader workers are started."""
        options = self.options(variant)
        if not reads_data:
            options["data_loader_kwargs"] = {}
        options["run_dir"] = tempfile.mkdtemp(dir=self.folder)
        with contextlib.redirect_stdout(io.StringIO()):
            trainer = Trainer(TrainingOptions(**options))
        trainer.augment_pipe.p.fill_(AUGMENT_P)
        return trainer


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of work to time. It reads and writes at least `moved` bytes; None if memory is not its limit.

    `flops`: operations in the dense layers of networks, two for a multiply-accumulate; None if they are not counted.
    """

    run: Callable[[], Any]
    moved: int | None = None
    flops: int | None = None


@dataclasses.dataclass(frozen=True)
class Case:
    """Something to measure: `build(setting, variant)` returns its parts by name.

    `total` names a further figure, the sum of the parts by `weights`. `batch` None means that of the setting. `plan` is
    a rough number of seconds for measuring at 128x128 on two cores. `half` is False if only fp32 makes sense. `kind` is
    'time' or 'memory'.
    """

    name: str
    build: Callable[[Setting, Variant], dict[str, Part]]
    plan: float
    batch: int | None = None
    total: str | None = None
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    half: bool = True
    kind: str = "time"


def build_all(case: Case, setting: Setting, variants: list[Variant]) -> dict[str, dict[str, Part]]:
    """`parts[part][variant]`, each built on, and to be run on, the path of its variant."""
    parts: dict[str, dict[str, Part]] = {}
    for variant in variants:
        with variant.path():
            for name, part in case.build(setting, variant).items():
                parts.setdefault(name, {})[variant.name] = part
    return parts


def _forward(name: str, setting: Setting, variant: Variant) -> dict[str, Part]:
    """A forward pass of 'G' or 'D' as in training, which keeps the activations for the backward pass."""
    net = setting.network(name, variant).train()
    x = torch.randn([setting.batch_size, net.z_dim], device=setting.device) if name == "G" else setting.images()
    c = torch.zeros([setting.batch_size, 0], device=setting.device)
    return {"forward": Part(partial(net, x, c), flops=setting.batch_size * 2 * count_macs(net))}


def _inference(batch: int, setting: Setting, variant: Variant) -> dict[str, Part]:
    """A generator making `batch` images, as in generate.py.

    The reference folds the styles into one weight per sample, the original behaviour of networks in fp32.
    """
    G = setting.network("G", variant).eval().requires_grad_(False)
    z = torch.randn([batch, G.z_dim], device=setting.device)
    c = torch.zeros([batch, 0], device=setting.device)
    kwargs = {"fused_modconv": True} if variant.plain else {}
    run = torch.no_grad()(partial(G, z, c, noise_mode="const", **kwargs))
    return {"images": Part(run, flops=batch * 2 * count_macs(G))}


def training(setting: Setting, variant: Variant) -> dict[str, Part]:
    """The four phases and the moving average, without loading data."""
    trainer = setting.trainer(variant, reads_data=False)
    c = torch.zeros([setting.batch_size, 0], device=setting.device)
    z = torch.randn([setting.batch_size, trainer.G.z_dim], device=setting.device)
    whole = {"real_img": setting.images(), "real_c": c, "gen_z": z, "gen_c": c}
    pieces = zip(*(tensor.split(setting.options(variant)["batch_gpu"]) for tensor in whole.values()))
    micro_batches = [dict(zip(whole, piece)) for piece in pieces]
    flops = phase_flops(trainer, [len(piece["gen_z"]) for piece in micro_batches])
    parts = {
        phase.name: Part(partial(run_phase, phase, trainer.loss, micro_batches), flops=flops[phase.name])
        for phase in trainer.phases
    }
    follow = update_ema_by_tensor if variant.plain else update_ema
    return {**parts, "EMA": Part(partial(follow, trainer.G_ema, trainer.G, 0.999))}


def phase_flops(trainer: Trainer, sizes: list[int]) -> dict[str, int]:
    """Operations of each phase in the dense layers of G and D, for micro-batches of `sizes` images."""
    of_G, of_D = 2 * count_macs(trainer.G), 2 * count_macs(trainer.D)
    images = dict.fromkeys(PASSES, sum(sizes))
    images["Greg"] = sum(max(size // trainer.loss.pl_batch_shrink, 1) for size in sizes)
    return {phase: images[phase] * (in_G * of_G + in_D * of_D) for phase, (in_G, in_D) in PASSES.items()}


@torch.no_grad()
def update_ema_by_tensor(G_ema: torch.nn.Module, G: torch.nn.Module, beta: float) -> None:
    """The plain twin of `training.ema.update_ema`."""
    for p_ema, p in zip(G_ema.parameters(), G.parameters()):
        p_ema.lerp_(p, 1 - beta)
    for b_ema, b in zip(G_ema.buffers(), G.buffers()):
        b_ema.copy_(b)


def _loop(setting: Setting, variant: Variant) -> dict[str, Part]:
    """The three kinds of iterations of the training loop: with both regularisers, with one, with none."""
    trainer = setting.trainer(variant, reads_data=True)

    def step(iteration):
        trainer.iteration = iteration
        trainer.step(new_tick=False)

    iterations = (0, G_INTERVAL, 1)
    return {name: Part(partial(step, iteration)) for name, iteration in zip(LOOP_WEIGHTS, iterations)}


LOOP_WEIGHTS = {
    "with Greg, Dreg": 1 / D_INTERVAL,
    "with Greg": 1 / G_INTERVAL - 1 / D_INTERVAL,
    "main phases": 1 - 1 / G_INTERVAL,
}
TRAINING_WEIGHTS = {"Gmain": 1, "Greg": 1 / G_INTERVAL, "Dmain": 1, "Dreg": 1 / D_INTERVAL, "EMA": 1}

# What each image of a phase costs, in forward passes of G and of D. A backward pass costs one for the activations and
# one for the weights, if they are trained. A regulariser goes back to the activations, and back through all of that.
PASSES = {"Gmain": (3, 2), "Greg": (6, 0), "Dmain": (1, 3 + 3), "Dreg": (0, 6)}


class Shapes:
    """Tensors of the highest resolution R, from one seed: `wide` channels at R, `deep` at R/2, N images of a batch."""

    def __init__(self, setting: Setting, variant: Variant):
        kwargs = setting.options(variant)["D_kwargs"]
        self.N, self.R = setting.batch_size, setting.resolution
        self.wide, self.deep = (
            min(kwargs["channel_base"] * factor // self.R, kwargs["channel_max"]) for factor in (1, 2)
        )
        self.dtype, self.device = PRECISIONS[variant.precision], setting.device
        self.filter = setup_filter([1, 3, 3, 1], device=self.device)
        self._rng = torch.Generator(self.device).manual_seed(0)

    def tensor(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Standard normal, with gradient, by default of the variant's type."""
        return torch.randn(shape, device=self.device, generator=self._rng).to(dtype or self.dtype).requires_grad_()

    def image(self, channels: int, size: int) -> torch.Tensor:
        """A batch of images [N, channels, size, size]."""
        return self.tensor(self.N, channels, size, size)

    def modulated(self, deep: int, up: int) -> tuple[Callable, tuple[torch.Tensor, ...]]:
        """A layer as in training: styles on the activations, demodulated, with noise; weights and styles in fp32."""
        w, styles = (self.tensor(*shape, dtype=torch.float32) for shape in ((self.wide, deep, 3, 3), (self.N, deep)))
        noise = torch.randn(self.N, 1, self.R, self.R, device=self.device, generator=self._rng)
        options = {"up": up, "padding": 1, "resample_filter": self.filter, "flip_weight": up == 1}
        run = partial(modulated_conv2d, noise=noise, fused_modconv=False, **options)
        return run, (self.image(deep, self.R // up), w, styles)

    def rotated(self) -> tuple[Callable, tuple[torch.Tensor, ...]]:
        """Slightly rotated images, as the augmentations make them."""
        x = self.image(3, self.R)
        turn = torch.tensor([[0.98, 0.17, 0.0], [-0.17, 0.98, 0.0]], device=self.device).expand(self.N, 2, 3)
        grid = torch.nn.functional.affine_grid(turn, list(x.shape), align_corners=False)
        return partial(grid_sample, grid=grid), (x,)


# fmt: off
OPS: dict[str, Callable[[Shapes], tuple[Callable, tuple[torch.Tensor, ...]]]] = {  # the function and its inputs
    "bias_act": lambda s: (partial(bias_act, act="lrelu", clamp=256), (s.image(s.wide, s.R), s.tensor(s.wide))),
    "upfirdn2d/up2": lambda s: (partial(upsample2d, f=s.filter), (s.image(s.wide, s.R // 2),)),
    "upfirdn2d/down2": lambda s: (partial(downsample2d, f=s.filter), (s.image(s.wide, s.R),)),
    "upfirdn2d/filter": lambda s: (partial(filter2d, f=s.filter), (s.image(s.wide, s.R),)),
    "conv2d_resample/plain": lambda s: (
        partial(conv2d_resample, padding=1), (s.image(s.wide, s.R), s.tensor(s.wide, s.wide, 3, 3))),
    "conv2d_resample/up2": lambda s: (
        partial(conv2d_resample, f=s.filter, up=2, padding=1, flip_weight=False),
        (s.image(s.deep, s.R // 2), s.tensor(s.wide, s.deep, 3, 3))),
    "conv2d_resample/down2": lambda s: (
        partial(conv2d_resample, f=s.filter, down=2, padding=1),
        (s.image(s.wide, s.R), s.tensor(s.deep, s.wide, 3, 3))),
    "modulated_conv2d/plain": lambda s: s.modulated(s.wide, up=1),
    "modulated_conv2d/up2": lambda s: s.modulated(s.deep, up=2),
    "grid_sample": Shapes.rotated,
}
# fmt: on
MEMORY_BOUND = ("bias_act", "upfirdn2d/")


def _operation(name: str, setting: Setting, variant: Variant) -> dict[str, Part]:
    """One operation in the shapes of the networks' highest resolution, as three parts.

    The forward pass, the backward pass to all inputs, and the backward pass through that one, as the gradient penalties
    take it. Each pass is timed without those before it.
    """
    run, inputs = OPS[name](Shapes(setting, variant))
    y = run(*inputs)
    gy = torch.randn_like(y).requires_grad_()
    (dx, *_) = torch.autograd.grad(y, inputs, gy, create_graph=True)
    behind = (gy, *inputs[1:])  # what dx depends on, except x, in which most operations are linear
    moved = sum(tensor.numel() * tensor.element_size() for tensor in (*inputs, y))
    backward = partial(torch.autograd.grad, retain_graph=True)
    return {
        "forward": Part(partial(run, *inputs), moved if name.startswith(MEMORY_BOUND) else None),
        "backward": Part(partial(backward, y, inputs, gy)),
        "double backward": Part(partial(backward, dx, behind, torch.randn_like(dx), allow_unused=True)),
    }


# Augmentation runs on images, which are always fp32.
OP_CASES = [Case(f"op/{name}", partial(_operation, name), plan=15, half=name != "grid_sample") for name in OPS]
CASES = [
    Case("training", training, plan=280, total="iteration", weights=TRAINING_WEIGHTS),
    Case("inference/b1", partial(_inference, 1), plan=20, batch=1),
    Case("inference/b16", partial(_inference, 16), plan=60, batch=16),
    Case("forward/G", partial(_forward, "G"), plan=25),
    Case("forward/D", partial(_forward, "D"), plan=25),
    Case("loop", _loop, plan=280, total="iteration", weights=LOOP_WEIGHTS),
    Case("memory/training", training, plan=90, kind="memory"),
    Case("memory/inference", partial(_inference, 16), plan=25, batch=16, kind="memory"),
    *OP_CASES,
]
