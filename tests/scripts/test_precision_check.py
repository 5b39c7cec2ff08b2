# SPDX-License-Identifier: Apache-2.0
"""The comparison of precisions: short complete runs, and the comparison of FIDs."""

import json
import math
import sys

import pytest
from PIL import Image

import dnnlib.cli
from scripts import precision_check
from tests.support import make_image_zip


def runs(**fids: list[float]) -> list[dict]:
    return [{"precision": name, "seed": i, "fid": fid} for name, values in fids.items() for i, fid in enumerate(values)]


@pytest.mark.parametrize(
    ("other", "within"),
    [
        ([61.0, 69.0, 65.0], True),
        ([81.0, 89.0, 85.0], False),
        ([math.nan, 60.0, 65.0], False),
        ([64.0], None),
    ],
)
def test_fids_are_compared_with_the_noise_between_seeds(other, within):
    found = precision_check.compare(runs(fp32=[60.0, 64.0, 68.0], bf16=other))
    (pair,) = found["comparisons"]
    assert pair["precisions"] == ["fp32", "bf16"] and pair["within_noise"] is within
    assert found["summary"]["fp32"] == {"mean": 64.0, "std": 4.0}


@pytest.fixture
def check(monkeypatch, capsys, tmp_path):
    """Runs the command on noise images: `check(flag=value)` -> (exit status, stdout, stderr, result)."""
    data = make_image_zip(tmp_path / "noise.zip", resolution=16, num_images=40, num_labels=2, channels=1)

    def run(**flags):
        flags = {"outdir": tmp_path / "out", "data": data, "cbase": 64, "batch": 32, "device": "cpu", **flags}
        argv = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
        monkeypatch.setattr(sys, "argv", ["precision_check.py", *argv])
        with pytest.raises(SystemExit) as exit_info:
            dnnlib.cli.run(precision_check.main)
        return (exit_info.value.code, *capsys.readouterr(), json.loads((tmp_path / "out" / "result.json").read_text()))

    return run


@pytest.mark.slow
def test_short_runs_are_trained_measured_and_shown(check, tmp_path):
    status, out, err, result = check(iterations=2, seeds="3", metric="fid1k_full")
    assert status == 0
    assert [(run["precision"], run["seed"], run["kimg"]) for run in result["runs"]] == [
        ("fp32", 3, 0.064),
        ("bf16", 3, 0.064),
    ]
    fp32, bf16 = result["runs"]
    assert fp32["fid"] > 0 and fp32["fid"] != bf16["fid"] and fp32["fid"] == pytest.approx(bf16["fid"], rel=0.05)
    assert [kimg for kimg, _loss in fp32["loss"]["G"]] == pytest.approx([0.032, 0.064])
    assert fp32["loss"]["D"] != bf16["loss"]["D"]
    assert "| bf16 | 3 | 0.064 |" in out and "too few seeds to say" in out
    assert "Run 2 of 2: bf16, seed 3" in err
    with Image.open(tmp_path / "out" / "result.png") as picture:
        assert picture.width > 1000
    assert "kimg on cpu in bf16" in (tmp_path / "out" / "bf16-seed3" / "log.txt").read_text()


def test_a_run_ends_when_its_time_is_over(check):
    status, out, _err, result = check(iterations=10**6, seconds=0, precisions="fp32", seeds="0", metric="none")
    (run,) = result["runs"]
    assert status == 0 and run["kimg"] == 0.032 and run["fid"] is None
    assert "comparisons" not in result and "FID" not in out.splitlines()[-1]
