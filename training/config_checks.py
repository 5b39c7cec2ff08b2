# SPDX-License-Identifier: Apache-2.0
"""Checks before a run directory exists: whatever can be known to fail later in training fails here, in one sentence.

`check_flags` holds the flags against each other; `preflight` looks at the machine and the files.
"""

import contextlib
import dataclasses
import math
import os
from typing import Any

import torch

from dnnlib.progress import Progress
from dnnlib.util import UserError, construct_class_by_name, is_url
from metrics import detectors, metric_main
from torch_utils import misc
from torch_utils.distributed import resolve_device
from torch_utils.precision import run_dtype
from training.files.snapshot import load_snapshot


def check_flags(f) -> None:
    """Raises `UserError` where flags of `f`, a `training.config.Flags`, contradict each other, whatever the data."""
    for name, value in dataclasses.asdict(f).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{_flag(name)} must be a finite number, not {value}")
    if f.gpus & (f.gpus - 1):
        raise UserError(f"--gpus must be a power of two, not {f.gpus}")
    if (f.seed + 1) * f.gpus > 2**32:
        raise UserError(f"--seed={f.seed} is too large: --seed times --gpus must stay below 2^32")
    if f.aug == "fixed" and f.p is None:
        raise UserError("--aug=fixed needs the augmentation probability, --p")
    if f.p is not None and f.aug != "fixed":
        raise UserError("--p goes with --aug=fixed only")
    if f.target is not None and f.aug not in (None, "ada"):
        raise UserError(f"--target goes with --aug=ada only, not with --aug={f.aug}")
    if f.augpipe is not None and f.aug == "noaug":
        raise UserError("--augpipe has no effect with --aug=noaug: drop one of the two")
    if f.fp32 and f.precision in ("fp16", "bf16"):
        raise UserError(f"--precision={f.precision} contradicts --fp32=1: drop one of the two")
    for name in f.metrics:
        if not metric_main.is_valid_metric(name):
            choices = ", ".join(metric_main.list_valid_metrics())
            raise UserError(f"--metrics={name}: no such metric; choose none or from {choices}")
    for name in ("dgl_weight", "dgl_start", "dgl_weighting", "dgl_augment"):
        if getattr(f, name) is not None and not f.dgl_teacher:
            raise UserError(f"{_flag(name)} needs a teacher: give its network pickle with --dgl-teacher")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def new_network(kwargs: dict[str, Any], shape: dict[str, int]) -> torch.nn.Module:
    """The network that `G_kwargs` or `D_kwargs` stand for, newly initialised; global random numbers stay as they are.

    `shape`: c_dim, img_resolution and img_channels.
    """
    with torch.random.fork_rng(devices=[]):
        return construct_class_by_name(**kwargs, **shape)


def preflight(options: dict[str, Any], outdir: str) -> None:
    """Checks device, precision, output folder, every image file, `--resume` file and detectors; writes nothing.

    `options` as `training.config.build` made them. Raises `UserError` naming the flag or the file.
    """
    device = resolve_device(options.get("device", "auto"), rank=options["num_gpus"] - 1)
    run_dtype(options.get("precision", "auto"), device)
    _check_outdir(outdir)
    shape = _check_dataset(options["training_set_kwargs"])
    if "resume_pkl" in options:
        _check_resume(options, shape)
    if options["metrics"]:
        detectors.ensure_available(options["metrics"], options.get("detector"))


def _check_outdir(outdir: str) -> None:
    folder = os.path.abspath(outdir)
    while not os.path.exists(folder):
        parent = os.path.dirname(folder)
        if parent == folder:
            raise UserError(f"--outdir={outdir} cannot be made: there is no {folder}")
        folder = parent
    if not os.path.isdir(folder):
        raise UserError(f"--outdir={outdir} cannot be made: {folder} is a file")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"--outdir={outdir} cannot be written: no permission in {folder}")


def _check_dataset(training_set_kwargs: dict[str, Any]) -> dict[str, int]:
    """Looks at every image file; returns the network arguments that follow from the data."""
    every_file = {**training_set_kwargs, "max_size": None, "xflip": False}
    with contextlib.closing(construct_class_by_name(**every_file)) as dataset:
        with Progress(len(dataset), "Checking images", "img") as progress:
            dataset.validate(progress.update)
        return {"c_dim": dataset.label_dim, "img_resolution": dataset.resolution, "img_channels": dataset.num_channels}


def _check_resume(options: dict[str, Any], shape: dict[str, int]) -> None:
    """The `--resume` file, downloaded if it is a URL, must be a network pickle whose tensors fit."""
    path = options["resume_pkl"]
    if not is_url(path, allow_file_urls=True) and not os.path.isfile(path):
        raise UserError(f"--resume={path}: no such file")
    snapshot = load_snapshot(path, trust=options.get("trust_pickle", False))
    for name, kwargs in (("G", "G_kwargs"), ("D", "D_kwargs"), ("G_ema", "G_kwargs")):
        source = snapshot[name]
        if source.img_resolution != shape["img_resolution"]:
            raise UserError(
                f"--resume={path}: its {name} is for {source.img_resolution}x{source.img_resolution} images, and the "
                f"dataset has {shape['img_resolution']}x{shape['img_resolution']}"
            )
        _check_shapes(path, name, source, new_network(options[kwargs], shape))


def _check_shapes(path: str, name: str, source: torch.nn.Module, network: torch.nn.Module) -> None:
    there = dict(misc.named_params_and_buffers(source))
    for key, tensor in misc.named_params_and_buffers(network):
        if key in there and there[key].shape != tensor.shape:
            raise UserError(
                f"--resume={path}: {key} of its {name} has shape {list(there[key].shape)} and this run needs "
                f"{list(tensor.shape)}; use the --cfg, --cond and --cbase it was trained with"
            )
