# SPDX-License-Identifier: Apache-2.0
"""Progress of a metric: a `dnnlib.progress.Progress` for each part, and a callback over all parts."""

from collections.abc import Callable

from dnnlib.progress import Progress


class ProgressMonitor:
    """Shows progress on the terminal (`verbose`) and calls `progress_fn(position, pfn_total)`.

    `update(cur_items)` takes the number of items done so far. `sub` returns the monitor of one part of the work; its
    positions cover the share `rel_lo`..`rel_hi` of this monitor's range.
    """

    def __init__(
        self,
        tag: str | None = None,
        num_items: int | None = None,
        verbose: bool = False,
        progress_fn: Callable[[int, int], None] | None = None,
        pfn_lo: float = 0,
        pfn_hi: float = 1000,
        pfn_total: int = 1000,
    ):
        self.tag = tag
        self.num_items = num_items
        self.verbose = verbose
        self.progress_fn = progress_fn
        self.pfn_lo, self.pfn_hi, self.pfn_total = pfn_lo, pfn_hi, pfn_total
        self._shown = Progress(num_items, tag or "", "img") if verbose and num_items else None

    def update(self, cur_items: int) -> None:
        """`cur_items` of `num_items` are done."""
        if not self.num_items:
            return
        done = min(cur_items, self.num_items)
        if self._shown is not None:
            self._shown.update(done - self._shown.count)
            if done == self.num_items:
                self._shown.close()
        if self.progress_fn is not None:
            self.progress_fn(round(self._position(done / self.num_items)), self.pfn_total)

    def sub(
        self, tag: str | None = None, num_items: int | None = None, rel_lo: float = 0, rel_hi: float = 1
    ) -> "ProgressMonitor":
        """The monitor of one part of the work, with `num_items` items."""
        low, high = self._position(rel_lo), self._position(rel_hi)
        return ProgressMonitor(tag, num_items, self.verbose, self.progress_fn, low, high, self.pfn_total)

    def _position(self, share: float) -> float:
        return self.pfn_lo + (self.pfn_hi - self.pfn_lo) * share
