# SPDX-License-Identifier: Apache-2.0
"""Which path the operations take: the fastest that fits the tensors, or the plain one that defines the result."""

import contextlib
from collections.abc import Iterator

import torch

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


def place(network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """Move `network` to `device` and lay its weights out as the convolutions there read them; returns it.

    On a CPU that is channels-last, which saves each convolution a conversion. Snapshots do not show it.
    """
    network = network.to(device)
    if device.type != "cpu" or _reference:
        return network
    for module in network.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.Tensor) and weight.ndim == 4:
            # Transposed convolutions, which all kernels but 1x1 become, read them with their channels exchanged.
            exchanged = getattr(module, "up", 1) != 1 and weight.shape[2:] != (1, 1)
            weight.data = _channels_last(weight.data, exchanged)
    return network


def _channels_last(weight: torch.Tensor, exchanged: bool) -> torch.Tensor:
    """`weight` [O, I, K, K] in the layout in which it, or weight.transpose(0, 1) if `exchanged`, is channels-last."""
    if exchanged:
        return weight.transpose(0, 1).contiguous(memory_format=torch.channels_last).transpose(0, 1)
    return weight.contiguous(memory_format=torch.channels_last)
