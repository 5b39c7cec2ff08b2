# SPDX-License-Identifier: Apache-2.0
"""The options of a run: a table of flags, and their conversion to keyword arguments of the training loop.

`OPTIONS` declares each flag once: name, type, default, help, the keys of the loop's options that take its value, and
its word in the name of the run directory. `resolve` starts from the network family's options for the --cfg preset and
overrides them with the values of the flags. Importing this module is cheap: torch is loaded only by `resolve`.
"""

import dataclasses
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import click

from dnnlib.cli import BOOL, CommaList
from dnnlib.util import UserError
from metrics import catalogue
from training import families
from training.families.family import Data

# fmt: off
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
# fmt: on
PRECISIONS = ("auto", "fp32", "fp16", "bf16")  # those of torch_utils.precision, which imports torch
_ADA_KIMG_OF_TRANSFER = 100  # ADA adapts faster in transfer learning


@dataclasses.dataclass(frozen=True)
class Option:
    """One flag of train.py; `default` is its value if it is not given.

    lands:  keys of the loop's options that take the value, with dots between nested keys; empty if a function below
            uses the value. A value equal to the default is stored only if `always` is set.
    stores: conversion of the value before it is stored.
    word:   part of the run directory's name if the flag is given: a label before the value, or a function of all flags.
    needs:  another flag, without which this one is refused and not stored.
    unset:  default shown in the help, if it is not `default`.
    """

    flag: str
    group: str
    type: Any
    default: Any
    help: str
    lands: tuple[str, ...] = ()
    always: bool = False
    stores: Callable[[Any], Any] = lambda value: value
    word: "str | Callable[[Flags], str] | None" = None
    needs: str | None = None
    unset: str | None = None
    metavar: str | None = None

    @property
    def name(self) -> str:
        """The flag as a Python name."""
        return self.flag.lstrip("-").replace("-", "_")


class Flags:
    """Values of the flags by name; flags not given have their defaults. Raises TypeError for an unknown name."""

    def __init__(self, **given: Any):
        unknown = given.keys() - BY_NAME.keys()
        if unknown:
            raise TypeError(f"unknown flags: {', '.join(sorted(unknown))}")
        self._given = {name: value for name, value in given.items() if value is not None}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in BY_NAME:
            raise AttributeError(name)
        return self._given.get(name, BY_NAME[name].default)

    def given(self, name: str) -> bool:
        """Whether the flag was given, even if with its default value."""
        return name in self._given


def _cfg_word(f: Flags) -> str:
    return f"auto{f.gpus}" if f.cfg == "auto" else f.cfg


def _resume_word(f: Flags) -> str:
    if f.resume == "noresume":
        return f.resume
    return f"resume{f.resume}" if f.resume in families.aliases() else "resumecustom"


def _teacher_word(f: Flags) -> str:
    count = len(f.dgl_teacher)
    return f"dgl{f.dgl_weight:g}" + (f"-teachers{count}" if count > 1 else "")


class _Cfg(click.ParamType):
    """A preset of any family that is registered when the command line is read."""

    name = "preset"

    def convert(self, value: str, param, ctx) -> str:
        """The name of the preset."""
        if value not in families.presets():
            self.fail(f"{value!r} is not one of {', '.join(families.presets())}", param, ctx)
        return value


COUNT, SHARE, POSITIVE = click.IntRange(min=1), click.FloatRange(0, 1), click.FloatRange(min=0)
INDEX, SWITCH = click.IntRange(min=0), "a flag without a value"
_OUT, _DATA, _BASE, _AUG = "Output", "Data", "Base configuration", "Augmentation"
_FROM, _DGL, _RUN = "Transfer learning", "Narrow and guided students (DGL)", "Machine and speed"
_GUIDE = {"needs": "dgl_teacher", "always": True}

