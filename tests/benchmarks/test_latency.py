# SPDX-License-Identifier: Apache-2.0
"""The page of latencies: a row for each runtime, and the reason where one cannot be measured."""

import re

from click.testing import CliRunner

from benchmarks import latency
from metrics.reports import speed


def test_the_page_has_a_ratio_for_each_runtime_and_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(speed, "FP32", speed.FP32[:1])
    monkeypatch.setattr(latency.shutil, "which", lambda name: None)
    monkeypatch.setattr(latency, "WIDTHS", {"teacher": 0.02, "student": 0.01})
    page = tmp_path / "page.md"
    done = CliRunner().invoke(latency.main, ["--res=8", "--budget=0", f"--out={page}"], catch_exceptions=False)
    assert done.exit_code == 0
    text = page.read_text(encoding="utf-8")
    number = r"[\d.e+-]+ \[[\d.e+-]+, [\d.e+-]+\]"
    assert re.search(rf"^\| 8 \| PyTorch fp32 \| {number} \| {number} \| {number} \|$", text, re.MULTILINE)
    assert "PyTorch compiled fp32: not measured, because it needs a C++ compiler" in text
    assert "median of 3 rounds" in text


def test_the_compiled_network_makes_the_images_of_the_eager_one(monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(latency.torch, "compile", lambda function: lambda *args: made.append(function(*args)))
    monkeypatch.setitem(latency.WIDTHS, "student", 0.01)
    subject = latency._subject("student", 8, tmp_path)
    latency._compiled(subject, 2, latency.torch.device("cpu"), "")()
    z, c = speed.inputs(subject.G, 2)
    assert latency.torch.allclose(made[0], subject.G(z, c, noise_mode="const"), atol=1e-4)
