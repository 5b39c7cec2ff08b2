# SPDX-License-Identifier: Apache-2.0
"""How far a metric has come: on the terminal, and for whoever asks to be told."""

from collections.abc import Callable

from dnnlib.progress import Progress


class ProgressMonitor:
    """Shows how far a metric has come (`verbose`), and tells `progress_fn(position, pfn_total)` where there is one.

    `update(cur_items)` takes the number of items done so far; `sub` gives a monitor for one part of the work, which
    takes the share `rel_lo`..`rel_hi` of this one's range.
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
        self._range = (pfn_lo, pfn_hi, pfn_total)
        self._shown = Progress(num_items, tag or "", "img") if verbose and num_items else None

    def update(self, cur_items: int) -> None:
        """`cur_items` of `num_items` are done."""
        if self._shown is not None:
            self._shown.update(min(cur_items, self.num_items) - self._shown.count)
            if cur_items >= self.num_items:
                self._shown.close()
        if self.progress_fn is not None and self.num_items:
            low, high, total = self._range
            self.progress_fn(round(low + (high - low) * min(cur_items / self.num_items, 1)), total)

    def sub(
        self, tag: str | None = None, num_items: int | None = None, rel_lo: float = 0, rel_hi: float = 1
    ) -> "ProgressMonitor":
        """A monitor for `num_items` items of one part of the work."""
        low, high, total = self._range
        low, high = (low + (high - low) * share for share in (rel_lo, rel_hi))
        return ProgressMonitor(tag, num_items, self.verbose, self.progress_fn, low, high, total)
