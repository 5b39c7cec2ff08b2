# SPDX-License-Identifier: Apache-2.0
"""The plain forms of what surrounds the networks in training, to compare with: one tensor at a time, nothing fused."""

import torch

from training.phases import Phase


def run_phase(phase: Phase, loss, micro_batches: list[dict]) -> None:
    """One optimiser step as in `training.phases.run_phase`, for one process."""
    phase.optimizer.zero_grad(set_to_none=True)
    phase.module.requires_grad_(True)
    gain = phase.interval / len(micro_batches)
    for micro_batch in micro_batches:
        loss.accumulate_gradients(phase=phase.name, sync=True, gain=gain, **micro_batch)
    phase.module.requires_grad_(False)
    for param in phase.module.parameters():
        if param.grad is not None:
            torch.nan_to_num(param.grad, nan=0, posinf=1e5, neginf=-1e5, out=param.grad)
    phase.optimizer.step()


@torch.no_grad()
def update_ema(G_ema: torch.nn.Module, G: torch.nn.Module, beta: float) -> None:
    """`training.ema.update_ema`, tensor by tensor."""
    for p_ema, p in zip(G_ema.parameters(), G.parameters()):
        p_ema.lerp_(p, 1 - beta)
    for b_ema, b in zip(G_ema.buffers(), G.buffers()):
        b_ema.copy_(b)
