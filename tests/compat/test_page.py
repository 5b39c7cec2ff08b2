# SPDX-License-Identifier: Apache-2.0
"""docs/compatibility.md says what the tree has: every name with a test that calls it, every flag."""

import importlib
import re

import pytest

from tests.compat import stand_in_tree
from tests.compat.surface import FLAGS, NAMES
from tests.support import ROOT

PAGE = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
SCRIPTS = [*FLAGS, "export"]


def rows(heading: str) -> list[list[str]]:
    """Cells of the rows of the first table below a heading."""
    section = PAGE.split(f"# {heading}\n")[1]
    lines = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)[0].splitlines()[2:]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def texts_for(module: str, name: str) -> list[str]:
    """Texts of the test files that the page gives for a name."""
    found = []
    for modules, names, links in rows("Importable names"):
        if module in code(modules) and name in code(names):
            found += [(ROOT / "docs" / link).resolve().read_text() for link in re.findall(r"\(([^)]+)\)", links)]
    return found


@pytest.mark.parametrize(("module", "name"), [(m, n) for m, names in NAMES.items() for n in names], ids=lambda p: p)
def test_every_name_is_listed_with_a_test_that_uses_it(module, name):
    assert any(re.search(rf"\b{name}\b", text) for text in texts_for(module, name))


def test_nothing_else_is_listed():
    listed = {(code(modules)[0], name) for modules, names, _links in rows("Importable names") for name in code(names)}
    assert listed == {(module, name) for module, names in NAMES.items() for name in names}


def test_names_of_the_stored_text_are_those_of_the_test():
    table = {
        code(module)[0]: {name.split("[")[0] for name in code(names)}
        for module, names in rows("Our networks in other programs")
    }
    assert table == stand_in_tree.ALLOWED


@pytest.mark.parametrize("script", SCRIPTS)
def test_flags_are_listed(script):
    old, new = next((row[1], row[2]) for row in rows("Command lines") if code(row[0]) == [f"{script}.py"])
    flags = {flag for option in importlib.import_module(script).main.params for flag in option.opts} - {"-n"}
    known = {f"--{name}" for name in FLAGS.get(script, "").split()}
    assert set(re.findall(r"--[a-z0-9-]+", old)) == known
    assert set(re.findall(r"--[a-z0-9-]+", new)) == flags - known


def test_flags_elsewhere_on_the_page_exist():
    flags = {
        flag for script in SCRIPTS for option in importlib.import_module(script).main.params for flag in option.opts
    }
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", PAGE)) <= flags
