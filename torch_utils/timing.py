# SPDX-License-Identifier: Apache-2.0
"""Measuring a piece of work: interleaved timing, peak memory, and the statistics of samples.

The versions of a piece of work take turns in one process, so that noise affects all of them alike.
"""

import contextlib
import functools
import gc
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import psutil
import torch

MIN_ROUNDS, MAX_ROUNDS = 3, 15
MAX_REPEATS = 1000
SAMPLING_INTERVAL = 0.002  # seconds between looks at the memory

Work = Callable[[], Any]


class Clock(NamedTuple):
    """`time(work, repeats)` returns the seconds per call. Work shorter than `min_sample` seconds is repeated.

    On a CPU this reduces the noise of the clock; on CUDA the calls run back to back, as in real use, where the host is
    ahead of the device.
    """

    time: Callable[[Work, int], float]
    min_sample: float


class Spread(NamedTuple):
    """Median, quartiles and median absolute deviation of some samples."""

    median: float
    low: float
    high: float
    mad: float


def spread(samples: list[float]) -> Spread:
    """Robust statistics of at least one sample."""
    median = statistics.median(samples)
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else [median] * 3
    return Spread(median, low, high, statistics.median(abs(sample - median) for sample in samples))


def paired_ratio(slow: list[float], fast: list[float]) -> Spread:
    """How many times faster: slow/fast round by round, so that drift between rounds cancels."""
    return spread([a / b for a, b in zip(slow, fast, strict=True)])


def clock_for(device: torch.device) -> Clock:
    """Wall time on a CPU; on CUDA the time between two events on the stream."""
    return Clock(_cuda_time, 0.1) if device.type == "cuda" else Clock(_wall_time, 0.01)


def _wall_time(work: Work, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - start) / repeats


def _cuda_time(work: Work, repeats: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()  # or the first event would wait for earlier work
    start.record()
    for _ in range(repeats):
        work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / repeats


def interleave(
    parts: dict[str, dict[str, Work]],
    clock: Clock,
    budget: float,
    hold: Callable[[str], contextlib.AbstractContextManager] = lambda name: contextlib.nullcontext(),
    on_round: Callable[[float], None] = lambda done: None,
) -> dict[str, dict[str, list[float]]]:
    """Seconds of each part for each of its versions, one sample a round.

    `parts[part][version]` is the work. After a warm-up the versions of a part take turns, part by part and round by
    round; the version that begins rotates. There are as many rounds as fit into `budget` seconds, from 3 to 15. Each
    sample runs inside the context `hold(version)`. `on_round` is called with the completed fraction after the warm-up
    and after each round.
    """

    def sample(timed: Callable[[], float], name: str) -> float:
        with hold(name):
            return timed()

    warm = {
        part: {name: sample(functools.partial(_warm_up, work, clock), name) for name, work in works.items()}
        for part, works in parts.items()
    }
    repeats = {part: _repeats(min(seconds.values()), clock.min_sample) for part, seconds in warm.items()}
    round_seconds = sum(sum(seconds.values()) * repeats[part] for part, seconds in warm.items())
    rounds = max(MIN_ROUNDS, min(MAX_ROUNDS, int(budget / max(round_seconds, 1e-9))))
    on_round(1 / (rounds + 1))
    samples = {part: {name: [] for name in works} for part, works in parts.items()}
    for index in range(rounds):
        for part, works in parts.items():
            for name in rotated(list(works), index):
                seconds = sample(functools.partial(clock.time, works[name], repeats[part]), name)
                samples[part][name].append(seconds)
        on_round((index + 2) / (rounds + 1))
    return samples


def rotated(names: list[str], by: int) -> list[str]:
    """`names`, rotated to the left by `by` places."""
    by %= len(names)
    return names[by:] + names[:by]


def _warm_up(work: Work, clock: Clock) -> float:
    """Seconds of one call; if it is short, of a second one, without one-time initialisation."""
    seconds = clock.time(work, 1)
    return clock.time(work, 1) if seconds < 1 else seconds


def _repeats(seconds: float, min_sample: float) -> int:
    return max(1, min(MAX_REPEATS, round(min_sample / max(seconds, 1e-9))))


def allocated(device: torch.device) -> int:
    """Bytes allocated on a CUDA device, or the resident memory of this process on a CPU."""
    gc.collect()
    return torch.cuda.memory_allocated() if device.type == "cuda" else psutil.Process().memory_info().rss


def peak_growth(work: Work, device: torch.device) -> int:
    """Bytes that `work` adds, at its peak, to the allocated memory of a CUDA device or the resident memory on a CPU."""
    gc.collect()
    return _allocated_growth(work) if device.type == "cuda" else _resident_growth(work)


def _allocated_growth(work: Work) -> int:
    torch.cuda.reset_peak_memory_stats()
    start = torch.cuda.memory_allocated()
    work()
    return torch.cuda.max_memory_allocated() - start


def _resident_growth(work: Work) -> int:
    memory = psutil.Process().memory_info
    sizes, done = [memory().rss], threading.Event()

    def watch():
        while not done.wait(SAMPLING_INTERVAL):
            sizes.append(memory().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        work()
        sizes.append(memory().rss)
    finally:
        done.set()
        thread.join()
    return max(sizes) - sizes[0]
