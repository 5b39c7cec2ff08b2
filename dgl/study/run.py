# SPDX-License-Identifier: Apache-2.0
"""Running a study: a training and a measurement in child processes for each run without a result."""

import json
import os
import pathlib
import shutil
import statistics
from typing import Any

from dgl.study import results
from dgl.study.plan import Run, Study, located
from dgl.study.results import LINE, REQUEST
from dnnlib.files import append_line, make_folder, write_text
from dnnlib.jobs import Job, run_jobs
from dnnlib.util import UserError

SEC_PER_KIMG, SEC_PER_MEASUREMENT = 3.0, 60.0  # for the first ETA, as long as there are no results


def run_study(study: Study, runs: list[Run], path: str, outdir: str, jobs: int, trust_detector: bool = False) -> int:
    """Make all of `runs` that have no line in the file of results `path`, `jobs` at a time, in folders below `outdir`.

    A folder without a result is from an interrupted run and is removed. Returns the number of runs that failed; the
    sentence about each is printed as it happens. `trust_detector`: run the code of unknown detectors. Raises UserError
    if a result or a folder contradicts the study file, or for a detector that may not run.
    """
    lines = results.read(path, study.name)
    waiting = [run for run in runs if results.find(lines, run) is None]
    if not waiting:
        return 0
    for run in waiting:
        run.settings()  # reads the files of the study: a missing one is noticed now
    check_detectors(study, trust_detector)
    make_folder(pathlib.Path(path).absolute().parent, "--results")
    make_folder(outdir, "--outdir")
    todo = [
        job for run in waiting for job in jobs_of(run, waiting, path, os.path.abspath(outdir), lines, trust_detector)
    ]
    run_jobs(todo, lanes=jobs, threads=1, keep_going=True)
    return sum(job.failure is not None for job in todo[1::2])


def check_detectors(study: Study, trust: bool) -> None:
    """Raises UserError if a detector of the study cannot be used; otherwise the measurements would find out."""
    from metrics import detectors  # loads torch

    for name in map(located, study.detectors):
        if trust:
            detectors.trust(name)
        detectors.load(detectors.resolve(name, "inception"), "cpu")


def jobs_of(
    run: Run, waiting: list[Run], path: str, outdir: str, lines: list[dict[str, Any]], trust_detector: bool = False
) -> tuple[Job, Job]:
    """The training of a run and its measurement, which appends the line to `path`.

    The training waits for the runs among `waiting` that say how long it is.
    """
    folder, train, measure = run.folder(outdir), f"train {run.title}", f"measure {run.title}"

    def begin() -> list[str]:
        kimg = results.length(run.study, run, results.read(path, run.study.name))
        shutil.rmtree(folder, ignore_errors=True)
        make_folder(folder, "--outdir")
        write_text(folder / REQUEST, json.dumps(request(run, kimg, trust_detector)))
        return run.command(kimg, folder)

    def finish() -> None:
        try:
            append_line(path, (folder / LINE).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"could not store the result of {run.title} in {path} ({error.strerror})") from error
        remove_networks(folder)

    names: tuple[str, ...] = ()
    if run.arm.as_long_as is not None:
        timed = (run.arm.as_long_as, run.study.base_arm(run.arm).name)
        same = [other for other in waiting if (other.width, other.seed) == (run.width, run.seed)]
        names = tuple(f"measure {other.title}" for other in same if other.arm.name in timed)
    logs = pathlib.Path(outdir) / "logs"
    log = str(folder.relative_to(outdir)).replace(os.sep, "-")
    return (
        Job(train, begin, "training", logs / f"{log}-train.log", train_plan(run, lines), names),
        Job(
            measure,
            lambda: ["-m", "dgl.study", "measure", str(folder)],
            "measuring",
            logs / f"{log}-measure.log",
            measure_plan(lines),
            (train,),
            finish,
        ),
    )


def train_plan(run: Run, lines: list[dict[str, Any]]) -> float:
    """Seconds that the training of `run` will take, by the finished runs: of its arm and width, or else of any."""
    own = results.sec_per_kimg(lines, run.arm.name, run.width)
    if own is None:
        own = statistics.median([line["train"]["sec_per_kimg"] for line in lines] or [SEC_PER_KIMG])
    return own * run.base_kimg


def measure_plan(lines: list[dict[str, Any]]) -> float:
    """Seconds that a measurement will take, by the finished runs."""
    return statistics.median([line["measure"]["seconds"] for line in lines] or [SEC_PER_MEASUREMENT])


def request(run: Run, kimg: int, trust_detector: bool = False) -> dict[str, Any]:
    """What the process that measures has to know; `about` is the start of the line of results, without paths."""
    study = run.study
    about = {"study": study.name, "arm": run.arm.name, "width": run.width, "seed": run.seed, "kimg": kimg}
    return {
        "about": {**about, "flags": run.flags(kimg), "settings": run.settings()},
        "held_out": os.path.abspath(study.held_out),
        "detectors": [located(name) for name in study.detectors],
        "trust_detector": trust_detector,
        "snapshots": study.snapshots,
        "num_fakes": study.num_fakes,
    }


def remove_networks(folder: pathlib.Path) -> None:
    """Remove all network snapshots of a measured run but the last."""
    for path in sorted(folder.glob("*/network-snapshot-*.pkl"))[:-1]:
        path.unlink()
