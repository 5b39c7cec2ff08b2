# SPDX-License-Identifier: Apache-2.0
"""Find where Python reads the values of tensors, which makes the host wait for a GPU."""

import contextlib
import traceback
from collections.abc import Iterator

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Operations whose result, or its shape, the host must know.
READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "is_nonzero"}
METHODS = ("tolist", "numpy", "cpu")  # They read a CPU tensor without an operation.


def where() -> str:
    """File and function of the project that made the call."""
    stack = traceback.extract_stack()
    frames = [frame for frame in stack if "site-packages" not in frame.filename and frame.filename != __file__]
    return f"{frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].name}"


class _Watch(TorchDispatchMode):
    def __init__(self, found: list[str]):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in READS or by_mask:
            self.found.append(f"{name} in {where()}")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """Yield a list that receives every place where the host reads a tensor."""
    found: list[str] = []
    originals = {name: getattr(torch.Tensor, name) for name in METHODS}

    def noted(name):
        def method(self, *args, **kwargs):
            found.append(f"{name} in {where()}")
            return originals[name](self, *args, **kwargs)

        return method

    for name in METHODS:
        setattr(torch.Tensor, name, noted(name))
    try:
        with _Watch(found):
            yield found
    finally:
        for name, method in originals.items():
            setattr(torch.Tensor, name, method)
