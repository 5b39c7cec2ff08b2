# SPDX-License-Identifier: Apache-2.0
"""Work in other threads while this one goes on: items made ahead of their use, and calls whose results nobody awaits.

Threads run at once where they leave the interpreter: in PyTorch's operations, compression, and waits for a disk.
"""

import collections
import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
_END: Any = object()
_DEPTH = 2  # items made or waiting to be used


@contextlib.contextmanager
def ahead(items: Iterable[T], overlap: bool = True) -> Iterator[Iterator[T]]:
    """Gives `items` in order, each made in another thread while earlier ones are used; without `overlap`, in this one.

    All are made in one thread, which has ended when the block ends. An exception while making an item is raised where
    the item would be given. Settings of PyTorch that belong to a thread, such as no_grad, must be made inside `items`.
    """
    source = iter(items)
    if not overlap:
        yield source
        return
    pool = ThreadPoolExecutor(1)
    pending: collections.deque[Future[T]] = collections.deque()

    def given() -> Iterator[T]:
        for _ in range(_DEPTH):
            pending.append(pool.submit(next, source, _END))
        while (item := pending.popleft().result()) is not _END:
            pending.append(pool.submit(next, source, _END))
            yield item

    try:
        yield given()
    finally:
        pool.shutdown(cancel_futures=True)


class Background:
    """A few threads for calls such as the writing of files. Leaving the block waits for all of them.

    Args:
        threads: Calls that run at a time.
        most: Calls that have not ended; `submit` waits for the first of them when there are more.
    """

    def __init__(self, threads: int, most: int):
        self._pool = ThreadPoolExecutor(threads)
        self._most = most
        self._pending: collections.deque[Future] = collections.deque()

    def submit(self, function: Callable[..., object], *args: object) -> None:
        """Call `function(*args)` in one of the threads. Raises the exception of an earlier call that failed."""
        while self._pending and (self._pending[0].done() or len(self._pending) >= self._most):
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(function, *args))

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, kind: type | None, *exc_info: object) -> None:
        try:
            while self._pending and kind is None:
                self._pending.popleft().result()
        finally:
            self._pool.shutdown(cancel_futures=True)
