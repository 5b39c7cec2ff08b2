# SPDX-License-Identifier: Apache-2.0
"""The report of the demo: a table and the networks' sample grids side by side, as one HTML file and as one PNG.

Both have the same content. The HTML file contains its style and pictures and can be moved anywhere.
"""

import base64
import dataclasses
import html
import io
import os
import pathlib
import string
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dnnlib.charts import save_png
from dnnlib.files import write_text

PAGE = pathlib.Path(__file__).with_suffix(".html")
HEADER = ("network", "parameters", "MACs per image", "FID", "recall", "ms per image", "file", "training")
MARGIN, GAP, LINE = 24, 24, 26
INK, FAINT, RULE, PAPER = (24, 24, 27), (96, 96, 104), (212, 212, 216), (255, 255, 255)


@dataclasses.dataclass(frozen=True)
class Entry:
    """The results for one network.

    Attributes:
        title: its name in the table and above its grid.
        params: trained values of the generator.
        macs: multiply-accumulates of the generator for one image.
        fid: Frechet distance between generated and real images in the detector's features; lower is better.
        recall: share of the real images that lie among generated ones; higher is better.
        milliseconds: time for one image.
        bytes: size of the generator's file.
        seconds: wall time of its training; None if it was not trained here.
        grid: its samples, uint8 [H, W] or [H, W, 3].
    """

    title: str
    params: int
    macs: int
    fid: float
    recall: float
    milliseconds: float
    bytes: int
    seconds: float | None
    grid: np.ndarray


def table(entries: list[Entry]) -> list[tuple[str, ...]]:
    """HEADER and a row per entry; sizes also as a percentage of the first entry's."""
    first = entries[0]

    def millions(value: int, reference: int) -> str:
        return f"{value / 10**6:,.2f} M" + ("" if value == reference else f" ({value / reference:.0%})")

    rows = [
        (
            entry.title,
            millions(entry.params, first.params),
            millions(entry.macs, first.macs),
            f"{entry.fid:.2f}",
            f"{entry.recall:.2f}",
            f"{entry.milliseconds:.1f}",
            f"{entry.bytes / 10**6:.2f} MB",
            "" if entry.seconds is None else f"{entry.seconds:.0f} s",
        )
        for entry in entries
    ]
    return [HEADER, *rows]


def write_html(path: str | os.PathLike, heading: str, entries: list[Entry], notes: list[str]) -> None:
    """Write the self-contained page, atomically; `notes` are paragraphs below the grids."""
    head, *rows = table(entries)
    figures = (
        f"<figure><figcaption><b>{html.escape(entry.title)}</b> FID {entry.fid:.2f}</figcaption>"
        f'<img alt="samples of the {html.escape(entry.title)}" src="data:image/png;base64,{_png_base64(entry.grid)}">'
        "</figure>\n"
        for entry in entries
    )
    page = string.Template(PAGE.read_text(encoding="utf-8")).substitute(
        heading=html.escape(heading),
        columns=_cells("th", head),
        cells="".join(f"<tr>{_cells('th', row[:1])}{_cells('td', row[1:])}</tr>\n" for row in rows),
        figures="".join(figures),
        notes="".join(f"<p>{html.escape(note)}</p>\n" for note in notes),
    )
    write_text(path, page)


def _cells(tag: str, texts: Sequence[str]) -> str:
    return "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts)


def _png_base64(array: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def write_png(path: str | os.PathLike, heading: str, entries: list[Entry], notes: list[str]) -> None:
    """Write the same report as one picture, atomically."""
    font = ImageFont.load_default(size=17)
    grids = [Image.fromarray(entry.grid).convert("RGB") for entry in entries]
    rows = table(entries)
    widths = [int(max(map(font.getlength, column))) + GAP for column in zip(*rows)]
    table_width, grids_width = sum(widths) - GAP, sum(grid.width + GAP for grid in grids) - GAP
    width = 2 * MARGIN + max(table_width, grids_width)
    lines = [line for note in notes for line in _wrap(note, font, width - 2 * MARGIN)]
    table_top = MARGIN + 50
    grids_top = table_top + LINE * len(rows) + 20 + LINE
    notes_top = grids_top + max(grid.height for grid in grids) + 16
    picture = Image.new("RGB", (width, notes_top + LINE * len(lines) + MARGIN), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, MARGIN), heading, INK, ImageFont.load_default(size=28))
    for index, row in enumerate(rows):
        y = table_top + LINE * index
        for column, cell in enumerate(row):
            draw.text((MARGIN + sum(widths[:column]), y), cell, INK if index else FAINT, font)
        draw.line((MARGIN, y + LINE - 4, MARGIN + table_width, y + LINE - 4), RULE)
    x = MARGIN
    for entry, grid in zip(entries, grids):
        draw.text((x, grids_top - LINE), f"{entry.title}, FID {entry.fid:.2f}", INK, font)
        picture.paste(grid, (x, grids_top))
        x += grid.width + GAP
    for index, line in enumerate(lines):
        draw.text((MARGIN, notes_top + LINE * index), line, FAINT, font)
    save_png(picture, path)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
