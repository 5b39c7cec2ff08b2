# SPDX-License-Identifier: Apache-2.0
"""docs/numerics.md names tests that exist, and tolerances that occur in them."""

import ast
import re

import pytest

from tests.support import ROOT
from tests.training.test_loss_precision import MEDIAN, TOLERANCE

DOCS = ROOT / "docs"
PAGE = (DOCS / "numerics.md").read_text(encoding="utf-8")
LINK = re.compile(r"\[`(test_\w+)`\]\(([^)]+)\)")
HEADER = ["what", "type", "compared with", "tolerance", "test"]


def rows() -> list[dict[str, str]]:
    """Every row of every table of tolerances, by column."""
    tables = re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE)
    cells = [[[cell.strip() for cell in line[1:-1].split("|")] for line in table.splitlines()] for table in tables]
    return [dict(zip(HEADER, row)) for table in cells if table[0] == HEADER for row in table[2:]]


def functions_of(text: str) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)}


def numbers(cell: str) -> list[str]:
    """The tolerances in a cell, as written."""
    return [code for code in re.findall(r"`([^`]+)`", cell) if re.fullmatch(r"[\d.]+(?:e-?\d+)?", code)]


def test_there_are_tables_of_operations_networks_losses_and_metrics():
    assert len(rows()) > 30
    assert len([line for line in PAGE.splitlines() if line == f"| {' | '.join(HEADER)} |"]) == 4


@pytest.mark.parametrize(("name", "link"), sorted(set(LINK.findall(PAGE))))
def test_linked_tests_exist(name, link):
    path = (DOCS / link).resolve()
    assert path.is_relative_to(ROOT / "tests") and path.exists()
    assert name in functions_of(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row['what'][:30]}, {row['type'][:20]}")
def test_each_tolerance_is_in_a_linked_test(row):
    links = LINK.findall(row["test"])
    assert links
    texts = [(DOCS / link).resolve().read_text(encoding="utf-8") for _name, link in links]
    for number in numbers(row["tolerance"]):
        assert any(re.search(rf"(?<![\d.]){re.escape(number)}(?![\d.e])", text) for text in texts), number
    assert numbers(row["tolerance"]) or "bit for bit" in row["tolerance"] or "gradcheck" in row["tolerance"]


def test_tolerances_of_half_precision_are_those_of_the_test():
    declared = {}
    for row in rows():
        if "same draws" in row["compared with"]:
            phase = row["what"].split(":")[0]
            declared[row["type"], phase] = tuple(map(float, numbers(row["tolerance"])))
    used = {(str(dtype).removeprefix("torch."), phase): value for (dtype, phase), value in TOLERANCE.items()}
    used |= {(str(dtype).removeprefix("torch."), "each phase"): (value,) for dtype, value in MEDIAN.items()}
    assert declared == used
