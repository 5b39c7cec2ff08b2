# SPDX-License-Identifier: Apache-2.0
"""BigGAN (arXiv 1809.11096), class-conditional, as a family."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from dnnlib.util import UserError
from training.families.biggan_arguments import (
    DISCRIMINATOR,
    GENERATOR,
    RESOLUTIONS,
    SN_EPS,
    SN_EPS_TABLES,
    largest_layer,
    stored_arguments,
)
from training.families.biggan_pruning import prune_plan, settle
from training.families.biggan_sampling import check_truncation, freeze, sample
from training.families.family import Data, Family, Like, batch_sizes

if TYPE_CHECKING:
    import torch


class Preset(NamedTuple):
    """Hyper-parameters of one `--cfg`."""

    kimg: int  # reals shown to D
    ch: int
    tables: bool  # of gains and biases for each class (CIFAR-10) instead of a shared class vector and cut latents
    batch: int  # images of a step of D
    chunk: int  # images per forward pass
    d_steps: int  # per step of G
    lr: tuple[float, float]  # of G and D
    eps: float  # of Adam
    ema: float | None  # weight of the old average; None: by its half-life, `ema_kimg` below
    ema_start: int  # iterations in which the average is a copy
    scaled: bool = False  # whether the learning rates are those of `ch`, and change as 1 / sqrt(width)


def auto_preset(resolution: int, gpus: int) -> Preset:
    """`--cfg=biggan-auto`: CIFAR-10's networks at 32x32, ImageNet's above, in batches for small machines.

    A step of Adam changes a weight [C, C] by lr·C at most, its spectral norm by as much, and that of a new weight grows
    as sqrt(C): rates that suit all widths fall as 1 / sqrt(C).
    """
    return Preset(25000, 64, resolution == 32, 32 * gpus, 32, 2, (1e-4, 2e-4), 1e-8, None, 0, scaled=True)


# fmt: off
PRESETS = {
    "biggan-auto":  auto_preset,
    #                        kimg  ch  tables batch chunk d_steps      lr of G, D   eps    ema  start
    "biggan128":    Preset(282624, 96, False, 2048,   32,      1, (1e-4, 4e-4), 1e-6, .9999, 20000),
    "biggan-cifar": Preset( 25000, 64,  True,   50,   50,      4, (2e-4, 2e-4), 1e-8, .9999,  1000),
}
# fmt: on
_EMA_KIMG, _EMA_RAMPUP = 20, 0.05  # half-life of the average of biggan-auto
_CHUNK, _CLASS_VECTOR = 20, 128  # latents of each layer, and numbers of the class vector, above 32x32
_SMALL_Z = 128  # latents at 32x32
_FEW = 16  # images of a batch, below which its statistics are noise


def options(flags, preset: Preset, data: Data, teacher: Like | None = None) -> dict[str, Any]:
    """Options of the training loop that follow from the preset; `flags` are the `training.flags.Flags`.

    With a teacher, what has to fit is the teacher's: latents, class vector, attention; and widths count from its own.
    """
    _check(flags, data)
    batch_size, batch_gpu = batch_sizes(flags, preset.batch, max(preset.batch // preset.chunk, flags.gpus), 1)
    G, D = _shape_of(preset, data.resolution, teacher)
    z_dim = G["z_dim"] if flags.z_dim is None else flags.z_dim
    parts = data.resolution.bit_length() - 2 if G["hierarchical"] else 1
    if z_dim % parts:
        raise UserError(f"--z-dim={z_dim} must be divisible by {parts}, the layers of G that take a part of z")
    d_width = ("--cbase", flags.cbase) if flags.cbase_d is None else ("--cbase-d", flags.cbase_d)
    if flags.ch is not None:
        d_width = ("--ch", flags.ch) if flags.cbase_d is None else d_width
    G_ch = _scaled(G["ch"], *(("--cbase", flags.cbase) if flags.ch is None else ("--ch", flags.ch)))
    D_ch = _scaled(D["ch"], *d_width)
    rates = (lr * (math.sqrt(preset.ch / ch) if preset.scaled else 1) for lr, ch in zip(preset.lr, (G_ch, D_ch)))
    adam = {"class_name": "torch.optim.Adam", "betas": [0.0, 0.999], "eps": preset.eps}
    found = {
        "G_kwargs": {"class_name": "training.networks_biggan.BigGANGenerator", **G, "z_dim": z_dim, "ch": G_ch},
        "D_kwargs": {"class_name": "training.networks_biggan.BigGANDiscriminator", **D, "ch": D_ch},
        "G_opt_kwargs": {**adam, "lr": next(rates)},
        "D_opt_kwargs": {**adam, "lr": next(rates)},
        "loss_kwargs": {"class_name": "training.loss_biggan.BigGANLoss"},
        "family_kwargs": {
            "d_steps": preset.d_steps if flags.d_steps is None else flags.d_steps,
            "G_batch": flags.batch_g,
            "ortho": flags.ortho,
            "ema_decay": preset.ema,
            "ema_start": preset.ema_start if flags.ema_start is None else flags.ema_start,
            "sync_bn": flags.sync_bn,
        },
        "total_kimg": preset.kimg,
        "batch_size": batch_size,
        "batch_gpu": batch_gpu,
        "ema_kimg": _EMA_KIMG,
        "ema_rampup": _EMA_RAMPUP,
        "G_reg_interval": None,
        "D_reg_interval": None,
    }
    check_batches({**found, "num_gpus": flags.gpus})
    _check_attention(found, data.resolution)
    if batch_gpu * (flags.gpus if flags.sync_bn else 1) < _FEW:
        found["notices"] = [f"Notice: batch norm over {batch_gpu} images is noisy; use --batch-gpu={_FEW} or more."]
    return found


def _check(flags, data: Data) -> None:
    """Raises UserError for data and flags that no BigGAN can be trained with."""
    if data.resolution not in RESOLUTIONS:
        sizes = ", ".join(map(str, RESOLUTIONS))
        raise UserError(
            f"--cfg={flags.cfg}: BigGAN has networks for {sizes} pixels, and the images have {data.resolution}; "
            "convert them with dataset_tool.py --width and --height"
        )
    if not data.c_dim:
        way = "add --cond=1" if data.has_labels else "give dataset_tool.py images in folders by class, and --cond=1"
        raise UserError(f"--cfg={flags.cfg}: BigGAN needs class labels; {way}")
    if flags.ch is not None and flags.given("cbase"):
        raise UserError("--ch and --cbase both say how wide G is: drop one of the two")


def check_batches(options: dict[str, Any]) -> None:
    """Raises UserError unless all batch norms see several images, and equally many in each pass of a step."""
    batch_gpu, gpus, batch_g = options["batch_gpu"], options["num_gpus"], options["family_kwargs"].get("G_batch")
    if batch_gpu == 1:
        raise UserError(
            f"--batch-gpu: batch norm needs {_FEW} images or more in a pass of each process, and of one image it makes "
            "another network; use a larger --batch or --batch-gpu, or fewer --gpus"
        )
    if batch_g is None:
        return
    if batch_g % gpus:
        raise UserError(f"--batch-g={batch_g} must be divisible by --gpus={gpus}")
    share = batch_g // gpus
    if share == 1 or share % min(share, batch_gpu):
        raise UserError(
            f"--batch-g={batch_g}: the {share} images of each process must be 2 or more, and above {batch_gpu} "
            f"(--batch-gpu) a multiple of it"
        )


def _check_attention(found: dict[str, Any], resolution: int) -> None:
    """Raises UserError where a width is too small for the attention at its resolution."""
    from training.networks_biggan import D_POOLED, D_WIDTHS, G_WIDTHS

    sides = {
        "G": [(8 << number, width) for number, width in enumerate(G_WIDTHS[resolution][1:])],
        "D": [
            (resolution >> min(number + 1, D_POOLED[resolution]), width)
            for number, width in enumerate(D_WIDTHS[resolution])
        ],
    }
    for name, flag in (("G", "--ch"), ("D", "--cbase-d")):
        ch, attn_res = (found[f"{name}_kwargs"][key] for key in ("ch", "attn_res"))
        least = min((ch * width for side, width in sides[name] if side in attn_res), default=8)
        if least < 8:
            raise UserError(f"{flag}: attention needs 8 channels, and {name} with ch {ch} has {least} there")


_G_SHAPE = {"z_dim": None, "ch": 96, "shared_dim": 128, "hierarchical": True, "attn_res": (64,)}
_SPECTRAL = {"sn_eps": SN_EPS, "init": "ortho"}
_D_SHAPE = {"ch": 96, "attn_res": (64,)}


def _shape_of(preset: Preset, resolution: int, teacher: Like | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Constructor arguments of G and D at full width: the teacher's if its file has the network, else the preset's."""
    if preset.tables:
        spectral = {"sn_eps": SN_EPS_TABLES, "init": "N02"}
        G = {"z_dim": _SMALL_Z, "ch": preset.ch, "shared_dim": 0, "hierarchical": False, "attn_res": [], **spectral}
    else:
        z_dim = _CHUNK * (resolution.bit_length() - 2)
        shared = {"shared_dim": _CLASS_VECTOR, "hierarchical": True, "attn_res": [64]}
        G = {"z_dim": z_dim, "ch": preset.ch, **shared, **_SPECTRAL}
    D = {name: G[name] for name in (*_D_SHAPE, *_SPECTRAL)}
    if teacher is not None and teacher.G is not None:
        G = {name: teacher.G.get(name, default) for name, default in {**_G_SHAPE, **_SPECTRAL}.items()}
    if teacher is not None and teacher.D is not None:
        D = {name: teacher.D.get(name, default) for name, default in {**_D_SHAPE, **_SPECTRAL}.items()}
    return G, D


