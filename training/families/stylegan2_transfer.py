# SPDX-License-Identifier: Apache-2.0
"""Tensors of StyleGAN2's networks for other data, chosen so that G starts with the images that it made before."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dnnlib.util import UserError

if TYPE_CHECKING:
    import torch


def fit_tensor(name: str, old: torch.nn.Module, new: torch.nn.Module) -> torch.Tensor | None:
    """The value of a tensor of `new`, made from `old`; None: see `Family.fit_tensor`.

    - A ToRGB layer of a new resolution is 0, so that G starts with its old images, enlarged.
    - Between grey and RGB, ToRGB and FromRGB layers are averaged or repeated: images become their mean channel, or
      equal channels, and D scores grey images as before.
    - With labels added, the first mapping layer ignores them at first; with labels dropped, it sees their mean.
    """
    import torch

    tensors = old.state_dict()
    layer, _, part = name.rpartition(".")
    kind = layer.rpartition(".")[2]
    if kind == "torgb" and part in ("weight", "bias") and name not in tensors:
        enlarged = all(block.architecture == "skip" for block in old.synthesis.children())
        return torch.zeros([]) if enlarged else None
    if name not in tensors:
        return None
    if kind in ("torgb", "fromrgb") and old.img_channels != new.img_channels:
        if kind == "torgb" and part in ("weight", "bias"):
            return _channels(tensors[name], 0, new.img_channels)
        if kind == "fromrgb" and part == "weight":
            # Layers divide their weights by the square root of the number of channels.
            scale = math.sqrt(old.img_channels / new.img_channels)
            return _channels(tensors[name], 1, new.img_channels) * scale
    if layer == "mapping.fc0" and hasattr(old, "z_dim") and bool(old.c_dim) != bool(new.c_dim):
        return _first_layer(part, old.mapping, new.mapping)
    return None


def _channels(tensor: torch.Tensor, axis: int, count: int) -> torch.Tensor:
    if {tensor.shape[axis], count} != {1, 3}:
        raise UserError(f"cannot change from {tensor.shape[axis]} to {count} channels, only between 1 and 3")
    if count == 1:
        return tensor.mean(dim=axis, keepdim=True)
    return tensor.repeat_interleave(count, dim=axis)


def _first_layer(part: str, old: torch.nn.Module, new: torch.nn.Module) -> torch.Tensor | None:
    """The mapping network's first layer, whose input is z [Z] and then, with labels, their embedding.

    It divides its weight by the square root of the number of inputs.
    """
    import torch

    from training.networks import normalize_2nd_moment

    before, after = old.fc0, new.fc0
    if part == "weight":
        weight = torch.zeros(after.weight.shape)
        weight[:, : old.z_dim] = before.weight[:, : old.z_dim] * (before.weight_gain / after.weight_gain)
        return weight
    if part == "bias" and old.c_dim:
        embedded = normalize_2nd_moment(old.embed(torch.eye(old.c_dim)))
        seen = embedded @ before.weight[:, old.z_dim :].t() * before.weight_gain
        return before.bias + seen.mean(dim=0) / before.bias_gain
    return None
