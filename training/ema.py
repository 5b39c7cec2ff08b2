# SPDX-License-Identifier: Apache-2.0
"""Exponential moving average of the generator's weights (arXiv 1710.10196, section 4.2)."""

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn


def ema_beta(batch_size: int, ema_kimg: float, cur_nimg: int, ema_rampup: float | None = None) -> float:
    """Weight of the old average in one update after `batch_size` images.

    The half-life is `ema_kimg` thousand images, but at most `ema_rampup` times the images seen so far.
    """
    half_life = ema_kimg * 1000
    if ema_rampup is not None:
        half_life = min(half_life, cur_nimg * ema_rampup)
    return 0.5 ** (batch_size / max(half_life, 1e-8))


@torch.no_grad()
def update_ema(G_ema: torch.nn.Module, G: torch.nn.Module, beta: float) -> None:
    """Move the parameters of `G_ema` in place to G·(1 - beta) + G_ema·beta, and copy the buffers of `G`."""
    get_ema_multi_avg_fn(beta)(list(G_ema.parameters()), list(G.parameters()), None)
    for b_ema, b in zip(G_ema.buffers(), G.buffers()):
        b_ema.copy_(b)
