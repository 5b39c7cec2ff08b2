# SPDX-License-Identifier: Apache-2.0
"""Continuing an interrupted run in its own directory: which one, and with which options."""

import json
import os
import pathlib
import re
from typing import Any

from dnnlib.files import write_text
from dnnlib.util import UserError
from training import checkpoint, families
from training.flags import BY_NAME, Flags
from training.options import put
from training.settings import OPTIONS_FILE

# Flags that change nothing about what is learned; all others have to stay as they were.
MAY_CHANGE = ("kimg", "snap", "metrics", "keep", "workers", "gpus", "save_every", "on_nan", "timeout")


def read_options(run_dir: str) -> dict[str, Any]:
    """Options of the training loop with which `run_dir` was begun. Raises UserError if it is no run directory."""
    path = os.path.join(run_dir, OPTIONS_FILE)
    try:
        with open(path, encoding="utf-8") as file:
            options = json.load(file)
        return {**options, "run_dir": run_dir}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"--resume={run_dir} is no run directory: it has no readable {OPTIONS_FILE}") from error


def resume(run_dir: str, given: dict[str, Any], dry_run: bool = False) -> dict[str, Any]:
    """Options of the training loop that continue the run in `run_dir`.

    `given` are the flags of the command line, by name, without those that were not given. Raises UserError if there is
    nothing to continue, or for a flag that differs from the run's and may not. Changes no file if `dry_run`.
    """
    options, state = read_options(run_dir), checkpoint.peek(run_dir)
    _check_same(run_dir, given, state["about"].get("flags", {}))
    changed = {name: given[name] for name in MAY_CHANGE if name in given}
    for name, value in changed.items():
        put(BY_NAME[name], value, options)
    if "gpus" in changed:
        _share_batch(options)
    if state["cur_nimg"] >= options["total_kimg"] * 1000:
        raise UserError(
            f"--resume={run_dir}: this run is finished at kimg {state['cur_nimg'] / 1000:g}; give a larger --kimg to "
            f"train on"
        )
    if not dry_run:
        if changed:  # the next one that continues needs no flag
            write_text(os.path.join(run_dir, OPTIONS_FILE), json.dumps(options, indent=2))
        _trim_log(run_dir, state["cur_tick"])
        checkpoint.clear_leftovers(run_dir)
    return options


def newest_unfinished(outdir: str, options: dict[str, Any], given: dict[str, Any]) -> str | None:
    """The newest run directory in `outdir` of a run with these `options`, up to what may change, that can go on.

    Or of one with the same flags, of which `given` are those of this command line: presets depend on --gpus, and the
    run may have been begun with another number.
    """
    wanted, flags = _description(options), _lasting(given)
    found = (path for path in pathlib.Path(outdir).glob("[0-9]*") if checkpoint.exists(path))
    for path in sorted(found, key=lambda path: int(re.match(r"\d+", path.name)[0]), reverse=True):
        try:
            stored, state = read_options(str(path)), checkpoint.peek(path)
        except UserError:
            continue  # of something else, or damaged
        alike = _description(stored) == wanted or _lasting(state["about"].get("flags", {})) == flags
        total_kimg = (options if "kimg" in given else stored)["total_kimg"]
        if alike and state["cur_nimg"] < total_kimg * 1000:
            return str(path)
    return None


def _lasting(given: dict[str, Any]) -> dict[str, Any]:
    """Flags without those that may change, as JSON has them."""
    kept = {name: value for name, value in given.items() if name not in MAY_CHANGE}
    if "data" in kept:
        kept["data"] = os.path.realpath(kept["data"])
    return json.loads(json.dumps(kept))


def _description(options: dict[str, Any]) -> dict[str, Any]:
    """`options` as JSON has them, without what may change."""
    options = json.loads(json.dumps(options))
    for name in MAY_CHANGE:
        for place in BY_NAME[name].lands:
            *folders, key = place.split(".")
            target = options
            for folder in folders:
                target = target.get(folder, {})
            target.pop(key, None)
    return {key: value for key, value in options.items() if key not in ("run_dir", "batch_gpu")}


def _check_same(run_dir: str, given: dict[str, Any], recorded: dict[str, Any]) -> None:
    before, now = Flags(**recorded), Flags(**{**recorded, **given})
    for name in given:
        was, wanted = (getattr(flags, name) for flags in (before, now))
        if name == "data":
            was, wanted = (os.path.realpath(path or "") for path in (was, wanted))
        if name not in MAY_CHANGE and was != wanted:
            may = ", ".join(BY_NAME[name].flag for name in MAY_CHANGE)
            raise UserError(
                f"{BY_NAME[name].flag}: the run in {run_dir} has {was} and not {wanted}; when a run continues, only "
                f"{may} may change: drop it, or start a new run"
            )


def _share_batch(options: dict[str, Any]) -> None:
    """Fit the micro-batches to another number of processes; they stay as they are where possible."""
    batch, processes = options["batch_size"], options["num_gpus"]
    share = batch // processes
    options["batch_gpu"] = min(options["batch_gpu"], share)
    if processes & (processes - 1) or batch % processes or share % options["batch_gpu"]:
        raise UserError(
            f"--gpus={processes}: the run's batch of {batch} images cannot be split into as many parts, each of "
            f"micro-batches of {options['batch_gpu']}"
        )
    family = families.find(options["G_kwargs"]["class_name"].rpartition(".")[2])
    if family is not None and family.check_batches is not None:
        family.check_batches(options)


def _trim_log(run_dir: str, tick: int) -> None:
    """Take the lines of ticks that will be trained again, `tick` and later ones, out of the log."""
    path = pathlib.Path(run_dir, "log.txt")
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    numbers = (re.match(r"tick (\d+)\s", line) for line in lines)
    kept = [line for line, number in zip(lines, numbers) if number is None or int(number[1]) < tick]
    if len(kept) < len(lines):
        write_text(path, "".join(kept))
