# SPDX-License-Identifier: Apache-2.0
"""Training statistics: reported anywhere, summed over all processes, read as count, mean and standard deviation.

`report` only queues [count, sum, sum of squares] on the value's own device, so it never makes the host wait for a GPU.
A Collector's `update` adds the queues to float64 sums on the CPU, with one transfer per device, for itself and for all
other collectors of the same statistic. A Tally keeps the sums of one statistic on a device, for decisions that are made
there between two updates.
"""

import math
import re
import weakref
from typing import Any

import torch

from dnnlib.util import EasyDict
from torch_utils import exchange

_FOLD_AT = 64  # number of queued reports of a statistic that are added up on their device

_rank = 0
_sync_device: torch.device | None = None
_pending: dict[str, dict[torch.device, list[torch.Tensor]]] = {}
_known: dict[str, None] = {}  # every name gathered so far, in order of appearance
_collectors: weakref.WeakSet = weakref.WeakSet()
_tallies: weakref.WeakSet = weakref.WeakSet()


def init_multiprocessing(rank: int, sync_device: torch.device | str | None) -> None:
    """Sum statistics over the processes of torch.distributed, through `sync_device`; None = this process only."""
    global _rank, _sync_device
    _rank = rank
    _sync_device = None if sync_device is None else torch.device(sync_device)


def _exact_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def report(name: str, value: Any) -> Any:
    """Add all elements of `value` (tensor, array, list or number; may be empty) to the statistic `name`.

    Returns `value`. With several processes, all must have reported the same names when a collector is updated.
    """
    with torch.no_grad():
        elements = torch.as_tensor(value).detach()
        elements = elements.to(_exact_dtype(elements.device)).flatten()
        count = elements.new_full([], elements.numel())
        moments = torch.stack([count, elements.sum(), elements.square().sum()])
        queue = _pending.setdefault(name, {}).setdefault(moments.device, [])
        queue.append(moments)
        for tally in _tallies:
            tally._add(name, moments)
        if len(queue) >= _FOLD_AT:
            queue[:] = [torch.stack(queue).sum(dim=0)]
    return value


def report0(name: str, value: Any) -> Any:
    """Like `report`, but only the value of process 0 counts. Every process must call it."""
    report(name, value if _rank == 0 else [])
    return value


class Collector:
    """Reads the statistics whose full names match `regex`.

    A period lasts from one call of `update` to the next. The numbers are those of the last period in which the
    statistic was reported or, without `keep_previous`, always those of the last period.
    """

    def __init__(self, regex: str = ".*", keep_previous: bool = True):
        self._regex = re.compile(regex)
        self._keep_previous = keep_previous
        # Sums since the last update, not differences of running totals: a NaN must not affect later periods.
        self._period: dict[str, torch.Tensor] = {}
        self._moments: dict[str, torch.Tensor] = {}
        self.update()  # discard what was reported before this collector existed
        _collectors.add(self)

    def names(self) -> list[str]:
        """Names of the statistics reported so far, as of the last update of any collector."""
        return [name for name in _known if self._regex.fullmatch(name)]

    def update(self) -> None:
        """Start a new period. Every process must call it; it waits for all of them."""
        if not self._keep_previous:
            self._moments.clear()
        _gather(sorted(name for name in _pending if self._regex.fullmatch(name)))
        self._moments.update((name, sums) for name, sums in self._period.items() if sums[0] > 0)
        self._period.clear()

    def _add(self, name: str, sums: torch.Tensor) -> None:
        if self._regex.fullmatch(name):
            self._period[name] = self._period.get(name, 0) + sums

    def state_dict(self) -> dict[str, dict[str, torch.Tensor]]:
        """The sums of the unfinished period and of the last ones, by name."""
        return {"period": dict(self._period), "moments": dict(self._moments)}

    def load_state_dict(self, state: dict[str, dict[str, torch.Tensor]]) -> None:
        """Restore what `state_dict` returned, but for sums that are not finite, which a rollback must not keep.

        Reports not yet gathered are those of `load_pending`.
        """
        self._period, self._moments = (_finite(state[part]) for part in ("period", "moments"))

    def _get(self, name: str) -> tuple[float, float, float]:
        if not self._regex.fullmatch(name):
            raise KeyError(f"this collector does not read {name!r}")
        return tuple(self._moments[name].tolist()) if name in self._moments else (0.0, 0.0, 0.0)

    def num(self, name: str) -> int:
        """Number of reported elements. Like `mean` and `std`, raises KeyError for a name that `regex` excludes."""
        return int(self._get(name)[0])

    def mean(self, name: str) -> float:
        """Mean; NaN if nothing was reported."""
        num, total, _squares = self._get(name)
        return total / num if num else math.nan

    def std(self, name: str) -> float:
        """Population standard deviation: 0 for one element, NaN if nothing or a non-finite value was reported."""
        num, total, squares = self._get(name)
        if num == 1:
            return 0.0
        if num == 0 or not math.isfinite(total) or not math.isfinite(squares):
            return math.nan
        return math.sqrt(max(squares / num - (total / num) ** 2, 0.0))

    def as_dict(self) -> EasyDict:
        """All statistics by name, each with `num`, `mean` and `std`."""
        return EasyDict((n, EasyDict(num=self.num(n), mean=self.mean(n), std=self.std(n))) for n in self.names())

    def __getitem__(self, name: str) -> float:
        """Mean of the statistic."""
        return self.mean(name)


