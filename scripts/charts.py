# SPDX-License-Identifier: Apache-2.0
"""Line and dot charts as pictures, drawn with Pillow alone, so that a bare machine can make them."""

import dataclasses
import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

INK, FAINT, RULE, PAPER = (24, 24, 27), (110, 110, 118), (222, 222, 226), (255, 255, 255)
COLOURS = [(31, 98, 180), (214, 84, 28), (34, 139, 77), (140, 70, 160), (120, 100, 20)]
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 36, 44


@dataclasses.dataclass(frozen=True)
class Series:
    """Points (x, y) under a label. Those of one `colour` number look alike; without `line` they are dots."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    line: bool = True


def chart(title: str, x_label: str, series: Sequence[Series], size: tuple[int, int] = (560, 360)) -> Image.Image:
    """A picture of `series` over a common pair of axes, with a legend. Points that are not finite are left out."""
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    small, large = ImageFont.load_default(size=12), ImageFont.load_default(size=16)
    kept = [dataclasses.replace(s, points=[p for p in s.points if all(map(math.isfinite, p))]) for s in series]
    points = [point for s in kept for point in s.points]
    draw.text((LEFT, 8), title, INK, large)
    draw.text((LEFT, size[1] - 18), x_label, FAINT, small)
    if not points:
        draw.text((LEFT, size[1] // 2), "nothing to show", FAINT, large)
        return picture
    xs, ys = (ticks(min(values), max(values)) for values in zip(*points))

    def place(x: float, y: float) -> tuple[float, float]:
        width, height = size[0] - LEFT - RIGHT, size[1] - TOP - BOTTOM
        return (
            LEFT + width * (x - xs[0]) / (xs[-1] - xs[0]),
            size[1] - BOTTOM - height * (y - ys[0]) / (ys[-1] - ys[0]),
        )

    for y in ys:
        draw.line([place(xs[0], y), place(xs[-1], y)], RULE)
        draw.text((LEFT - 8, place(xs[0], y)[1]), f"{y:g}", FAINT, small, anchor="rm")
    for x in xs:
        draw.text((place(x, ys[0])[0], size[1] - BOTTOM + 4), f"{x:g}", FAINT, small, anchor="ma")
    for s in kept:
        _draw_series(draw, s, [place(*point) for point in s.points])
    _draw_legend(draw, kept, size[0] - RIGHT, small)
    return picture


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers, about `count` of them, from at most `low` to at least `high`."""
    span = (high - low) or abs(low) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = power * next(m for m in (1, 2, 5, 10) if m * power * count >= span)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def beside(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures from left to right."""
    whole = Image.new("RGB", (sum(p.width for p in pictures), max(p.height for p in pictures)), PAPER)
    x = 0
    for picture in pictures:
        whole.paste(picture, (x, 0))
        x += picture.width
    return whole


def _draw_series(draw: ImageDraw.ImageDraw, series: Series, places: list[tuple[float, float]]) -> None:
    colour = COLOURS[series.colour % len(COLOURS)]
    if series.line and len(places) > 1:
        draw.line(places, colour, width=2, joint="curve")
        return
    for x, y in places:
        draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=colour)


def _draw_legend(draw: ImageDraw.ImageDraw, series: Sequence[Series], right: int, font) -> None:
    named = {s.label: s.colour for s in series}
    for row, (label, colour) in enumerate(named.items()):
        draw.text((right, TOP + 16 * row), label, COLOURS[colour % len(COLOURS)], font, anchor="ra")
