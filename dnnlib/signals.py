# SPDX-License-Identifier: Apache-2.0
"""Handling the signals that ask a process to end."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))


@contextlib.contextmanager
def handled(handler: Callable) -> Iterator[None]:
    """Inside, `handler(signum, frame)` is called for each of `ENDING`; the handlers of before are restored.

    Python can handle signals in the main thread only; in another, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.signal(signum, handler) for signum in ENDING}
    try:
        yield
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)
