# SPDX-License-Identifier: Apache-2.0
"""The definition of `bias_act` and its table of activations."""

import dataclasses
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F


@dataclasses.dataclass(frozen=True)
class Activation:
    """An activation `func(x, alpha)`, its default `alpha`, and the default gain, which preserves the signal's scale."""

    func: Callable[..., torch.Tensor]
    def_alpha: float = 0.0
    def_gain: float = 1.0


activation_funcs: dict[str, Activation] = {
    "linear": Activation(lambda x, alpha=0.0: x),
    "relu": Activation(lambda x, alpha=0.0: F.relu(x), def_gain=math.sqrt(2)),
    "lrelu": Activation(lambda x, alpha=0.2: F.leaky_relu(x, alpha), def_alpha=0.2, def_gain=math.sqrt(2)),
    "tanh": Activation(lambda x, alpha=0.0: torch.tanh(x)),
    "sigmoid": Activation(lambda x, alpha=0.0: torch.sigmoid(x)),
    "elu": Activation(lambda x, alpha=0.0: F.elu(x)),
    "selu": Activation(lambda x, alpha=0.0: F.selu(x)),
    "softplus": Activation(lambda x, alpha=0.0: F.softplus(x)),
    "swish": Activation(lambda x, alpha=0.0: x * torch.sigmoid(x), def_gain=math.sqrt(2)),
}


def bias_act_ref(
    x: torch.Tensor, b: torch.Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float | None
) -> torch.Tensor:
    """clamp(act(x + b) * gain, ±clamp), step by step; arguments as for `bias_act`, with the defaults filled in."""
    if b is not None:
        x = x + along(b, dim, x.ndim)
    x = activation_funcs[act].func(x, alpha=alpha)
    if gain != 1:
        x = x * gain
    return x if clamp is None else x.clamp(-clamp, clamp)


def along(b: torch.Tensor, dim: int, ndim: int) -> torch.Tensor:
    """`b` [n] in a shape that broadcasts along axis `dim` of `ndim`."""
    shape = [1] * ndim
    shape[dim] = -1
    return b.reshape(shape)
