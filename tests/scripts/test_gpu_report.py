# SPDX-License-Identifier: Apache-2.0
"""scripts/gpu_check.sh and its report: failed and skipped stages, and the sweep of operations that it runs."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import pytest
import torch
from PIL import Image

from dnnlib.util import UserError
from scripts import gpu_report
from tests.support import ROOT
from tests.torch_utils.ops import sweep
from torch_utils import custom_ops
from torch_utils.ops import _plugin
from torch_utils.ops.backend import is_reference

SCRIPT = ROOT / "scripts" / "gpu_check.sh"
STAGES = [
    ("facts", "ok", "2", "30", "processor"),
    ("build", "skipped", "0", "0", "needs a GPU"),
    ("sweep", "failed", "9", "45", "operations"),
    ("training", "timed out", "130", "130", "digits"),
]


@pytest.fixture
def work(tmp_path):
    """The files that stages leave behind, some of which failed."""
    folder = tmp_path / "work"
    (folder / "training").mkdir(parents=True)
    (folder / "benchmark").mkdir()
    (folder / "stages.tsv").write_text("".join("\t".join(stage) + "\n" for stage in STAGES))
    (folder / "facts.json").write_text(json.dumps({"device": "cuda", "gpu": "Some GPU", "cpu_flags": ["avx2", "x|y"]}))
    (folder / "sweep.out").write_text("| operation |\n| --- |\n| fma |\n")
    (folder / "sweep.err").write_text(f"Traceback in {ROOT}/scripts/x.py\n```\nOFF at /usr/lib/python3/y.py\n")
    (folder / "benchmark.out").write_text(f"12 sec/kimg\nbenchmark.json is in {folder}/benchmark\n")
    (folder / "benchmark" / "benchmark.json").write_text('{"ratio": 2}')
    (folder / "training" / "result.json").write_text(json.dumps({"data": f"{folder}/digits.zip"}))
    Image.new("RGB", (8, 8)).save(folder / "training" / "result.png")
    return folder


def test_report_shows_every_stage_and_the_end_of_failed_logs(work, tmp_path):
    names = gpu_report.assemble(work, tmp_path / "out")
    page = (tmp_path / "out" / "report.md").read_text()
    for stage in STAGES:
        assert f"| {' | '.join(stage)} |" in page
    assert page.startswith("# GPU check: Some GPU\n")
    assert "| operation |\n| --- |" in page and "```text\n12 sec/kimg" in page
    assert "![Training at 64x64](training.png)" in page and "benchmark.png" not in page
    assert "## End of the log of sweep (failed)" in page and "'''\nOFF at" in page
    assert "## End of the log of training (timed out)" in page
    assert "| cpu_flags | avx2, x/y |" in page
    assert sorted(names) == sorted(os.listdir(tmp_path / "out"))


def test_report_is_a_few_flat_files(work, tmp_path):
    (work / "sweep").mkdir()
    (work / "sweep" / "sweep.json").write_text("[]")
    Image.new("RGB", (8, 8)).save(work / "benchmark" / "benchmark.png")
    names = gpu_report.assemble(work, tmp_path / "out")
    assert len(names) <= 8 and all((tmp_path / "out" / name).is_file() for name in names)


def test_files_of_an_earlier_check_are_removed(work, tmp_path):
    gpu_report.assemble(work, tmp_path / "out")
    (work / "training" / "result.png").unlink()
    gpu_report.assemble(work, tmp_path / "out")
    assert not (tmp_path / "out" / "training.png").exists()


def test_nothing_identifies_the_machine(work, tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "node17")
    (work / "sweep.err").write_text("node17 failed in /opt/lib/x.so, see https://example.org/a/b and 3 sec/kimg\n")
    gpu_report.assemble(work, tmp_path / "out")
    for path in (tmp_path / "out").glob("*.*"):
        text = path.read_bytes().decode(errors="replace")
        assert str(tmp_path) not in text and "node17" not in text and "/opt/" not in text
    page = (tmp_path / "out" / "report.md").read_text()
    assert "HOST failed in …/x.so, see https://example.org/a/b and 3 sec/kimg" in page
    assert json.loads((tmp_path / "out" / "training.json").read_text()) == {"data": "WORK/digits.zip"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{ROOT}/train.py:3", "./train.py:3"),
        ("in /usr/lib/a.py, line 2", "in …/a.py, line 2"),
        ("'/tmp/x/y'", "'…/y'"),
        ("fp32/bf16 and/or 1/2, https://host/path", "fp32/bf16 and/or 1/2, https://host/path"),
        (f"{pathlib.Path.home()}/.cache/z", "~/.cache/z"),
    ],
)
def test_scrubbing(text, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    assert gpu_report.scrub(text, tmp_path) == expected


def test_facts_of_this_machine():
    found = gpu_report.facts()
    assert found["torch"] == torch.__version__ and "nvcc" in found
    assert socket.gethostname() not in found.values()


@pytest.mark.parametrize("kernels", [None, object()])
def test_build_reports_its_duration_or_its_failure(monkeypatch, kernels):
    monkeypatch.setattr(custom_ops, "verbosity", custom_ops.verbosity)
    monkeypatch.setattr(_plugin, "load", lambda: kernels)
    if kernels is None:
        with pytest.raises(UserError, match="could not be built"):
            gpu_report.build()
    else:
        assert re.fullmatch(rf"{_plugin.NAME} built in \d+ s", gpu_report.build())


def run_check(tmp_path, python: str, *args: str) -> subprocess.CompletedProcess:
    """The script with a stand-in for Python that decides the result of each stage; the real one makes the report."""
    stand_in = tmp_path / "python"
    stand_in.write_text(f'#!/usr/bin/env bash\ncase "$*" in *assemble*) exec {sys.executable} "$@";; esac\n{python}\n')
    stand_in.chmod(0o755)
    env = {**os.environ, "PYTHON": str(stand_in)}
    command = [str(SCRIPT), *args, f"--out={tmp_path / 'out'}"]
    return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60)


def test_stages_after_a_failed_one_still_run(tmp_path):
    done = run_check(tmp_path, 'case "$*" in *ops.sweep*) echo no luck >&2; exit 3;; *) echo fine;; esac', "--cpu")
    assert done.returncode == 1, done.stderr
    results = dict(re.findall(r"^(\w+) +(ok|failed|skipped) ", done.stdout, re.MULTILINE))
    assert results == {
        "facts": "ok", "build": "skipped", "tests": "ok", "sweep": "failed", "sanitizer": "skipped",
        "benchmark": "ok", "data": "ok", "training": "ok", "biggan": "ok",
    }  # fmt: skip
    assert "no luck" in done.stdout and "no luck" in (tmp_path / "out" / "report.md").read_text()


def test_success_without_pytest(tmp_path):
    done = run_check(tmp_path, 'if [[ "$*" == *pytest* ]]; then exit 1; fi', "--cpu")
    assert done.returncode == 0, done.stdout
    assert re.search(r"^tests +skipped +0 s +pytest is not installed$", done.stdout, re.MULTILINE)


def test_wrong_flags_print_the_usage(tmp_path):
    done = run_check(tmp_path, "exit 0", "--gpu")
    assert done.returncode == 2 and "usage: scripts/gpu_check.sh [--cpu] [--out DIR]" in done.stderr


def test_limits_add_up_to_less_than_ten_minutes():
    limits = dict(re.findall(r"^ *stage (\w+) (\d+) ", SCRIPT.read_text(), re.MULTILINE))
    assert len(limits) == 9 and sum(map(int, limits.values())) < 600


# The sweep


def test_sweep_of_small_shapes_on_the_cpu():
    assert sweep.TOLERANCE == {"fp32": 1e-5, "fp16": 5e-3, "bf16": 4e-2}  # as stated in docs/numerics.md
    cases = sweep.cases(small=True)
    for case in cases:
        for row in sweep.compare(case, ["fp32", "bf16"], torch.device("cpu")):
            assert row["ok"], row
    assert {case.name.split()[0] for case in cases} == {"bias_act", "upfirdn2d"}
    assert len(sweep.cases(small=False)) > len(cases)


@pytest.mark.parametrize("wrong", ["output", "gradient"])
def test_sweep_finds_wrong_results(wrong):
    def func(x):
        if is_reference():
            return x * x
        return x * x * 1.01 if wrong == "output" else x.detach() * x * (1 + 0 * x)

    case = sweep.Case("square", ((2, 3, 4, 4),), func)
    rows = list(sweep.compare(case, ["fp32", "fp16"], torch.device("cpu")))
    assert len(rows) == 4 and not any(row["ok"] for row in rows)


def test_sweep_inputs_are_exact_in_every_type_and_never_meet_zero():
    image, bias = sweep.make_inputs(sweep.Case("", ((2, 8, 16, 16), (8,)), None))
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(image.to(dtype).float(), image) and torch.equal(bias.to(dtype).float(), bias)
    assert not (image + bias.reshape(1, 8, 1, 1) == 0).any()
