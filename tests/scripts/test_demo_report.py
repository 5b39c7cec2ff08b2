# SPDX-License-Identifier: Apache-2.0
"""The demo's report: what it shows, that it stands alone, and that the demo as a whole runs."""

import base64
import io
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dnnlib.util import UserError
from scripts import demo
from scripts.demo_jobs import Job, run_jobs, time_left
from scripts.demo_report import HEADER, Entry, make_grid, table, write_html, write_png
from tests.support import ROOT


def entry(title: str, **changes) -> Entry:
    grid = np.random.RandomState(len(title)).randint(256, size=(40, 60), dtype=np.uint8)
    sizes = {"channels": (128, 64, 32), "params": 2_000_000, "macs": 8_000_000}
    others = {"fid": 12.5, "seconds": 61.4, "kimg": 20, "batch": 16}
    return Entry(title=title, grid=grid, **{**sizes, **others, **changes})


ENTRIES = [entry("Teacher"), entry("Student <1>", channels=(64, 32, 16), params=1_000_000, macs=2_000_000, fid=20.0)]


def test_table_says_sizes_and_their_share_of_the_first_network():
    teacher, student = table(ENTRIES)
    assert teacher == ("Teacher", "128 64 32", "2.00 M", "8.00 M", "12.50", "61 s", "20 kimg, batch 16")
    assert student[2:4] == ("1.00 M (50%)", "2.00 M (25%)")


def test_grid_is_filled_row_by_row_and_zoomed():
    images = [np.full((2, 2), value, np.uint8) for value in range(6)]
    grid = make_grid(images, columns=3, zoom=4)
    assert grid.shape == (16, 24)
    assert grid[0, ::8].tolist() == [0, 1, 2]
    assert grid[8, ::8].tolist() == [3, 4, 5]


def test_grid_of_colour_images_keeps_the_channels():
    assert make_grid([np.zeros((2, 2, 3), np.uint8)] * 4, columns=2, zoom=1).shape == (4, 4, 3)


@pytest.mark.parametrize("count", [0, 5])
def test_grid_with_an_incomplete_row_is_refused(count):
    with pytest.raises(ValueError, match=f"{count} images"):
        make_grid([np.zeros((2, 2), np.uint8)] * count, columns=3)


def test_html_holds_every_cell_and_carries_its_pictures_inside(tmp_path):
    write_html(tmp_path / "report.html", "Heading & more", ENTRIES, ["A note."])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for text in [*HEADER, "Heading &amp; more", "Student &lt;1&gt;", "2.00 M (25%)", "A note."]:
        assert text in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    for picture, shown in zip(pictures, ENTRIES, strict=True):
        with Image.open(io.BytesIO(base64.b64decode(picture))) as img:
            np.testing.assert_array_equal(np.asarray(img), shown.grid)


def test_png_shows_the_grids_side_by_side_unchanged(tmp_path):
    write_png(tmp_path / "report.png", "Heading", ENTRIES, ["A note that goes on. " * 30])
    with Image.open(tmp_path / "report.png") as img:
        picture = np.asarray(img.convert("L"))
    corners = []
    for shown in ENTRIES:
        windows = np.lib.stride_tricks.sliding_window_view(picture, shown.grid.shape)
        (found,) = np.argwhere((windows[:, :, 0] == shown.grid[0]).all(axis=2))
        np.testing.assert_array_equal(windows[tuple(found)], shown.grid)
        corners.append(found)
    assert corners[0][0] == corners[1][0]
    assert corners[1][1] >= corners[0][1] + ENTRIES[0].grid.shape[1]


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


def test_a_failing_job_stops_the_others_and_says_its_own_words(tmp_path):
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


def test_older_runs_are_removed_and_nothing_else(tmp_path):
    for name in ("20250101-000000", "20250102-000000", "mine"):
        (tmp_path / name).mkdir()
    (tmp_path / "report.html").write_text("x")
    demo.remove_older_runs(tmp_path, keep=tmp_path / "20250102-000000")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["20250102-000000", "mine", "report.html"]


@pytest.mark.slow
def test_the_quick_demo_runs_from_end_to_end(tmp_path):
    command = [sys.executable, "-W", "error", "-m", "scripts.demo", "--quick", f"--outdir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "[6/6 done" in done.stderr
    assert "ETA" in done.stderr
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") == 3
    assert "Guided student" in page
    with Image.open(tmp_path / "report.png") as img:
        assert img.width > 1500
