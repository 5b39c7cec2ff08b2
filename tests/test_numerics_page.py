# SPDX-License-Identifier: Apache-2.0
"""docs/numerics.md lists the tolerances that tests use (tests/tolerances.py), and links to tests that exist."""

import ast
import re

import pytest

from tests import numerics_page, tolerances
from tests.support import ROOT

PAGE = numerics_page.PAGE.read_text(encoding="utf-8")
LINKS = sorted({(path, name) for name, path in re.findall(r"\[`(test_\w+)`\]\(\.\./([^)]+)\)", PAGE)})
TESTS = {path for rows in numerics_page.TABLES.values() for row in rows for path, _name in row.linked()}


def test_the_tables_are_up_to_date():
    assert numerics_page.with_tables(PAGE) == PAGE, "run: python -m tests.numerics_page"


@pytest.mark.parametrize(("path", "name"), LINKS)
def test_linked_tests_exist(path, name):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_tolerance_is_used_by_a_linked_test():
    """By a name that the tests import, so that no test can differ from the page."""
    used = set()
    for path in TESTS:
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "tolerances":
                used.add(node.attr)
    assert used == {name for name in vars(tolerances) if name.isupper()}


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-12, "`1e-12`"), (0.02, "`0.02`"), (1.5e-2, "`0.015`"), (2.5e-5, "`2.5e-5`"), (4e-3, "`4e-3`")],
)
def test_numbers_are_written_shortly_and_exactly(value, text):
    assert numerics_page.code(value) == text and float(text.strip("`")) == value
