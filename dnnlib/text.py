# SPDX-License-Identifier: Apache-2.0
"""Durations, tables, and what files and servers say, as text."""

from collections.abc import Sequence


def format_time(seconds: float) -> str:
    """A duration for people: '8s', '3m 08s', '2h 03m 08s', '1d 02h 03m'."""
    total = round(seconds)
    minutes, s = divmod(total, 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days}d {h:02}h {m:02}m"
    if hours:
        return f"{h}h {m:02}m {s:02}s"
    if minutes:
        return f"{m}m {s:02}s"
    return f"{s}s"


def printable(text: object, limit: int = 200) -> str:
    """`text` out of a file for a message: control characters escaped, cut to `limit` characters with '...'.

    Anything but a str is described by its type only: str() of a foreign structure may take forever.
    """
    if not isinstance(text, str):
        return f"<{type(text).__name__}>"
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def aligned(rows: Sequence[Sequence[str]], rules: Sequence[int] = ()) -> str:
    """`rows` as lines with columns of equal width; a line of dashes precedes each row whose index is in `rules`."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * width for width in widths]
    lines = [line for index, row in enumerate(rows) for line in (*[rule] * rules.count(index), row)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def markdown(rows: Sequence[Sequence[str]], numeric: int = 0) -> str:
    """`rows`, the first of which is the header, as a Markdown table; the last `numeric` columns are right-aligned."""
    columns = len(rows[0])
    rule = ["---"] * (columns - numeric) + ["---:"] * numeric
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in (rows[0], rule, *rows[1:]))
