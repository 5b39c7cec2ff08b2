# SPDX-License-Identifier: Apache-2.0
"""Files and folders: reading regular files, atomic writing, listing, copying."""

import contextlib
import errno
import fnmatch
import json
import os
import pathlib
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from typing import IO, Any

from dnnlib.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_FULL_DISK = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # Windows has no quotas


def check_regular(path: str | os.PathLike) -> None:
    """Raises OSError unless `path` is a regular file: reading a pipe or a device may never end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))


def open_regular(path: str | os.PathLike) -> IO[bytes]:
    """Open the regular file `path` for reading. Raises OSError as `check_regular` does."""
    check_regular(path)
    return open(path, "rb")


def read_regular(path: str | os.PathLike, limit: int) -> bytes:
    """Contents of the regular file `path`. Raises OSError as `check_regular` does, and if it exceeds `limit` bytes."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise OSError(errno.EFBIG, f"larger than {limit >> 20} MiB", os.fspath(path))
        return file.read(limit)


@contextlib.contextmanager
def open_atomic(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO]:
    """Open `path` for atomic writing: it appears completely or not at all.

    The bytes go to a hidden temporary file in the same folder, which replaces `path` when the block ends without an
    exception and is removed otherwise. Where `path` is a symbolic link, the file behind it is replaced. A pipe or
    device stays in place and gets the finished bytes. Text modes write UTF-8; 'w+b' can also be read back. Raises
    OSError if the folder is missing or not writable.
    """
    if "w" not in mode:
        raise ValueError(f"open_atomic writes whole files: its mode must be 'wb' or 'w', not {mode!r}")
    special = os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)
    path = os.fspath(path) if special else os.path.realpath(path)
    with contextlib.ExitStack() as stack:
        folder, name = os.path.split(path)
        if special:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
        temporary = os.path.join(folder, f".{name[:100]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        try:
            with open(temporary, mode.replace("w", "x"), encoding=None if "b" in mode else "utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())  # or a power cut could leave the new name with nothing in it
            if special:
                with open(temporary, "rb") as source, open(path, "wb") as target:
                    shutil.copyfileobj(source, target)
            else:
                os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.remove(temporary)
            raise


@contextlib.contextmanager
def folder_atomic(path: str | os.PathLike, last: str | None = None) -> Iterator[pathlib.Path]:
    """A new folder to fill, which becomes `path`, missing or empty so far, when the block ends without an exception.

    With `last`, the name of a file, `path` may have files: those of the new folder replace them one by one, `last`
    after the others. Otherwise nothing of the new folder is left, and `path` is as it was. Where `path` is a symbolic
    link, the folder behind it is meant. Raises OSError if the parent is missing or not writable.
    """
    path = pathlib.Path(os.path.realpath(path))
    draft = path.parent / f".{path.name[:100]}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    draft.mkdir()
    try:
        yield draft
        if last is None or not path.is_dir():
            if path.is_dir():
                path.rmdir()
            draft.rename(path)
            return
        files = [file.relative_to(draft) for file in draft.rglob("*") if file.is_file()]
        for file in sorted(files, key=lambda file: str(file) == last):
            (path / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(draft / file, path / file)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def full_disk_is_a_user_error() -> Iterator[None]:
    """Inside this block, any write to a full disk raises UserError instead of OSError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL_DISK:
            raise
        where = f" ({error.filename})" if error.filename else ""
        raise UserError(f"{error.strerror}{where}: make room, or write to another disk (--outdir, --dest).") from error


def find_upwards(path: str, folder: str | os.PathLike) -> str:
    """`path` as seen from `folder`, or else from the nearest folder above it that has it; `path` if there is none.

    So a relative path is found from other folders too, if it lies beside what was made with it.
    """
    start = pathlib.Path(folder).absolute()
    found = (str(place / path) for place in (start, *start.parents) if (place / path).exists())
    return next(found, path)


def parse_json(data: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError for anything else, also if its lists are too deep."""
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with open_atomic(path, "w") as file:
        file.write(text)


def make_folder(path: str | os.PathLike, flag: str) -> pathlib.Path:
    """Make the folder that is the value of the option `flag`, with its parents. Raises UserError if that fails."""
    folder = pathlib.Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{flag}={path}: cannot make a folder there ({error.strerror})") from error
    return folder


@contextlib.contextmanager
def locked(folder: str | os.PathLike, wait: float = 20.0) -> Iterator[None]:
    """Inside, no other process that calls this has the same folder; the end of a process ends its lock.

    Raises UserError if another one does not release it within `wait` seconds. Does nothing on systems without flock.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise UserError(f"{folder} is in use by another process: wait until it ends, or end it") from error
                time.sleep(0.2)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        os.close(descriptor)


def append_line(path: str | os.PathLike, line: str) -> None:
    """Append `line` and a newline to a text file, completely or not at all. A missing file is created.

    Raises OSError if that fails.
    """
    data = f"{line}\n".encode()
    with open(path, "ab", buffering=0) as file:  # a buffer would later write again what is truncated here
        end = file.seek(0, os.SEEK_END)
        try:
            while data:
                data = data[file.write(data) :]
        except BaseException:
            file.truncate(end)
            raise


def list_dir_recursively_with_ignore(
    dir_path: str, ignores: list[str] | None = None, add_base_to_relative: bool = False
) -> list[tuple[str, str]]:
    """All files under `dir_path` as (absolute path, relative path), sorted.

    `ignores` are glob patterns for the base names of files and folders to omit. With `add_base_to_relative` the
    relative paths start with the folder's own name. Raises NotADirectoryError if there is no such folder.
    """
    if not os.path.isdir(dir_path):
        raise NotADirectoryError(f"no such folder: {dir_path}")
    ignores = ignores or []

    def kept(name: str) -> bool:
        return not any(fnmatch.fnmatch(name, pattern) for pattern in ignores)

    base = os.path.basename(os.path.abspath(dir_path)) if add_base_to_relative else ""
    found = []
    for root, folders, names in os.walk(dir_path, topdown=True):
        folders[:] = filter(kept, folders)
        for name in filter(kept, names):
            absolute = os.path.join(root, name)
            found.append((absolute, os.path.join(base, os.path.relpath(absolute, dir_path))))
    return sorted(found)


def copy_files_and_create_dirs(files: Iterable[tuple[str, str]]) -> None:
    """Copy each (source, destination) pair, creating missing folders."""
    for source, destination in files:
        folder = os.path.dirname(destination)
        if folder:
            os.makedirs(folder, exist_ok=True)
        shutil.copyfile(source, destination)
