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
from training.families.biggan_sampling import check_truncation, freeze, sample
from training.families.family import Axis, Data, Family, Like, batch_sizes

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
_CHUNK = 20  # latents of each layer at 64x64 and above, and at 32x32 altogether:
_SMALL_Z, _CLASS_VECTOR = 128, 128
_FEW = 16  # images of a batch, below which its statistics are noise


def options(flags, preset: Preset, data: Data, teacher: Like | None = None) -> dict[str, Any]:
    """Options of the training loop that follow from the preset; `flags` are the `training.flags.Flags`.

    With a teacher, what has to fit is the teacher's: latents, class vector, attention; and widths count from its own.
    """
    _check(flags, data)
    batch_size, batch_gpu = batch_sizes(flags, preset.batch, max(preset.batch // preset.chunk, flags.gpus), 1)
    if batch_gpu == 1:
        raise UserError("--batch-gpu=1: a batch norm over one image makes another network; use 16 images or more")
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
    if flags.batch_g is not None and flags.batch_g % flags.gpus:
        raise UserError(f"--batch-g={flags.batch_g} must be divisible by --gpus={flags.gpus}")
    if flags.ch is not None and flags.given("cbase"):
        raise UserError("--ch and --cbase both say how wide G is: drop one of the two")


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


def prune_plan(network: torch.nn.Module) -> list[list[Axis]]:
    """Widths of G or D: of each block's input, and inside it; of attention's keys and values.

    Norms belong to the width that they read. Nothing is scaled: spectral norm divides each weight by its own size.
    """
    widths: list[list[Axis]] = []
    before: list[Axis] = []
    generates = hasattr(network, "output_layer")
    if generates:
        before = _written_by("linear", entries=16)
    for number, stage in enumerate(network.blocks):
        name = f"blocks.{number}.0"
        block, *attention = stage
        before += [Axis(f"{name}.conv1.weight", 1, ranked=True)]
        inside = [*_written_by(f"{name}.conv1"), Axis(f"{name}.conv2.weight", 1, ranked=True)]
        if generates:
            before += _norm(block.bn1, f"{name}.bn1")
            inside += _norm(block.bn2, f"{name}.bn2")
        after = _written_by(f"{name}.conv2")
        if block.conv_sc is not None:
            before.append(Axis(f"{name}.conv_sc.weight", 1, ranked=True))
            after += _written_by(f"{name}.conv_sc")
        else:
            after, before = [*before, *after], []  # the block adds its input to its output
        if attention:
            widths += _attention(f"blocks.{number}.1", after)
        if before and (generates or number):  # D's first block reads the image
            widths.append(before)
        widths.append(inside)
        before = after
    if generates:
        names = ("gain", "bias", "stored_mean", "stored_var")
        before += [Axis(f"output_layer.0.{name}", 0) for name in names]
        before.append(Axis("output_layer.2.weight", 1, ranked=True))
    else:
        before += [Axis("linear.weight", 1, ranked=True), Axis("embed.weight", 1, ranked=True)]
    return [*widths, before]


def _written_by(layer: str, entries: int = 1, bias: bool = True) -> list[Axis]:
    axes = [Axis(f"{layer}.weight", 0, ranked=True, entries=entries), Axis(f"{layer}.u0", 1, entries=entries)]
    return [*axes, Axis(f"{layer}.bias", 0, entries=entries)] if bias else axes


def _norm(norm: torch.nn.Module, name: str) -> list[Axis]:
    """Statistics, and gain and bias: rows of a projection of the condition, or columns of a table of classes."""
    axes = [Axis(f"{name}.stored_mean", 0), Axis(f"{name}.stored_var", 0)]
    for part in ("gain", "bias"):
        projected = hasattr(getattr(norm, part), "u0")
        axes.append(Axis(f"{name}.{part}.weight", 0 if projected else 1))
        axes += [Axis(f"{name}.{part}.u0", 1)] if projected else []
    return axes


def _attention(name: str, width: list[Axis]) -> list[list[Axis]]:
    """Widths inside an attention layer, whose inputs and outputs join `width`."""
    keys = [*_written_by(f"{name}.theta", bias=False), *_written_by(f"{name}.phi", bias=False)]
    values = [*_written_by(f"{name}.g", bias=False), Axis(f"{name}.o.weight", 1, ranked=True)]
    width += [Axis(f"{name}.{layer}.weight", 1, ranked=True) for layer in ("theta", "phi", "g")]
    width += _written_by(f"{name}.o", bias=False)
    return [keys, values]


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
            positions, heads = side**2, layer.theta.weight.shape[0] + layer.g.weight.shape[0]
            pooled = positions // 4
            ungathered = layer.theta.weight.numel() + layer.phi.weight.numel() + layer.g.weight.numel()
            total += (ungathered + layer.o.weight.numel()) * positions + positions * pooled * heads
    _norm_and_conv = list(network.output_layer) if generates else []
    return total + sum(conv.weight.numel() * side**2 for conv in _norm_and_conv[1:])


def batch_group(D: torch.nn.Module) -> int | None:
    """None: images are judged one by one."""
    return None


def feature_blocks(D: torch.nn.Module) -> list[torch.nn.Module]:
    """The stages of `D`: blocks, with the attention that follows."""
    return list(D.blocks)


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
    place=place,
    average=average,
    sample=sample,
    freeze=freeze,
    check_truncation=check_truncation,
    truncates_z=True,
    prune_plan=prune_plan,
    macs=macs,
    batch_group=batch_group,
    feature_blocks=feature_blocks,
    adversarial_form="hinge",
    augmentation="noaug",
    batch_statistics=True,
    differs_by_process=r".*\.stored_(mean|var)",
    mapping_prefix="shared.",
)
