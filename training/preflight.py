# SPDX-License-Identifier: Apache-2.0
"""Checks before the run directory is made, so that predictable failures come early, as one sentence."""

import os
from typing import Any

from dnnlib.progress import Progress
from dnnlib.util import UserError, is_url
from metrics import detectors, suitability
from torch_utils.distributed import local_rank, resolve_device
from torch_utils.precision import run_dtype
from training import initial
from training.options import Opened


def preflight(options: dict[str, Any], opened: Opened, outdir: str) -> None:
    """Checks device, precision, output folder, every image file, the --resume file and detectors; writes nothing.

    `options` and `opened` are those of `training.options.resolve`; the --resume file is added to `opened`.
    Raises UserError naming the flag or the file.
    """
    device = resolve_device(options.get("device", "auto"), local_rank(options["num_gpus"] - 1))
    run_dtype(options.get("precision", "auto"), device)
    _check_outdir(outdir)
    if hasattr(opened.training_set, "validate"):  # not every dataset of another project
        with Progress(opened.training_set.num_files, "Checking images", "img") as progress:
            opened.training_set.validate(progress.update)
    if opened.held_out is not None:
        if hasattr(opened.held_out, "validate"):
            opened.held_out.validate()
        opened.held_out.close()
    if "resume_pkl" in options:
        _check_resume(options, opened)
    if options["metrics"]:
        if options.get("trust_detector", False):
            detectors.trust(options.get("detector"))
        detectors.ensure_available(options["metrics"], options.get("detector"))
        suitability.ensure_suitable_for(options["metrics"], options.get("detector"), opened.training_set)


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


def _check_resume(options: dict[str, Any], opened: Opened) -> None:
    """The --resume file, downloaded if it is a URL, must be of networks whose tensors fit."""
    path = options["resume_pkl"]
    if not is_url(path, allow_file_urls=True) and not os.path.exists(path):
        raise UserError(f"--resume={path}: no such file")
    snapshot = opened.snapshot(path, options.get("trust_pickle", False))
    shape = initial.network_shape(opened.training_set)
    networks = {name: initial.new_network(options[f"{name}_kwargs"], shape) for name in ("G", "D")}
    initial.check_snapshot(snapshot, {**networks, "G_ema": networks["G"]})