# In the order of the words in the run directory's name; the help groups them.
# fmt: off
OPTIONS = [
    Option("--snap", _OUT, COUNT, 50, "Ticks between snapshots.",
           lands=("image_snapshot_ticks", "network_snapshot_ticks"), always=True),
    Option("--keep", _OUT, COUNT, None, "Keep only the newest N network snapshots.",
           lands=("snapshots_keep",), unset="all", metavar="N"),
    Option("--metrics", _OUT, CommaList(), ["fid50k_full"], "Metrics to compute at each snapshot, or none.",
           lands=("metrics",), always=True, stores=list),
    Option("--detector", _OUT, str, None, "Feature network of the metrics, such as mnist.",
           lands=("detector",), metavar="FILE|NAME"),
    Option("--data", _DATA, str, None, "Images, as made by dataset_tool.py.", metavar="ZIP|DIR"),
    Option("--cond", _DATA, BOOL, False, "Train on the labels of dataset.json.", word="cond"),
    Option("--subset", _DATA, int, None, "Train on this many images, drawn with --seed.", word="subset", unset="all"),
    Option("--mirror", _DATA, BOOL, False, "Add mirrored copies of the images.", word="mirror"),
    Option("--cfg", _BASE, _Cfg(), "auto", "Preset.", word=_cfg_word, metavar=f"[{'|'.join(families.presets())}]"),
    Option("--gamma", _BASE, POSITIVE, None, "R1 weight.",
           word="gamma", unset="from --cfg"),
    Option("--kimg", _BASE, COUNT, None, "Length of training in thousand images.",
           lands=("total_kimg",), word="kimg", unset="from --cfg"),
    Option("--batch", _BASE, COUNT, None, "Images per iteration, over all processes.",
           word="batch", unset="from --cfg"),
    Option("--seed", _BASE, INDEX, 0, "Random seed.", lands=("random_seed",), always=True),
    Option("--aug", _AUG, click.Choice(["noaug", "ada", "fixed"]), "ada", "None, adaptive, or fixed probability.",
           word=""),
    Option("--p", _AUG, SHARE, None, "Probability for --aug=fixed.", word="p"),
    Option("--target", _AUG, SHARE, 0.6, "Target of --aug=ada, E[sign D(real)].", word="target"),
    Option("--augpipe", _AUG, click.Choice(list(AUGPIPES)), "bgc", "Kinds of augmentation.", word=""),
    Option("--resume", _FROM, str, None,
           f"Start from this network: file, URL, {', '.join(families.aliases())}, noresume.",
           word=_resume_word, metavar="PKL"),
    Option("--freezed", _FROM, INDEX, None, "Freeze this many of D's first layers.",
           word="freezed", unset="0"),
    Option("--trust-pickle", _FROM, SWITCH, False, "Run the code in pickles. Only for files you made yourself.",
           lands=("trust_pickle",)),
    Option("--batch-gpu", _BASE, COUNT, None, "Images per process and forward pass; the rest accumulates.",
           word="batchgpu", unset="from --cfg"),
    Option("--cbase", _DGL, float, 1, "Width of G: a multiplier up to 4 of the teacher's or --cfg's, or channel_base.",
           word="cbase"),
    Option("--cbase-d", _DGL, float, None, "Width of D, likewise.", word="cbased", unset="--cbase"),
    Option("--z-dim", _DGL, COUNT, None, "Numbers in a latent z.", word="z", unset="512, or the teacher's"),
    Option("--w-dim", _DGL, COUNT, None, "Numbers in an intermediate latent w.", word="w",
           unset="512, or the teacher's"),
    Option("--dgl-teacher", _DGL, CommaList(), [], "Teacher networks, given as for --resume; their frozen D guide G.",
           word=_teacher_word, metavar="PKL,..."),
    Option("--dgl-init", _DGL, click.Choice(["random", "mapping", "teacher"]), "random",
           "Start G from the teacher's G: nothing, its mapping network, or also its best channels.",
           word="", needs="dgl_teacher"),
    Option("--dgl-prune", _DGL, click.Choice(["l1", "random"]), "l1", "How --dgl-init=teacher ranks channels.",
           word="prune", needs="dgl_teacher"),
    Option("--dgl-svs", _DGL, BOOL, False, "Scale the singular values of inherited weights.", word="svs",
           needs="dgl_teacher"),
    Option("--dgl-weight", _DGL, POSITIVE, 0.1, "Weight of the teachers' term.",
           lands=("loss_kwargs.dgl_weight",), **_GUIDE),
    Option("--dgl-start", _DGL, POSITIVE, 0, "Start guidance after this many kimg.",
           lands=("loss_kwargs.dgl_start",), word="dglstart", metavar="KIMG", **_GUIDE),
    Option("--dgl-weighting", _DGL, click.Choice(["plain", "score"]), "plain", "How teachers are weighted.",
           lands=("loss_kwargs.dgl_weighting",), word="", **_GUIDE),
    Option("--dgl-augment", _DGL, BOOL, False, "Show teachers augmented fakes, as D sees them.",
           lands=("loss_kwargs.dgl_augment",), word="dglaug", **_GUIDE),
    Option("--gpus", _RUN, COUNT, 1, "Processes: GPUs, or parts of the CPU.", lands=("num_gpus",), always=True),
    Option("--device", _RUN, click.Choice(["auto", "cpu", "cuda", "mps"]), "auto", "Where to train.",
           lands=("device",)),
    Option("--precision", _RUN, click.Choice(PRECISIONS), "auto", "Data type of the highest resolutions.",
           lands=("precision",)),
    Option("--fp32", _RUN, BOOL, False, "Build the networks in fp32 permanently (stored in the snapshot)."),
    Option("--nhwc", _RUN, BOOL, False, "Channels-last memory in half-precision blocks."),
    Option("--nobench", _RUN, BOOL, False, "No cuDNN benchmarking.",
           lands=("cudnn_benchmark",), stores=operator.not_),
    Option("--allow-tf32", _RUN, BOOL, False, "TF32 in matrix products and convolutions.", lands=("allow_tf32",)),
    Option("--workers", _RUN, COUNT, 3, "Data-loader workers per process.",
           lands=("data_loader_kwargs.num_workers",), always=True),
]
# fmt: on
BY_NAME = {option.name: option for option in OPTIONS}


