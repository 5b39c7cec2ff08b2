# SPDX-License-Identifier: Apache-2.0
"""Metrics during training, which they must not end."""

import contextlib
from collections.abc import Iterator

import torch

from dnnlib.util import UserError
from torch_utils import distributed, exchange
from training.guards import Diverged


@contextlib.contextmanager
def failure_reported(metric: str, device: torch.device) -> Iterator[None]:
    """If the block, which computes `metric`, fails in any process, all leave it, and a line says why.

    Every process must enter it; messages about failures are exchanged from `device`. Diverged and ProcessLost, after
    which training cannot go on, are raised.
    """
    try:
        with exchange.failing_together(device):
            yield
        return
    except (Diverged, exchange.ProcessLost):
        raise
    except exchange.OtherFailed:
        reason = None
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    reasons = dict.fromkeys(" ".join(text.split()) for text in distributed.gather(reason) if text is not None)
    distributed.print0(f"Metric {metric} failed, and training goes on without it: {'; '.join(reasons)}")
