# SPDX-License-Identifier: Apache-2.0
"""The ratios as bars."""

import pathlib

from benchmarks.results import Run
from dnnlib.util import open_atomic

BAR = 0.3  # of a row


def save_plot(run: Run, path: pathlib.Path) -> None:
    """Write a PNG: for each result a bar a precision, the ratio's median with its quartiles. Needs matplotlib."""
    # The figure by itself, without pyplot, needs no display and leaves no global state.
    from matplotlib.figure import Figure

    variants = list(dict.fromkeys(name for result in run.results for name in result.fast_variants))
    figure = Figure(figsize=(9, 1.5 + 0.22 * len(run.results)), layout="constrained")
    axes = figure.add_subplot()
    for index, variant in enumerate(variants):
        rows = [(row, result.ratio(variant)) for row, result in enumerate(run.results) if variant in result.samples]
        places = [row + (index - (len(variants) - 1) / 2) * BAR for row, _ratio in rows]
        medians = [ratio.median for _row, ratio in rows]
        reach = [[r.median - r.low for _row, r in rows], [r.high - r.median for _row, r in rows]]
        label = f"{variant} (auto)" if variant == run.auto else variant
        axes.barh(places, medians, BAR, xerr=reach, label=label, error_kw={"elinewidth": 0.8})
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(run.results)), [result.key for result in run.results], fontsize=7)
    axes.set_ylim(len(run.results) - 0.5, -0.5)
    axes.set_xlabel("times the reference: above 1 is faster, or less memory")
    name = run.machine["gpu"] if run.machine["device"] == "cuda" else run.machine["cpu"]
    axes.set_title(f"{name}, PyTorch {run.machine['torch']}, {run.date}", fontsize=9, loc="right")
    axes.legend()
    with open_atomic(path) as file:
        figure.savefig(file, format="png", dpi=120)
