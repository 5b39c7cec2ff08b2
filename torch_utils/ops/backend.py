# SPDX-License-Identifier: Apache-2.0
"""Which implementation of an operation runs. This is the only place that looks at devices, types and switches.

Each public function asks `choose` once per call and passes the answer down:

    REFERENCE   the definition, in plain PyTorch: `impl='ref'`, or anything inside `reference_path`
    KERNELS     the CUDA kernels of csrc/
    CPU         PyTorch functions in the memory layout and order that suit a CPU
    GENERIC     PyTorch functions that suit any device

`bias_act`, `upfirdn2d` and the convolutions of `conv2d_gradfix` have these implementations, and `conv2d_resample` is
composed of the latter two. `fma` and `grid_sample` have one implementation for all devices and do not ask.
"""

import contextlib
from collections.abc import Iterator

import torch

from torch_utils.ops import _plugin

REFERENCE, KERNELS, CPU, GENERIC = "reference", "kernels", "cpu", "generic"

# One flag for all threads, because backward passes run on other threads.
_reference = False


@contextlib.contextmanager
def reference_path() -> Iterator[None]:
    """Inside, operations run their definition in plain PyTorch, as with `impl='ref'`.

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


def choose(x: torch.Tensor, impl: str = "cuda", has_kernels: bool = False) -> str:
    """The implementation for the input `x`: REFERENCE, KERNELS, CPU or GENERIC.

    `impl` is the caller's choice, 'cuda' (the fastest available) or 'ref'; `has_kernels` says that the operation has
    CUDA kernels. The first CUDA tensor of a supported type builds them.
    """
    if impl == "ref" or _reference:
        return REFERENCE
    if x.device.type == "cpu":
        return CPU
    if has_kernels and x.device.type == "cuda" and x.dtype in _plugin.TYPES and _plugin.load() is not None:
        return KERNELS
    return GENERIC


def choose_convolution(x: torch.Tensor, enabled: bool) -> str:
    """`choose` for a convolution; `enabled` is its module's switch. Under autocast, PyTorch's own chooses the types."""
    if not enabled or torch.is_autocast_enabled(x.device.type):
        return REFERENCE
    return choose(x)


def prefers_channels_last(device: torch.device) -> bool:
    """Whether the convolutions on `device` read their weights in channels-last."""
    return device.type == "cpu" and not _reference


def transposed_depthwise_type(x: torch.Tensor) -> torch.dtype:
    """The type in which to compute a transposed depthwise convolution of `x`.

    fp32 on a CPU: PyTorch has no fast routine for half precision there. Converting, convolving and converting back
    takes 2 to 10 percent of its time (on a processor with AVX-512 BF16, 8x8 to 64x64).
    """
    return torch.float32 if x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16) else x.dtype
