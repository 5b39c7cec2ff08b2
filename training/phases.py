# SPDX-License-Identifier: Apache-2.0
"""Optimiser phases with lazy regularisation (Karras et al., arXiv 1912.04958, appendix B) and gradient accumulation."""

import dataclasses

import torch

import dnnlib
from torch_utils import distributed


@dataclasses.dataclass
class Phase:
    """One optimiser step of an iteration: `name` as the loss knows it, run when the iteration divides by `interval`."""

    name: str
    module: torch.nn.Module
    opt: torch.optim.Optimizer
    interval: int


def build_phases(name: str, module: torch.nn.Module, opt_kwargs: dict, reg_interval: int | None) -> list[Phase]:
    """Phases of network `name` ('G' or 'D'): main every iteration, reg every `reg_interval`; None: one joint phase.

    Both share an optimiser. It steps k + 1 times in k iterations, so with c = k / (k + 1) its learning rate is scaled
    by c and its betas are raised to the power c, which keeps the pace of one step an iteration.
    """
    c = 1.0 if reg_interval is None else reg_interval / (reg_interval + 1)
    lazy = dict(opt_kwargs, lr=opt_kwargs["lr"] * c, betas=[beta**c for beta in opt_kwargs["betas"]])
    if opt_kwargs["class_name"] == "torch.optim.Adam" and next(module.parameters()).device.type in ("cpu", "cuda"):
        lazy.setdefault("fused", True)  # one pass over all weights instead of several operations for each
    opt = dnnlib.util.construct_class_by_name(module.parameters(), **lazy)
    if reg_interval is None:
        return [Phase(f"{name}both", module, opt, 1)]
    return [Phase(f"{name}main", module, opt, 1), Phase(f"{name}reg", module, opt, reg_interval)]


def run_phase(phase: Phase, loss, micro_batches: list[dict]) -> None:
    """Accumulate the gradients of `micro_batches` (keyword arguments of `loss.accumulate_gradients`); take one step."""
    phase.opt.zero_grad(set_to_none=True)
    phase.module.requires_grad_(True)
    for i, micro_batch in enumerate(micro_batches):
        loss.accumulate_gradients(
            phase=phase.name, sync=i == len(micro_batches) - 1, gain=phase.interval / len(micro_batches), **micro_batch
        )
    phase.module.requires_grad_(False)
    grads = [p.grad for p in phase.module.parameters() if p.grad is not None]
    if grads:
        _average_over_processes(grads)
        for grad in grads:
            torch.nan_to_num(grad, nan=0, posinf=1e5, neginf=-1e5, out=grad)
        phase.opt.step()


def _average_over_processes(grads: list[torch.Tensor]) -> None:
    """Replace each gradient by its mean over all processes, in one message."""
    if distributed.world_size() == 1:
        return
    flat = torch.cat([grad.flatten() for grad in grads])
    distributed.all_reduce_(flat)
    flat /= distributed.world_size()
    for grad, mean in zip(grads, flat.split([grad.numel() for grad in grads])):
        grad.copy_(mean.reshape(grad.shape))
