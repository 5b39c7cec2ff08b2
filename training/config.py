# SPDX-License-Identifier: Apache-2.0
"""From command-line values to training options: presets, the `auto` rule, the width rule, flags against each other.

`build` is the whole of it in one call; `resolve` adds the lines worth showing at start-up. Both read the dataset and
any teachers, and write nothing. Importing this module is cheap: torch, and what needs it, comes in only where it is
used, so that `train.py --help` can name the presets and still be quick.
"""

import contextlib
import dataclasses
import math
from typing import Any, NamedTuple

from dnnlib.util import UserError


class Preset(NamedTuple):
    """Hyper-parameters of one `--cfg`."""

    gpus: int  # processes that `batch` is meant for; fixes the images per process
    kimg: int
    batch: int
    mbstd: int  # minibatch-stddev group size
    fmaps: float  # times 32768 is channel_base
    lr: float
    gamma: float  # R1 weight
    ema: float  # half-life of G_ema, kimg
    ramp: float | None  # cap of that half-life as a fraction of the images seen
    layers: int  # mapping layers
    plain: bool = False  # D without residual links, no path-length penalty, no style mixing


# fmt: off
PRESETS = {
    #                    gpus    kimg  batch  mbstd  fmaps      lr  gamma  ema   ramp  layers  plain
    "stylegan2": Preset(    8,  25000,    32,     4,   1.0, 0.0020,    10,  10,  None,      8),
    "paper256":  Preset(    8,  25000,    64,     8,   0.5, 0.0025,     1,  20,  None,      8),
    "paper512":  Preset(    8,  25000,    64,     8,   1.0, 0.0025,   0.5,  20,  None,      8),
    "paper1024": Preset(    8,  25000,    32,     4,   1.0, 0.0020,     2,  10,  None,      8),
    "cifar":     Preset(    2, 100000,    64,    32,   1.0, 0.0025,  0.01, 500,  0.05,      2,   True),
}

_BLIT   = ("xflip", "rotate90", "xint")
_GEOM   = ("scale", "rotate", "aniso", "xfrac")
_COLOR  = ("brightness", "contrast", "lumaflip", "hue", "saturation")
_FILTER, _NOISE, _CUTOUT = ("imgfilter",), ("noise",), ("cutout",)

AUGPIPES = {
    "blit":   _BLIT,
    "geom":   _GEOM,
    "color":  _COLOR,
    "filter": _FILTER,
    "noise":  _NOISE,
    "cutout": _CUTOUT,
    "bg":     _BLIT + _GEOM,
    "bgc":    _BLIT + _GEOM + _COLOR,
    "bgcf":   _BLIT + _GEOM + _COLOR + _FILTER,
    "bgcfn":  _BLIT + _GEOM + _COLOR + _FILTER + _NOISE,
    "bgcfnc": _BLIT + _GEOM + _COLOR + _FILTER + _NOISE + _CUTOUT,
}

_PUBLISHED = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/transfer-learning-source-nets/"
RESUME_ALIASES = {
    "ffhq256":     _PUBLISHED + "ffhq-res256-mirror-paper256-noaug.pkl",
    "ffhq512":     _PUBLISHED + "ffhq-res512-mirror-stylegan2-noaug.pkl",
    "ffhq1024":    _PUBLISHED + "ffhq-res1024-mirror-stylegan2-noaug.pkl",
    "celebahq256": _PUBLISHED + "celebahq-res256-mirror-paper256-kimg100000-ada-target0.5.pkl",
    "lsundog256":  _PUBLISHED + "lsundog-res256-paper256-kimg100000-noaug.pkl",
}
# fmt: on

AUGMENTATIONS = ("noaug", "ada", "fixed")
PRECISIONS = ("auto", "fp32", "fp16", "bf16")  # those of torch_utils.precision, named here without torch
DGL_WEIGHTINGS = ("plain", "score")
DGL_WEIGHT = 0.1


