# SPDX-License-Identifier: Apache-2.0
"""StyleGAN2 (arXiv 1912.04958) with adaptive augmentation (arXiv 2006.06676) as a family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from dnnlib.util import UserError
from training.families.family import Axis, Data, Family, Like, batch_sizes, scale_width
from training.families.stylegan2_arguments import (
    CHANNEL_BASE,
    CHANNEL_MAX,
    ORIGINAL_NAMES,
    PUBLISHED_PRECISION,
    largest_layer,
    stored_arguments,
)
from training.families.stylegan2_transfer import fit_tensor

if TYPE_CHECKING:
    import torch


class Preset(NamedTuple):
    """Hyper-parameters of one `--cfg`."""

    gpus: int  # processes for `batch`; their ratio is the images per process
    kimg: int
    batch: int
    mbstd: int  # minibatch-stddev group size
    fmaps: float  # channel_base / CHANNEL_BASE
    lr: float
    gamma: float  # R1 weight
    ema: float  # half-life of G_ema, kimg
    ramp: float | None  # bound on that half-life as a fraction of the images seen
    layers: int  # mapping layers
    plain: bool = False  # D without residual links, no path-length penalty, no style mixing


def auto_preset(resolution: int, gpus: int) -> Preset:
    """`--cfg=auto` for images of `resolution` pixels on `gpus` processes (the rule of StyleGAN2-ADA's release)."""
    batch = max(min(gpus * min(4096 // resolution, 32), 64), gpus)
    lr, fmaps = (0.002 if resolution >= 1024 else 0.0025), (1.0 if resolution >= 512 else 0.5)
    gamma, ema = 0.0002 * resolution**2 / batch, batch * 10 / 32
    return Preset(gpus, 25000, batch, min(batch // gpus, 4), fmaps, lr, gamma, ema, ramp=0.05, layers=2)


# fmt: off
PRESETS = {
    "auto": auto_preset,
    #                    gpus    kimg  batch  mbstd  fmaps      lr  gamma  ema   ramp  layers  plain
    "stylegan2": Preset(    8,  25000,    32,     4,   1.0, 0.0020,    10,  10,  None,      8),
    "paper256":  Preset(    8,  25000,    64,     8,   0.5, 0.0025,     1,  20,  None,      8),
    "paper512":  Preset(    8,  25000,    64,     8,   1.0, 0.0025,   0.5,  20,  None,      8),
    "paper1024": Preset(    8,  25000,    32,     4,   1.0, 0.0020,     2,  10,  None,      8),
    "cifar":     Preset(    2, 100000,    64,    32,   1.0, 0.0025,  0.01, 500,  0.05,      2,   True),
}

_PUBLISHED = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/transfer-learning-source-nets/"
PUBLISHED = {
    "ffhq256":     _PUBLISHED + "ffhq-res256-mirror-paper256-noaug.pkl",
    "ffhq512":     _PUBLISHED + "ffhq-res512-mirror-stylegan2-noaug.pkl",
    "ffhq1024":    _PUBLISHED + "ffhq-res1024-mirror-stylegan2-noaug.pkl",
    "celebahq256": _PUBLISHED + "celebahq-res256-mirror-paper256-kimg100000-ada-target0.5.pkl",
    "lsundog256":  _PUBLISHED + "lsundog-res256-paper256-kimg100000-noaug.pkl",
}
# fmt: on


def options(flags, preset: Preset, data: Data, teacher: Like | None = None) -> dict[str, Any]:
    """Options of the training loop that follow from the preset; `flags` are the `training.flags.Flags`.

    With a teacher, what has to fit is the teacher's: z, w, the mapping network, D's architecture and groups; and the
    multipliers of --cbase and --cbase-d count from its widths.
    """
    G, D = _shape_of(preset, teacher)
    if flags.dgl_init_d and data.c_dim:
        # A mapping network can be copied only if its output has the teacher's size, not that of the student's channels.
        D["cmap_dim"] = _label_size(D, teacher)
    group = D["epilogue_kwargs"].get("mbstd_group_size", 4) or 1  # None is one group of any size
    batch_size, batch_gpu = batch_sizes(flags, preset.batch, preset.gpus, group)
    precision = {"num_fp16_res": 0, "conv_clamp": None} if flags.fp32 else PUBLISHED_PRECISION
    layout = {"fp16_channels_last": True} if flags.nhwc else {}
    d_width = ("--cbase", flags.cbase) if flags.cbase_d is None else ("--cbase-d", flags.cbase_d)
    adam = {"class_name": "torch.optim.Adam", "lr": preset.lr, "betas": [0, 0.99], "eps": 1e-8}
    loss = {
        "class_name": "training.loss.StyleGAN2Loss",
        "r1_gamma": preset.gamma if flags.gamma is None else flags.gamma,
    }
    if preset.plain:
        loss.update(pl_weight=0, style_mixing_prob=0)
    return {
        "G_kwargs": {
            "class_name": "training.networks.Generator",
            "z_dim": G["z_dim"] if flags.z_dim is None else flags.z_dim,
            "w_dim": G["w_dim"] if flags.w_dim is None else flags.w_dim,
            "mapping_kwargs": G["mapping_kwargs"],
            "synthesis_kwargs": {
                **_scaled(G["synthesis_kwargs"], data.resolution, "--cbase", flags.cbase),
                **precision,
                **layout,
            },
        },
        "D_kwargs": {
            "class_name": "training.networks.Discriminator",
            **_scaled(D, data.resolution, *d_width),
            "block_kwargs": {
                **D["block_kwargs"],
                **layout,
                **({} if flags.freezed is None else {"freeze_layers": flags.freezed}),
            },
            **precision,
        },
        "G_opt_kwargs": dict(adam),
        "D_opt_kwargs": dict(adam),
        "loss_kwargs": loss,
        "total_kimg": preset.kimg,
        "batch_size": batch_size,
        "batch_gpu": batch_gpu,
        "ema_kimg": preset.ema,
        "ema_rampup": preset.ramp,
    }


# What a student takes from its teacher; the rest, such as frozen layers, is the run's own.
_G_SHAPE = ("z_dim", "w_dim")
_SYNTHESIS_SHAPE = ("channel_base", "channel_max", "architecture", "resample_filter", "activation", "use_noise")
_D_SHAPE = ("channel_base", "channel_max", "architecture", "mapping_kwargs", "epilogue_kwargs")
_BLOCK_SHAPE = ("resample_filter", "activation")


def _shape_of(preset: Preset, teacher: Like | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Constructor arguments of G and D at full width: the teacher's if its file has the network, else the preset's."""
    full = {"channel_base": int(preset.fmaps * CHANNEL_BASE), "channel_max": CHANNEL_MAX}
    G = {"z_dim": 512, "w_dim": 512, "mapping_kwargs": {"num_layers": preset.layers}, "synthesis_kwargs": full}
    D = {**full, "block_kwargs": {}, "mapping_kwargs": {}, "epilogue_kwargs": {"mbstd_group_size": preset.mbstd}}
    if preset.plain:
        D["architecture"] = "orig"
    recorded = {"channel_base": CHANNEL_BASE, "channel_max": CHANNEL_MAX}  # of a network that does not say
    if teacher is not None and teacher.G is not None:
        synthesis = _kept(teacher.G.get("synthesis_kwargs", {}), _SYNTHESIS_SHAPE)
        mapping = dict(teacher.G.get("mapping_kwargs", {}))
        G = {
            **G,
            **_kept(teacher.G, _G_SHAPE),
            "mapping_kwargs": mapping,
            "synthesis_kwargs": {**recorded, **synthesis},
        }
    if teacher is not None and teacher.D is not None:
        empty = {"block_kwargs": {}, "mapping_kwargs": {}, "epilogue_kwargs": {}}
        block = _kept(teacher.D.get("block_kwargs", {}), _BLOCK_SHAPE)
        D = {**empty, **recorded, **_kept(teacher.D, _D_SHAPE), "block_kwargs": block}
    return G, D


def _label_size(D: dict[str, Any], teacher: Like) -> int:
    """Size of the output of the teacher's mapping network for labels in D; `D` are arguments at its full width."""
    recorded = None if teacher.D is None else teacher.D.get("cmap_dim")
    return min(D["channel_base"] // 4, D["channel_max"]) if recorded is None else recorded


def _kept(kwargs: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: kwargs[name] for name in names if name in kwargs}


def _scaled(kwargs: dict[str, Any], resolution: int, flag: str, x: float) -> dict[str, Any]:
    """`kwargs` with the widths that --cbase=x makes of them."""
    base, top = scale_width(kwargs["channel_base"], kwargs["channel_max"], x, flag)
    if min(base // resolution, top) < 1:
        raise UserError(f"{flag}={x:g} leaves no channel at {resolution}x{resolution}: choose a wider network")
    return {**kwargs, "channel_base": base, "channel_max": top}


def half_precision(class_name: str, kwargs: dict[str, Any], like: dict[str, Any] | None) -> dict[str, Any]:
    """`kwargs` of a Generator or Discriminator with the half-precision resolutions of a network with arguments `like`.

    None is the published setting (arXiv 2006.06676, appendix). A network without an activation clamp takes that of
    `like` along with half precision.
    """
    if class_name == "Generator":
        synthesis, other = (
            kwargs.get("synthesis_kwargs", {}),
            None if like is None else like.get("synthesis_kwargs", {}),
        )
        return {**kwargs, "synthesis_kwargs": half_precision("SynthesisNetwork", synthesis, other)}
    if like is None:
        return {**kwargs, **PUBLISHED_PRECISION}
    changes = {"num_fp16_res": like.get("num_fp16_res", 0)}
    if changes["num_fp16_res"] not in (0, kwargs.get("num_fp16_res")) and kwargs.get("conv_clamp") is None:
        changes["conv_clamp"] = like.get("conv_clamp")
    return {**kwargs, **changes}


def loss_arguments(G: torch.nn.Module, D: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """G in the parts that StyleGAN2's loss calls separately, for style mixing and path lengths."""
    return {"G_mapping": G.mapping, "G_synthesis": G.synthesis, "D": D}


def phases(G: torch.nn.Module, D: torch.nn.Module, options) -> list:
    """G then D, each with lazy regularisation, all on the same real images."""
    from training.phases import build_phases

    return [
        *build_phases("G", G, options.G_opt_kwargs, options.G_reg_interval, fresh_reals=True),
        *build_phases("D", D, options.D_opt_kwargs, options.D_reg_interval),
    ]


def sample(G: torch.nn.Module, z: torch.Tensor, c: torch.Tensor, **kwargs) -> torch.Tensor:
    """Images of z and c; `truncation_psi` pulls w towards its mean, `noise_mode` is 'random', 'const' or 'none'."""
    return G(z=z, c=c, **kwargs)


def check_truncation(G: torch.nn.Module, psi: float) -> None:
    """Raises UserError if truncation needs a mean w that the mapping network does not track, or that is not finite."""
    if psi != 1 and G.mapping.w_avg_beta is None:
        raise UserError(f"--trunc={psi:g} needs a mean w, which this network does not have: use --trunc=1.")
    if psi != 1 and not G.mapping.w_avg.isfinite().all():
        raise UserError(f"--trunc={psi:g} needs a mean w, and that of this network is NaN or infinite: use --trunc=1.")


def prepare_fp16(G: torch.nn.Module) -> None:
    """Divide the weights of demodulated layers by their largest value and the root of a sum's length (2006.06676).

    Demodulation cancels any factor of an output channel.
    """
    from training.networks import SynthesisLayer

    for layer in G.synthesis.modules():
        if isinstance(layer, SynthesisLayer):
            largest = layer.weight.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-8)
            layer.weight.div_(largest * layer.weight[0].numel() ** 0.5)


def prune_plan(network: torch.nn.Module) -> list[list[Axis]]:
    """Widths of G's synthesis network or of D: of each layer's output, shared by the layers that read it.

    Mapping networks are not pruned.
    """
    return _plan_of_G(network) if hasattr(network, "synthesis") else _plan_of_D(network)


def _plan_of_G(G: torch.nn.Module) -> list[list[Axis]]:
    """Styles belong to the width that their layer reads.

    Demodulation makes the layers' output independent of the number of input channels; ToRGB and residual shortcuts are
    not demodulated and scale their weights instead.
    """
    widths: list[list[Axis]] = []
    before: list[Axis] = []  # the width that enters a block
    for resolution in G.synthesis.block_resolutions:
        name, block = f"synthesis.b{resolution}", getattr(G.synthesis, f"b{resolution}")
        if hasattr(block, "const"):
            inside = [Axis(f"{name}.const", 0)]
        else:
            before += _read_by(f"{name}.conv0")
            inside = _written_by(f"{name}.conv0")
        inside += _read_by(f"{name}.conv1")
        after = _written_by(f"{name}.conv1")
        if hasattr(block, "torgb"):
            after += _read_by(f"{name}.torgb", scaled=True)
        if hasattr(block, "skip"):
            before.append(_weight_read_by(f"{name}.skip"))
            after.append(Axis(f"{name}.skip.weight", 0, ranked=True))
        widths += [inside, after]
        before = after
    return widths


def _plan_of_D(D: torch.nn.Module) -> list[list[Axis]]:
    """No layer of D is demodulated: each divides its weight by the square root of what it reads."""
    widths: list[list[Axis]] = []
    before: list[Axis] = []
    for resolution in D.block_resolutions:
        name, block = f"b{resolution}", getattr(D, f"b{resolution}")
        if hasattr(block, "fromrgb"):
            before += _written_by(f"{name}.fromrgb")
        before.append(_weight_read_by(f"{name}.conv0"))
        inside = [*_written_by(f"{name}.conv0"), _weight_read_by(f"{name}.conv1")]
        after = _written_by(f"{name}.conv1")
        if hasattr(block, "skip"):
            before.append(_weight_read_by(f"{name}.skip"))
            after.append(Axis(f"{name}.skip.weight", 0, ranked=True))
        widths += [before, inside]
        before = after
    if hasattr(D.b4, "fromrgb"):
        before += _written_by("b4.fromrgb")
    # Minibatch stddev appends channels of its own.
    before.append(_weight_read_by("b4.conv")._replace(extra=0 if D.b4.mbstd is None else D.b4.mbstd.num_channels))
    conv = [*_written_by("b4.conv"), _weight_read_by("b4.fc")._replace(entries=D.b4.resolution**2)]
    return [*widths, before, conv, [*_written_by("b4.fc"), _weight_read_by("b4.out")]]


def _written_by(layer: str) -> list[Axis]:
    return [Axis(f"{layer}.weight", 0, ranked=True), Axis(f"{layer}.bias", 0)]


def _weight_read_by(layer: str, scaled: bool = True) -> Axis:
    return Axis(f"{layer}.weight", 1, ranked=True, scaled=scaled)


def _read_by(layer: str, scaled: bool = False) -> list[Axis]:
    return [_weight_read_by(layer, scaled), Axis(f"{layer}.affine.weight", 0), Axis(f"{layer}.affine.bias", 0)]


def macs(network: torch.nn.Module) -> int:
    """Multiply-accumulates of a generator or discriminator for one image.

    Counted: mapping layers, style (affine) layers, convolutions, ToRGB and FromRGB, linear layers. Not counted:
    demodulation, filters, noise, biases, activations, minibatch-stddev and the projection on labels. A convolution with
    up 2 is counted at its input resolution, where a transposed convolution does its work, one with down 2 at its output
    resolution; so G of 1024x1024 config-f has 74,266,894,336 and is comparable with Content-Aware GAN Compression
    (arXiv 2104.02244).
    """
    if hasattr(network, "synthesis"):
        parts, resolutions = network.synthesis, network.synthesis.block_resolutions
    else:
        parts, resolutions = network, [*network.block_resolutions, 4]
    of_mapping = _layer_macs(network.mapping, 1) if hasattr(network, "mapping") else 0
    return of_mapping + sum(_layer_macs(getattr(parts, f"b{resolution}"), resolution) for resolution in resolutions)


def _layer_macs(module: torch.nn.Module, resolution: int) -> int:
    """Every weight matrix [out, in] is used once; every kernel [out, in, k, k] once per pixel of its input or output,
    whichever is smaller."""
    total = 0
    for layer in module.modules():
        weight = getattr(layer, "weight", None)
        if weight is not None:
            scale = getattr(layer, "up", 1) * getattr(layer, "down", 1)
            pixels = (resolution // scale) ** 2 if weight.ndim == 4 else 1
            total += weight.numel() * pixels
    return total


def batch_group(D: torch.nn.Module) -> int | None:
    """The minibatch-stddev group size of `D`."""
    epilogue = D.init_kwargs.get("epilogue_kwargs", {})
    return epilogue.get("mbstd_group_size", 4) if epilogue.get("mbstd_num_channels", 1) else None


def feature_blocks(D: torch.nn.Module) -> list[torch.nn.Module]:
    """The convolution blocks of `D`, all but the one that makes the logits."""
    return [getattr(D, f"b{resolution}") for resolution in D.block_resolutions]


STYLEGAN2 = Family(
    name="stylegan2",
    generators={"Generator": "training.networks.Generator"},
    discriminators={"Discriminator": "training.networks.Discriminator"},
    presets=PRESETS,
    flags=frozenset({"gamma", "freezed", "cbase", "cbase_d", "z_dim", "w_dim", "dgl_svs", "precision", "fp32", "nhwc"}),
    options=options,
    stored_arguments=stored_arguments,
    original_names=ORIGINAL_NAMES,
    largest_layer=largest_layer,
    half_precision=half_precision,
    transfers=frozenset({"img_resolution", "img_channels", "c_dim"}),
    fit_tensor=fit_tensor,
    loss_arguments=loss_arguments,
    phases=phases,
    sample=sample,
    check_truncation=check_truncation,
    prune_plan=prune_plan,
    macs=macs,
    batch_group=batch_group,
    feature_blocks=feature_blocks,
    differs_by_process=r".*\.w_avg",
    derived_tensors=("resample_filter",),
    has_w=True,
    prepare_fp16=prepare_fp16,
    # One shared kernel per layer instead of one per sample: many runtimes need constant kernels.
    export_kwargs={"fused_modconv": False},
    published=PUBLISHED,
)
