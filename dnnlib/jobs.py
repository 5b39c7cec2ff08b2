# SPDX-License-Identifier: Apache-2.0
"""Runs commands of the project in parallel lanes, in an order that respects their dependencies, with a common ETA."""

import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable

from dnnlib.errors import UserError
from dnnlib.progress import StatusLine
from dnnlib.text import format_time

ROOT = pathlib.Path(__file__).resolve().parent.parent
LANES = 2  # small networks use little more than one core: two jobs at a time finish sooner than one after the other


@dataclasses.dataclass
class Job:
    """One command of the project.

    Attributes:
        name: unique; what it does, for people.
        args: returns the arguments of the Python interpreter; called when the job starts.
        progress: word before the counts in the command's progress lines; for several stages, words and their shares.
        log: file for the command's output.
        plan: expected seconds, for the first ETA.
        needs: names of the jobs that must finish before.
        done: called when it has finished, before jobs that need it start.
        seconds: duration, once it is done.
        failure: why it has no result, in one sentence, if it failed or a job that it needs did.
    """

    name: str
    args: Callable[[], list[str]]
    progress: str | dict[str, float]
    log: pathlib.Path
    plan: float
    needs: tuple[str, ...] = ()
    done: Callable[[], None] | None = None
    start: float | None = None
    seconds: float | None = None
    failure: str | None = None
    fraction: float = 0.0
    fraction_time: float = 0.0

    def reached(self, fraction: float, now: float) -> None:
        """Note that `fraction` of the work is done."""
        if fraction > self.fraction:
            self.fraction, self.fraction_time = min(fraction, 1.0), now

    @property
    def open(self) -> bool:
        """Whether it is still to be done."""
        return self.seconds is None and self.failure is None

    def expected(self, pace: float) -> float:
        """Seconds from start to end: as measured, extrapolated from the progress, or `pace` times the plan."""
        if self.seconds is not None:
            return self.seconds
        if self.fraction > 0:
            return (self.fraction_time - self.start) / self.fraction
        return self.plan * pace


def run_jobs(jobs: list[Job], lanes: int = LANES, threads: int | None = None, keep_going: bool = False) -> None:
    """Run all jobs, in the order of the list as far as their needs allow; each comes after those that it needs. One
    that already has `seconds` was done before.

    `lanes` is the number of jobs at a time, `threads` that of each job (None: its share of the cores). Sets their
    `seconds`. The first failure stops the other jobs and raises UserError with the end of its output; with `keep_going`
    it is printed as one sentence and sets `failure`, also of the jobs that need it, and the others go on.
    """
    processes: dict[str, subprocess.Popen] = {}
    threads = threads or max((os.cpu_count() or 1) // lanes, 1)
    try:
        with _Board(jobs, lanes) as board:
            while any(job.open for job in jobs):
                for job in [*_ready(jobs)[: lanes - len(processes)], *(job for job in jobs if job.name in processes)]:
                    try:
                        if job.start is None:
                            processes[job.name] = _start(job, threads)
                            board.refresh(force=True)
                        _watch(job, processes)
                    except UserError as error:
                        if not keep_going:
                            raise
                        board.clear()
                        print(_give_up(job, jobs, str(error)), file=sys.stderr, flush=True)
                board.refresh()
                time.sleep(0.2)
    finally:
        for process in processes.values():
            process.terminate()
            process.wait()


def _ready(jobs: list[Job]) -> list[Job]:
    done = {job.name for job in jobs if job.seconds is not None}
    return [job for job in jobs if job.start is None and job.open and done.issuperset(job.needs)]


def _give_up(job: Job, jobs: list[Job], message: str) -> str:
    """Mark `job` and all that need it as failed; returns the first line of `message`."""
    job.failure = message.splitlines()[0].removesuffix(", its end is:")
    for other in jobs:
        if other.open and job.name in other.needs:
            _give_up(other, jobs, f"could not {other.name}: it needs the job '{job.name}', which failed")
    return job.failure


def _start(job: Job, threads: int) -> subprocess.Popen:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    # Idle threads sleep instead of spinning, which would slow down the other lane.
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    job.start = time.monotonic()
    arguments = job.args()
    with open(job.log, "w", encoding="utf-8") as log:
        return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)


def _watch(job: Job, processes: dict[str, subprocess.Popen]) -> None:
    """Note the progress, or the end, of a running job."""
    status = processes[job.name].poll()
    output = job.log.read_text(encoding="utf-8", errors="replace")
    now = time.monotonic()
    stages = {job.progress: 1.0} if isinstance(job.progress, str) else job.progress
    done = 0.0
    for word, share in stages.items():
        counts = re.findall(rf"{word} (\d+)/(\d+) ", output)
        if counts:
            job.reached(done + share * int(counts[-1][0]) / int(counts[-1][1]), now)
        done += share
    if status is None:
        return
    del processes[job.name]
    if status != 0:
        last_lines = "\n".join(output.splitlines()[-12:])
        raise UserError(
            f"stopped: could not {job.name} (exit status {status}); the whole output is in {job.log}, its end is:\n"
            f"{last_lines}"
        )
    if job.done is not None:
        job.done()
    job.seconds = now - job.start


def time_left(jobs: list[Job], now: float, lanes: int = LANES) -> float:
    """Seconds until all jobs are done: running jobs by their progress, others by their plan at the pace so far."""
    jobs = [job for job in jobs if job.failure is None]
    if not jobs:
        return 0.0
    begun = [job for job in jobs if job.start is not None]
    measured = [job for job in begun if job.seconds is not None or job.fraction > 0]
    pace = sum(job.expected(1) for job in measured) / sum(job.plan for job in measured) if measured else 1.0
    ends = {job.name: max(job.start + job.expected(pace) - now, 0) if job.seconds is None else 0.0 for job in begun}
    busy = sorted(ends[job.name] for job in begun if job.seconds is None)
    busy = [0.0] * (lanes - len(busy)) + busy
    for job in jobs:  # in the order of the list, which approximates that of run_jobs
        if job.start is None and job.open:
            ends[job.name] = max([busy[0], *(ends.get(name, 0.0) for name in job.needs)]) + job.plan * pace
            busy = sorted([*busy[1:], ends[job.name]])
    return max(ends.values(), default=0.0)


class _Board(StatusLine):
    """Shows the running jobs and the time remaining for all."""

    INTERVALS = (1.0, 10.0)

    def __init__(self, jobs: list[Job], lanes: int):
        super().__init__()
        self.jobs, self.lanes = jobs, lanes

    def line(self, elapsed: float) -> str:
        """'[1/6 done, 2m 03s, ETA 9m 00s] train the teacher 40%', cut to the width of a terminal."""
        running = [job for job in self.jobs if job.start is not None and job.open]
        eta = format_time(time_left(self.jobs, time.monotonic(), self.lanes))
        texts = ", ".join(f"{job.name} {job.fraction:.0%}" for job in running)
        text = f"[{self._done()}, {format_time(elapsed)}, ETA {eta}] {texts}"
        return text[: shutil.get_terminal_size().columns - 1] if self._in_place else text

    def last_line(self, elapsed: float) -> str:
        """'[6/6 done, 14m 20s]'."""
        return f"[{self._done()}, {format_time(elapsed)}]"

    def _done(self) -> str:
        failed = sum(job.failure is not None for job in self.jobs)
        text = f"{sum(job.seconds is not None for job in self.jobs)}/{len(self.jobs)} done"
        return f"{text}, {failed} failed" if failed else text
