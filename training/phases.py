# SPDX-License-Identifier: Apache-2.0
"""Optimiser phases with lazy regularisation (Karras et al., arXiv 1912.04958, appendix B) and gradient accumulation."""

import contextlib
import copy
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial

import torch

import dnnlib
from torch_utils import distributed, misc, training_stats


@dataclasses.dataclass
class Phase:
    """One optimiser step of an iteration."""

    name: str  # passed to the loss
    module: torch.nn.Module  # whose parameters are trained
    optimizer: torch.optim.Optimizer
    interval: int  # run in iterations that are multiples of it
    fresh_reals: bool = False  # draw a new batch of reals for it; otherwise it sees those of the previous phase
    batch_size: int | None = None  # latents over all processes, for a phase that sees no reals; None: the run's
    regularise: Callable[[torch.nn.Module], None] | None = None  # adds to the gradients before the step

    def is_due(self, iteration: int) -> bool:
        """Whether the phase runs in `iteration`, counted from 0."""
        return iteration % self.interval == 0


def build_phases(
    name: str, module: torch.nn.Module, opt_kwargs: dict, reg_interval: int | None, fresh_reals: bool = False
) -> list[Phase]:
    """Phases <name>main in every iteration and <name>reg every `reg_interval`; None: one joint phase, <name>both.

    Both share an optimiser. It steps k + 1 times in k iterations, so with c = k / (k + 1) its learning rate is scaled
    by c and its betas are raised to the power c, which keeps the pace of one step an iteration. `fresh_reals` is for
    the first of them.
    """
    c = 1.0 if reg_interval is None else reg_interval / (reg_interval + 1)
    lazy = dict(opt_kwargs, lr=opt_kwargs["lr"] * c, betas=[beta**c for beta in opt_kwargs["betas"]])
    optimizer = build_optimizer(module, lazy)
    if reg_interval is None:
        return [Phase(f"{name}both", module, optimizer, 1, fresh_reals)]
    return [
        Phase(f"{name}main", module, optimizer, 1, fresh_reals),
        Phase(f"{name}reg", module, optimizer, reg_interval),
    ]


def build_optimizer(module: torch.nn.Module, opt_kwargs: dict) -> torch.optim.Optimizer:
    """The optimiser of `opt_kwargs` (class_name, lr, ...) for all parameters of `module`."""
    if opt_kwargs["class_name"] == "torch.optim.Adam" and next(module.parameters()).device.type in ("cpu", "cuda"):
        opt_kwargs = {"fused": True, **opt_kwargs}  # one pass over all weights instead of several operations for each
    return dnnlib.util.construct_class_by_name(module.parameters(), **opt_kwargs)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """As `optimizer.load_state_dict(state)`, with the tensors laid out in memory as the parameters they belong to.

    Fused optimisers go through parameters and their averages in the order of memory.
    """
    optimizer.load_state_dict(copy.deepcopy(state))
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def phases_of_terms(loss) -> list[Phase]:
    """Phases in which terms of `loss` train networks, which start equal in all processes; none for a foreign loss."""
    phases = loss.extra_phases() if hasattr(loss, "extra_phases") else []
    for phase in phases:
        for tensor in misc.params_and_buffers(phase.module):
            distributed.broadcast_(tensor)
    return phases


def run_due(
    phases: Sequence[Phase],
    iteration: int,
    loss,
    reals: Iterator[tuple[torch.Tensor, torch.Tensor]],
    draw: Callable[[int], tuple[torch.Tensor, torch.Tensor]],
    batch_gpu: int,
    seed: Callable[[int, int], None] = lambda phase, piece: None,
    timed: Callable[[str], AbstractContextManager] = contextlib.nullcontext,
) -> None:
    """Run the phases that are due in `iteration`, in micro-batches of at most `batch_gpu` images.

    `reals` gives images [N, C, H, W] in [-1, 1] and labels [N, K] for each due phase that takes fresh ones, of which
    the first due phase has to be one. `draw(phase)` gives latents [N, Z] and labels [N, K] for a phase, by its number;
    `seed(phase, piece)` is called before each micro-batch, by number in the phase. `timed(name)` is around each phase.
    """
    for number, phase in enumerate(phases):
        if phase.is_due(iteration):
            if phase.fresh_reals:
                of_phase = next(reals)
            drawn = [x.split(batch_gpu) for x in draw(number)]
            seen = [x.split(batch_gpu) if phase.batch_size is None else [None] * len(drawn[0]) for x in of_phase]
            pieces = list(zip(*seen, *drawn))
            with timed(phase.name):
                run_phase(phase, loss, _micro_batches(pieces, partial(seed, number)), len(pieces))


def _micro_batches(pieces: list, seed: Callable[[int], None]) -> Iterator[dict[str, torch.Tensor]]:
    for number, piece in enumerate(pieces):
        seed(number)
        yield dict(zip(("real_img", "real_c", "gen_z", "gen_c"), piece))


def run_phase(phase: Phase, loss, micro_batches: Iterable[dict], count: int | None = None) -> None:
    """Accumulate the gradients of `micro_batches` (keyword arguments of `loss.accumulate_gradients`); take one step.

    `count`: how many they are, if they do not have a length.
    """
    count = len(micro_batches) if count is None else count
    phase.optimizer.zero_grad(set_to_none=True)
    parameters = list(phase.module.parameters())  # once: to walk through all modules takes a while
    for parameter in parameters:
        parameter.requires_grad_(True)
    for i, micro_batch in enumerate(micro_batches):
        loss.accumulate_gradients(phase=phase.name, sync=i == count - 1, gain=phase.interval / count, **micro_batch)
    for parameter in parameters:
        parameter.requires_grad_(False)
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if grads:
        average_over_processes(grads)
        if phase.regularise is not None:
            phase.regularise(phase.module)
        for grad in grads:
            torch.nan_to_num(grad, nan=0, posinf=1e5, neginf=-1e5, out=grad)
        phase.optimizer.step()


class PhaseTimes:
    """How long the phases took, in milliseconds: on CUDA by events, so that the host waits only when it reports."""

    def __init__(self, device: torch.device):
        self._device = device
        self._spans: dict[str, list[tuple]] = {}

    @contextlib.contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Measure the phase `name`, which the block runs."""
        start = self._mark()
        yield
        if start is not None:
            self._spans.setdefault(name, []).append((start, self._mark()))

    def _mark(self) -> float | torch.cuda.Event | None:
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            return event
        return time.perf_counter() if self._device.type == "cpu" else None

    def report(self) -> None:
        """Add the times since the last report to the statistics `Timing/<name>`. Every process must call it."""
        for name, spans in self._spans.items():
            if self._device.type == "cuda":
                spans[-1][1].synchronize()
                times = [start.elapsed_time(end) for start, end in spans]
            else:
                times = [(end - start) * 1000 for start, end in spans]
            training_stats.report0(f"Timing/{name}", times)
        self._spans.clear()


def average_over_processes(tensors: list[torch.Tensor]) -> None:
    """Replace each tensor by its mean over all processes, in one message."""
    if distributed.world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce_(flat)
    flat /= distributed.world_size()
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(mean.reshape(tensor.shape))
