# SPDX-License-Identifier: Apache-2.0
"""The report of the demo: one table and the networks' sample grids side by side, as one HTML file and as one PNG.

Both hold the same rows. The HTML file carries its style and pictures inside itself and can be moved anywhere.
"""

import base64
import dataclasses
import html
import io
import os

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dnnlib.util import open_atomic

HEADER = ("network", "channels, low to high res.", "parameters", "MACs per image", "FID", "training", "budget")
MARGIN, GAP, LINE = 24, 24, 26
INK, FAINT, RULE, PAPER = (24, 24, 27), (96, 96, 104), (212, 212, 216), (255, 255, 255)


@dataclasses.dataclass(frozen=True)
class Entry:
    """What the demo found out about one network.

    Attributes:
        title: its name in the table and above its grid.
        channels: feature maps of the generator at 4x4, 8x8, and so on upwards.
        params: trained values of the generator.
        macs: multiply-accumulates of the generator for one image.
        fid: Frechet distance between generated and real images in the detector's features; lower is better.
        seconds: wall time of its training.
        kimg: training budget, in thousands of real images shown.
        batch: images per training step.
        grid: its samples, uint8 [H, W] or [H, W, 3].
    """

    title: str
    channels: tuple[int, ...]
    params: int
    macs: int
    fid: float
    seconds: float
    kimg: int
    batch: int
    grid: np.ndarray


def make_grid(images: list[np.ndarray], columns: int, zoom: int = 2) -> np.ndarray:
    """Equal-sized uint8 images, [H, W] or [H, W, 3], row by row -> one picture, every pixel a square of `zoom`.

    Raises ValueError when the images do not fill the last row.
    """
    if not images or len(images) % columns:
        raise ValueError(f"{len(images)} images do not fill rows of {columns}")
    rows = [np.concatenate(images[i : i + columns], axis=1) for i in range(0, len(images), columns)]
    return np.concatenate(rows, axis=0).repeat(zoom, axis=0).repeat(zoom, axis=1)


def table(entries: list[Entry]) -> list[tuple[str, ...]]:
    """The cells under HEADER, one row an entry; sizes also as a share of the first entry's."""
    first = entries[0]

    def size(value: int, unit: int, suffix: str, reference: int) -> str:
        share = "" if value == reference else f" ({value / reference:.0%})"
        return f"{value / unit:,.2f} {suffix}{share}"

    return [
        (
            entry.title,
            " ".join(str(width) for width in entry.channels),
            size(entry.params, 10**6, "M", first.params),
            size(entry.macs, 10**6, "M", first.macs),
            f"{entry.fid:.2f}",
            f"{entry.seconds:.0f} s",
            f"{entry.kimg} kimg, batch {entry.batch}",
        )
        for entry in entries
    ]


def write_html(path: str | os.PathLike, heading: str, entries: list[Entry], notes: list[str]) -> None:
    """Write the self-contained page; `notes` are paragraphs under the grids. Atomic."""
    cells = "".join(f"<tr>{_cells('th', row[:1])}{_cells('td', row[1:])}</tr>\n" for row in table(entries))
    figures = "".join(
        f"<figure><figcaption><b>{html.escape(entry.title)}</b> FID {entry.fid:.2f}</figcaption>"
        f'<img alt="samples of the {html.escape(entry.title)}" src="data:image/png;base64,{_png_base64(entry.grid)}">'
        "</figure>\n"
        for entry in entries
    )
    page = _PAGE.format(
        heading=html.escape(heading),
        columns=_cells("th", HEADER),
        cells=cells,
        figures=figures,
        notes="".join(f"<p>{html.escape(note)}</p>\n" for note in notes),
    )
    with open_atomic(path) as file:
        file.write(page.encode())


def write_png(path: str | os.PathLike, heading: str, entries: list[Entry], notes: list[str]) -> None:
    """Write the same report as one picture. Atomic."""
    fonts = {name: ImageFont.load_default(size=size) for name, size in (("heading", 28), ("text", 17))}
    grids = [Image.fromarray(entry.grid).convert("RGB") for entry in entries]
    cells = [HEADER, *table(entries)]
    offsets, table_width = _column_offsets(cells, fonts["text"])
    width = 2 * MARGIN + max(table_width, sum(grid.width for grid in grids) + GAP * (len(grids) - 1))
    lines = [line for note in notes for line in _wrap(note, fonts["text"], width - 2 * MARGIN)]
    grids_top = MARGIN + 50 + LINE * len(cells) + 20 + LINE
    height = grids_top + max(grid.height for grid in grids) + 16 + LINE * len(lines) + MARGIN
    picture = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, MARGIN), heading, INK, fonts["heading"])
    for index, row in enumerate(cells):
        y = MARGIN + 50 + LINE * index
        for x, cell in zip(offsets, row):
            draw.text((MARGIN + x, y), cell, FAINT if index == 0 else INK, fonts["text"])
        draw.line((MARGIN, y + LINE - 4, MARGIN + table_width, y + LINE - 4), RULE)
    x = MARGIN
    for entry, grid in zip(entries, grids):
        draw.text((x, grids_top - LINE), f"{entry.title}, FID {entry.fid:.2f}", INK, fonts["text"])
        picture.paste(grid, (x, grids_top))
        x += grid.width + GAP
    for index, line in enumerate(lines):
        draw.text((MARGIN, height - MARGIN - LINE * (len(lines) - index)), line, FAINT, fonts["text"])
    with open_atomic(path) as file:
        picture.save(file, format="PNG", optimize=True)


def _cells(tag: str, texts: tuple[str, ...]) -> str:
    return "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts)


def _column_offsets(cells: list[tuple[str, ...]], font: ImageFont.FreeTypeFont) -> tuple[list[int], int]:
    """Where each column begins, and the width of the whole table."""
    offsets, x = [], 0
    for column in zip(*cells):
        offsets.append(x)
        x += int(max(font.getlength(cell) for cell in column)) + GAP
    return offsets, x - GAP


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _png_base64(array: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{heading}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #18181b; background: #fff; max-width: 1640px; margin: 2rem auto;
        padding: 0 1rem; }}
h1 {{ font-size: 1.6rem; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; white-space: nowrap; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: .35rem 1.5rem .35rem 0; border-bottom: 1px solid #d4d4d8; }}
thead th {{ font-weight: normal; color: #606068; }}
.grids {{ display: flex; flex-wrap: wrap; gap: 1.5rem; margin: 1.5rem 0; }}
figure {{ margin: 0; flex: 1 1 320px; max-width: 512px; }}
figcaption {{ margin-bottom: .3rem; }}
img {{ width: 100%; image-rendering: pixelated; display: block; }}
p {{ color: #606068; max-width: 60rem; margin: .3rem 0; }}
</style>
</head>
<body>
<h1>{heading}</h1>
<div class="wide"><table>
<thead><tr>{columns}</tr></thead>
<tbody>
{cells}</tbody>
</table></div>
<div class="grids">
{figures}</div>
{notes}</body>
</html>
"""
