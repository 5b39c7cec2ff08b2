# SPDX-License-Identifier: Apache-2.0
"""Which cases are measured where, and the measuring."""

import contextlib
import dataclasses
import fnmatch
import gc
import math
import sys
from collections.abc import Callable, Iterator

import torch

from benchmarks.cases import Case, Part, Setting, build_all
from benchmarks.cases_networks import NETWORK_CASES
from benchmarks.cases_ops import OP_CASES, copy_bandwidth
from benchmarks.memory import peak_in_subprocess
from benchmarks.results import Result, Run
from benchmarks.timing import clock_for, interleave
from benchmarks.variants import REFERENCE, Variant, half_is_slow
from dnnlib.progress import Progress
from dnnlib.util import UserError

CASES = [*NETWORK_CASES, *OP_CASES]
QUICK_CASES = {
    "cpu": ["training", "inference"],
    "cuda": ["training", "inference", "loop", "op/bias_act", "op/upfirdn2d"],
}
PROGRESS_INTERVAL = 15.0  # seconds between progress lines where the output is not a terminal
COSTLY = ("op/", "loop", "memory/", "forward/")  # on a CPU, at the headline resolution alone


def find_case(name: str) -> Case:
    """The case of that name."""
    return next(case for case in CASES if case.name == name)


@dataclasses.dataclass(frozen=True)
class Job:
    """One case in one setting, in the reference and some other variants."""

    case: Case
    setting: Setting
    variants: list[Variant]

    def check(self) -> None:
        """Raises UserError for a width or batch that networks cannot have, before anything is measured."""
        for variant in self.variants:
            self.setting.options(variant)

    @property
    def plan(self) -> int:
        """Roughly how long it takes, for the progress line."""
        return math.ceil(self.case.plan * math.sqrt(self.setting.resolution / 128))


def measure(jobs: list[Job], run: Run, budget: float, save: Callable[[Run], None]) -> None:
    """Carry out `jobs`, adding to `run` and calling `save` after each, so that an interrupted run keeps its figures."""
    clock = clock_for(jobs[0].setting.device)
    if any(job.case in OP_CASES for job in jobs):

        def seconds_of(work):
            return min(interleave({"copy": {REFERENCE: work}}, clock, budget=1)["copy"][REFERENCE])

        run.copy_bytes_per_s = copy_bandwidth(jobs[0].setting.device, seconds_of)
    interval = None if sys.stderr.isatty() else PROGRESS_INTERVAL
    for job in jobs:
        job.check()
    with Progress(sum(job.plan for job in jobs), "measuring", "units", min_interval=interval) as progress:
        for job in jobs:
            progress.desc = f"measuring {job.case.name} at {job.setting.resolution}"
            end = progress.count + job.plan

            def on_round(share, job=job, end=end):
                progress.update(end - job.plan + int(share * job.plan) - progress.count)

            with _clean_after():
                if job.case.kind == "memory":
                    run.results.append(_memory(job, on_round))
                else:
                    run.results += _timings(job, clock, budget, on_round)
            save(run)


@contextlib.contextmanager
def _clean_after() -> Iterator[None]:
    """No job finds settings or memory that another has left; a training run sets cuDNN's, and refers to itself."""
    benchmark = torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = benchmark
        gc.collect()
        torch.cuda.empty_cache()  # does nothing where CUDA was not used


def _timings(job: Job, clock, budget: float, on_round) -> list[Result]:
    case, setting = job.case, job.setting
    parts = build_all(case, setting, job.variants)
    works = {name: {variant: part.run for variant, part in versions.items()} for name, versions in parts.items()}
    paths = {variant.name: variant.path for variant in job.variants}
    samples = interleave(works, clock, budget, lambda name: paths[name](), on_round)
    if case.total:
        samples = {case.total: weighted_sum(samples, case.weights), **samples}
    return [
        Result(case.name, name, setting.resolution, case.batch or setting.batch_size, "s", times, _moved(parts, name))
        for name, times in samples.items()
    ]


def _moved(parts: dict[str, dict[str, Part]], name: str) -> dict[str, int]:
    return {variant: part.moved for variant, part in parts.get(name, {}).items() if part.moved is not None}


def weighted_sum(samples: dict[str, dict[str, list[float]]], weights: dict[str, float]) -> dict[str, list[float]]:
    """Round by round, the sum of the parts' times by `weights`, for each variant."""
    variants = next(iter(samples.values()))
    return {
        name: [
            sum(weight * samples[part][name][index] for part, weight in weights.items())
            for index in range(len(variants[name]))
        ]
        for name in variants
    }


def _memory(job: Job, on_round) -> Result:
    case, setting = job.case, job.setting
    peaks = {}
    for index, variant in enumerate(job.variants, 1):
        peaks[variant.name] = [float(peak_in_subprocess(case, setting, variant))]
        on_round(index / len(job.variants))
    return Result(case.name, "peak", setting.resolution, case.batch or setting.batch_size, "bytes", peaks)


@dataclasses.dataclass(frozen=True)
class Scope:
    """How much is measured: the cases that `patterns` name, at `resolutions`.

    With `thorough`, everything; else at the `headline` resolution alone what takes long, and what is in a half
    precision that the CPU only emulates. `slow_training`: there, also training in such a precision.
    """

    patterns: list[str]
    resolutions: list[int]
    headline: int
    thorough: bool = False
    slow_training: bool = True


def select(scope: Scope, make_setting: Callable[[int], Setting], variants: list[Variant], auto: str) -> list[Job]:
    """The jobs of `scope`, the headline resolution first. Raises UserError where there is nothing to measure."""
    jobs = []
    for resolution in sorted(scope.resolutions, key=lambda r: (r != scope.headline, r)):
        setting = make_setting(resolution)
        everything = scope.thorough or resolution == scope.headline
        for case in CASES:
            named = any(matches(case.name, pattern) for pattern in scope.patterns)
            if named and (everything or not case.name.startswith(COSTLY)):
                slow_half = everything and (scope.slow_training or case.name != "training")
                chosen = [v for v in variants if _wanted(case, v, setting, auto, slow_half)]
                jobs += [Job(case, setting, chosen)] if len(chosen) > 1 else []
    if not jobs:
        names = ", ".join(case.name for case in CASES)
        raise UserError(f"--only and --precisions leave nothing to measure; the cases are {names}")
    return jobs


def matches(name: str, pattern: str) -> bool:
    """Whether `pattern` is that name, a folder above it, or a wildcard that fits."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}/*")


def _wanted(case: Case, variant: Variant, setting: Setting, auto: str, slow_half: bool) -> bool:
    if variant.plain:
        return True
    if case.name == "loop":
        return variant.name == auto  # what a user gets; the phases tell the precisions apart
    if variant.precision == "fp32":
        return True
    return case.half and (slow_half or not half_is_slow(variant, setting.device))
