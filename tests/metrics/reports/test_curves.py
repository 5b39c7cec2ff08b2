# SPDX-License-Identifier: Apache-2.0
"""Curves of runs: what is read from a run directory, and which charts are drawn."""

import json

import numpy as np
import pytest

from dnnlib import charts as drawing
from metrics.reports import curves


def stats_line(kimg: float, **means: float) -> str:
    values = {"Progress/kimg": kimg, **{name.replace("__", "/"): mean for name, mean in means.items()}}
    return json.dumps({**{name: {"num": 1, "mean": mean, "std": 0} for name, mean in values.items()}, "timestamp": 0})


def metric_line(kimg: int, value: float, **provenance) -> str:
    return json.dumps(
        {"results": {"fid1k_full": value}, "snapshot_pkl": f"network-snapshot-{kimg:06d}.pkl", "provenance": provenance}
    )


def test_curves_are_read_from_the_lines_of_a_run(tmp_path):
    lines = [stats_line(0, Loss__G__loss=1, other=5), "{damaged", "[]", stats_line(4, Loss__G__loss=float("nan"))]
    (tmp_path / "stats.jsonl").write_text("\n".join([*lines, stats_line(8, Loss__G__loss=3, Timing__sec_per_kimg=2)]))
    results = [metric_line(8, 20.0), metric_line(4, 30.0), metric_line(8, 19.0), metric_line(8, 1.0, trunc=0.5), "7"]
    (tmp_path / "metric-fid1k_full.jsonl").write_text("\n".join(results))
    found = curves.read(tmp_path)
    assert found.stats == {"Loss/G/loss": [(0, 1), (8, 3)]}
    assert found.metrics == {"fid1k_full": [(4, 30.0), (8, 19.0)]}
    assert found.last == {"Progress/kimg": 8, "Loss/G/loss": 3, "Timing/sec_per_kimg": 2}


def test_an_empty_run_directory_has_no_curves(tmp_path):
    found = curves.read(tmp_path)
    assert found == curves.Curves({}, {}, {})
    assert curves.charts({"a": found}) == {}


def test_long_runs_keep_their_course(tmp_path):
    (tmp_path / "stats.jsonl").write_text("\n".join(stats_line(i, Loss__D__loss=i % 2) for i in range(2001)))
    points = curves.read(tmp_path).stats["Loss/D/loss"]
    assert 200 < len(points) <= 400
    assert np.mean([y for _x, y in points]) == pytest.approx(0.5, abs=0.01)
    assert points[0][0] < 6 and points[-1][0] > 1990


def test_charts_show_each_run_and_leave_out_what_is_always_zero():
    run = curves.Curves(
        {"Loss/G/loss": [(0, 1), (1, 2)], "Progress/augment": [(0, 0), (1, 0)]}, {"fid1k_full": [(1, 9)]}, {}
    )
    one, two = curves.charts({"": run}), curves.charts({"a": run, "b": run})
    assert list(one) == list(two) == ["fid1k_full", "Losses"]
    used = {colour for _count, colour in two["Losses"].getcolors(2**16)}
    assert set(drawing.COLOURS[:2]) <= used
    assert drawing.COLOURS[1] not in {colour for _count, colour in one["Losses"].getcolors(2**16)}


def test_a_run_directory_is_found_by_its_options(tmp_path):
    assert curves.run_dir_of(str(tmp_path / "network.pkl")) is None
    (tmp_path / "training_options.json").write_text("{}")
    assert curves.run_dir_of(str(tmp_path / "network.pkl")) == str(tmp_path)
