# SPDX-License-Identifier: Apache-2.0
"""Charts as pictures: lines, dots and bars, drawn with Pillow alone, so that no plotting library is needed."""

import dataclasses
import math
import os
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from dnnlib.files import open_atomic

INK, FAINT, RULE, PAPER = (24, 24, 27), (110, 110, 118), (222, 222, 226), (255, 255, 255)
COLOURS = [(31, 98, 180), (214, 84, 28), (34, 139, 77), (140, 70, 160), (120, 100, 20)]
COLOURS += [(20, 150, 170), (200, 40, 90), (90, 90, 90), (230, 150, 20), (70, 60, 200)]
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 36, 44
BAR_ROW = 22  # pixels


@dataclasses.dataclass(frozen=True)
class Series:
    """Points (x, y) under a label. Series with the same number `colour` look alike; without `line` they are dots."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    line: bool = True


def chart(title: str, x_label: str, series: Sequence[Series], size: tuple[int, int] = (560, 360)) -> Image.Image:
    """A picture of `series` on common axes, with a legend. Points that are not finite are left out."""
    kept = [dataclasses.replace(s, points=[p for p in s.points if all(map(math.isfinite, p))]) for s in series]
    points = [point for s in kept for point in s.points]
    picture, draw, small = _canvas(title, x_label, size, LEFT)
    if not points:
        draw.text((LEFT, size[1] // 2), "no data", FAINT, small)
        return picture
    xs, ys = (ticks(min(values), max(values)) for values in zip(*points))
    to_x = _scale(xs, LEFT, size[0] - RIGHT)
    to_y = _scale(ys, size[1] - BOTTOM, TOP)
    for y in ys:
        draw.line([to_x(xs[0]), to_y(y), to_x(xs[-1]), to_y(y)], RULE)
        draw.text((LEFT - 8, to_y(y)), f"{y:g}", FAINT, small, anchor="rm")
    for x in xs:
        draw.text((to_x(x), size[1] - BOTTOM + 4), f"{x:g}", FAINT, small, anchor="ma")
    for s in kept:
        places = [(to_x(x), to_y(y)) for x, y in s.points]
        if s.line and len(places) > 1:
            draw.line(places, _colour(s.colour), width=2, joint="curve")
        else:
            for x, y in places:
                draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=_colour(s.colour))
    _draw_legend(draw, {s.label: s.colour for s in kept}, size[0] - RIGHT, small)
    return picture


def bars(
    title: str,
    x_label: str,
    rows: Mapping[str, Mapping[str, tuple[float, float, float]]],
    mark: float,
    width: int = 1080,
) -> Image.Image:
    """A picture with a row for each key and in it a bar for each label: `rows[key][label]` is (value, low, high).

    A bar reaches from 0 to the value, a thin line from low to high; a vertical line is drawn at `mark`.
    """
    labels = list(dict.fromkeys(label for row in rows.values() for label in row))
    height = TOP + BAR_ROW * len(rows) + BOTTOM
    left = 24 + int(max(_font(12).getlength(key) for key in rows))
    picture, draw, small = _canvas(title, x_label, (width, height), left)
    xs = ticks(0, max([mark, *(high for row in rows.values() for _value, _low, high in row.values())]))
    to_x = _scale(xs, left, width - RIGHT)
    for x in xs:
        draw.line([to_x(x), TOP, to_x(x), height - BOTTOM], RULE)
        draw.text((to_x(x), height - BOTTOM + 4), f"{x:g}", FAINT, small, anchor="ma")
    thickness = (BAR_ROW - 6) / len(labels)
    for index, (key, row) in enumerate(rows.items()):
        top = TOP + BAR_ROW * index + 3
        draw.text((left - 8, top + (BAR_ROW - 6) / 2), key, INK, small, anchor="rm")
        for label, (value, low, high) in row.items():
            y = top + thickness * labels.index(label)
            draw.rectangle([to_x(0), y, to_x(value), y + thickness - 1], _colour(labels.index(label)))
            draw.line([to_x(low), y + thickness / 2, to_x(high), y + thickness / 2], INK)
    draw.line([to_x(mark), TOP, to_x(mark), height - BOTTOM], INK)
    x = left + _font(16).getlength(title) + 24
    for number, label in enumerate(labels):  # beside the title, where no bar can be
        draw.text((x, 11), label, _colour(number), small)
        x += small.getlength(label) + 16
    return picture


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers, about `count` of them, from at most `low` to at least `high`."""
    span = (high - low) or abs(low) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = power * next(m for m in (1, 2, 5, 10) if m * power * count >= span)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def beside(pictures: Sequence[Image.Image], gap: int = 0) -> Image.Image:
    """The pictures from left to right, with `gap` pixels between them."""
    width = sum(picture.width + gap for picture in pictures) - gap
    whole = Image.new("RGB", (width, max(picture.height for picture in pictures)), PAPER)
    x = 0
    for picture in pictures:
        whole.paste(picture, (x, 0))
        x += picture.width + gap
    return whole


