# SPDX-License-Identifier: Apache-2.0
"""Which path the operations take: the fastest that fits the tensors, or the plain one that defines the result."""

import contextlib
from collections.abc import Iterator

# One flag for all threads: a backward pass runs its nodes on threads of its own.
_reference = False


@contextlib.contextmanager
def reference_path() -> Iterator[None]:
    """Inside, every operation of this package takes its plain PyTorch path, as with `impl='ref'`.

    Benchmarks and tests compare with it; results agree to rounding (docs/numerics.md).
    """
    global _reference
    before = _reference
    _reference = True
    try:
        yield
    finally:
        _reference = before


def is_reference() -> bool:
    """Whether `reference_path` is active."""
    return _reference
