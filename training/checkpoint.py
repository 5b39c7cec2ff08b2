# SPDX-License-Identifier: Apache-2.0
"""The state of a run: everything it needs to go on as if it had not been interrupted, in one file.

The file has tensors and plain values only and is read without executing anything of it. It replaces its predecessor
when it is complete; the one before that is kept beside it. Random numbers are no part of it, see training.randomness.
"""

import os
import pathlib
import pickle
import threading
from typing import Any

import torch

from dnnlib import __version__
from dnnlib.files import full_disk_is_a_user_error, open_atomic
from dnnlib.util import UserError

CURRENT, NEXT, PREVIOUS = "training-state.pt", "training-state-next.pt", "training-state-previous.pt"
_TENSORS = ("networks", "optimizers", "loss", "log", "ranks")
FORMAT = 1  # of the file; raised when an older version of this module could not continue from it


class StateFile:
    """The state of the run in `run_dir`, written in the background by the main process."""

    def __init__(self, run_dir: str | os.PathLike):
        self.run_dir = pathlib.Path(run_dir)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, state: dict[str, Any]) -> None:
        """Copy `state` and write the copy in the background, as soon as the last write has ended."""
        self.wait()
        state = {**on_cpu(state), "format": FORMAT, "version": __version__, "torch": str(torch.__version__)}
        self._thread = threading.Thread(target=self._write, args=[state], name="training state")
        self._thread.start()

    def _write(self, state: dict[str, Any]) -> None:
        try:
            with full_disk_is_a_user_error():
                write(self.run_dir, state)
        except BaseException as error:  # for the thread that trains
            self._error = error

    def wait(self) -> None:
        """Wait until the last state is on the disk. Raises what its writing has raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error


def write(run_dir: pathlib.Path, state: dict[str, Any]) -> None:
    """Write `state`, which becomes the current one in a single step; the current one becomes the previous."""
    with open_atomic(run_dir / NEXT) as file:
        torch.save(state, file)
    if (run_dir / CURRENT).exists():
        os.replace(run_dir / CURRENT, run_dir / PREVIOUS)
    os.replace(run_dir / NEXT, run_dir / CURRENT)


def exists(run_dir: str | os.PathLike) -> bool:
    """Whether a run that was begun in `run_dir` can be continued."""
    return any((pathlib.Path(run_dir) / name).is_file() for name in (NEXT, CURRENT, PREVIOUS))


def load(run_dir: str | os.PathLike) -> dict[str, Any]:
    """The newest complete state in `run_dir`, tensors on the CPU.

    Raises UserError if there is none, or if it is of a newer version of the project.
    """
    return _read(run_dir, mmap=False)


def peek(run_dir: str | os.PathLike) -> dict[str, Any]:
    """The plain values of the state in `run_dir`, by name. Raises as `load`."""
    return {key: value for key, value in _read(run_dir, mmap=True).items() if key not in _TENSORS}


def _read(run_dir: str | os.PathLike, mmap: bool) -> dict[str, Any]:
    damaged = []
    for name in (NEXT, CURRENT, PREVIOUS):  # NEXT is there only if the writer was killed between two renames
        path = pathlib.Path(run_dir) / name
        if not path.is_file():
            continue
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
            written = state["format"]
        except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
            damaged.append(f"{path} is damaged ({type(error).__name__})")
            continue
        if not isinstance(written, int) or written > FORMAT:
            raise UserError(
                f"--resume={run_dir}: its state was written by a newer version ({state.get('version')}) of this "
                f"project; continue it with that one"
            )
        return state
    what = "; ".join(damaged) or f"there is no {CURRENT} in it"
    raise UserError(f"--resume={run_dir} cannot be continued: {what}")


def clear_leftovers(run_dir: str | os.PathLike) -> None:
    """Remove the temporary files of writers that were killed. Nothing may be writing in `run_dir`."""
    for path in pathlib.Path(run_dir).glob(".*.tmp"):
        path.unlink(missing_ok=True)


def on_cpu(value: Any) -> Any:
    """A copy of a nest of dicts, lists and tensors that later changes of the tensors do not reach, on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: on_cpu(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [on_cpu(item) for item in value]
    if type(value) in (bool, int, float, str, type(None)):
        return value
    raise TypeError(f"the state of a run has tensors and plain values only, no {type(value).__name__}")
