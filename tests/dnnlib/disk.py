# SPDX-License-Identifier: Apache-2.0
"""A disk without room, as far as a test can have one."""

import contextlib
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Inside it, no file that this process writes can grow beyond `size` bytes: OSError."""
    resource = pytest.importorskip("resource", reason="limits are POSIX")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
