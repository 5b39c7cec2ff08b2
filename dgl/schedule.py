# SPDX-License-Identifier: Apache-2.0
"""How strongly the teachers push, and when: the decay of λ, its bound by gradient norms, and the automatic start.

A frozen verdict s̄ biases the generator for as long as λ > 0 (dgl.diagnostics), so it should lead the path and not
decide the end. The states below are equal in all processes.
"""

import math

import torch

from torch_utils import distributed

# Far below this score softplus(-s̄) is linear: the push is constant, whatever the image looks like.
START_SCORE = -3.0


def cosine_decay(t: float) -> float:
    """½ (1 + cos πt), which falls from 1 at t = 0 to 0 at t = 1 (arXiv 1608.03983); constant outside."""
    return 0.5 * (1 + math.cos(math.pi * min(max(t, 0.0), 1.0)))


class RatioCap:
    """A bound on λ: ratio · EMA[‖∂ own loss / ∂ img‖ / ‖∂ Σ_i w_i f(s̄_i) / ∂ img‖], with λ left out of the latter.

    Under it the teachers' push on the images is at most `ratio` times that of the student's own D. Gradients are those
    of a batch over all processes, measured every `interval` guided iterations; the moving average keeps `keep` of its
    value each time. A tensor on the device of the images throughout: the host never waits for it.
    """

    def __init__(self, ratio: float, interval: int = 16, keep: float = 0.9):
        self.ratio = ratio
        self.interval = interval
        self.keep = keep
        self.due = True  # whether to measure on the next batch
        self._age = 0  # guided iterations since the last measurement
        self._mean: torch.Tensor | None = None  # scalar; NaN until there was a usable measurement

    def begin_iteration(self) -> None:
        """Call before each guided iteration."""
        self._age += 1
        self.due = self.due or self._age >= self.interval

    def measure(self, own: torch.Tensor, teachers: torch.Tensor) -> None:
        """Take in the two gradient norms of this process, scalars. Every process must call it.

        Without a finite quotient (a gradient that is zero, overflowed or NaN) the average stays.
        """
        squares = distributed.all_reduce_(torch.stack([own, teachers]).float().square())
        quotient = (squares[0] / squares[1]).sqrt()
        before = torch.full_like(quotient, math.nan) if self._mean is None else self._mean.to(quotient.device)
        after = torch.where(before.isnan(), quotient, before * self.keep + quotient * (1 - self.keep))
        self._mean = torch.where(squares.isfinite().all() & quotient.isfinite(), after, before)
        self.due, self._age = False, 0

    def apply(self, weight: float) -> torch.Tensor | float:
        """min(weight, bound), a scalar tensor; `weight` itself before the first measurement."""
        if self._mean is None:
            return weight
        return (self.ratio * self._mean).nan_to_num(nan=math.inf).clamp_max(weight)

    def state_dict(self) -> dict:
        """The average and when it is due."""
        return {"due": self.due, "age": self._age, "mean": None if self._mean is None else self._mean.clone()}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        self.due, self._age = state["due"], state["age"]
        self._mean = None if state["mean"] is None else state["mean"].clone()


class AutoStart:
    """Starts guidance after the first tick in which the teachers' mean score of the fakes was above `START_SCORE`.

    Once a tick, `wants_scores` asks for the scores of one batch. `begin_tick` reads their mean, the one time that the
    host waits. `nimg` is the number of images at which guidance started, None before.
    """

    def __init__(self):
        self.nimg: int | None = None
        self.wants_scores = True
        self._mean: torch.Tensor | None = None  # scalar

    def observe(self, scores: torch.Tensor) -> None:
        """Take in the scores of this process's batch, of any shape. Every process must call it."""
        self._mean = distributed.all_reduce_(scores.detach().float().mean()) / distributed.world_size()
        self.wants_scores = False

    def begin_tick(self, cur_nimg: int) -> None:
        """Decide, at the beginning of a tick with `cur_nimg` images done."""
        if self.nimg is not None:
            return
        if self._mean is not None:
            mean = float(self._mean)
            if mean > START_SCORE:
                self.nimg = cur_nimg
                kimg = f"{cur_nimg / 1000:.1f}"
                distributed.print0(
                    f"Guidance starts at kimg {kimg}: the teachers' mean score of the fakes is {mean:.2f}."
                )
        self._mean, self.wants_scores = None, self.nimg is None

    def state_dict(self) -> dict:
        """The decision, or what it will be based on."""
        mean = None if self._mean is None else self._mean.clone()
        return {"nimg": self.nimg, "wants_scores": self.wants_scores, "mean": mean}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        self.nimg, self.wants_scores = state["nimg"], state["wants_scores"]
        self._mean = None if state["mean"] is None else state["mean"].clone()