def auto_preset(resolution: int, gpus: int) -> Preset:
    """`--cfg=auto` for images of `resolution` pixels on `gpus` processes (the rule of StyleGAN2-ADA's release)."""
    batch = max(min(gpus * min(4096 // resolution, 32), 64), gpus)
    lr, fmaps = (0.002 if resolution >= 1024 else 0.0025), (1.0 if resolution >= 512 else 0.5)
    gamma, ema = 0.0002 * resolution**2 / batch, batch * 10 / 32
    return Preset(gpus, 25000, batch, min(batch // gpus, 4), fmaps, lr, gamma, ema, ramp=0.05, layers=2)


@dataclasses.dataclass(frozen=True)
class Flags:
    """The command line, one field a flag. None marks a flag whose absence matters: it was not given."""

    data: str
    gpus: int = 1
    snap: int = 50
    metrics: tuple[str, ...] = ("fid50k_full",)
    seed: int = 0
    cond: bool = False
    subset: int | None = None
    mirror: bool = False
    cfg: str = "auto"
    gamma: float | None = None
    kimg: int | None = None
    batch: int | None = None
    batch_gpu: int | None = None
    aug: str | None = None
    p: float | None = None
    target: float | None = None
    augpipe: str | None = None
    resume: str | None = None
    freezed: int | None = None
    precision: str = "auto"
    fp32: bool = False
    nhwc: bool = False
    nobench: bool = False
    allow_tf32: bool = False
    workers: int = 3
    device: str = "auto"
    detector: str | None = None
    keep: int | None = None
    trust_pickle: bool = False
    cbase: float | None = None
    cbase_d: float | None = None
    dgl_teacher: tuple[str, ...] = ()
    dgl_weight: float | None = None
    dgl_start: float | None = None
    dgl_weighting: str | None = None
    dgl_augment: bool | None = None


class Plan(NamedTuple):
    """A resolved command line: run description, keyword arguments of the training loop, lines to show at start-up."""

    desc: str
    options: dict[str, Any]
    notices: list[str]


class _Data(NamedTuple):
    """What the options need to know of the dataset."""

    name: str
    resolution: int
    channels: int
    num_images: int
    has_labels: bool
    c_dim: int  # of the networks: 0 without --cond


def build(**flags) -> tuple[str, dict[str, Any]]:
    """Run description and options of the training loop, for flags by their names with `_` for `-`.

    A flag left out, or None, counts as not given. Ranges are the command line's business (`train.py`); here the flags
    are held against each other and against the data. Reads the dataset and the teachers, writes nothing.
    Raises `UserError` naming the flag.
    """
    plan = resolve(**flags)
    return plan.desc, plan.options


def resolve(**flags) -> Plan:
    """As `build`, with the notices and the size table to show at start-up."""
    from training.config_checks import check_flags

    f = Flags(**{name: value for name, value in flags.items() if value is not None})
    check_flags(f)
    data = _open_data(f)
    preset = auto_preset(data.resolution, f.gpus) if f.cfg == "auto" else PRESETS[f.cfg]
    batch_size, batch_gpu = _batch(f, preset)
    options = {
        "num_gpus": f.gpus,
        "image_snapshot_ticks": f.snap,
        "network_snapshot_ticks": f.snap,
        "metrics": list(f.metrics),
        "random_seed": f.seed,
        "training_set_kwargs": _training_set_kwargs(f, data),
        "data_loader_kwargs": {"pin_memory": True, "num_workers": f.workers, "prefetch_factor": 2},
        **_network_options(f, preset, data.resolution),
        "loss_kwargs": _loss_kwargs(f, preset),
        "total_kimg": _given(f.kimg, preset.kimg),
        "batch_size": batch_size,
        "batch_gpu": batch_gpu,
        "ema_kimg": preset.ema,
        "ema_rampup": preset.ramp,
        **_augment_options(f),
        **_resume_options(f),
        **_machine_options(f),
    }
    notices = []
    if data.has_labels and not f.cond:
        notices.append(f"Notice: {f.data} has labels and this run ignores them; --cond=1 trains on them.")
    if f.dgl_teacher:
        notices += _add_teachers(f, data, options)
    return Plan(run_description(data.name, f), options, notices)


def run_description(name: str, f: Flags) -> str:
    """What the run directory is called after its number: the dataset's name, then each choice that was given."""
    resume = f.resume
    if resume not in (None, "noresume"):
        resume = f"resume{resume}" if resume in RESUME_ALIASES else "resumecustom"
    words = [
        name,
        f.cond and "cond",
        _word("subset", f.subset),
        f.mirror and "mirror",
        f"auto{f.gpus}" if f.cfg == "auto" else f.cfg,
        _word("gamma", f.gamma),
        _word("kimg", f.kimg),
        _word("batch", f.batch),
        f.aug,
        _word("p", f.p),
        _word("target", f.target),
        f.augpipe,
        resume,
        _word("freezed", f.freezed),
        _word("batchgpu", f.batch_gpu),
        _word("cbase", f.cbase),
        _word("cbased", f.cbase_d),
    ]
    if f.dgl_teacher:
        words += [
            _word("dgl", _given(f.dgl_weight, DGL_WEIGHT)),
            len(f.dgl_teacher) > 1 and f"teachers{len(f.dgl_teacher)}",
            _word("dglstart", f.dgl_start),
            f.dgl_weighting,
            f.dgl_augment and "dglaug",
        ]
    return "-".join(word for word in words if word)


def scale_width(channel_base: int, channel_max: int, x: float, flag: str = "--cbase") -> tuple[int, int]:
    """`(channel_base, channel_max)` of a network after `--cbase=x` (DGL-GAN, arXiv 2112.06502: narrower students).

    0 < x <= 4 multiplies both, rounded down to whole channels; x >= 64 is the channel_base itself, channel_max kept.
    Raises `UserError` for any other x: between the two it could be meant either way.
    """
    if 0 < x <= 4:
        # Rounding first keeps 0.29 * 100 at 29 channels, whatever the last binary digit says.
        return tuple(math.floor(round(width * x, 6)) for width in (channel_base, channel_max))
    if x >= 64 and x % 1 == 0:
        return int(x), channel_max
    raise UserError(
        f"{flag}={x:g} could mean two things: give a multiplier above 0 and up to 4 (scales channel_base and "
        "channel_max), or a whole channel_base of 64 or more (channel_max stays)"
    )


def _given(value, default):
    return default if value is None else value


def _word(label: str, value: float | None) -> str | None:
    if value is None:
        return None
    return f"{label}{value}" if isinstance(value, int) else f"{label}{value:g}"


def _open_data(f: Flags) -> _Data:
    from training.dataset import ImageFolderDataset

    with contextlib.closing(ImageFolderDataset(path=f.data, use_labels=f.cond)) as dataset:
        size = (dataset.resolution, dataset.num_channels, len(dataset))
        data = _Data(dataset.name, *size, dataset.labels_available, dataset.label_dim)
    if f.cond and not data.c_dim:
        raise UserError(f"--cond=1 needs labels in dataset.json, and {f.data} has none")
    if f.subset is not None and not 1 <= f.subset <= data.num_images:
        raise UserError(f"--subset must be between 1 and {data.num_images}, the images of {f.data}, not {f.subset}")
    return data


def _training_set_kwargs(f: Flags, data: _Data) -> dict[str, Any]:
    kwargs = {
        "class_name": "training.dataset.ImageFolderDataset",
        "path": f.data,
        "use_labels": f.cond,
        "max_size": _given(f.subset, data.num_images),
        "xflip": f.mirror,
        "resolution": data.resolution,
    }
    if kwargs["max_size"] < data.num_images:
        kwargs["random_seed"] = f.seed
    return kwargs


def _batch(f: Flags, preset: Preset) -> tuple[int, int]:
    """Images of an iteration, and of one forward pass on one process; the rest is gradient accumulation."""
    batch_size = _given(f.batch, preset.batch)
    if batch_size % f.gpus:
        raise UserError(f"--batch must be at least 1 and divisible by --gpus: {batch_size} is not by {f.gpus}")
    share = batch_size // f.gpus
    batch_gpu, flag = (share if f.batch is not None else min(preset.batch // preset.gpus, share)), "--batch"
    if f.batch_gpu is not None:
        batch_gpu, flag = f.batch_gpu, "--batch-gpu"
        if share % batch_gpu:
            raise UserError(
                f"--batch-gpu={batch_gpu} must divide the {share} images of each process (--batch / --gpus)"
            )
    group = min(preset.mbstd, batch_gpu)
    if batch_gpu % group:
        raise UserError(
            f"{flag}: {batch_gpu} images per process do not split into the discriminator's minibatch-stddev groups "
            f"of {group}; make it a multiple of {group}"
        )
    return batch_size, batch_gpu


def _network_options(f: Flags, preset: Preset, resolution: int) -> dict[str, Any]:
    """Keyword arguments of G, D and their optimisers."""
    precision = {"num_fp16_res": 0, "conv_clamp": None} if f.fp32 else {"num_fp16_res": 4, "conv_clamp": 256}
    layout = {"fp16_channels_last": True} if f.nhwc else {}
    d_width = ("--cbase", f.cbase) if f.cbase_d is None else ("--cbase-d", f.cbase_d)
    adam = {"class_name": "torch.optim.Adam", "lr": preset.lr, "betas": [0, 0.99], "eps": 1e-8}
    return {
        "G_kwargs": {
            "class_name": "training.networks.Generator",
            "z_dim": 512,
            "w_dim": 512,
            "mapping_kwargs": {"num_layers": preset.layers},
            "synthesis_kwargs": {**_channels(preset, resolution, "--cbase", f.cbase), **precision, **layout},
        },
        "D_kwargs": {
            "class_name": "training.networks.Discriminator",
            "block_kwargs": {**layout, **({} if f.freezed is None else {"freeze_layers": f.freezed})},
            "mapping_kwargs": {},
            "epilogue_kwargs": {"mbstd_group_size": preset.mbstd},
            **_channels(preset, resolution, *d_width),
            **precision,
            **({"architecture": "orig"} if preset.plain else {}),
        },
        "G_opt_kwargs": dict(adam),
        "D_opt_kwargs": dict(adam),
    }


def _channels(preset: Preset, resolution: int, flag: str, x: float | None) -> dict[str, int]:
    base, top = int(preset.fmaps * 32768), 512
    if x is not None:
        base, top = scale_width(base, top, x, flag)
    if min(base // resolution, top) < 1:
        raise UserError(f"{flag}={x:g} leaves no channel at {resolution}x{resolution}: choose a wider network")
    return {"channel_base": base, "channel_max": top}


def _loss_kwargs(f: Flags, preset: Preset) -> dict[str, Any]:
    kwargs = {"class_name": "training.loss.StyleGAN2Loss", "r1_gamma": _given(f.gamma, preset.gamma)}
    if preset.plain:
        kwargs.update(pl_weight=0, style_mixing_prob=0)
    return kwargs


def _augment_options(f: Flags) -> dict[str, Any]:
    if f.aug == "noaug":
        return {}
    pipe = {"class_name": "training.augment.AugmentPipe", **dict.fromkeys(AUGPIPES[_given(f.augpipe, "bgc")], 1)}
    strength = {"augment_p": f.p} if f.aug == "fixed" else {"ada_target": _given(f.target, 0.6)}
    return {**strength, "augment_kwargs": pipe}


def _resume_options(f: Flags) -> dict[str, Any]:
    """Transfer learning: ADA adapts faster, and G_ema starts from a trained network, so no ramp-up."""
    if f.resume in (None, "noresume"):
        return {}
    return {"resume_pkl": RESUME_ALIASES.get(f.resume, f.resume), "ada_kimg": 100, "ema_rampup": None}


def _machine_options(f: Flags) -> dict[str, Any]:
    """What does not change the run's outcome by design, each present only where it departs from the default."""
    departures = {
        "cudnn_benchmark": (False, f.nobench),
        "allow_tf32": (True, f.allow_tf32),
        "device": (f.device, f.device != "auto"),
        "precision": (f.precision, f.precision != "auto"),
        "trust_pickle": (True, f.trust_pickle),
        "snapshots_keep": (f.keep, f.keep is not None),
        "detector": (f.detector, f.detector is not None),
    }
    return {name: value for name, (value, departs) in departures.items() if departs}


def _add_teachers(f: Flags, data: _Data, options: dict[str, Any]) -> list[str]:
    """Checks every teacher, turns the loss into the guided one, and returns the notices and the size table."""
    from dgl.student import size_table
    from dgl.teacher import check_teacher, open_teacher
    from training.config_checks import new_network

    teachers = [open_teacher(RESUME_ALIASES.get(name, name), trust=f.trust_pickle) for name in f.dgl_teacher]
    for teacher in teachers:
        check_teacher(teacher, data.resolution, data.channels, data.c_dim, options["batch_gpu"])
    options["loss_kwargs"].update(
        class_name="dgl.loss.DGLLoss",
        teachers=[{"path": teacher.path, "sha256": teacher.sha256} for teacher in teachers],
        dgl_weight=_given(f.dgl_weight, DGL_WEIGHT),
        dgl_start=_given(f.dgl_start, 0),
        dgl_weighting=_given(f.dgl_weighting, "plain"),
        dgl_augment=_given(f.dgl_augment, False),
        trust_pickle=f.trust_pickle,
    )
    shape = {"c_dim": data.c_dim, "img_resolution": data.resolution, "img_channels": data.channels}
    notices = [size_table(teachers[0].G, new_network(options["G_kwargs"], shape))]
    if options["loss_kwargs"]["dgl_start"] >= options["total_kimg"]:
        notices.append(f"Notice: --dgl-start={f.dgl_start:g} is not before the end of the run: no teacher takes part.")
    return notices
