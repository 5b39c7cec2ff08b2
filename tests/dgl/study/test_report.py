# SPDX-License-Identifier: Apache-2.0
"""The report of results with known outcomes."""

import math

import numpy as np
import PIL.Image
import pytest
import scipy.stats

from dgl.study import plan, report, results
from dnnlib.util import UserError
from tests.dgl.study import toy_study

FIDS = {"control": [52.0, 55.0, 60.0], "timed": [50.0, 51.0, 54.0], "guided": [44.0, 47.0, 47.0]}


@pytest.fixture
def study(tmp_path):
    return toy_study.study(tmp_path, comparator="timed", seeds=[1, 2, 3], detectors=["mnist", "other"])


def lines_of(study, fids, width="1/2"):
    """Results with the FIDs of each arm, seeds from 1, numbered as in a file."""
    runs = [
        (plan.Run(study, study.arms[arm], width, seed), fid) for arm in fids for seed, fid in enumerate(fids[arm], 1)
    ]
    made = [toy_study.line(run, fid, fid_other=[2 * fid if fid else None]) for run, fid in runs]
    return [{**line, "line": number} for number, line in enumerate(made, 1)]


def test_ratios_are_paired_by_seed_and_adjusted_over_the_arms(study):
    control, timed, guided = report.compare(study, "1/2", lines_of(study, FIDS))
    logs = {arm: np.log(values) for arm, values in FIDS.items()}
    assert guided.fid == pytest.approx((44 * 47 * 47) ** (1 / 3))
    assert guided.spread == pytest.approx(np.std(logs["guided"], ddof=1))
    expected = scipy.stats.ttest_rel(logs["guided"], logs["timed"])
    interval = expected.confidence_interval(0.95)
    assert guided.ratio == pytest.approx(math.exp(np.mean(logs["guided"] - logs["timed"])))
    assert (guided.low, guided.high) == pytest.approx((math.exp(interval.low), math.exp(interval.high)))
    assert guided.p == pytest.approx(expected.pvalue)
    assert max(control.p, guided.p) == max(control.p_holm, guided.p_holm)
    assert min(control.p_holm, guided.p_holm) == pytest.approx(2 * min(control.p, guided.p))
    assert (timed.ratio, timed.p, timed.p_holm, timed.seeds) == (None, None, None, ())


def test_only_common_seeds_are_compared(study):
    fids = {**FIDS, "guided": [25.0]}
    guided = report.compare(study, "1/2", lines_of(study, fids))[-1]
    assert guided.seeds == (1,) and guided.ratio == pytest.approx(0.5)
    assert (guided.low, guided.p, guided.spread) == (None, None, None)
    (guided,) = report.compare(study, "1/2", lines_of(study, {"guided": [25.0, 26.0]}))
    assert (guided.seeds, guided.ratio, guided.p) == ((), None, None)


def test_a_diverged_run_is_named_and_in_no_mean(study):
    fids = {**FIDS, "guided": [44.0, None, 47.0]}
    lines = lines_of(study, fids)
    guided = report.compare(study, "1/2", lines)[-1]
    assert guided.seeds == (1, 3) and guided.fid == pytest.approx((44 * 47) ** 0.5) and len(guided.lines) == 3
    assert report.left_out(lines) == ["guided 1/2 seed 2 (line 8) diverged and is in no mean."]
    (alone,) = report.compare(study, "1/2", lines_of(study, {"guided": [None]}))
    assert "| diverged |" in report.outcome_table(study, [alone], "r.jsonl")


def cells(table, arm):
    """The row of an arm, by the titles of the columns."""
    head, _rule, *rows = ([cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines())
    return dict(zip(head, next(row for row in rows if row[0] == arm)))


def test_every_row_says_where_it_comes_from(study):
    outcomes = report.compare(study, "1/2", lines_of(study, FIDS))
    row = cells(report.outcome_table(study, outcomes, "r.jsonl"), "Guided")
    assert row["from"] == "r.jsonl 1:7 2:8 3:9"
    assert (row["runs"], row["FID"], row["s/kimg"], row["kimg"]) == ("3", "45.98", "2.00", "40")
    assert row["ratio to Control, same time [95 %]"].startswith("0.890 [") and "3 pairs" in str(row)
    row = cells(report.guard_table(study, outcomes, "r.jsonl"), "Guided")
    assert (row["FID, other"], row["KID"], row["recall"]) == ("92.00", "0.004", "0.500")
    assert (row["CAS"], row["within class"]) == ("80.0%", "80.0%")
    assert row["from"] == "r.jsonl 1:7 2:8 3:9"


def test_the_page_and_its_pictures(study, tmp_path):
    lines = lines_of(study, FIDS) + lines_of(study, {"timed": [70.0]}, width="1/4")
    path = toy_study.write(tmp_path / "r.jsonl", lines)
    for run in plan.runs_of(study, arms=["guided"], widths=["1/2"]):
        folder = run.folder(tmp_path / "runs")
        folder.mkdir(parents=True)
        PIL.Image.new("L", (30, 20)).save(folder / results.GRID)
    page = report.write_report(study, path, str(tmp_path / "runs"), str(tmp_path / "out")).read_text()
    assert page.index("## Width 1/2") < page.index("## Width 1/4") and "abc" in page and str(tmp_path) not in page
    names = {"report.md", "toy-1-2-fid.png", "toy-1-4-fid.png", "toy-1-2-samples.png"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names
    assert {name for name in names if f"]({name})" in page} == names - {"report.md"}
    with PIL.Image.open(tmp_path / "out" / "toy-1-2-samples.png") as picture:
        assert (
            picture.height == 20 // results.GRID_ROWS * report.STRIP * report.ZOOM + 16
        )  # the first seed, under its label


def test_there_is_no_curve_of_single_snapshots(study):
    lines = [{**line, "fid": line["fid"][-1:]} for line in lines_of(study, FIDS)]
    assert report.curves(study, "1/2", report.compare(study, "1/2", lines)) is None


def test_a_report_needs_results(study, tmp_path):
    with pytest.raises(UserError, match="no result of the study toy"):
        report.write_report(study, str(tmp_path / "none.jsonl"), "runs", str(tmp_path / "out"))
