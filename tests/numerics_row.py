# SPDX-License-Identifier: Apache-2.0
"""Rows of the tables of docs/numerics.md, and how they put tolerances."""

import re
from typing import NamedTuple


class Row(NamedTuple):
    """One row of a table; `tests` are functions in files of tests/: 'file::function::function file::function'."""

    what: str
    types: str
    reference: str
    tolerance: str
    tests: str

    def linked(self) -> list[tuple[str, str]]:
        """(file, function) of each test."""
        return [(f"tests/{p}", n) for p, *names in (test.split("::") for test in self.tests.split()) for n in names]

    def cells(self) -> list[str]:
        links = (f"[`{name}`](../{path})" for path, name in self.linked())
        return [self.what, self.types, self.reference, self.tolerance, "<br>".join(links)]


def code(*values: float) -> str:
    """Numbers as they stand on the page."""
    texts = (f"{value:.2g}" if value >= 0.01 else re.sub(r"(\.0)?e-0?", "e-", f"{value:.1e}") for value in values)
    return ", ".join(f"`{text}`" for text in texts)


def types(allowed: dict) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)


def both(kwargs: dict, unit: str = "") -> str:
    """The tolerance in arguments `rtol` and `atol`."""
    if kwargs["rtol"] == 0:
        return f"absolute {code(kwargs['atol'])}{unit}"
    if kwargs["rtol"] == kwargs["atol"]:
        return f"relative and absolute {code(kwargs['rtol'])}"
    return f"relative {code(kwargs['rtol'])}, absolute {code(kwargs['atol'])}{unit}"