def below(pictures: Mapping[str, Image.Image], gap: int = 12, size: int = 12) -> Image.Image:
    """The pictures from top to bottom, each under its label, whose letters have this `size`."""
    font, head = _font(size), size + 4
    width = max(max(picture.width, int(font.getlength(label)) + 1) for label, picture in pictures.items())
    whole = Image.new("RGB", (width, sum(picture.height + head + gap for picture in pictures.values()) - gap), PAPER)
    draw, y = ImageDraw.Draw(whole), 0
    for label, picture in pictures.items():
        draw.text((0, y), label, INK, font)
        whole.paste(picture.convert("RGB"), (0, y + head))
        y += picture.height + head + gap
    return whole


def column(pictures: Sequence[Image.Image], gap: int = 12, margin: int = 0) -> Image.Image:
    """The pictures from top to bottom, with `gap` pixels between and `margin` pixels around them."""
    width = max(picture.width for picture in pictures) + 2 * margin
    height = sum(picture.height + gap for picture in pictures) - gap + 2 * margin
    whole, y = Image.new("RGB", (width, height), PAPER), margin
    for picture in pictures:
        whole.paste(picture.convert("RGB"), (margin, y))
        y += picture.height + gap
    return whole


def text(content: str, width: int, size: int = 17, colour: tuple[int, int, int] = FAINT) -> Image.Image:
    """A picture of a paragraph, broken into lines of at most `width` pixels where there are spaces."""
    font, lines, step = _font(size), [""], round(size * 1.5)
    for word in content.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    picture = Image.new("RGB", (width, step * len(lines)), PAPER)
    draw = ImageDraw.Draw(picture)
    for index, line in enumerate(lines):
        draw.text((0, step * index), line, colour, font)
    return picture


def table(rows: Sequence[Sequence[str]], size: int = 17) -> Image.Image:
    """A picture of a table; the first of `rows` is its header."""
    font, step, gap = _font(size), round(size * 1.5), round(size * 1.4)
    widths = [int(max(map(font.getlength, cells))) + gap for cells in zip(*rows, strict=True)]
    picture = Image.new("RGB", (sum(widths) - gap + 1, step * len(rows)), PAPER)
    draw = ImageDraw.Draw(picture)
    for index, row in enumerate(rows):
        for number, cell in enumerate(row):
            draw.text((sum(widths[:number]), step * index), cell, INK if index else FAINT, font)
        draw.line((0, step * (index + 1) - 4, picture.width, step * (index + 1) - 4), RULE)
    return picture


