# SPDX-License-Identifier: Apache-2.0
"""C++ and CUDA extensions, compiled on first use."""

import contextlib
import hashlib
import os
import pathlib
import sys
import time
import types
import uuid
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from dnnlib.util import format_time

try:
    import fcntl
except ImportError:  # Windows, where only PyTorch's own lock separates processes
    fcntl = None

verbosity = "brief"  # 'none' = silent, 'brief' = one line per compilation, 'full' = also the compiler's output

_VERBOSITIES = ("none", "brief", "full")
_HEADERS = (".h", ".hpp", ".cuh", ".inl")
_plugins: dict[str, types.ModuleType] = {}
_failures: dict[str, Exception] = {}


def get_plugin(module_name: str, sources: Sequence[str | os.PathLike], **build_kwargs: Any) -> types.ModuleType:
    """The Python module `module_name`, compiled from C++ and CUDA files; the same object throughout the process.

    Later processes reuse a build until something that it depends on changes: its directory is named after `build_key`,
    in the `build_directory` of `build_kwargs`, by default TORCH_EXTENSIONS_DIR or the user's cache. If several
    processes ask at once, one builds and the others wait; a killed process leaves no stale lock. The other
    `build_kwargs` go to `torch.utils.cpp_extension.load`.

    Raises ValueError for an unknown `verbosity`, OSError for a missing source, and the errors of the compilation: the
    caller must handle a machine without a compiler. A failed compilation is not tried again: later calls raise the same
    error, and processes that waited for it raise a RuntimeError with the same message.
    """
    if verbosity not in _VERBOSITIES:
        raise ValueError(f"custom_ops.verbosity must be one of {', '.join(_VERBOSITIES)}, got {verbosity!r}")
    if module_name in _plugins:
        return _plugins[module_name]
    if module_name in _failures:
        raise _failures[module_name]
    paths = [pathlib.Path(path) for path in sources]
    root = build_kwargs.pop("build_directory", None)
    try:
        directory = _build_root(root) / module_name / build_key(paths, build_kwargs)
        directory.mkdir(parents=True, exist_ok=True)
        note = _failure_note(directory)
        with _sole_builder(directory), _one_attempt(directory, note):
            _plugins[module_name] = _load(module_name, paths, directory, build_kwargs)
    except Exception as error:
        _failures[module_name] = error
        raise
    return _plugins[module_name]


def build_key(sources: Sequence[pathlib.Path], build_kwargs: dict[str, Any]) -> str:
    """A hash of everything a build depends on: sources, adjacent headers, flags, PyTorch, CUDA, Python, GPUs."""
    headers = {path for source in sources for path in source.parent.iterdir() if path.suffix in _HEADERS}
    digest = hashlib.sha256()
    for path in [*sources, *sorted(headers)]:
        text = path.read_bytes()
        digest.update(f"{path.name} {len(text)} ".encode() + text)
    settings = [sorted(build_kwargs.items()), torch.__version__, torch.version.cuda, sys.implementation.cache_tag]
    if any(path.suffix == ".cu" for path in sources):
        settings.append(os.environ.get("TORCH_CUDA_ARCH_LIST"))
        settings.append([torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())])
    digest.update(repr(settings).encode())
    return digest.hexdigest()[:16]


def _build_root(root: str | os.PathLike | None) -> pathlib.Path:
    import torch.utils.cpp_extension  # takes a second, and most processes do not need it

    default = torch.utils.cpp_extension.get_default_build_root
    return pathlib.Path(root or os.environ.get("TORCH_EXTENSIONS_DIR") or default())


@contextlib.contextmanager
def _sole_builder(directory: pathlib.Path) -> Iterator[None]:
    """Keep other processes out of `directory`.

    The operating system releases this lock when its owner ends for any reason. PyTorch's own lock is a file that a
    killed process leaves behind and that the next one would wait for forever; here no other process can own it.
    """
    if fcntl is None:
        yield
        return
    with open(directory / "owner", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (directory / "lock").unlink(missing_ok=True)
        yield


@contextlib.contextmanager
def _one_attempt(directory: pathlib.Path, before: str | None) -> Iterator[None]:
    """Write a note of a failure in `directory`; raise RuntimeError if there is a newer note than `before`.

    Otherwise the processes of a training run would repeat, one after another, a build that cannot succeed. Processes
    that start later try again, because the machine may have been fixed.
    """
    note = _failure_note(directory)
    if note is not None and note != before:
        raise RuntimeError(note.partition("\n")[2])
    file = directory / "failure"
    try:
        yield
    except Exception as error:
        with contextlib.suppress(OSError):  # such as a full disk, which may be the cause of the failure
            file.write_text(f"{uuid.uuid4()}\n{str(error) or type(error).__name__}", encoding="utf-8")
        raise
    file.unlink(missing_ok=True)


def _failure_note(directory: pathlib.Path) -> str | None:
    """The note of the last attempt in `directory`, if it failed: a line unique to the attempt, then the reason."""
    try:
        return (directory / "failure").read_text(encoding="utf-8")
    except OSError:
        return None


def _load(name: str, sources: list[pathlib.Path], directory: pathlib.Path, build_kwargs: dict) -> types.ModuleType:
    """Load the module, and compile it first unless `directory` contains it; only a compilation prints a line."""
    import torch.utils.cpp_extension

    built = any(path.suffix in (".so", ".pyd") for path in directory.iterdir())
    speaks = verbosity == "full" or (verbosity == "brief" and not built)
    if speaks:
        print(f"Compiling {name}: ", end="\n" if verbosity == "full" else "", flush=True)
    start = time.monotonic()
    outcome = "failed"
    try:
        with warnings.catch_warnings():
            if verbosity != "full":  # about compiler versions, which matter only if the compilation fails
                warnings.simplefilter("ignore")
            plugin = torch.utils.cpp_extension.load(
                name=name,
                sources=[os.fspath(path) for path in sources],
                build_directory=os.fspath(directory),
                verbose=verbosity == "full",
                **build_kwargs,
            )
        outcome = f"done in {format_time(time.monotonic() - start)}"
    finally:
        if speaks:
            print(outcome, flush=True)
    return plugin
