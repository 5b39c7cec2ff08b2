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


def test_a_grid_shows_each_image_in_its_row_and_column():
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (90, 90, 0)]
    images = [np.full((2, 2, 3), colour, np.uint8) for colour in colours]
    rows = [("first", images[:2]), ("a long second", images[2:])]
    picture = charts.grid(rows, ["x", "y"], cell=30, group=1)
    places = [np.argwhere(pixels(picture, colour)) for colour in colours]
    assert [len(place) for place in places] == [900] * 4
    (top, left), (_, right), (below, _), _ = (place[0] for place in places)
    assert right == left + 31 and below == top + 31 + 8
    assert places[3][0].tolist() == [below, right]


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 1), (64, 64, 3)])
def test_a_grid_takes_grey_and_colour_images_of_any_size(shape):
    picture = charts.grid([("", [np.full(shape, 7, np.uint8)])], [""], cell=16)
    assert (np.asarray(picture) == 7).all(axis=2).sum() == 256


def test_text_is_shortened_to_its_width():
    font = charts._font(12)
    assert charts.fitted("short", font, 100) == "short" and charts.fitted("short", font, 1) == ""
    shown = charts.fitted("a rather long name", font, 60)
    assert shown.endswith("…") and "a rather long name".startswith(shown[:-1]) and 40 < font.getlength(shown) <= 60


def test_a_table_has_a_line_for_each_row():
    rows = [["a", "b"], ["1", "2"], ["3", "4"]]
    ruled = pixels(charts.table(rows), charts.RULE).all(axis=1)
    assert ruled.sum() == 3
    assert charts.table([*rows, ["a long cell", ""]]).width > charts.table(rows).width


def test_text_is_broken_into_lines():
    short, long = charts.text("word", 200), charts.text("word " * 40, 200)
    assert short.width == long.width == 200 and long.height > 4 * short.height


def test_a_column_keeps_its_pictures():
    first, second = Image.new("RGB", (3, 2), (1, 2, 3)), Image.new("L", (5, 4), 9)
    whole = charts.column([first, second], gap=2, margin=1)
    assert whole.size == (7, 10)
    assert whole.getpixel((1, 1)) == (1, 2, 3) and whole.getpixel((5, 8)) == (9, 9, 9)
