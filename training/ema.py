# SPDX-License-Identifier: Apache-2.0
"""Exponential moving averages of the generator: of its weights (arXiv 1710.10196, section 4.2), or all its state."""

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from torch_utils import misc


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


@torch.no_grad()
def lerp_state(G_ema: torch.nn.Module, G: torch.nn.Module, decay: float) -> None:
    """Move parameters and buffers of `G_ema` in place to G_ema·decay + G·(1 - decay); a decay of 0 copies `G`.

    BigGAN averages its running statistics and singular vectors along with the weights (arXiv 1809.11096, appendix C).
    """
    for average, tensor in zip(misc.params_and_buffers(G_ema), misc.params_and_buffers(G)):
        average.copy_(tensor) if decay == 0 else average.lerp_(tensor, 1 - decay)
