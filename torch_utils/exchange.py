# SPDX-License-Identifier: Apache-2.0
"""What can go wrong when several processes exchange data: one of them is gone, hangs, or has failed meanwhile."""

import contextlib
import re
import time
from collections.abc import Iterator

import torch

from dnnlib.util import UserError

timeout = 30.0  # minutes that a process waits for the others; set by distributed.init
_together: torch.device | None = None  # inside failing_together, the device of its messages


class ProcessLost(UserError):
    """Another process has ended, or has not answered in time. Nothing can be exchanged any more."""


class OtherFailed(RuntimeError):
    """Inside `failing_together`, another process has left the block with an exception."""


def active() -> bool:
    """Whether this process is one of several."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@contextlib.contextmanager
def exchange() -> Iterator[None]:
    """Around every call of torch.distributed that waits for other processes.

    Raises ProcessLost where the call fails, and OtherFailed inside `failing_together`.
    """
    if _together is not None and _any_failed(False):
        raise OtherFailed("another process has failed")
    with _lost():
        yield


@contextlib.contextmanager
def _lost() -> Iterator[None]:
    start = time.monotonic()
    try:
        yield
    except RuntimeError as error:  # of which the errors of torch.distributed are kinds
        late = time.monotonic() - start > 0.9 * 60 * timeout
        what = f"has not answered for --timeout={timeout:g} minutes" if late else "has ended or cannot be reached"
        who = f"of {torch.distributed.get_world_size()} processes" if active() else "of the processes of this run"
        detail = re.sub(r"^\[[^]]*\] ", "", str(error)).split(". ")[0].splitlines() or [type(error).__name__]
        raise ProcessLost(
            f"one {who} {what} ({detail[0]}); no state is lost: continue a training run from the last one with --resume"
        ) from error


@contextlib.contextmanager
def failing_together(device: torch.device) -> Iterator[None]:
    """If the block fails in one process, it ends in all of them, after the same number of exchanges.

    The one raises its own exception, the others OtherFailed at their next exchange or at the end of the block. Every
    process must enter the block; it costs a message, from `device`, for each exchange in it.
    """
    global _together
    if not active():
        yield
        return
    _together = device
    try:
        yield
    except (ProcessLost, OtherFailed):
        raise
    except BaseException:
        _any_failed(True)
        raise
    else:
        if _any_failed(False):
            raise OtherFailed("another process has failed")
    finally:
        _together = None


def _any_failed(failed: bool) -> bool:
    with _lost():
        message = torch.tensor([int(failed)], device=_together)
        torch.distributed.all_reduce(message)
        return bool(message.item())
