# SPDX-License-Identifier: Apache-2.0
"""Memory layout of weights: channels-last on a CPU while a network runs, the standard layout in files."""

import torch

from torch_utils.ops import backend


def prepare(network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """Move `network` to `device` and lay its weights out as the convolutions there read them; returns it.

    On a CPU that is channels-last, which saves each convolution a conversion. Snapshots do not show it.
    """
    network = network.to(device)
    if device.type != "cpu" or backend.is_reference():
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


def standard(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in the standard layout, whatever `prepare` made of it."""
    return tensor.contiguous()
