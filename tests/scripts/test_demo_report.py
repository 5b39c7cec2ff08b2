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
    sizes = {"channels": (128, 64, 32), "params": 2_000_000, "macs": 8_000_000}
    others = {"fid": 12.5, "seconds": 61.4, "kimg": 20, "batch": 16}
    return Entry(title=title, grid=grid, **{**sizes, **others, **changes})


ENTRIES = [entry("Teacher"), entry("Student <1>", channels=(64, 32, 16), params=1_000_000, macs=2_000_000, fid=20.0)]


def test_table_has_sizes_and_their_share_of_the_first_network():
    header, teacher, student = table(ENTRIES)
    assert header == HEADER
    assert teacher == ("Teacher", "128 64 32", "2.00 M", "8.00 M", "12.50", "61 s", "20 kimg, batch 16")
    assert student[2:4] == ("1.00 M (50%)", "2.00 M (25%)")


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


def test_only_older_runs_are_removed(tmp_path):
    for name in ("20250101-000000", "20250102-000000", "mine"):
        (tmp_path / name).mkdir()
    (tmp_path / "report.html").write_text("x")
    demo.remove_older_runs(tmp_path, keep=tmp_path / "20250102-000000")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["20250102-000000", "mine", "report.html"]


def test_an_outdir_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(demo.main, [f"--outdir={tmp_path / 'file'}"])
    assert isinstance(result.exception, UserError) and str(result.exception).startswith("--outdir=")


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
