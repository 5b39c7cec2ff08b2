# SPDX-License-Identifier: Apache-2.0
"""The demo's report: its content, that it is self-contained, and that the whole demo runs."""

import base64
import io
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from dnnlib.util import UserError
from scripts import demo
from scripts.demo_report import HEADER, Entry, table, write_html, write_png
from tests.support import ROOT


def entry(title: str, **changes) -> Entry:
    grid = np.random.RandomState(len(title)).randint(256, size=(40, 60), dtype=np.uint8)
    sizes = {"params": 2_000_000, "macs": 8_000_000, "bytes": 8_100_000}
    others = {"fid": 12.5, "recall": 0.456, "milliseconds": 7.25, "seconds": 61.4}
    return Entry(title=title, grid=grid, **{**sizes, **others, **changes})


ENTRIES = [entry("Teacher", seconds=None), entry("Student <1>", params=1_000_000, macs=2_000_000, fid=20.0)]


def test_table_has_sizes_and_their_share_of_the_first_network():
    header, teacher, student = table(ENTRIES)
    assert header == HEADER
    assert teacher == ("Teacher", "2.00 M", "8.00 M", "12.50", "0.46", "7.2", "8.10 MB", "")
    assert student[1:3] == ("1.00 M (50%)", "2.00 M (25%)") and student[-1] == "61 s"


class Counting(torch.nn.Module):
    """Makes 2x2 images whose brightness is the class number plus 10 times the row of the grid."""

    z_dim = 4

    def forward(self, z, c, truncation_psi, noise_mode):
        rows = torch.arange(len(z)) // demo.CLASSES
        value = c.argmax(dim=1) + 10 * rows
        return ((value - 128) / 127.5).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2)


def test_sample_grid_has_a_column_per_class_and_a_row_per_seed():
    grid = demo.sample_grid(Counting())
    side = 2 * demo.ZOOM
    assert grid.shape == (demo.SEEDS * side, demo.CLASSES * side) and grid.dtype == np.uint8
    cells = grid.reshape(demo.SEEDS, side, demo.CLASSES, side)
    expected = np.arange(demo.SEEDS)[:, None] * 10 + np.arange(demo.CLASSES)
    np.testing.assert_array_equal(cells, np.broadcast_to(expected[:, None, :, None], cells.shape))


def test_html_contains_every_cell_and_its_pictures(tmp_path):
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


def job_names(demo_):
    return [job.name for job in demo_.jobs() if job.open]


def test_an_interrupted_demo_goes_on_with_what_is_not_done(tmp_path):
    first = demo.Demo(demo.NETWORKS, tmp_path / "work")
    assert first.begin() == 0 and len(job_names(first)) == 7
    (tmp_path / "work" / "half").mkdir()
    job = first.jobs()[0]
    job.args()
    assert not (tmp_path / "work" / "half").exists(), "a training that was interrupted starts again"
    job.done()
    again = demo.Demo(demo.NETWORKS, tmp_path / "work")
    assert again.begin() == 1 and job.name not in job_names(again) and len(job_names(again)) == 6


def test_a_demo_with_other_settings_starts_anew(tmp_path):
    first = demo.Demo(demo.NETWORKS, tmp_path / "work")
    first.begin()
    job = first.jobs()[0]
    job.args()
    job.done()
    assert demo.Demo(demo.quick(demo.NETWORKS), tmp_path / "work").begin() == 0
    assert list((tmp_path / "work").iterdir()) == []


def test_results_are_read_from_the_log(tmp_path):
    log = 'fakes 5/5 img\n{"results": {"a": 1.5}}\nmore\n{"results": {"b": 2, "c": 3}}\n'
    (tmp_path / "half-metrics.log").write_text(log)
    assert demo.Demo(demo.NETWORKS, tmp_path).values(demo.NETWORKS[0]) == {"a": 1.5, "b": 2, "c": 3}


def test_an_outdir_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(demo.main, [f"--outdir={tmp_path / 'file'}"])
    assert isinstance(result.exception, UserError) and str(result.exception).startswith("--outdir=")


@pytest.mark.slow
def test_the_quick_demo_runs_from_end_to_end(tmp_path):
    command = [sys.executable, "-W", "error", "-m", "scripts.demo", "--quick", f"--outdir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "[7/7 done" in done.stderr
    assert "ETA" in done.stderr
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") == 4
    assert "Student, 1/4" in page
    assert sorted(path.name for path in tmp_path.glob("*.pkl")) == [
        "half.pkl", "quarter.pkl", "scratch.pkl", "teacher.pkl"
    ]  # fmt: skip
    assert not (tmp_path / "work" / demo.STATE).exists()
    with Image.open(tmp_path / "report.png") as img:
        assert img.width > 1500
