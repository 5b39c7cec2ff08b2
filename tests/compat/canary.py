# SPDX-License-Identifier: Apache-2.0
"""Detect side effects by the interpreter's audit events, and limit the memory of a step."""

import contextlib
import sys
from collections.abc import Iterator

# Any harm that a pickle could do raises one of these. 'pickle.find_class' means that Python's own unpickler is running,
# which a foreign file must never reach.
WATCHED = (
    *("code.__new__", "compile", "ctypes.", "exec", "function.__new__", "import", "marshal.", "open", "os."),
    *("pickle.find_class", "pty.", "shutil.", "socket.", "subprocess.", "tempfile.", "urllib.", "webbrowser."),
)
_listeners: list[list[str]] = []


def _hear(event: str, arguments: tuple) -> None:
    if _listeners and event.startswith(WATCHED):
        _listeners[-1].append(f"{event} {arguments!r:.200}")


sys.addaudithook(_hear)  # a hook cannot be removed, so all tests share it; inactive without listeners


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """Yield a list that receives descriptions of the side effects inside."""
    heard: list[str] = []
    _listeners.append(heard)
    try:
        yield heard
    finally:
        _listeners.pop()


@contextlib.contextmanager
def at_most(extra_bytes: int) -> Iterator[None]:
    """Make allocations fail beyond `extra_bytes` of additional address space. Has no effect outside Linux."""
    if not sys.platform.startswith("linux"):
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        in_use = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + extra_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def ran_out(error: BaseException | None) -> bool:
    """Whether a lack of memory is among the causes of an error."""
    while error is not None:
        if isinstance(error, MemoryError) or "allocate" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
