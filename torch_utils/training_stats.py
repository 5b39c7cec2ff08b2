# SPDX-License-Identifier: Apache-2.0
"""Statistics of training: reported anywhere, gathered over all processes, read as count, mean and deviation.

`report` only queues [count, sum, sum of squares] on the value's own device, so it never makes the host wait for a
GPU. A Collector's `update` folds the queue into float64 totals on the CPU, one transfer a device.
"""

import re
from typing import Any

import numpy as np
import torch

from dnnlib.util import EasyDict

_FOLD_AT = 64  # reports of one statistic that wait on the device before they are added up there

_rank = 0
_sync_device: torch.device | None = None
_pending: dict[str, dict[torch.device, list[torch.Tensor]]] = {}
_totals: dict[str, torch.Tensor] = {}


def init_multiprocessing(rank: int, sync_device: torch.device | str | None) -> None:
    """Gather statistics over the processes of torch.distributed, through `sync_device`; None: this process only."""
    global _rank, _sync_device
    _rank = rank
    _sync_device = None if sync_device is None else torch.device(sync_device)


def report(name: str, value: Any) -> Any:
    """Add all elements of `value` (tensor, array, list or number; may be empty) to the statistic `name`.

    Returns `value`. In a multi-process run every process must report the same names between updates of a collector.
    """
    with torch.no_grad():
        elements = torch.as_tensor(value).detach().flatten()
        if elements.is_floating_point() or elements.numel() == 0:
            elements = elements.to(torch.float32)
        else:
            elements = elements.to(torch.float64 if elements.device.type != "mps" else torch.float32)
        count = torch.full_like(elements[:1].sum(), elements.numel())
        moments = torch.stack([count, elements.sum(), elements.square().sum()])
        moments = moments.to(torch.float64) if moments.device.type != "mps" else moments
    queue = _pending.setdefault(name, {}).setdefault(moments.device, [])
    queue.append(moments)
    if len(queue) >= _FOLD_AT:
        queue[:] = [torch.stack(queue).sum(dim=0)]
    return value


def report0(name: str, value: Any) -> Any:
    """As `report`, but only process 0's value counts. Every process must call it."""
    report(name, value if _rank == 0 else [])
    return value


class Collector:
    """Reads the statistics whose names match `regex` (whole name).

    What is reported between two calls of `update` makes one period; the properties describe the last period in which
    the statistic was reported, or, with `keep_previous` off, the last period alone.
    """

    def __init__(self, regex: str = ".*", keep_previous: bool = True):
        self._regex = re.compile(regex)
        self._keep_previous = keep_previous
        self._seen: dict[str, torch.Tensor] = {}
        self._moments: dict[str, torch.Tensor] = {}
        self.update()
        self._moments.clear()

    def names(self) -> list[str]:
        """Names of all statistics reported so far that match."""
        return [name for name in _totals if self._regex.fullmatch(name)]

    def update(self) -> None:
        """Start a new period: take what was reported since the last call. Every process must call it."""
        if not self._keep_previous:
            self._moments.clear()
        _gather()
        for name in self.names():
            total = _totals[name]
            new = total - self._seen.get(name, torch.zeros_like(total))
            self._seen[name] = total
            if new[0] > 0:
                self._moments[name] = new

    def _get(self, name: str) -> tuple[float, float, float]:
        if not self._regex.fullmatch(name):
            raise KeyError(f"this collector does not read {name!r}")
        return tuple(self._moments[name].tolist()) if name in self._moments else (0.0, 0.0, 0.0)

    def num(self, name: str) -> int:
        """Number of elements reported."""
        return int(self._get(name)[0])

    def mean(self, name: str) -> float:
        """Mean; NaN if nothing was reported."""
        num, total, _squares = self._get(name)
        return total / num if num else float("nan")

    def std(self, name: str) -> float:
        """Population standard deviation; 0 for one element; NaN if nothing was reported."""
        num, total, squares = self._get(name)
        if not num:
            return float("nan")
        if not np.isfinite(squares) or num == 1:
            return 0.0 if num == 1 else float("nan")
        return float(np.sqrt(max(squares / num - (total / num) ** 2, 0.0)))

    def as_dict(self) -> EasyDict:
        """All statistics, each as `num`, `mean` and `std`."""
        return EasyDict((n, EasyDict(num=self.num(n), mean=self.mean(n), std=self.std(n))) for n in self.names())

    def __getitem__(self, name: str) -> float:
        """Mean of the statistic."""
        return self.mean(name)


def _gather() -> None:
    """Fold what is pending, here and in the other processes, into the totals."""
    names = list(_pending)
    if not names:
        return
    deltas = torch.zeros([len(names), 3], dtype=torch.float64)
    for row, name in enumerate(names):
        for queue in _pending[name].values():
            if queue:
                deltas[row] += torch.stack(queue).sum(dim=0).cpu().to(torch.float64)
                queue.clear()
    if _sync_device is not None:
        shared = deltas.to(_sync_device)
        torch.distributed.all_reduce(shared)
        deltas = shared.cpu()
    for name, delta in zip(names, deltas):
        _totals[name] = _totals[name] + delta if name in _totals else delta
