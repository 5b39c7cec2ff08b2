# SPDX-License-Identifier: Apache-2.0
"""Selection of cases, and their measurement."""

import concurrent.futures
import contextlib
import dataclasses
import fnmatch
import gc
import math
import multiprocessing
import sys
from collections.abc import Callable, Iterator

import torch

from benchmarks import limits
from benchmarks.cases import CASES, OP_CASES, PRECISIONS, Case, Setting, Variant, build_all
from benchmarks.results import Result, Run
from dnnlib.progress import Progress
from dnnlib.util import UserError
from torch_utils import distributed
from torch_utils.timing import clock_for, interleave, peak_growth

DEFAULT_RESOLUTIONS = {"cpu": [64, 128, 256], "cuda": [256, 512, 1024]}
HEADLINE = {"cpu": 128, "cuda": 256}
QUICK = ["training", "inference"]
QUICK_CASES = {"cpu": QUICK, "cuda": [*QUICK, "loop", "op/bias_act", "op/upfirdn2d"]}
PROGRESS_INTERVAL = 15.0  # seconds between progress lines where the output is not a terminal
COSTLY = ("op/", "loop", "memory/", "forward/")  # on a CPU, only at the headline resolution
DENSE = ("training", "inference/", "forward/")  # cases whose parts count their dense arithmetic


def check_resolutions(resolutions: list[int]) -> None:
    """Raises UserError for a resolution that no network has."""
    for resolution in resolutions:
        if resolution < 8 or resolution & (resolution - 1):
            raise UserError(f"--res: networks exist for powers of two from 8 up, not for {resolution}")


@dataclasses.dataclass(frozen=True)
class Job:
    """One case in one setting, in the reference and some other variants."""

    case: Case
    setting: Setting
    variants: list[Variant]

    @property
    def plan(self) -> int:
        """Rough duration, for the progress line."""
        return math.ceil(self.case.plan * math.sqrt(self.setting.resolution / 128))

    def result(self, part: str, unit: str, samples: dict[str, list[float]], **work) -> Result:
        """The result for a part of this case; `work`: `moved` and `flops`, if they were counted."""
        batch = self.case.batch or self.setting.batch_size
        return Result(self.case.name, part, self.setting.resolution, batch, unit, samples, **work)


def select(
    device: str,
    make_setting: Callable[[int], Setting],
    variants: list[Variant],
    auto: str,
    quick: bool = False,
    full: bool = False,
    only: list[str] | None = None,
    res: list[int] | None = None,
) -> list[Job]:
    """The jobs for flags of the command line, those at the headline resolution first.

    Slow cases and emulated half precision are measured only there, except with `full` or `only` or on CUDA. Training in
    emulated half precision is not part of `quick`. Raises UserError for flags that contradict each other or select
    nothing.
    """
    if quick and full:
        raise UserError("--quick contradicts --full: drop one of the two")
    check_resolutions(res or ())
    headline = HEADLINE[device] if not res or HEADLINE[device] in res else res[0]
    resolutions = res or ([headline] if quick else DEFAULT_RESOLUTIONS[device])
    patterns = only or (QUICK_CASES[device] if quick else ["*"])
    jobs = []
    for resolution in sorted(resolutions, key=lambda r: (r != headline, r)):
        setting = make_setting(resolution)
        everything = full or bool(only) or device == "cuda" or resolution == headline
        for case in CASES:
            named = any(matches(case.name, pattern) for pattern in patterns)
            if named and (everything or not case.name.startswith(COSTLY)):
                emulated = everything and not (quick and case.name == "training")
                chosen = [v for v in variants if _wanted(case, v, setting, auto, emulated)]
                jobs += [Job(case, setting, chosen)] if len(chosen) > 1 else []
    if not jobs:
        names = ", ".join(case.name for case in CASES)
        raise UserError(f"--only and --precisions leave nothing to measure; the cases are {names}")
    return jobs


