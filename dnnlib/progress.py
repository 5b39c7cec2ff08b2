# SPDX-License-Identifier: Apache-2.0
"""Progress of long work: how much is done, how fast, and the time remaining."""

import abc
import sys
import threading
import time
from typing import TextIO

from dnnlib.text import format_time


class StatusLine(abc.ABC):
    """A line that shows the state of long work; subclasses give its text.

    On a terminal the line is rewritten in place; elsewhere a new line is printed now and then. Use it as a context
    manager, or call `close()`.

    Args:
        stream: where to print; by default sys.stderr as it is at construction.
        min_interval: seconds between prints; by default the first of INTERVALS on a terminal and the second elsewhere.
    """

    INTERVALS = (0.2, 5.0)

    def __init__(self, stream: TextIO | None = None, min_interval: float | None = None):
        self._stream = sys.stderr if stream is None else stream
        self._in_place = self._stream.isatty()
        self._min_interval = self.INTERVALS[not self._in_place] if min_interval is None else min_interval
        self._start = self._last_print = time.monotonic()
        self._shown_width = 0
        self._closed = False

    @abc.abstractmethod
    def line(self, elapsed: float) -> str:
        """The state `elapsed` seconds after the start."""

    @abc.abstractmethod
    def last_line(self, elapsed: float) -> str:
        """The line that remains after the end."""

    def refresh(self, force: bool = False) -> None:
        """Print the state if the last print is long enough ago, or at once with `force`."""
        now = time.monotonic()
        if force or now - self._last_print >= self._min_interval:
            self._last_print = now
            self._print(self.line(now - self._start))

    def clear(self) -> None:
        """Make room for other output: wipe the line if it is rewritten in place."""
        if self._in_place and self._shown_width:
            self._stream.write(f"\r{'':{self._shown_width}}\r")
            self._stream.flush()

    def close(self) -> None:
        """Print the last line. Further calls have no effect."""
        if not self._closed:
            self._closed = True
            self._print(self.last_line(time.monotonic() - self._start), end="\n")

    def _print(self, text: str, end: str = "") -> None:
        if self._in_place:
            self._stream.write(f"\r{text:<{self._shown_width}}{end}")
            self._shown_width = len(text)
        else:
            self._stream.write(f"{text}\n")
        self._stream.flush()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()


class Progress(StatusLine):
    """Prints '<desc> 120/500 img (24%), 31.2 img/s, ETA 12s'.

    Args:
        total: number of units in all; None if unknown: then neither percentage nor ETA is shown.
        desc: what is being done.
        unit: what is counted.
        stream, min_interval: as for StatusLine.
        start: units that were done before.
    """

    def __init__(
        self,
        total: int | None,
        desc: str = "",
        unit: str = "it",
        stream: TextIO | None = None,
        min_interval: float | None = None,
        start: int = 0,
    ):
        super().__init__(stream, min_interval)
        self.total = total
        self.desc = desc
        self.unit = unit
        self.count = self.start = start

    def update(self, n: int = 1) -> None:
        """Count `n` more units as done."""
        self.count += n
        self.refresh()

    def line(self, elapsed: float) -> str:
        """Counts, rate and time remaining."""
        rate = (self.count - self.start) / max(elapsed, 1e-9)
        text = f"{self._counted()}, {rate:.3g} {self.unit}/s"
        if self.total and rate > 0:
            text += f", ETA {format_time(max(self.total - self.count, 0) / rate)}"
        return text

    def last_line(self, elapsed: float) -> str:
        """Counts and time taken."""
        return f"{self._counted()}, {format_time(elapsed)}"

    def _counted(self) -> str:
        text = f"{self.desc} {self.count}".lstrip()
        if self.total:
            return f"{text}/{self.total} {self.unit} ({self.count / self.total:.0%})"
        return f"{text} {self.unit}"


class Stage(StatusLine):
    """Prints '<desc> ... 12s' while the block it manages runs, which cannot say how much of it is done.

    A thread renews the line.

    Args:
        desc: what is being done.
        stream, min_interval: as for StatusLine.
    """

    def __init__(self, desc: str, stream: TextIO | None = None, min_interval: float | None = None):
        super().__init__(stream, min_interval)
        self.desc = desc
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def line(self, elapsed: float) -> str:
        """What is being done, and for how long."""
        return f"{self.desc} ... {format_time(elapsed)}"

    def last_line(self, elapsed: float) -> str:
        """What was done, and the time taken."""
        return f"{self.desc}, {format_time(elapsed)}"

    def close(self) -> None:
        """Stop renewing and print the last line. Further calls have no effect."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        super().close()

    def _renew(self) -> None:
        while not self._ended.wait(self._min_interval):
            self.refresh(force=True)

    def __enter__(self):
        self._thread.start()
        return self
