# SPDX-License-Identifier: Apache-2.0
"""Noticing a run that has gone wrong: weights or losses that are infinite or not a number."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from dnnlib.util import UserError
from torch_utils import misc


class Diverged(UserError):
    """Training cannot go on: something that lasts is not finite any more."""


@contextlib.contextmanager
def memory_is_a_user_error() -> Iterator[None]:
    """Inside, memory that PyTorch does not get raises UserError instead of RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        first = str(error).splitlines()[0]
        raise UserError(
            f"out of memory: {first}: take smaller micro-batches (--batch-gpu), narrower networks (--cbase), half "
            f"precision (--precision=auto), or end other programs on this device"
        ) from error


@torch.no_grad()
def _all_finite(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Whether all elements of all `tensors` are finite, a scalar on their device."""
    return torch.stack([tensor.isfinite().all() for tensor in tensors if tensor.is_floating_point()]).all()


def tensors_of(state: Any) -> list[torch.Tensor]:
    """All tensors in a nest of dicts and lists."""
    if isinstance(state, torch.Tensor):
        return [state]
    values = state.values() if isinstance(state, Mapping) else state if isinstance(state, (list, tuple)) else ()
    return [tensor for value in values for tensor in tensors_of(value)]


def not_finite(networks: dict[str, torch.nn.Module], loss: Any, means: Mapping[str, float]) -> str | None:
    """What is not finite, in words, or None: tensors of `networks`, of the state of `loss`, or reported `means`.

    Reads one number from the device. A statistic of which nothing was reported has no mean and is passed over.
    """
    parts = {f"weights of {name}": misc.params_and_buffers(network) for name, network in networks.items()}
    if hasattr(loss, "state_dict"):
        parts["state of the loss"] = tensors_of(loss.state_dict())
    parts = {name: tensors for name, tensors in parts.items() if any(map(torch.is_floating_point, tensors))}
    finite = torch.stack([_all_finite(tensors).to("cpu", non_blocking=True) for tensors in parts.values()])
    bad = [name for name, good in zip(parts, finite.tolist()) if not good]
    bad += [name for name, mean in means.items() if not math.isfinite(mean)]
    return f"the {bad[0]}" if bad and bad[0] in parts else bad[0] if bad else None
