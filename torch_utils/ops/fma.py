# SPDX-License-Identifier: Apache-2.0
"""Multiply and add in one pass."""

import torch


def fma(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """a * b + c with broadcasting, differentiable to any order; the result has the three tensors' promoted type."""
    return torch.addcmul(c, a, b)