def _finite(sums: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: moments for name, moments in sums.items() if moments.isfinite().all()}


class Tally:
    """The mean of the statistic `name` as a tensor on `device`, for decisions that must not make the host wait."""

    def __init__(self, name: str, device: torch.device | str):
        self._name = name
        self._sums = torch.zeros([3], dtype=_exact_dtype(torch.device(device)), device=device)
        _tallies.add(self)

    def _add(self, name: str, moments: torch.Tensor) -> None:
        if name == self._name:
            self._sums += moments.to(self._sums)

    @property
    def sums(self) -> torch.Tensor:
        """Count, sum and sum of squares [3] of this process since the last `take_mean`; may be written to."""
        return self._sums

    def take_mean(self) -> torch.Tensor:
        """Mean, float [], over all processes since the last call; NaN if nothing was reported.

        Every process must call it.
        """
        sums = self._sums.clone()
        self._sums.zero_()
        if _sync_device is not None:
            with exchange.exchange():
                torch.distributed.all_reduce(sums)
        return sums[1] / sums[0]


def pending() -> dict[str, Any]:
    """Names of all statistics, and what this process has reported of them and no collector has read.

    The latter as {name: {type of device: moments [n, 3] on the CPU}}.
    """
    reports = {
        name: {device.type: torch.stack(queue).cpu() for device, queue in queues.items() if queue}
        for name, queues in _pending.items()
    }
    return {"names": list(_known), "reports": reports}


def load_pending(saved: list[dict[str, Any]], device: torch.device) -> None:
    """Replace the names and the reports of this process by `saved`, one or several results of `pending`.

    Reports of another device than the CPU go to `device`; those that are not finite are dropped.
    """
    _known.clear()
    _pending.clear()
    for part in saved:
        _known.update(dict.fromkeys(part["names"]))
        for name, queues in part["reports"].items():
            ours = _pending.setdefault(name, {})
            for kind, moments in queues.items():
                target = torch.device("cpu") if kind == "cpu" else device
                ours.setdefault(target, []).extend(moments[moments.isfinite().all(dim=1)].to(target))


def _gather(names: list[str]) -> None:
    """Pass the pending reports of `names`, of this and all other processes, to every collector."""
    if not names:
        return
    by_device: dict[torch.device, list[tuple[int, torch.Tensor]]] = {}
    for row, name in enumerate(names):
        for device, queue in _pending[name].items():
            if queue:
                by_device.setdefault(device, []).append((row, torch.stack(queue).sum(dim=0)))
                queue.clear()
    deltas = torch.zeros([len(names), 3], dtype=torch.float64)
    for rows_and_moments in by_device.values():
        rows, moments = zip(*rows_and_moments)
        deltas.index_add_(0, torch.tensor(rows), torch.stack(moments).cpu().to(torch.float64))
    if _sync_device is not None:
        shared = deltas.to(_sync_device, _exact_dtype(_sync_device))
        with exchange.exchange():
            torch.distributed.all_reduce(shared)
        deltas = shared.cpu().to(torch.float64)
    for name, delta in zip(names, deltas):
        _known[name] = None
        for collector in _collectors:
            collector._add(name, delta)
