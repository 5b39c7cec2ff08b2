# SPDX-License-Identifier: Apache-2.0
"""EasyDict, objects by name, the log tee. Re-exports the helpers for files, URLs and durations. No torch."""

import contextlib
import importlib
import os
import sys
import types
from collections.abc import Callable
from typing import Any, TextIO

from dnnlib.errors import UserError
from dnnlib.files import append_line, copy_files_and_create_dirs, list_dir_recursively_with_ignore, open_atomic
from dnnlib.text import format_time
from dnnlib.urls import CacheError, DigestError, DownloadError, is_url, make_cache_dir_path, open_url

__all__ = [
    "CacheError",
    "DigestError",
    "DownloadError",
    "EasyDict",
    "Logger",
    "UserError",
    "append_line",
    "call_func_by_name",
    "construct_class_by_name",
    "copy_files_and_create_dirs",
    "format_time",
    "get_module_from_obj_name",
    "get_obj_by_name",
    "get_top_level_function_name",
    "is_url",
    "list_dir_recursively_with_ignore",
    "make_cache_dir_path",
    "open_atomic",
    "open_url",
]


class EasyDict(dict):
    """A dict whose items are also attributes: `d.lr = 1` and `d["lr"] = 1` are the same.

    Pickles refer to it as `dnnlib.util.EasyDict`, so it is defined here and stays a plain dict subclass.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(name) from None


class _Tee:
    """A text stream that copies its input to a Logger and otherwise behaves like the wrapped stream."""

    def __init__(self, stream: TextIO, log: Callable[[str], None], should_flush: bool):
        self._stream = stream
        self._log = log
        self._should_flush = should_flush

    def write(self, text: str | bytes) -> int:
        """Write to the stream and to the log."""
        if isinstance(text, bytes):
            text = text.decode()
        if text:
            self._stream.write(text)
            if self._should_flush:
                self._stream.flush()
            self._log(text)
        return len(text)

    def writelines(self, lines) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Logger:
    """While open, everything printed to stdout and stderr is also written to `file_name`.

    With `file_name` None it only flushes. `file_mode` is 'w' (overwrite) or 'a' (append). Use it as a context manager
    or call `close()`: both restore sys.stdout and sys.stderr.
    """

    def __init__(self, file_name: str | None = None, file_mode: str = "w", should_flush: bool = True):
        self._should_flush = should_flush
        self._file = None if file_name is None else open(file_name, file_mode, encoding="utf-8")  # noqa: SIM115
        self._streams = (sys.stdout, sys.stderr)
        self._tees = tuple(_Tee(stream, self._log, should_flush) for stream in self._streams)
        sys.stdout, sys.stderr = self._tees

    def _log(self, text: str) -> None:
        # A progress line that will be overwritten in place does not belong in a file; its final state does.
        if self._file is None or (text.startswith("\r") and not text.endswith("\n")):
            return
        try:
            self._file.write(text.lstrip("\r"))
            if self._should_flush:
                self._file.flush()
        except OSError:
            # Later output, including the message about this failure, must reach the terminal.
            with contextlib.suppress(OSError):
                self._close_file()
            raise

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def write(self, text: str | bytes) -> None:
        """Write `text` unchanged to stdout and to the file."""
        self._tees[0].write(text)

    def flush(self) -> None:
        """Flush the file and stdout."""
        if self._file is not None:
            self._file.flush()
        self._streams[0].flush()

    def close(self) -> None:
        """Restore sys.stdout and sys.stderr unless replaced since, and close the file. Further calls have no effect."""
        if sys.stdout is self._tees[0]:
            sys.stdout = self._streams[0]
        if sys.stderr is self._tees[1]:
            sys.stderr = self._streams[1]
        self._streams[0].flush()
        self._close_file()

    def __enter__(self) -> "Logger":
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()


def get_module_from_obj_name(obj_name: str) -> tuple[types.ModuleType, str]:
    """Split 'package.module.Class.attr' into the imported module and the rest of the name.

    Raises ImportError if no prefix of the name is a module that has the rest; an ImportError from inside an existing
    module is passed on unchanged.
    """
    parts = obj_name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module_name, local_name = ".".join(parts[:length]), ".".join(parts[length:])
        try:
            module = importlib.import_module(module_name)
            _get_attribute(module, local_name)
        except ModuleNotFoundError as error:
            missing = error.name or ""
            if module_name != missing and not module_name.startswith(f"{missing}."):
                raise
        except AttributeError:
            continue
        else:
            return module, local_name
    raise ImportError(f"there is no importable object named {obj_name!r}")


def _get_attribute(obj: Any, dotted_name: str) -> Any:
    for part in dotted_name.split("."):
        obj = getattr(obj, part)
    return obj


def get_obj_by_name(name: str) -> Any:
    """The object with the fully qualified name `name`; its module is imported. Raises ImportError."""
    module, local_name = get_module_from_obj_name(name)
    return _get_attribute(module, local_name)


def call_func_by_name(*args: Any, func_name: str, **kwargs: Any) -> Any:
    """Call the function with the fully qualified name `func_name`."""
    return get_obj_by_name(func_name)(*args, **kwargs)


def construct_class_by_name(*args: Any, class_name: str, **kwargs: Any) -> Any:
    """Construct an object of the class with the fully qualified name `class_name`."""
    return call_func_by_name(*args, func_name=class_name, **kwargs)


def get_top_level_function_name(obj: Callable) -> str:
    """Fully qualified name under which another process can import a module-level function or class.

    Raises ValueError for anything that is not an attribute of its module under its own name.
    """
    module = sys.modules.get(getattr(obj, "__module__", None) or "")
    name = getattr(obj, "__name__", None)
    if module is None or name is None or getattr(module, name, None) is not obj:
        raise ValueError(f"{obj!r} is not a top-level function")
    module_name = module.__name__
    if module_name == "__main__":
        module_name = os.path.splitext(os.path.basename(module.__file__))[0]
    return f"{module_name}.{name}"
