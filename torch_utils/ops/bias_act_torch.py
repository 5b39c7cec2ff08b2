# SPDX-License-Identifier: Apache-2.0
"""`bias_act` by PyTorch functions, on a CPU in as few passes over memory as they allow.

For linear, relu and lrelu f(g·x) = g·f(x) if g >= 0, so that the gain joins the addition of the bias. Their slope
follows from their output, so that the activation works in place, and autograd keeps that output instead of the input.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from torch_utils.ops import layout
from torch_utils.ops.bias_act_ref import activation_funcs, along

_IN_PLACE: dict[str, Callable[..., torch.Tensor]] = {
    "linear": lambda x, alpha: x,
    "relu": lambda x, alpha: F.relu(x, inplace=True),
    "lrelu": lambda x, alpha: F.leaky_relu(x, alpha, inplace=True),
}


def bias_act(
    x: torch.Tensor,
    b: torch.Tensor | None,
    dim: int,
    act: str,
    alpha: float,
    gain: float,
    clamp: float | None,
    on_cpu: bool,
) -> torch.Tensor:
    """`torch_utils.ops.bias_act.bias_act` on checked arguments with the defaults filled in."""
    if on_cpu and act in _IN_PLACE and gain >= 0 and not (act == "lrelu" and alpha <= 0):
        return _clamped(_IN_PLACE[act](_scaled_sum(x, b, dim, gain), alpha), clamp)
    y = x if b is None else x + along(b, dim, x.ndim)
    y = activation_funcs[act].func(y, alpha=alpha)
    y = y if gain == 1 else y * gain
    return y if clamp is None else y.clamp(-clamp, clamp)


def _scaled_sum(x: torch.Tensor, b: torch.Tensor | None, dim: int, gain: float) -> torch.Tensor:
    """(x + b) * gain, in new memory."""
    return x * gain if b is None else torch.add(along(b * gain, dim, x.ndim), x, alpha=gain)


def _clamped(y: torch.Tensor, clamp: float | None) -> torch.Tensor:
    """`y`, which nobody else uses, clamped to ±`clamp`."""
    if clamp is None:
        return y
    if not y.requires_grad:
        return y.clamp_(-clamp, clamp)
    return y if _within(y, clamp) else y.clamp(-clamp, clamp)


def _within(y: torch.Tensor, bound: float) -> bool:
    """Whether no element exceeds `bound` in magnitude; a NaN does. False while operations are traced.

    Reading memory once is cheaper than clamping, which takes several passes, most of them in its backward.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or y.numel() == 0:
        return False
    low, high = layout.in_memory_order(y.detach()).aminmax()  # other axes than this one would be copied first
    return bool((low >= -bound) & (high <= bound))
