# SPDX-License-Identifier: Apache-2.0
"""The report of the demo: a table and the networks' sample grids side by side, as one HTML file and as one PNG.

Both have the same content. The HTML file contains its style and pictures and can be moved anywhere.
"""

import dataclasses
import html
import os

import numpy as np
from PIL import Image

from dnnlib import charts, pages
from dnnlib.files import write_text

HEADER = ("network", "parameters", "MACs per image", "FID", "recall", "ms per image", "file", "training")
MARGIN, GAP = 24, 24  # pixels


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
    grids = [
        pages.picture(
            entry.grid,
            f"samples of the {entry.title}",
            f"<b>{html.escape(entry.title)}</b> FID {entry.fid:.2f}",
        )
        for entry in entries
    ]
    body = [pages.table(table(entries)), pages.side_by_side(grids, fill=True), *map(pages.paragraph, notes)]
    write_text(path, pages.page(heading, "".join(body)))


def write_png(path: str | os.PathLike, heading: str, entries: list[Entry], notes: list[str]) -> None:
    """Write the same report as one picture, atomically."""
    figures = [
        charts.below({f"{entry.title}, FID {entry.fid:.2f}": Image.fromarray(entry.grid)}, size=17) for entry in entries
    ]
    parts = [charts.table(table(entries)), charts.beside(figures, GAP)]
    width = max(part.width for part in parts)
    parts = [charts.text(heading, width, 28, charts.INK), *parts, *(charts.text(note, width) for note in notes)]
    charts.save_png(charts.column(parts, gap=16, margin=MARGIN), path)
