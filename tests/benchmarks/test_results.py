# SPDX-License-Identifier: Apache-2.0
"""Results in JSON and back, and the comparison of two runs."""

import dataclasses
import json

import pytest

from benchmarks.results import Result, Run, compare, differences, load
from dnnlib.util import UserError

MACHINE = {"device": "cpu", "cpu": "a processor", "cores": 2, "threads": 2, "torch": "2.13.0", "load": 0.1}


def result(case="inference/b1", fast=1.0, **changes) -> Result:
    values = {"case": case, "part": "images", "resolution": 128, "batch": 1, "unit": "s"}
    values["samples"] = {"reference": [2.0, 2.2, 2.1], "fp32": [fast, fast * 1.1, fast * 1.05]}
    return Result(**{**values, **changes})


def run(*results: Result, **changes) -> Run:
    return Run("python -m benchmarks", "2026-01-01 00:00 UTC", dict(MACHINE, **changes), "fp32", results=list(results))


def test_what_was_saved_comes_back(tmp_path):
    written = run(result(moved={"reference": 100, "fp32": 100}), result("loop", flops=10**9))
    written.copy_bytes_per_s, written.flops_per_s = 1e10, {"fp32": 1e11}
    written.save(tmp_path / "a.json")
    assert load(tmp_path / "a.json") == written
    assert json.loads((tmp_path / "a.json").read_text())["schema"] == 1


def test_files_from_before_operations_were_counted_can_be_read(tmp_path):
    content = {"schema": 1, **dataclasses.asdict(run(result()))}
    del content["flops_per_s"], content["results"][0]["flops"]
    (tmp_path / "old.json").write_text(json.dumps(content))
    assert load(tmp_path / "old.json") == run(result())


def test_ratio_and_name_of_a_result():
    assert result(fast=0.5).ratio("fp32").median == pytest.approx(4)
    assert result().key == "inference/b1 images, 128x128, batch 1"
    assert result().fast_variants == ["fp32"]


def test_only_a_fallen_ratio_is_a_regression():
    old = run(result("fell", 1.0), result("same", 1.0), result("rose", 1.0), result("gone", 1.0))
    new = run(result("fell", 1.2), result("same", 1.05), result("rose", 0.5), result("new", 9.0))
    changes = {change.key.split()[0]: change for change in compare(old, new, tolerance=10)}
    assert {name: change.regressed for name, change in changes.items()} == {"fell": True, "same": False, "rose": False}
    assert changes["fell"].percent == pytest.approx(-100 / 6)
    assert changes["rose"].percent == pytest.approx(100)


def test_the_tolerance_decides_what_is_a_regression():
    old, new = run(result(fast=1.0)), run(result(fast=1.2))
    assert [change.regressed for change in compare(old, new, tolerance=20)] == [False]
    assert [change.regressed for change in compare(old, new, tolerance=15)] == [True]


def test_other_settings_of_a_case_are_other_measurements():
    old = run(result(resolution=64), result(batch=2), result(part="other"))
    assert compare(old, run(result()), tolerance=10) == []


def test_conditions_that_differ_are_named_but_not_the_load():
    old, new = run(), run(threads=1, load=2.0)
    new.cbase = 64
    assert differences(old, new) == ["threads", "cbase"]
    assert differences(old, run(load=5.0)) == []


def faulty(change) -> str:
    """The JSON text of a run after `change` has altered it."""
    content = {"schema": 1, **dataclasses.asdict(run(result()))}
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no JSON",
        "[]",
        "{}",
        faulty(lambda c: c.update(schema=0)),
        faulty(lambda c: c.pop("machine")),
        faulty(lambda c: c.update(unknown=1)),
        faulty(lambda c: c["results"].append({"case": "x"})),
        faulty(lambda c: c["results"][0]["samples"].update(fp32=[])),
        faulty(lambda c: c["results"][0]["samples"].update(fp32=[0.0, 0.0, 0.0])),
        faulty(lambda c: c["results"][0]["samples"].update(fp32=["a", "b", "c"])),
        faulty(lambda c: c["results"][0]["samples"].pop("reference")),
    ],
)
def test_a_file_that_is_not_a_benchmark_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"--compare=.*a\.json"):
        load(tmp_path / "a.json")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"--compare=.*cannot be read"):
        load(tmp_path / "none.json")
