# SPDX-License-Identifier: Apache-2.0
"""Jobs in lanes: their order, a failure among them, and the time remaining."""

import pytest

from dnnlib.jobs import Job, run_jobs, time_left
from dnnlib.util import UserError


def job(name: str, code: str, tmp_path, **changes) -> Job:
    return Job(name, lambda: ["-c", code], "work", tmp_path / f"{name}.log", plan=10, **changes)


def test_jobs_wait_for_what_they_need(tmp_path):
    mark = tmp_path / "mark"
    first = job("first", f"import time; time.sleep(0.3); open({str(mark)!r}, 'w').close()", tmp_path)
    second = job("second", f"import os, sys; sys.exit(not os.path.exists({str(mark)!r}))", tmp_path, needs=("first",))
    beside = job("beside", "", tmp_path)
    run_jobs([first, second, beside])
    assert beside.start < first.start + first.seconds
    assert min(j.seconds for j in (first, second, beside)) > 0
    assert second.start >= first.start + first.seconds


def test_a_failing_job_stops_the_others_and_shows_its_output(tmp_path):
    bad = job("break", "print('all is lost'); raise SystemExit(3)", tmp_path)
    endless = job("go on", "import time; time.sleep(60)", tmp_path)
    with pytest.raises(UserError, match=r"could not break \(exit status 3\)[\s\S]*all is lost"):
        run_jobs([endless, bad])
    assert endless.seconds is None


def test_progress_is_read_from_the_output_and_shown(tmp_path, capsys):
    run_jobs([job("dig", "print('work 3/4 m (75%)', flush=True); import time; time.sleep(1)", tmp_path)])
    shown = capsys.readouterr().err
    assert "[0/1 done" in shown
    assert "ETA" in shown
    assert "[1/1 done" in shown


def test_stages_add_up_to_one_progress(tmp_path):
    dig = job("dig", "print('first 4/4 m, second 1/2 m')", tmp_path)
    dig.progress = {"first": 0.75, "second": 0.25}
    run_jobs([dig])
    assert dig.fraction == pytest.approx(0.875)


def test_a_job_done_before_is_not_run_again(tmp_path):
    mark = tmp_path / "mark"
    before = job("before", f"open({str(mark)!r}, 'w').close()", tmp_path)
    before.seconds = 3.0
    after = job("after", "", tmp_path, needs=("before",))
    assert time_left([before, after], now=0.0) == 10
    run_jobs([before, after])
    assert not mark.exists() and before.seconds == 3.0 and after.seconds > 0
    assert time_left([before], now=0.0) == 0


def test_time_left_follows_plans_progress_and_needs(tmp_path):
    teacher, control = job("teacher", "", tmp_path), job("control", "", tmp_path)
    guided = job("guided", "", tmp_path, needs=("teacher",))
    jobs = [teacher, control, guided]
    for running in (teacher, control):
        running.start = 100.0
    assert time_left(jobs, now=100.0) == 20  # as planned: 10 s both, then the guided one
    teacher.reached(0.5, now=110.0)
    control.reached(0.5, now=110.0)
    # Twice as slow as planned: 10 s left for both, then 20 s.
    assert time_left(jobs, now=110.0) == 30
    control.seconds = 20.0
    assert time_left(jobs, now=120.0) == 20
    teacher.seconds = guided.start = guided.seconds = 20.0
    assert time_left(jobs, now=140.0) == 0


def test_jobs_that_keep_going_skip_only_what_needs_the_failed_one(tmp_path, capsys):
    order = []
    bad = job("break", "print('all is lost'); raise SystemExit(3)", tmp_path)
    after = job("follow", "", tmp_path, needs=("break",), done=lambda: order.append("follow"))
    last = job("end", "", tmp_path, needs=("follow",))
    beside = job("go on", "", tmp_path, done=lambda: order.append("go on"))
    run_jobs([bad, after, last, beside], lanes=1, keep_going=True)
    assert "could not break" in bad.failure and "'follow', which failed" in last.failure and after.start is None
    assert order == ["go on"] and beside.seconds > 0 and beside.failure is None
    shown = capsys.readouterr().err
    assert f"could not break (exit status 3); the whole output is in {bad.log}\n" in shown
    assert "[1/4 done, 3 failed" in shown


def test_a_job_whose_arguments_cannot_be_made_has_failed(tmp_path):
    def refuse():
        raise UserError("no such thing")

    bad = job("break", "", tmp_path)
    bad.args = refuse
    run_jobs([bad, job("go on", "", tmp_path)], keep_going=True)
    assert bad.failure == "no such thing"


def test_each_job_gets_the_threads_it_is_given(tmp_path):
    one = job("one", "import os; raise SystemExit(int(os.environ['OMP_NUM_THREADS']) != 3)", tmp_path)
    run_jobs([one], threads=3)
    assert one.failure is None


def test_time_left_counts_the_lanes(tmp_path):
    jobs = [job(name, "", tmp_path) for name in ("a", "b", "c")]
    assert [time_left(jobs, now=0, lanes=lanes) for lanes in (1, 2, 3)] == [30, 20, 10]
