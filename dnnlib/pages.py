# SPDX-License-Identifier: Apache-2.0
"""HTML pages of tables and pictures that contain their style and pictures, and so open anywhere without a network."""

import base64
import html
import io
import string
from collections.abc import Sequence

import numpy as np
from PIL import Image

_PAGE = string.Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
$refresh<link rel="icon" href="data:,">
<title>$heading</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #18181b; background: #fff; max-width: 1240px; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; white-space: nowrap; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem 1.5rem .35rem 0; border-bottom: 1px solid #d4d4d8; vertical-align: top; }
th { font-weight: 600; }
thead th { font-weight: normal; color: #606068; }
.row { display: flex; flex-wrap: wrap; gap: 1.5rem; margin: 1rem 0; }
.row figure { flex: 0 1 auto; min-width: 0; }
.row.fill figure { flex: 1 1 320px; max-width: 560px; }
.row.fill img { width: 100%; }
figure { margin: 0; }
figcaption { margin-bottom: .3rem; }
img { image-rendering: pixelated; display: block; }
.chart img { image-rendering: auto; }
.row img, .fit img { max-width: 100%; height: auto; }
p { color: #606068; max-width: 60rem; margin: .3rem 0; }
details { margin: .5rem 0; color: #606068; }
summary { cursor: pointer; }
pre { font-size: .8rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>$heading</h1>
$body</body>
</html>
""")


def page(heading: str, body: str, refresh: int | None = None) -> str:
    """The text of a page with the HTML `body`; with `refresh` a browser opens it anew after so many seconds."""
    again = "" if refresh is None else f'<meta http-equiv="refresh" content="{refresh}">\n'
    return _PAGE.substitute(heading=html.escape(heading), body=body, refresh=again)


def section(title: str, *parts: str) -> str:
    """HTML `parts` under a title."""
    return f"<h2>{html.escape(title)}</h2>\n{''.join(parts)}"


def paragraph(text: str) -> str:
    """A note."""
    return f"<p>{html.escape(text)}</p>\n"


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls sideways on a narrow screen; the first row and the first column are headers."""
    head, *rest = rows
    body = "".join(f"<tr>{_cells('th', row[:1])}{_cells('td', row[1:])}</tr>\n" for row in rest)
    header = f"<thead><tr>{_cells('th', head)}</tr></thead>"
    return scrolled(f"<table>\n{header}\n<tbody>\n{body}</tbody>\n</table>")


def picture(image: Image.Image | np.ndarray, alt: str, caption: str = "", kind: str = "") -> str:
    """A picture, in its own size; `kind` is 'chart' for drawings, whose pixels may be blended. `caption` is HTML."""
    return image_file(f"data:image/png;base64,{_png_base64(image)}", alt, caption, kind)


def image_file(url: str, alt: str, caption: str = "", kind: str = "") -> str:
    """A picture at `url`, such as the name of a file beside the page."""
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure class="{kind}">{below}<img alt="{html.escape(alt)}" src="{html.escape(url)}"></figure>\n'


def side_by_side(figures: Sequence[str], fill: bool = False) -> str:
    """Figures in rows of as many as fit; with `fill` they share the width."""
    return f'<div class="row{" fill" if fill else ""}">\n{"".join(figures)}</div>\n'


def scrolled(content: str) -> str:
    """A figure or table that keeps its size and scrolls sideways on a narrow screen."""
    return f'<div class="wide">{content}</div>\n'


def details(summary: str, text: str) -> str:
    """Plain `text` that is hidden until its `summary` is clicked."""
    return f"<details><summary>{html.escape(summary)}</summary><pre>{html.escape(text)}</pre></details>\n"


def _cells(tag: str, texts: Sequence[str]) -> str:
    return "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts)


def _png_base64(image: Image.Image | np.ndarray) -> str:
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
