# SPDX-License-Identifier: Apache-2.0
"""Charts: round ticks, what is drawn and what is left out."""

import itertools
import math

import numpy as np
import pytest
from PIL import Image

from dnnlib import charts


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.03, 0.13), (-3, 250), (5, 5), (0, 0), (396.4, 402)])
def test_ticks_are_round_and_enclose_the_values(low, high):
    found = charts.ticks(low, high)
    assert found[0] <= low and found[-1] >= high and 2 <= len(found) <= 8
    steps = {round(b - a, 9) for a, b in itertools.pairwise(found)}
    assert len(steps) == 1 and f"{steps.pop():e}"[0] in "125"


def test_charts_leave_out_what_is_not_finite():
    points = [(0, 1.0), (1, math.nan), (2, 3.0)]
    whole = charts.beside([charts.chart("t", "x", [charts.Series("a", points)]), charts.chart("empty", "x", [])])
    assert whole.size == (1120, 360)
    assert charts.COLOURS[0] in {colour for _count, colour in whole.getcolors(2**16)}


def pixels(picture: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    """Where `picture` has exactly that colour, bool [H, W]."""
    return (np.asarray(picture) == colour).all(axis=2)


def test_bars_begin_at_zero_and_are_as_long_as_their_values():
    rows = {"first": {"a": (2.0, 2.0, 2.0), "b": (4.0, 3.0, 5.0)}, "second": {"b": (1.0, 1.0, 1.0)}}
    picture = charts.bars("title", "x", rows, mark=10)
    spans = {}
    for row, label in (("first", "a"), ("first", "b"), ("second", "b")):
        top = charts.TOP + charts.BAR_ROW * list(rows).index(row)
        found = pixels(picture, charts.COLOURS["ab".index(label)])[top : top + charts.BAR_ROW, :-40]  # not the legend
        columns = np.flatnonzero(found.any(axis=0))
        spans[row, label] = columns[0], columns[-1] - columns[0]
    assert len({start for start, _length in spans.values()}) == 1
    unit = spans["second", "b"][1]
    assert spans["first", "a"][1] == pytest.approx(2 * unit, abs=3)
    assert spans["first", "b"][1] == pytest.approx(4 * unit, abs=4)


def test_bars_show_the_quartiles_and_the_mark():
    picture = charts.bars("title", "x", {"row": {"a": (2.0, 1.0, 8.0)}}, mark=4)
    ink = pixels(picture, charts.INK)
    right = np.flatnonzero(pixels(picture, charts.COLOURS[0]).sum(axis=0) > 10).max()  # the end of the bar
    columns = np.flatnonzero(ink[charts.TOP : -charts.BOTTOM].all(axis=0))
    assert len(columns) == 1 and columns[0] > right
    assert any(np.flatnonzero(line).max(initial=0) > columns[0] + 20 for line in ink[charts.TOP : -charts.BOTTOM])


def test_a_picture_is_saved_as_a_png(tmp_path):
    charts.save_png(charts.chart("t", "x", [charts.Series("a", [(0, 1), (1, 2)])]), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG" and picture.size == (560, 360)


def test_pictures_below_each_other_have_labels_above_them():
    pictures = {"first": Image.new("RGB", (30, 20), charts.COLOURS[0]), "second": Image.new("L", (50, 10), 0)}
    whole = charts.below(pictures, gap=4)
    assert whole.height == 16 + 20 + 4 + 16 + 10 and whole.width >= 50
    assert np.argwhere(pixels(whole, charts.COLOURS[0])).min(axis=0).tolist() == [16, 0]
    assert pixels(whole, charts.INK)[:16].any()
