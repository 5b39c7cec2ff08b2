# SPDX-License-Identifier: Apache-2.0
"""The reports in Chromium: they are drawn, fit on a narrow screen, print no errors and ask for nothing."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from dnnlib import pages
from metrics.reports.run_page import render
from tests.browser import look, needs_browser
from tests.metrics.reports import test_run_page
from tests.support import ROOT
from torch_utils.images import save_png

pytestmark = [pytest.mark.browser, pytest.mark.slow, needs_browser]
WINDOWS = {"wide": (1280, 1600), "narrow": (500, 1600)}  # Chromium has no narrower ones


def assert_looks_right(page: pathlib.Path, folder: pathlib.Path) -> None:
    for width, height in WINDOWS.values():
        seen = look(page, width, height, folder)
        assert seen.screenshot.size == (width, height)
        assert seen.console == [] and seen.requests == [] and seen.overflow <= 0
        pixels = np.asarray(seen.screenshot.convert("L"))
        for part in np.array_split(pixels, 4):  # text and pictures from top to bottom
            assert (part < 200).mean() > 0.002


def test_errors_and_requests_would_be_seen(tmp_path):
    body = '<script>console.error("broken"); missing()</script><img src="http://127.0.0.1:9/x.png">'
    (tmp_path / "bad.html").write_text(pages.page("Bad", body + '<div style="width: 900px">wide</div>'))
    seen = look(tmp_path / "bad.html", *WINDOWS["narrow"], tmp_path)
    assert any("broken" in line for line in seen.console) and any("missing" in line for line in seen.console)
    assert seen.requests == ["http://127.0.0.1:9/x.png"]
    assert seen.overflow > 300


def test_page_of_a_run(tmp_path):
    opt = test_run_page.options(tmp_path)
    test_run_page.fill(opt, tmp_path)
    run_dir = pathlib.Path(opt.run_dir)
    for name in ("fakes000008.png", "reals.png"):
        save_png(np.random.RandomState(0).randint(256, size=(600, 900, 3), dtype=np.uint8), run_dir / name)
    page = run_dir.parent / "report.html"
    page.write_text(render(opt, done=True).replace('src="', 'src="00000-a%3Cb/').replace("00000-a%3Cb/data:", "data:"))
    assert_looks_right(page, tmp_path)


def test_report_of_the_demos_teacher(tmp_path):
    """The whole command, with every runtime that is installed."""
    flags = [
        "--names=Teacher,Again",
        "--detector=fashion",
        "--data=data/fashion-test-32x32.zip",
        "--metrics=fid1k_full",
    ]
    teacher = "data/teachers/fashion.pkl"
    command = [sys.executable, "compare.py", f"--networks={teacher},{teacher}", f"--out={tmp_path / 'report'}", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert_looks_right(tmp_path / "report" / "index.html", tmp_path)
