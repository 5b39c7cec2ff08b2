# SPDX-License-Identifier: Apache-2.0
"""Runs the commands of the demo, as many at once as there are lanes, and says all along when they will be done."""

import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable

from dnnlib.util import UserError, format_time

ROOT = pathlib.Path(__file__).resolve().parent.parent
LANES = (
    2  # Networks this small keep one core busy, and little more: two at a time finish sooner than one after the other.
)


@dataclasses.dataclass
class Job:
    """One command of the project.

    Attributes:
        name: unique; what it does, for people.
        args: gives the arguments of the Python interpreter; asked for when the job starts.
        progress: word before the counts in the command's progress lines.
        log: file for the command's output.
        plan: seconds it should take, for the first ETA.
        needs: names of the jobs that must be done before.
    """

    name: str
    args: Callable[[], list[str]]
    progress: str
    log: pathlib.Path
    plan: float
    needs: tuple[str, ...] = ()
    start: float | None = None
    seconds: float | None = None  # from start to end, once it is done
    fraction: float = 0.0
    fraction_time: float = 0.0

    def reached(self, fraction: float, now: float) -> None:
        """Note that `fraction` of the work is done."""
        if fraction > self.fraction:
            self.fraction, self.fraction_time = min(fraction, 1.0), now

    def expected(self, pace: float) -> float:
        """Seconds from start to end: as measured, by the progress so far, or as planned at `pace` times the plan."""
        if self.seconds is not None:
            return self.seconds
        if self.fraction > 0:
            return (self.fraction_time - self.start) / self.fraction
        return self.plan * pace

    def left(self, pace: float, now: float) -> float:
        """Seconds from `now` to the end, for a job that runs."""
        return max(self.start + self.expected(pace) - now, 0)


def run_jobs(jobs: list[Job]) -> None:
    """Run all jobs, in the order of the list as far as their needs allow; each stands after those it needs.

    Fills in their `seconds`. The first that fails stops the others and raises UserError with its own last words.
    """
    processes: dict[str, subprocess.Popen] = {}
    board = Board(jobs)
    try:
        while any(job.seconds is None for job in jobs):
            for job in ready_jobs(jobs)[: LANES - len(processes)]:
                processes[job.name] = _start(job)
                board.show(force=True)
            for job in jobs:
                if job.name in processes:
                    _watch(job, processes)
            board.show()
            time.sleep(0.2)
    finally:
        for process in processes.values():
            process.terminate()
            process.wait()
    board.close()


def ready_jobs(jobs: list[Job]) -> list[Job]:
    """Those that wait for nothing but a lane."""
    done = {job.name for job in jobs if job.seconds is not None}
    return [job for job in jobs if job.start is None and done.issuperset(job.needs)]


def _start(job: Job) -> subprocess.Popen:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    threads = max((os.cpu_count() or 1) // LANES, 1)
    # Waiting threads sleep instead of spinning: spinning ones keep the other lane from its work.
    env = {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    job.start = time.monotonic()
    with open(job.log, "w", encoding="utf-8") as log:
        return subprocess.Popen(
            [sys.executable, *job.args()], cwd=ROOT, env={**os.environ, **env}, stdout=log, stderr=subprocess.STDOUT
        )


def _watch(job: Job, processes: dict[str, subprocess.Popen]) -> None:
    """Take note of the progress, or the end, of a running job."""
    status = processes[job.name].poll()
    output = job.log.read_text(encoding="utf-8", errors="replace")
    now = time.monotonic()
    counts = re.findall(rf"{job.progress} (\d+)/(\d+) ", output)
    if counts:
        job.reached(int(counts[-1][0]) / int(counts[-1][1]), now)
    if status is None:
        return
    del processes[job.name]
    if status != 0:
        last_lines = "\n".join(output.splitlines()[-12:])
        raise UserError(
            f"the demo stopped, for it could not {job.name} (exit status {status}); the whole output is in {job.log}, "
            f"the end of it is:\n{last_lines}"
        )
    job.seconds = now - job.start


def time_left(jobs: list[Job], now: float) -> float:
    """Seconds until all jobs are done: running ones by their progress, the others as planned, at the pace so far."""
    begun = [job for job in jobs if job.start is not None]
    measured = [job for job in begun if job.seconds is not None or job.fraction > 0]
    pace = sum(job.expected(1) for job in measured) / sum(job.plan for job in measured) if measured else 1.0
    ends = {job.name: 0.0 if job.seconds is not None else job.left(pace, now) for job in begun}
    lanes = sorted(ends[job.name] for job in begun if job.seconds is None)
    lanes = [0.0] * (LANES - len(lanes)) + lanes
    for job in jobs:  # in the order of the list: close enough to what run_jobs does
        if job.start is None:
            ends[job.name] = max([lanes[0], *(ends[name] for name in job.needs)]) + job.plan * pace
            lanes = sorted([*lanes[1:], ends[job.name]])
    return max(ends.values())


class Board:
    """Prints what runs, what is left of it, and of everything. On a terminal one line is rewritten in place."""

    def __init__(self, jobs: list[Job]):
        self.jobs = jobs
        self.in_place = sys.stderr.isatty()
        self.interval = 1.0 if self.in_place else 10.0
        self.start = self.last_print = time.monotonic()

    def show(self, force: bool = False) -> None:
        """Print the state, if the last time was long enough ago or `force`."""
        now = time.monotonic()
        if now - self.last_print < self.interval and not force:
            return
        self.last_print = now
        running = [job for job in self.jobs if job.start is not None and job.seconds is None]
        done = sum(job.seconds is not None for job in self.jobs)
        texts = [f"{job.name} {job.fraction:.0%}" for job in running]
        self._print(
            f"[{done}/{len(self.jobs)} done, {format_time(now - self.start)}, "
            f"ETA {format_time(time_left(self.jobs, now))}] {', '.join(texts)}"
        )

    def close(self) -> None:
        """Print the last line."""
        self._print(f"[{len(self.jobs)}/{len(self.jobs)} done, {format_time(time.monotonic() - self.start)}]")
        if self.in_place:
            sys.stderr.write("\n")

    def _print(self, text: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        sys.stderr.write(f"\r\033[K{text[:width]}" if self.in_place else f"{text}\n")
        sys.stderr.flush()
