# SPDX-License-Identifier: Apache-2.0
"""Runs on a CPU the implementations that operations choose on other devices."""

import contextlib
from collections.abc import Iterator

import pytest

from torch_utils.ops import backend

ALL = (backend.REFERENCE, backend.CPU, backend.GENERIC, backend.KERNELS)


@contextlib.contextmanager
def chosen(implementation: str) -> Iterator[None]:
    """Inside, operations on CPU tensors choose `implementation`, or GENERIC instead of KERNELS where they have none.

    `impl='ref'`, `reference_path` and tensors on other devices are not affected. KERNELS needs the module
    cuda_ops_on_cpu.
    """
    original = backend.choose

    def choose(x, impl="cuda", has_kernels=False):
        if impl == "ref" or backend.is_reference() or x.device.type != "cpu":
            return original(x, impl, has_kernels)
        return backend.GENERIC if implementation == backend.KERNELS and not has_kernels else implementation

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "choose", choose)
        yield