@dataclasses.dataclass
class Opened:
    """Files opened while resolving and checking the options; a single-process run uses them for training.

    training_set: the dataset of `training_set_kwargs`.
    teachers:     the teachers of `loss_kwargs`, in their order.
    snapshots:    network files by path.
    """

    training_set: Any
    teachers: list = dataclasses.field(default_factory=list)
    snapshots: dict[str, Any] = dataclasses.field(default_factory=dict)

    def snapshot(self, path: str, trust: bool) -> Any:
        """The network file at `path` (file or URL), opened once. Raises UserError as `load_snapshot` does."""
        from training.files.snapshot import load_snapshot

        if path not in self.snapshots:
            self.snapshots[path] = load_snapshot(path, trust=trust)
        return self.snapshots[path]

    def release(self) -> None:
        """Free all that set-up alone needed. Those who go on with a part of it have their own reference."""
        self.teachers, self.snapshots = [], {}


class Plan(NamedTuple):
    """A resolved command line: run name, keyword arguments of the training loop, start-up notices, opened files."""

    desc: str
    options: dict[str, Any]
    notices: list[str]
    opened: Opened


def build(**flags) -> tuple[str, dict[str, Any]]:
    """Run name and options of the training loop, for flags given by name with `_` for `-`.

    A flag left out, or None, counts as not given. Ranges are checked by the command line (`train.py`); here the flags
    are checked against each other and against the data. Reads the dataset and the teachers, writes nothing.
    Raises UserError naming the flag.
    """
    plan = resolve(**flags)
    plan.opened.training_set.close()
    return plan.desc, plan.options


def resolve(**flags) -> Plan:
    """As `build`, with the notices and the size table for start-up, and the opened files."""
    f = Flags(**flags)
    check_flags(f)
    training_set = _open_data(f)
    try:
        return _plan(f, training_set)
    except BaseException:
        training_set.close()
        raise


def _plan(f: Flags, training_set: Any) -> Plan:
    data = _describe(f, training_set)
    family, preset = families.preset(f.cfg, data.resolution, f.gpus)
    for name in families.flags() - family.flags:
        if f.given(name):
            raise UserError(f"{BY_NAME[name].flag} has no meaning for the family {family.name} of --cfg={f.cfg}")
    opened = Opened(training_set)
    teacher = None
    if f.dgl_teacher:
        from training import guidance

        teacher = guidance.open_teachers([_location(name) for name in f.dgl_teacher], f.trust_pickle, family, opened)
    options = {
        "training_set_kwargs": _training_set_kwargs(f, data),
        "data_loader_kwargs": {"pin_memory": True, "prefetch_factor": 2},
        **family.options(f, preset, data, teacher),
        **_augment_options(f),
    }
    if f.resume not in (None, "noresume"):
        # G_ema starts from a trained network, so its half-life is not ramped up.
        options.update(resume_pkl=_location(f.resume), ada_kimg=_ADA_KIMG_OF_TRANSFER, ema_rampup=None)
    _land(f, options)
    plan = Plan(_run_name(data.name, f), options, [], opened)
    if data.has_labels and not f.cond:
        plan.notices.append(f"Notice: {f.data} has labels and this run ignores them; --cond=1 trains on them.")
    if f.dgl_teacher:
        plan.notices.extend(guidance.add_guidance(f, data, family, options, opened))
    return plan