def _scaled(ch: int, flag: str, x: float) -> int:
    """The ch that --cbase=x, or --ch=x, makes of `ch`: up to 4 --cbase multiplies, from 8 on it is the ch."""
    if flag != "--ch" and 0 < x <= 4:
        wanted = math.floor(round(ch * x, 6))
        if wanted < 1:
            raise UserError(f"{flag}={x:g} leaves no channel: choose a wider network")
        return wanted
    if flag == "--ch" or (x >= 8 and x % 1 == 0):
        return int(x)
    raise UserError(
        f"{flag}={x:g} is ambiguous: give a multiplier above 0 and up to 4, or a whole width of 8 or more, as for --ch"
    )


def half_precision(class_name: str, kwargs: dict[str, Any], like: dict[str, Any] | None) -> dict[str, Any]:
    """`kwargs` as they are: BigGAN runs in full precision. Raises UserError where half precision is demanded."""
    if like is None:
        raise UserError(f"--force-fp16: a {class_name} runs in full precision only, drop the flag.")
    return kwargs


def loss_arguments(G: torch.nn.Module, D: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """G and D, whole."""
    return {"G": G, "D": D}


def phases(G: torch.nn.Module, D: torch.nn.Module, options) -> list:
    """The steps of D, each on new reals, then one of G."""
    from training.biggan_step import build_phases
    from training.phases import build_optimizer

    own = options.family_kwargs
    optimizers = build_optimizer(G, options.G_opt_kwargs), build_optimizer(D, options.D_opt_kwargs)
    ortho = own.get("ortho", 0)
    return build_phases(G, D, *optimizers, own.get("d_steps", 1), own.get("G_batch"), ortho, ortho)


def place(G: torch.nn.Module, options) -> None:
    """Make batch norms of `G` take the statistics of all processes, where there are several and the options say so."""
    from torch_utils import distributed

    if options.num_gpus > 1 and options.family_kwargs.get("sync_bn", True):
        for module in G.modules():
            if hasattr(type(module), "sum_processes"):
                module.sum_processes = distributed.differentiable_sum


def average(G_ema: torch.nn.Module, G: torch.nn.Module, beta: float, iteration: int, options) -> None:
    """The moving average of weights, statistics and singular vectors: a copy in the first iterations."""
    from training.ema import lerp_state

    own = options.family_kwargs
    decay = beta if own.get("ema_decay") is None else own["ema_decay"]
    lerp_state(G_ema, G, decay if iteration >= own.get("ema_start", 0) else 0.0)


def macs(network: torch.nn.Module) -> int:
    """Multiply-accumulates of `network` for one image.

    Counted: convolutions at the size of their output, the shortcuts' where the published order has them (after the
    doubling in G, before the pooling in D except in its first block), linear layers, and the two products of attention.
    Not counted: look-ups, the projection, norms, pooling.
    """
    generates = hasattr(network, "output_layer")
    total, side = network.linear.weight.numel(), 4 if generates else network.img_resolution
    for block, *attention in network.blocks:
        entering, side = side, side * 2 if generates else side // (2 if block.pools else 1)
        convolved = side if generates else entering
        total += (block.conv1.weight.numel() + block.conv2.weight.numel()) * convolved**2
        if block.conv_sc is not None:
            total += block.conv_sc.weight.numel() * (side if generates or block.first else entering) ** 2
        if generates:
            norms = (block.bn1, block.bn2)
            layers = [layer for norm in norms for layer in (norm.gain, norm.bias) if hasattr(layer, "u0")]
            total += sum(layer.weight.numel() for layer in layers)
        for layer in attention:
            positions, compared = side**2, layer.theta.weight.shape[0] + layer.g.weight.shape[0]
            maps = sum(part.weight.numel() for part in (layer.theta, layer.phi, layer.g, layer.o))
            total += maps * positions + compared * positions * positions // 4
    if generates:
        _norm, conv = network.output_layer
        total += conv.weight.numel() * side**2
    return total


def batch_group(D: torch.nn.Module) -> int | None:
    """None: images are judged one by one."""
    return None


def feature_blocks(D: torch.nn.Module) -> list[torch.nn.Module]:
    """The last part of each stage of `D`: its block, or the attention that follows."""
    return [[*stage][-1] for stage in D.blocks]


BIGGAN = Family(
    name="biggan",
    generators={GENERATOR: "training.networks_biggan.BigGANGenerator"},
    discriminators={DISCRIMINATOR: "training.networks_biggan.BigGANDiscriminator"},
    presets=PRESETS,
    flags=frozenset({"ch", "cbase", "cbase_d", "z_dim", "d_steps", "batch_g", "ortho", "ema_start", "sync_bn"}),
    options=options,
    stored_arguments=stored_arguments,
    largest_layer=largest_layer,
    half_precision=half_precision,
    transfers=frozenset({"c_dim"}),  # blocks are numbered from the smallest image on, with widths by resolution
    loss_arguments=loss_arguments,
    phases=phases,
    check_batches=check_batches,
    place=place,
    average=average,
    sample=sample,
    freeze=freeze,
    check_truncation=check_truncation,
    truncates_z=True,
    prune_plan=prune_plan,
    settle=settle,
    macs=macs,
    batch_group=batch_group,
    feature_blocks=feature_blocks,
    adversarial_form="hinge",
    augmentation="noaug",
    batch_statistics=True,
    differs_by_process=r".*\.stored_(mean|var)",
    mapping_prefix="shared.",
)
