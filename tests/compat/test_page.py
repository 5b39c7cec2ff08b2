# SPDX-License-Identifier: Apache-2.0
"""docs/compatibility.md: its tables are current, its tests use the names, its flags exist."""

import ast
import functools
import re

import pytest

from tests.compat import page
from tests.compat.surface import NAMES, TESTS
from tests.support import ROOT

TEXT = page.PAGE.read_text(encoding="utf-8")


def test_tables_are_current():
    assert page.with_tables(TEXT) == TEXT, "run: python -m tests.compat.page"


@pytest.mark.parametrize("name", page.TABLES)
def test_an_outdated_table_is_found(name):
    start = TEXT.index(f"<!-- table: {name} -->")
    first_row = TEXT.index("|\n| `", start) + 2
    outdated = TEXT[:first_row] + TEXT[TEXT.index("\n", first_row) + 1 :]
    assert outdated != TEXT and page.with_tables(outdated) == TEXT
    with pytest.raises(ValueError, match=name):
        page.with_tables(TEXT.replace(f"<!-- table: {name} -->", ""))


@functools.cache
def identifiers(test: str) -> set[str]:
    """Names, attributes, imports and keyword arguments in a test file, and texts that are an identifier."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / "tests" / test).read_text(encoding="utf-8"))):
        if isinstance(node, ast.alias):
            found.update(node.name.split("."))
        for field in ("id", "attr", "arg", "value"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                found.add(value)
    return found


@pytest.mark.parametrize(("module", "test"), [(m, test) for m, tests in TESTS.items() for test in tests])
def test_the_tests_in_the_table_use_the_names(module, test):
    names = page.names_in_test(module, test)
    assert names and set(names) <= NAMES[module].keys()
    assert set(names) - identifiers(test) == set()


def test_every_name_has_a_test():
    for module, names in NAMES.items():
        tested = {name for test in TESTS[module] for name in page.names_in_test(module, test)}
        assert tested == names.keys()


def test_flags_in_the_text_exist():
    flags = {flag for script in page.SCRIPTS for flag in page.flags_of(script)}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", TEXT)) <= flags
