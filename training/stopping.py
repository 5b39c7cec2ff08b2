# SPDX-License-Identifier: Apache-2.0
"""Signals that ask a run to stop, and the agreement of all its processes on when to do so."""

import contextlib
import signal
import time
from collections.abc import Iterator

import torch

from dnnlib import signals
from torch_utils import distributed

AGREE_EVERY = 1.0  # seconds between the messages in which several processes agree
_MOST_ITERATIONS = 64  # between such messages


class StopRequest:
    """The first signal that this process has received, by number; None before."""

    def __init__(self):
        self.signum: int | None = None
        self._interrupted = False

    def receive(self, signum: int, _frame=None) -> None:
        """Handler: remember the signal. A second SIGINT ends the process at once, as KeyboardInterrupt."""
        if signum == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = self._interrupted or signum == signal.SIGINT
        if self.signum is None:
            self.signum = signum


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Inside, signals that ask this process to end are remembered instead, for the loop to act on.

    Outside the main thread nothing is ever requested (dnnlib.signals).
    """
    request = StopRequest()
    with signals.handled(request.receive):
        yield request


class Agreement:
    """What all processes do after an iteration: whether one was asked to stop, whether the state is due.

    Several processes exchange a message about once in `AGREE_EVERY` seconds; the host waits for it. `iteration`: how
    many iterations are done.
    """

    def __init__(self, device: torch.device, iteration: int):
        self._device = device
        self._interval = 1  # iterations between messages
        self._start = (time.monotonic(), iteration)  # of the current interval: time and iteration

    def reach(self, iteration: int, signum: int | None, save: bool) -> tuple[int | None, bool]:
        """The signal that some process has received, and what process 0 says of `save`; (None, False) in between.

        Every process must call it after each iteration, with the number of iterations done.
        """
        if distributed.world_size() == 1:
            return signum, save
        if iteration - self._start[1] < self._interval:
            return None, False
        now = time.monotonic()
        pace = (now - self._start[0]) / (iteration - self._start[1])
        wanted = min(max(int(AGREE_EVERY / max(pace, 1e-6)), 1), _MOST_ITERATIONS)
        main = distributed.is_main()
        message = torch.tensor([signum or 0, int(main and save), wanted if main else 0], device=self._device)
        found, due, self._interval = distributed.maximum_(message).tolist()
        self._start = (now, iteration)
        return found or None, bool(due)
