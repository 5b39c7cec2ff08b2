# SPDX-License-Identifier: Apache-2.0
"""The flags of train.py: name, type, default, help, the keys of the loop's options that take the value, and the word
in the name of the run directory. Importing this module is cheap: it does not load torch.
"""

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import click

from dnnlib.cli import BOOL, CommaList
from training import families

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


# What --dgl-recipe stands for: values of flags that are not given. 'paper' is DGL-GAN as published (arXiv 2112.06502);
# 'compress' is what docs/evidence found best.
RECIPES: dict[str, dict[str, Any]] = {
    "compress": {
        "dgl_init": "teacher",
        "dgl_prune": "diversity",
        "dgl_fit": 100,
        "dgl_init_d": True,
        "cbase_d": 1,
        "dgl_weight": 0,
    },
    "paper": {},
}
# Flags that only mean something for a teacher that guides.
_STEERING = {"dgl_start", "dgl_stop", "dgl_ratio", "dgl_weighting", "dgl_augment", "dgl_update"}


def recipe(given: dict[str, Any]) -> dict[str, Any]:
    """Values for flags that are not among the `given` ones, by name; empty without a teacher.

    A run that starts from another network, has several teachers or is as wide as its teacher cannot take over the
    teacher's weights; without a word on the recipe it follows the paper. Diversity of channels is seen in a latent
    space w: a family without one ranks them by the default of --dgl-prune.
    """
    if not given.get("dgl_teacher"):
        return {}
    narrow = len(given["dgl_teacher"]) == 1 and not 1 <= given.get("cbase", 0.5) <= 4
    compress = narrow and given.get("resume", "noresume") == "noresume"
    name = given.get("dgl_recipe", "compress" if compress else "paper")
    values = {"dgl_recipe": name, **RECIPES[name]}
    if given.get("dgl_init") == "random":
        values.pop("dgl_fit", None)
    if _STEERING & given.keys():
        values.pop("dgl_weight", None)
    if not families.of_preset(given.get("cfg", BY_NAME["cfg"].default)).has_w:
        values.pop("dgl_prune", None)
    return values


class Flags:
    """Values of the flags by name; flags not given have the values of the recipe, or else their defaults.

    Raises TypeError for an unknown name.
    """

    def __init__(self, **given: Any):
        unknown = given.keys() - BY_NAME.keys()
        if unknown:
            raise TypeError(f"unknown flags: {', '.join(sorted(unknown))}")
        self._given = {name: value for name, value in given.items() if value is not None}
        self._unsaid = recipe(self._given)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in BY_NAME:
            raise AttributeError(name)
        return self._given.get(name, self._unsaid.get(name, BY_NAME[name].default))

    def assume(self, **values: Any) -> None:
        """Have `values` where no flag is given, and the recipe that goes with them; they do not count as given."""
        self._unsaid = {**values, **recipe({**values, **self._given})}

    def given(self, name: str) -> bool:
        """Whether the flag was given, even if with its default value."""
        return name in self._given


def _cfg_word(f: Flags) -> str:
    return f"auto{f.gpus}" if f.cfg == "auto" else f.cfg


def _resume_word(f: Flags) -> str:
    if f.resume == "noresume":
        return f.resume
    return f"resume{f.resume}" if f.resume in families.aliases() else "resumecustom"


def guidance_weight(f: Flags) -> float:
    """--dgl-weight; with --dgl-residual, where the teachers are a part of the critic, 0 unless it is given."""
    return 0.0 if f.given("dgl_residual") and not f.given("dgl_weight") else f.dgl_weight


def _teacher_word(f: Flags) -> str:
    count, weight = len(f.dgl_teacher), guidance_weight(f)
    words = [f.dgl_recipe] if f.dgl_recipe != "paper" else []
    words += [f"dgl{weight:g}"] if weight or not words else []
    return "-".join(words + [f"teachers{count}"] * (count > 1))


class _Cfg(click.ParamType):
    """A preset of any family that is registered when the command line is read."""

    name = "preset"

    def convert(self, value: str, param, ctx) -> str:
        """The name of the preset."""
        if value not in families.presets():
            self.fail(f"{value!r} is not one of {', '.join(families.presets())}", param, ctx)
        return value


