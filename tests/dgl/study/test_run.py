# SPDX-License-Identifier: Apache-2.0
"""Running a study: what is left to do, what an interruption leaves, failures; and one real run of toy networks."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import torch

from dgl.study import plan, results
from dgl.study import run as study_run
from dnnlib.jobs import Job
from dnnlib.util import UserError
from tests.dgl import tiny
from tests.dgl.study import toy_study
from tests.metrics import stand_ins
from tests.support import ROOT, make_image_zip


class Children:
    """Stands in for the child processes: a training does nothing, a measurement writes a line.

    `made` has the names and commands in order; the job named `broken` fails.
    """

    def __init__(self, study):
        self.made: dict[str, list[str]] = {}
        self.study = study
        self.broken = None

    def __call__(self, jobs: list[Job], **options):
        for job in jobs:
            if job.name == self.broken or any(other.failure for other in jobs if other.name in job.needs):
                job.failure = "broken"
                continue
            command = self.made[job.name] = job.args()
            if job.done is not None:
                folder = pathlib.Path(command[-1])
                about = json.loads((folder / results.REQUEST).read_text())["about"]
                run = plan.Run(self.study, self.study.arms[about["arm"]], about["width"], about["seed"])
                seconds = {"control": 2.0, "guided": 3.0, "timed": 2.0}[about["arm"]]
                line = {**toy_study.line(run, sec_per_kimg=seconds), "kimg": about["kimg"]}
                (folder / results.LINE).write_text(json.dumps(line))
                job.done()
            job.seconds = 1.0


@pytest.fixture
def study(tmp_path):
    return toy_study.study(tmp_path, seeds=[1], widths={"1/2": {"cbase": 0.5}})


@pytest.fixture
def children(study, monkeypatch):
    made = Children(study)
    monkeypatch.setattr(study_run, "run_jobs", made)
    return made


def go(study, tmp_path):
    """The number of failed runs, and the results."""
    path = str(tmp_path / "results" / "r.jsonl")
    failed = study_run.run_study(study, plan.runs_of(study), path, str(tmp_path / "runs"), jobs=2)
    return failed, results.read(path, study.name)


def test_every_run_gets_a_line_and_is_not_made_again(study, children, tmp_path):
    failed, lines = go(study, tmp_path)
    assert failed == 0 and [line["arm"] for line in lines] == ["control", "guided", "timed"]
    assert [line["kimg"] for line in lines] == [
        40,
        40,
        60,
    ]  # the third as long as the second, which is 1.5 times slower
    assert "--kimg=60" in children.made["train timed 1/2 seed 1"]
    children.made.clear()
    assert go(study, tmp_path) == (0, lines) and children.made == {}


def test_a_timed_run_waits_for_those_that_it_needs(study, tmp_path):
    runs = plan.runs_of(study)
    waits = study_run.jobs_of(runs[-1], runs, "r.jsonl", str(tmp_path), [])[0].needs
    assert waits == ("measure control 1/2 seed 1", "measure guided 1/2 seed 1")
    assert study_run.jobs_of(runs[-1], runs[1:], "r.jsonl", str(tmp_path), [])[0].needs == waits[1:]


def test_an_interrupted_run_starts_from_scratch(study, children, tmp_path):
    runs = plan.runs_of(study)
    done, interrupted = (run.folder(tmp_path / "runs") for run in runs[:2])
    for folder in (done, interrupted):
        folder.mkdir(parents=True)
        (folder / "network-snapshot-000004.pkl").touch()
    (tmp_path / "results").mkdir()
    toy_study.write(tmp_path / "results" / "r.jsonl", [toy_study.line(runs[0])])
    failed, lines = go(study, tmp_path)
    assert failed == 0 and len(lines) == 3
    assert [path.name for path in done.iterdir()] == ["network-snapshot-000004.pkl"]
    assert not (interrupted / "network-snapshot-000004.pkl").exists()
    assert "train control 1/2 seed 1" not in children.made and len(children.made) == 4


def test_a_failed_run_has_no_line_and_is_made_by_the_next_call(study, children, tmp_path):
    children.broken = "train guided 1/2 seed 1"
    failed, lines = go(study, tmp_path)
    assert failed == 2 and [line["arm"] for line in lines] == ["control"]
    children.broken = None
    failed, lines = go(study, tmp_path)
    assert failed == 0 and [line["arm"] for line in lines] == ["control", "guided", "timed"]


def test_a_changed_study_file_is_refused_before_any_run(study, children, tmp_path):
    go(study, tmp_path)
    children.made.clear()
    with pytest.raises(UserError, match="with other kimg"):
        go(toy_study.study(tmp_path, seeds=[1, 2], kimg=44), tmp_path)
    assert children.made == {}


def test_the_first_eta_comes_from_finished_runs(study):
    control, guided, _timed = plan.runs_of(study)
    assert study_run.train_plan(control, []) == 40 * study_run.SEC_PER_KIMG
    lines = [toy_study.line(control, sec_per_kimg=5.0), toy_study.line(guided, sec_per_kimg=7.0)]
    assert [study_run.train_plan(run, lines) for run in (control, guided)] == [200, 280]
    assert (study_run.measure_plan([]), study_run.measure_plan(lines)) == (study_run.SEC_PER_MEASUREMENT, 30)


def test_a_missing_file_is_refused_before_any_run(study, children, tmp_path):
    (tmp_path / "held_out.bin").unlink()
    with pytest.raises(UserError, match=r"held_out\.bin, which cannot be read"):
        go(study, tmp_path)
    assert children.made == {}


def command(*arguments, cwd):
    """The process `python -m dgl.study ARGUMENTS`, in a folder."""
    code = "import runpy; runpy.run_module('dgl.study', run_name='__main__', alter_sys=True)"
    starter = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"
    return subprocess.run([sys.executable, "-c", starter, *arguments], cwd=cwd, capture_output=True, text=True)


@pytest.mark.slow
def test_a_study_of_toy_networks(tmp_path):
    data = str(make_image_zip(tmp_path / "data.zip", resolution=16, num_images=24, num_labels=3))
    teacher = tiny.save_teacher(tmp_path)
    detector = stand_ins.save_detector(stand_ins.Inception(), tmp_path / "toy.pt")
    arms = {"control": {"flags": {"dgl-weight": 0}}, "bad": {"flags": {"dgl-weight": 0.1, "batch": 3}}}
    common = {"cfg": "cifar", "cond": 1, "batch": 32, "aug": "noaug", "metrics": "none", "workers": 1, "device": "cpu"}
    common |= {"dgl-recipe": "paper"}
    files = {"data": data, "held_out": data, "teacher": teacher, "detectors": [detector, detector]}
    rest = {"common": common, "widths": {"half": {"cbase": 0.5}}, "arms": arms, "seeds": [1], "kimg": 1}
    (tmp_path / "study.json").write_text(json.dumps({"name": "toy", **files, **rest, "num_fakes": 1000}))
    refusal = command("study.json", "--results=r.jsonl", cwd=tmp_path)
    assert refusal.returncode == 2 and "use --trust-detector" in refusal.stderr and not (tmp_path / "r.jsonl").exists()
    arguments = ("study.json", "--results=r.jsonl")
    done = command(*arguments, "--trust-detector", cwd=tmp_path)
    assert done.returncode == 1, done.stderr  # 3 images do not fill a group of the teacher's D
    (sentence,) = [line for line in done.stderr.splitlines() if "could not" in line]
    assert "could not train bad half seed 1" in sentence and "toy-half-bad-1-train.log" in sentence
    assert "1 of 2 runs" in done.stdout
    (line,) = results.read(tmp_path / "r.jsonl", "toy")
    assert line["arm"] == "control" and line["train"]["sec_per_kimg"] > 0 and line["kimg"] == 1
    assert line["log_fid"] == pytest.approx(np.log(line["fid"][-1]["value"]))
    assert line["last"]["fid_other"] == [line["fid"][-1]["value"]]  # the same detector twice
    assert 0 <= line["last"]["recall"] <= 1 and 0 < line["last"]["intra_class_reals"] < 1
    assert line["G"]["params"] > 0 and line["versions"]["torch"] == torch.__version__
    assert str(tmp_path) not in json.dumps(line) and str(ROOT) not in json.dumps(line)
    with PIL.Image.open(tmp_path / "runs" / "study" / "toy" / "half-control-1" / results.GRID) as grid:
        assert grid.size == (3 * 16, 5 * 16)
    done = command("report", *arguments, "--out=report", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report" / "report.md").is_file() and (tmp_path / "report" / "toy-half-samples.png").is_file()
