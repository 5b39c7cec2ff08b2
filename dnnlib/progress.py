# SPDX-License-Identifier: Apache-2.0
"""How far a long piece of work has come, how fast it goes, and when it will be done."""

import sys
import time
from typing import TextIO

from dnnlib.util import format_time


class Progress:
    """Prints '<desc> 120/500 img (24%), 31.2 img/s, ETA 12s'.

    On a terminal one line is rewritten in place; elsewhere a plain line appears now and then. `total` None means the
    end is not known: no percentage and no ETA. Use it as a context manager, or call `close()`.

    Args:
        total: number of units in all, or None.
        desc: what is being done.
        unit: what is counted.
        stream: where to print; sys.stderr as it is at construction by default.
        min_interval: seconds between prints; 0.2 on a terminal and 5 elsewhere by default.
    """

    def __init__(
        self,
        total: int | None,
        desc: str = "",
        unit: str = "it",
        stream: TextIO | None = None,
        min_interval: float | None = None,
    ):
        self.total = total
        self.desc = desc
        self.unit = unit
        self.count = 0
        self._stream = sys.stderr if stream is None else stream
        self._in_place = self._stream.isatty()
        self._min_interval = (0.2 if self._in_place else 5.0) if min_interval is None else min_interval
        self._start = self._last_print = time.monotonic()
        self._shown_width = 0
        self._closed = False

    def update(self, n: int = 1) -> None:
        """Count `n` more units done."""
        self.count += n
        now = time.monotonic()
        if now - self._last_print >= self._min_interval:
            self._last_print = now
            self._print(self._line(now), last=False)

    def clear(self) -> None:
        """Make room for other output: wipe the line where it is rewritten in place."""
        if self._in_place and self._shown_width:
            self._stream.write(f"\r{'':{self._shown_width}}\r")
            self._stream.flush()

    def close(self) -> None:
        """Print the final count and time. Harmless when repeated."""
        if not self._closed:
            self._closed = True
            elapsed = time.monotonic() - self._start
            self._print(f"{self._counted()}, {format_time(elapsed)}", last=True)

    def _counted(self) -> str:
        text = f"{self.desc} {self.count}".lstrip()
        if self.total:
            return f"{text}/{self.total} {self.unit} ({self.count / self.total:.0%})"
        return f"{text} {self.unit}"

    def _line(self, now: float) -> str:
        elapsed = max(now - self._start, 1e-9)
        rate = self.count / elapsed
        text = f"{self._counted()}, {rate:.3g} {self.unit}/s"
        if self.total and rate > 0:
            text += f", ETA {format_time(max(self.total - self.count, 0) / rate)}"
        return text

    def _print(self, text: str, last: bool) -> None:
        if self._in_place:
            self._stream.write(f"\r{text:<{self._shown_width}}" + ("\n" if last else ""))
            self._shown_width = len(text)
        else:
            self._stream.write(f"{text}\n")
        self._stream.flush()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()