class _KimgOrAuto(click.FloatRange):
    """A number of at least 0, or 'auto'."""

    name = "kimg"

    def convert(self, value, param, ctx) -> float | str:
        """The number or the word."""
        return value if value == "auto" else super().convert(value, param, ctx)


class _Integer(click.IntRange):
    name = "integer"  # click says of 0.5 that it "is not a valid" this


COUNT, SHARE, POSITIVE = _Integer(min=1), click.FloatRange(0, 1), click.FloatRange(min=0)
INDEX, SWITCH = _Integer(min=0), "a flag without a value"
_OUT, _DATA, _BASE, _AUG = "Output", "Data", "Base configuration", "Augmentation"
_FROM, _DGL, _RUN = "Transfer learning", "Narrow and guided students (DGL)", "Machine and speed"
_GUIDE = {"needs": "dgl_teacher", "always": True}

# In the order of the words in the run directory's name; the help groups them.
# fmt: off
OPTIONS = [
    Option("--snap", _OUT, COUNT, 50, "Ticks between snapshots.",
           lands=("image_snapshot_ticks", "network_snapshot_ticks"), always=True),
    Option("--keep", _OUT, COUNT, None, "Keep only the newest N network snapshots and the best by the first metric.",
           lands=("snapshots_keep",), unset="all", metavar="N"),
    Option("--save-every", _OUT, POSITIVE, 15, "Minutes between saved states, from which an interrupted run continues.",
           lands=("save_every",), metavar="MINUTES"),
    Option("--on-nan", _OUT, click.Choice(["stop", "rollback"]), "stop",
           "Where weights or losses become infinite or NaN: stop, or go back to the last state and try other draws.",
           lands=("on_nan",)),
    Option("--metrics", _OUT, CommaList(), ["fid50k_full"], "Metrics to compute at each snapshot, or none.",
           lands=("metrics",), always=True, stores=list),
    Option("--metrics-at-start", _OUT, BOOL, False, "Compute them at tick 0 too.", lands=("metrics_at_start",)),
    Option("--detector", _OUT, str, None, "Feature network of the metrics, such as mnist.",
           lands=("detector",), metavar="FILE|NAME"),
    Option("--trust-detector", _OUT, SWITCH, False, "Run a detector, a program, that is not known.",
           lands=("trust_detector",)),
    Option("--data", _DATA, str, None, "Images, as made by dataset_tool.py.", metavar="ZIP|DIR"),
    Option("--cond", _DATA, BOOL, False, "Train on the labels of dataset.json.", word="cond"),
    Option("--subset", _DATA, int, None, "Train on this many images, drawn with --seed.", word="subset", unset="all"),
    Option("--mirror", _DATA, BOOL, False, "Add mirrored copies of the images.", word="mirror"),
    Option("--cfg", _BASE, _Cfg(), "auto", "Preset.", word=_cfg_word, metavar=f"[{'|'.join(families.presets())}]",
           unset="auto, or biggan-auto for the student of a BigGAN"),
    Option("--ch", _BASE, COUNT, None, "Width of BigGAN's G and D.", word="ch", unset="from --cfg, or the teacher's"),
    Option("--d-steps", _BASE, COUNT, None, "Steps of D for each of G, in BigGAN.", word="dsteps", unset="from --cfg"),
    Option("--batch-g", _BASE, COUNT, None, "Images of a step of G, in BigGAN.", word="batchg", unset="--batch"),
    Option("--ortho", _BASE, POSITIVE, 0, "Strength of BigGAN's orthogonal regularisation.", word="ortho"),
    Option("--ema-start", _BASE, INDEX, None, "Iterations before BigGAN's moving average begins.", word="ema",
           unset="from --cfg"),
    Option("--sync-bn", _BASE, BOOL, True, "Batch norm over the images of all processes, in BigGAN."),
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
           "Continue this run directory exactly, auto: the newest unfinished run of the same description in --outdir "
           f"or a new one. Or start from this network: file, URL, {', '.join(families.aliases())}, noresume.",
           word=_resume_word, metavar="DIR|auto|PKL"),
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
    Option("--dgl-teacher", _DGL, CommaList(empty=False), [], "Teacher networks, given as for --resume.",
           word=_teacher_word, metavar="PKL,..."),
    Option("--dgl-recipe", _DGL, click.Choice(list(RECIPES)), None,
           "Values of the flags below: the best known way to a narrow student, or the published method.",
           needs="dgl_teacher", unset="compress, or paper with --resume, several teachers or --cbase from 1"),
    Option("--dgl-init", _DGL, click.Choice(["random", "mapping", "teacher"]), "random",
           "Start G from the teacher's G: nothing, its mapping network, or also its best channels.",
           word="", needs="dgl_teacher"),
    Option("--dgl-init-d", _DGL, BOOL, False, "Start D from the teacher's D, from its best channels.", word="initd",
           needs="dgl_teacher"),
    Option("--dgl-prune", _DGL, click.Choice(["l1", "random", "diversity"]), "l1",
           "How --dgl-init=teacher ranks channels.",
           word="prune", needs="dgl_teacher"),
    Option("--dgl-svs", _DGL, BOOL, False, "Scale the singular values of inherited weights.", word="svs",
           needs="dgl_teacher"),
    Option("--dgl-fit", _DGL, POSITIVE, 0, "Fit G to the teacher's images for this many kimg before training.",
           word="fit", needs="dgl_teacher", metavar="KIMG"),
    Option("--dgl-weight", _DGL, POSITIVE, 0.1, "Weight of the teachers' term.",
           lands=("loss_kwargs.dgl_weight",), **_GUIDE),
    Option("--dgl-ratio", _DGL, click.FloatRange(min=0, min_open=True), None,
           "Limit the teachers' gradient on the images to this multiple of that of the student's D.",
           lands=("loss_kwargs.dgl_ratio",), word="dglratio", needs="dgl_teacher", unset="no limit"),
    Option("--dgl-start", _DGL, _KimgOrAuto(min=0), 0,
           "Start guidance after this many kimg, or once the teachers' mean score of fakes is above -3.",
           lands=("loss_kwargs.dgl_start",), word="dglstart", metavar="KIMG|auto", **_GUIDE),
    Option("--dgl-stop", _DGL, POSITIVE, None, "Lower the weight of the teachers to 0 at this many kimg.",
           lands=("loss_kwargs.dgl_stop",), word="dglstop", metavar="KIMG", needs="dgl_teacher", unset="never"),
    Option("--dgl-weighting", _DGL, click.Choice(["plain", "score"]), "plain", "How teachers are weighted.",
           lands=("loss_kwargs.dgl_weighting",), word="", **_GUIDE),
    Option("--dgl-augment", _DGL, BOOL, False, "Show teachers augmented fakes, as D sees them.",
           lands=("loss_kwargs.dgl_augment",), word="dglaug", **_GUIDE),
    Option("--dgl-held-out", _DGL, str, None, "Images the teacher never saw, only to judge it by at the start.",
           metavar="ZIP|DIR", needs="dgl_teacher"),
    Option("--dgl-update", _DGL, POSITIVE, None, "Go on training the teachers, with this learning rate.",
           word="update", needs="dgl_teacher", unset="frozen", metavar="LR"),
    Option("--dgl-residual", _DGL, POSITIVE, None,
           "Add the teachers' scores to D's with this factor, instead of the teachers' term.",
           lands=("loss_kwargs.dgl_residual",), word="residual", needs="dgl_teacher", unset="off", metavar="KAPPA"),
    Option("--dgl-distill", _DGL, POSITIVE, 0, "Weight of the L1 distance to the teacher's images.",
           word="distill", needs="dgl_teacher"),
    Option("--dgl-distill-feat", _DGL, POSITIVE, 0, "Weight of that distance in features of the teacher's D.",
           word="feat", needs="dgl_teacher"),
    Option("--dgl-distill-verdict", _DGL, POSITIVE, 0, "Weight of that distance in the score of the teacher's D.",
           word="verdict", needs="dgl_teacher"),
    Option("--dgl-heads", _DGL, POSITIVE, 0, "Weight of new critics trained on the features of the teacher's D.",
           word="heads", needs="dgl_teacher"),
    Option("--gpus", _RUN, COUNT, 1, "Processes: GPUs, or parts of the CPU.", lands=("num_gpus",), always=True,
           unset="1, or as many as torchrun starts"),
    Option("--timeout", _RUN, click.FloatRange(min=0, min_open=True), 30,
           "Minutes after which a process that does not answer the others ends the run.",
           lands=("timeout",), metavar="MINUTES"),
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
