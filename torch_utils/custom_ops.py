# SPDX-License-Identifier: Apache-2.0
"""C++ and CUDA extensions, compiled when they are first asked for."""

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
except ImportError:  # Windows, where only PyTorch's own lock keeps processes apart
    fcntl = None

verbosity = "brief"  # 'none' = silent, 'brief' = a line for each compilation, 'full' = also what the compiler says

_VERBOSITIES = ("none", "brief", "full")
_HEADERS = (".h", ".hpp", ".cuh", ".inl")
_plugins: dict[str, types.ModuleType] = {}
_failures: dict[str, Exception] = {}


def get_plugin(module_name: str, sources: Sequence[str | os.PathLike], **build_kwargs: Any) -> types.ModuleType:
    """The Python module `module_name`, compiled from C++ and CUDA files; the same one for the life of the process.

    What was built serves later processes as long as nothing changes that it depends on: it lies in a directory named
    after `build_key`, in `build_directory` of `build_kwargs`, by default TORCH_EXTENSIONS_DIR or the user's cache. Of
    several processes that ask at once, one builds and the others wait; a process that is killed holds up nobody.
    The other `build_kwargs` go to `torch.utils.cpp_extension.load`.

    Raises ValueError for an unknown `verbosity`, OSError for a missing source, and whatever the compilation raises: a
    machine without a compiler is for the caller to deal with. A compilation that failed is not tried again: later
    calls raise the same error, and processes that waited for it a RuntimeError that says the same.
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
    """A name for all that a build depends on: sources, the headers beside them, flags, PyTorch, CUDA, Python, GPUs."""
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
    import torch.utils.cpp_extension  # takes a second, and most processes never need it

    default = torch.utils.cpp_extension.get_default_build_root
    return pathlib.Path(root or os.environ.get("TORCH_EXTENSIONS_DIR") or default())


@contextlib.contextmanager
def _sole_builder(directory: pathlib.Path) -> Iterator[None]:
    """Keep other processes out of `directory`.

    The operating system releases this lock when its owner ends, however it ends. PyTorch's own lock is a file that a
    killed process leaves behind, and that the next one would wait for without end: here nobody else can own it.
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
    """Note a failure in `directory`; raise RuntimeError with a note other than `before`, which was there on asking.

    Without it each process of a training run would repeat, one after the other, what cannot succeed. Processes that
    begin later try anew, for the machine may have been mended.
    """
    note = _failure_note(directory)
    if note is not None and note != before:
        raise RuntimeError(note.partition("\n")[2])
    file = directory / "failure"
    try:
        yield
    except Exception as error:
        with contextlib.suppress(OSError):  # such as a full disk, which may be what failed
            file.write_text(f"{uuid.uuid4()}\n{str(error) or type(error).__name__}", encoding="utf-8")
        raise
    file.unlink(missing_ok=True)


def _failure_note(directory: pathlib.Path) -> str | None:
    """What the last attempt in `directory` left, if it failed: a line that no other attempt has, then the reason."""
    try:
        return (directory / "failure").read_text(encoding="utf-8")
    except OSError:
        return None


def _load(name: str, sources: list[pathlib.Path], directory: pathlib.Path, build_kwargs: dict) -> types.ModuleType:
    """Load the module, compiled unless `directory` has it; only a compilation is worth a line."""
    import torch.utils.cpp_extension

    built = any(path.suffix in (".so", ".pyd") for path in directory.iterdir())
    speaks = verbosity == "full" or (verbosity == "brief" and not built)
    if speaks:
        print(f"Compiling {name}: ", end="\n" if verbosity == "full" else "", flush=True)
    start = time.monotonic()
    outcome = "failed"
    try:
        with warnings.catch_warnings():
            if verbosity != "full":  # on versions of compilers, which matter only if the compilation fails
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
