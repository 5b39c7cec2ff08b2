# SPDX-License-Identifier: Apache-2.0
"""Curves of training runs, from the lines that a run directory has collected, and charts of them."""

import dataclasses
import json
import math
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from PIL import Image

from dnnlib.charts import Series, chart
from metrics import metric_main
from training.settings import OPTIONS_FILE

Points = list[tuple[float, float]]  # (thousand images shown to D, value)

STATS = "stats.jsonl"
_MOST_POINTS = 400  # of a series; a chart has fewer pixels than a long run has ticks
# Title of a chart -> statistics in it, each with its name in the legend
_CHARTS = {
    "Losses": {"Loss/G/loss": "G", "Loss/D/loss": "D"},
    "Mean scores of D": {"Loss/scores/real": "reals", "Loss/scores/fake": "fakes"},
    "Augmentation probability p": {"Progress/augment": ""},
    "Teachers' push relative to that of D (grad_ratio)": {"Loss/DGL/grad_ratio": ""},
}
_KIMG = "Progress/kimg"


@dataclasses.dataclass(frozen=True)
class Curves:
    """What a run has recorded.

    Attributes:
        stats: points of each statistic in `_CHARTS`, by name; means over a tick.
        metrics: points of each result of a metric, by its name, such as 'fid5k_full-fashion'.
        last: all means of the last tick, by name.
    """

    stats: dict[str, Points]
    metrics: dict[str, Points]
    last: dict[str, float]


def run_dir_of(network: str) -> str | None:
    """The run directory that the file `network` lies in, or None."""
    folder = os.path.dirname(os.path.abspath(network))
    return folder if os.path.isfile(os.path.join(folder, OPTIONS_FILE)) else None


def read(run_dir: str | os.PathLike) -> Curves:
    """The curves of a run. What is missing, or not a line of the expected form, is left out."""
    shown = [name for names in _CHARTS.values() for name in names]
    stats: dict[str, Points] = {name: [] for name in shown}
    last: dict[str, float] = {}
    for line in _lines(pathlib.Path(run_dir, STATS)):
        means = {name: value["mean"] for name, value in line.items() if isinstance(value, dict) and "mean" in value}
        kimg = means.get(_KIMG)
        if not _is_number(kimg):
            continue
        last = {name: value for name, value in means.items() if _is_number(value)}
        for name in shown:
            if name in last:
                stats[name].append((kimg, last[name]))
    return Curves({name: _thinned(points) for name, points in stats.items() if points}, _metrics(run_dir), last)


def _metrics(run_dir: str | os.PathLike) -> dict[str, Points]:
    found: dict[str, dict[float, float]] = {}
    for path in sorted(pathlib.Path(run_dir).glob("metric-*.jsonl")):
        for line in _lines(path):
            number = re.search(r"network-snapshot-(\d+)\.pkl$", str(line.get("snapshot_pkl")))
            results = line.get("results")
            if number is None or not isinstance(results, dict) or not metric_main.as_in_training(line):
                continue
            for name, value in results.items():
                if _is_number(value):
                    found.setdefault(name, {})[float(number[1])] = value
    return {name: sorted(points.items()) for name, points in found.items()}


def _lines(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:  # the last line of a run that was killed
                continue
            if isinstance(line, dict):
                yield line


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _thinned(points: Points) -> Points:
    """At most about `_MOST_POINTS` of them, means of neighbours, so that none of the run's course is lost."""
    step = -(-len(points) // _MOST_POINTS)
    parts = (points[i : i + step] for i in range(0, len(points), step))
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def charts(runs: Mapping[str, Curves], size: tuple[int, int] = (560, 320)) -> dict[str, Image.Image]:
    """Charts against thousand images shown (kimg), by title, of the curves of runs by name; none without data.

    Metrics come first. A probability that is always 0 is left out.
    """
    names = dict.fromkeys(name for run in runs.values() for name in run.metrics)
    groups = {name: {name: ""} for name in names} | _CHARTS
    pictures = {}
    for title, parts in groups.items():
        series = []
        for run_name, run in runs.items():
            for name, part in parts.items():
                points = {**run.metrics, **run.stats}.get(name, [])
                label = " ".join(filter(None, [run_name if len(runs) > 1 else "", part]))
                if any(value for _kimg, value in points):
                    series.append(Series(label, points, len(series)))
        if series:
            pictures[title] = chart(title, "thousand images (kimg)", series, size)
    return pictures