def matches(name: str, pattern: str) -> bool:
    """Whether `pattern` is that name, a folder above it, or a matching wildcard."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}/*")


def _wanted(case: Case, variant: Variant, setting: Setting, auto: str, emulated: bool) -> bool:
    if case.name == "loop" and not variant.plain:
        return variant.name == auto  # what users get; the phases compare the precisions
    return variant.precision == "fp32" or (case.half and (emulated or not variant.is_emulated(setting.device)))


def measure(jobs: list[Job], run: Run, budget: float, save: Callable[[Run], None]) -> None:
    """Carry out `jobs`, adding to `run`. Calls `save` after each, so that an interrupted run keeps its figures.

    Raises UserError, before anything is measured, for a width or batch that networks cannot have.
    """
    for job in jobs:
        for variant in job.variants:
            job.setting.options(variant)
    clock = clock_for(jobs[0].setting.device)
    _measure_limits(jobs, run, clock)
    interval = None if sys.stderr.isatty() else PROGRESS_INTERVAL
    with Progress(sum(job.plan for job in jobs), "measuring", "units", min_interval=interval) as progress:
        for job in jobs:
            progress.desc = f"measuring {job.case.name} at {job.setting.resolution}"
            end = progress.count + job.plan

            def on_round(share, job=job, end=end):
                progress.update(end - job.plan + int(share * job.plan) - progress.count)

            with _clean_after():
                if job.case.kind == "memory":
                    run.results += _peaks(job, on_round)
                else:
                    run.results += _timings(job, clock, budget, on_round)
            save(run)


def _measure_limits(jobs: list[Job], run: Run, clock) -> None:
    """Add to `run` the limits of the machine that its tables will refer to."""
    device = jobs[0].setting.device
    if any(job.case in OP_CASES for job in jobs):
        run.copy_bytes_per_s = limits.copy_bandwidth(device, clock)
    dense = (variant.precision for job in jobs if job.case.name.startswith(DENSE) for variant in job.variants)
    with _clean_after():
        torch.backends.cudnn.benchmark = True  # as in training
        for name in dict.fromkeys(dense):
            run.flops_per_s[name] = limits.dense_arithmetic(device, PRECISIONS[name], clock)


@contextlib.contextmanager
def _clean_after() -> Iterator[None]:
    """Reset the settings and free the memory of a job; a training run sets cuDNN's, and refers to itself."""
    benchmark = torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = benchmark
        gc.collect()
        torch.cuda.empty_cache()  # no effect if CUDA was not used


def _timings(job: Job, clock, budget: float, on_round) -> list[Result]:
    parts = build_all(job.case, job.setting, job.variants)
    works = {name: {variant: part.run for variant, part in versions.items()} for name, versions in parts.items()}
    paths = {variant.name: variant.path for variant in job.variants}
    samples = interleave(works, clock, budget, lambda name: paths[name](), on_round)
    if job.case.total:
        samples = {job.case.total: weighted_sum(samples, job.case.weights), **samples}

    def moved(name: str) -> dict[str, int]:
        return {variant: part.moved for variant, part in parts.get(name, {}).items() if part.moved is not None}

    flops = {name: next(iter(versions.values())).flops for name, versions in parts.items()}  # the same for each variant
    if job.case.total:
        total = sum(weight * (flops[name] or 0) for name, weight in job.case.weights.items())
        flops[job.case.total] = round(total) or None
    return [job.result(name, "s", times, moved=moved(name), flops=flops[name]) for name, times in samples.items()]


def weighted_sum(samples: dict[str, dict[str, list[float]]], weights: dict[str, float]) -> dict[str, list[float]]:
    """Round by round, the sum of the parts' times by `weights`, for each variant."""

    def total(variant: str) -> list[float]:
        rounds = zip(*(samples[part][variant] for part in weights))
        return [sum(weight * seconds for weight, seconds in zip(weights.values(), times)) for times in rounds]

    return {variant: total(variant) for variant in next(iter(samples.values()))}


def _peaks(job: Job, on_round) -> list[Result]:
    samples = {}
    for index, variant in enumerate(job.variants, 1):
        samples[variant.name] = [float(peak_in_subprocess(job.case, job.setting, variant))]
        on_round(index / len(job.variants))
    return [job.result("peak", "bytes", samples)]


def peak_in_subprocess(case: Case, setting: Setting, variant: Variant) -> int:
    """`peak` in a new process, which earlier work cannot have influenced. Raises UserError if that fails."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_peak_with, torch.get_num_threads(), case, setting, variant).result()
        except Exception as error:
            raise UserError(f"measuring the memory of {case.name} ({variant.name}) failed: {error}") from error


def _peak_with(threads: int, case: Case, setting: Setting, variant: Variant) -> int:
    torch.set_num_threads(threads)
    distributed.configure_device(setting.device)
    return peak(case, setting, variant)


def peak(case: Case, setting: Setting, variant: Variant) -> int:
    """Bytes that running every part of `case` once adds, at the peak, to what building it took."""
    parts = build_all(case, setting, [variant]).values()

    def work():
        for versions in parts:
            versions[variant.name].run()

    with variant.path():
        return peak_growth(work, setting.device)
