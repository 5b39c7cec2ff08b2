# SPDX-License-Identifier: Apache-2.0
"""`torch.nn.functional`'s 2-D convolutions, with a way to leave out the weight gradients of a backward pass.

The gradient penalties differentiate a network with respect to its input, keeping the graph, and have no use for the
weight gradients of that first pass.
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

enabled = True  # False: the plain functions, whose weight gradients cannot be left out.

# One flag for all threads: a backward pass runs its nodes on threads of its own.
_weight_gradients_disabled = False


@contextlib.contextmanager
def no_weight_gradients() -> Iterator[None]:
    """Backward passes that run inside leave out the gradients of this module's convolutions to their weights."""
    global _weight_gradients_disabled
    before = _weight_gradients_disabled
    _weight_gradients_disabled = True
    try:
        yield
    finally:
        _weight_gradients_disabled = before


def conv2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> torch.Tensor:
    """`torch.nn.functional.conv2d` that `no_weight_gradients` governs; differentiable to any order."""
    return F.conv2d(input, _gated(weight), bias, stride, padding, dilation, groups)


def conv_transpose2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> torch.Tensor:
    """`torch.nn.functional.conv_transpose2d` that `no_weight_gradients` governs; differentiable to any order."""
    return F.conv_transpose2d(input, _gated(weight), bias, stride, padding, output_padding, groups, dilation)


def _gated(weight: torch.Tensor) -> torch.Tensor:
    """`weight`, its gradient stopped while `no_weight_gradients` is active in the backward pass."""
    if enabled and weight.requires_grad and torch.is_grad_enabled():
        return _WeightGate.apply(weight)
    return weight


class _WeightGate(torch.autograd.Function):
    """The identity; its backward lets a gradient through or not.

    A pass to inputs that do not lie behind a weight never reaches its gate, and autograd then skips the work.
    """

    @staticmethod
    def forward(ctx, weight: torch.Tensor) -> torch.Tensor:
        ctx.set_materialize_grads(False)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, grad: torch.Tensor | None) -> torch.Tensor | None:
        return None if _weight_gradients_disabled else grad
