# SPDX-License-Identifier: Apache-2.0
"""Noticing a run that has gone wrong: weights or losses that are infinite or not a number."""

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from dnnlib.util import UserError
from torch_utils import distributed, misc


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


@contextlib.contextmanager
def lost_folder_is_a_user_error(run_dir: str) -> Iterator[None]:
    """Inside, the loss of the run directory raises UserError instead of FileNotFoundError."""
    try:
        yield
    except FileNotFoundError as error:
        if os.path.isdir(run_dir):
            raise
        raise UserError(f"the run directory {run_dir} is gone: training ends here") from error


@torch.no_grad()
def _all_finite(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Whether all elements of all `tensors` are finite, a scalar on their device."""
    return torch.stack([tensor.isfinite().all() for tensor in tensors if tensor.is_floating_point()]).all()


def not_finite(networks: dict[str, torch.nn.Module], loss: Any, means: Mapping[str, float]) -> str | None:
    """What is not finite, in words, or None: tensors of `networks`, statistics that the `loss` keeps, or `means`.

    Every process must call it, and all get the same answer. The host waits for the device once.
    """
    parts = {f"the weights of {name}": misc.params_and_buffers(network) for name, network in networks.items()}
    parts["a statistic that the loss keeps"] = list(getattr(loss, "own_statistics", ()))
    parts = {name: tensors for name, tensors in parts.items() if any(map(torch.is_floating_point, tensors))}
    bad = [name for name, mean in means.items() if not math.isfinite(mean)]
    if parts:
        finite = torch.stack([_all_finite(tensors) for tensors in parts.values()]).float()
        wrong = distributed.all_reduce_(1 - finite).tolist()
        bad = [name for name, count in zip(parts, wrong) if count] + bad
    return bad[0] if bad else None