def check_flags(f: Flags) -> None:
    """Raises UserError if flags contradict each other; independent of the data."""
    for option in OPTIONS:
        value = getattr(f, option.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{option.flag} must be a finite number, not {value}")
        if option.needs is not None and f.given(option.name) and not getattr(f, option.needs):
            raise UserError(f"{option.flag} needs a teacher: give its network pickle with --dgl-teacher")
    if f.gpus & (f.gpus - 1):
        raise UserError(f"--gpus must be a power of two, not {f.gpus}")
    if (f.seed + 1) * f.gpus > 2**32:
        raise UserError(f"--seed={f.seed} is too large: --seed times --gpus must stay below 2^32")
    if f.aug == "fixed" and f.p is None:
        raise UserError("--aug=fixed needs the augmentation probability, --p")
    if f.p is not None and f.aug != "fixed":
        raise UserError("--p goes with --aug=fixed only")
    if f.given("target") and f.aug != "ada":
        raise UserError(f"--target goes with --aug=ada only, not with --aug={f.aug}")
    if f.given("augpipe") and f.aug == "noaug":
        raise UserError("--augpipe has no effect with --aug=noaug: drop one of the two")
    if f.dgl_init != "teacher" and (f.given("dgl_prune") or f.dgl_svs):
        raise UserError("--dgl-prune and --dgl-svs go with --dgl-init=teacher only")
    if f.dgl_init != "random" and f.resume not in (None, "noresume"):
        raise UserError(f"--dgl-init={f.dgl_init} and --resume both say where G starts: drop one of the two")
    if f.fp32 and f.precision in ("fp16", "bf16"):
        raise UserError(f"--precision={f.precision} contradicts --fp32=1: drop one of the two")
    for name in f.metrics:
        if catalogue.find(name) is None:
            raise UserError(f"--metrics={name}: no such metric; choose none or from {', '.join(catalogue.METRICS)}")


def _run_name(dataset: str, f: Flags) -> str:
    """The dataset's name, the preset, and a word for each flag that was given."""
    words = [dataset]
    for option in OPTIONS:
        value = getattr(f, option.name)
        if option.word is None or value is False or value == [] or not (f.given(option.name) or option.name == "cfg"):
            continue
        if callable(option.word):
            words.append(option.word(f))
        elif value is True:
            words.append(option.word)
        else:
            words.append(f"{option.word}{value:g}" if isinstance(value, float) else f"{option.word}{value}")
    return "-".join(words)


def _land(f: Flags, options: dict[str, Any]) -> None:
    """Store the values of the flags under their keys in the options of the loop."""
    for option in OPTIONS:
        value = getattr(f, option.name)
        wanted = option.always or (value is not None and value != option.default)
        if not wanted or (option.needs is not None and not getattr(f, option.needs)):
            continue
        for place in option.lands:
            *folders, key = place.split(".")
            target = options
            for folder in folders:
                target = target.setdefault(folder, {})
            target[key] = option.stores(value)


def _location(name: str) -> str:
    """File or URL of a network; aliases of published networks give their URLs."""
    return families.aliases().get(name, name)


def _open_data(f: Flags) -> Any:
    """The training set."""
    from training.dataset import ImageFolderDataset

    return ImageFolderDataset(path=f.data, use_labels=f.cond, max_size=f.subset, xflip=f.mirror, random_seed=f.seed)


def _describe(f: Flags, dataset: Any) -> Data:
    """The properties of the training set that the options depend on. Raises UserError if the flags do not fit them."""
    size = (dataset.resolution, dataset.num_channels, dataset.num_files)
    data = Data(dataset.name, *size, dataset.labels_available, dataset.label_dim)
    if f.cond and not data.c_dim:
        raise UserError(f"--cond=1 needs labels in dataset.json, and {f.data} has none")
    if f.subset is not None and not 1 <= f.subset <= data.num_images:
        raise UserError(f"--subset must be between 1 and {data.num_images}, the images of {f.data}, not {f.subset}")
    return data


def _training_set_kwargs(f: Flags, data: Data) -> dict[str, Any]:
    kwargs = {
        "class_name": "training.dataset.ImageFolderDataset",
        "path": f.data,
        "use_labels": f.cond,
        "max_size": data.num_images if f.subset is None else f.subset,
        "xflip": f.mirror,
        "resolution": data.resolution,
    }
    if kwargs["max_size"] < data.num_images:
        kwargs["random_seed"] = f.seed
    return kwargs


def _augment_options(f: Flags) -> dict[str, Any]:
    if f.aug == "noaug":
        return {}
    pipe = {"class_name": "training.augment.AugmentPipe", **dict.fromkeys(AUGPIPES[f.augpipe], 1)}
    strength = {"augment_p": f.p} if f.aug == "fixed" else {"ada_target": f.target}
    return {**strength, "augment_kwargs": pipe}