def grid(
    rows: Sequence[tuple[str, Sequence[Any]]], columns: Sequence[str], cell: int, group: int = 1, gap: int = 8
) -> Image.Image:
    """Images in labelled rows and columns, each `cell` pixels wide; after `group` rows there is a `gap`.

    An image is uint8 [H, W], [H, W, 1] or [H, W, 3]; small ones are enlarged without blending.
    """
    font, head = _font(13), 20 if any(columns) else 0
    left = max(int(font.getlength(label)) for label, _images in rows) + 10
    most = max(len(images) for _label, images in rows)
    groups = -(-len(rows) // group)
    picture = Image.new("RGB", (left + most * (cell + 1), head + len(rows) * (cell + 1) + (groups - 1) * gap), PAPER)
    draw = ImageDraw.Draw(picture)
    for number, label in enumerate(columns):
        shown = fitted(label, font, cell - 2)
        draw.text((left + number * (cell + 1) + cell / 2, 2), shown, FAINT, font, anchor="ma")
    for index, (label, images) in enumerate(rows):
        y = head + index * (cell + 1) + index // group * gap
        draw.text((left - 8, y + cell / 2), label, INK, font, anchor="rm")
        for number, image in enumerate(images):
            shown = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
            method = Image.Resampling.NEAREST if shown.width <= cell else Image.Resampling.LANCZOS
            picture.paste(shown.resize((cell, cell), method).convert("RGB"), (left + number * (cell + 1), y))
    return picture


def captioned(
    picture: Image.Image, captions: Sequence[Sequence[tuple[str, int]]], cell: tuple[int, int]
) -> Image.Image:
    """A grid of images of the size `cell` with captions, in the mode of `picture`: for each row, (text, columns).

    They stand to the left of the rows if no row has several, else above their columns, shortened to fit.
    """
    width, height = cell
    font = _font(max(12, height // 6))
    single = all(len(row) == 1 for row in captions)
    texts = [
        [(fitted(text, font, font.size * 16 if single else span * width - 4), span) for text, span in row]
        for row in captions
    ]
    left = int(max(font.getlength(row[0][0]) for row in texts)) + font.size if single else 0
    head = 0 if single else round(font.size * 1.4)
    whole = Image.new(picture.mode, (left + picture.width, picture.height + head * len(texts)), "white")
    draw, ink = ImageDraw.Draw(whole), "#{:02x}{:02x}{:02x}".format(*INK)
    for index, row in enumerate(texts):
        y, x = index * (height + head), left
        whole.paste(picture.crop((0, index * height, picture.width, (index + 1) * height)), (left, y + head))
        for text, span in row:
            if single:
                draw.text((left - font.size // 2, y + height // 2), text, ink, font, anchor="rm")
            else:
                draw.text((x + 2, y + head // 2), text, ink, font, anchor="lm")
            x += span * width
    return whole


def fitted(text: str, font: Any, width: float) -> str:
    """`text`, shortened with '…' to at most `width` pixels in `font`."""
    if font.getlength(text) <= width:
        return text
    return next((cut for end in range(len(text) - 1, 0, -1) if font.getlength(cut := f"{text[:end]}…") <= width), "")


def drawable(text: str) -> str | None:
    """`text` in the letters of the font, if need be without accents; None if it has other letters."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    font = _font(12)
    unknown = bytes(font.getmask("\U0010ffff"))
    return None if any(bytes(font.getmask(c)) == unknown for c in set(plain)) else plain


def save_png(picture: Image.Image, path: str | os.PathLike) -> None:
    """Write a picture as a PNG file, atomically."""
    with open_atomic(path) as file:
        picture.save(file, format="PNG", optimize=True)


def _canvas(title: str, x_label: str, size: tuple[int, int], left: int):
    """A new picture with title and axis label, its drawing tool, and the font for the rest."""
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((left, 8), title, INK, _font(16))
    draw.text((left, size[1] - 18), x_label, FAINT, _font(12))
    return picture, draw, _font(12)


def _font(size: int):
    return ImageFont.load_default(size=size)


def _scale(values: Sequence[float], start: float, stop: float):
    """The map from a value on an axis with the tick values `values` to a pixel from `start` to `stop`."""
    return lambda value: start + (stop - start) * (value - values[0]) / (values[-1] - values[0])


def _colour(number: int) -> tuple[int, int, int]:
    return COLOURS[number % len(COLOURS)]


def _draw_legend(draw: ImageDraw.ImageDraw, colours: Mapping[str, int], right: int, font) -> None:
    for row, (label, colour) in enumerate(colours.items()):
        draw.text((right, TOP + 16 * row), label, _colour(colour), font, anchor="ra")
