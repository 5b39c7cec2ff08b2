# SPDX-License-Identifier: Apache-2.0
"""The modules of dnnlib import each other without circles, also inside functions, and nothing above them."""

import ast
import graphlib

import pytest

from tests.support import ROOT

MODULES = {f"dnnlib.{path.stem}": path.read_text(encoding="utf-8") for path in (ROOT / "dnnlib").glob("[!_]*.py")}


def imports(source: str) -> set[str]:
    """Modules imported anywhere in `source`, and the names imported from them."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.update((node.module, *(f"{node.module}.{alias.name}" for alias in node.names)))
    return found


def order(modules: dict[str, str]) -> list[str]:
    """The modules in an order in which each imports only earlier ones; raises CycleError where there is none."""
    return list(
        graphlib.TopologicalSorter(
            {name: imports(text) & set(modules) for name, text in modules.items()}
        ).static_order()
    )


def test_there_are_no_circles():
    assert set(order(MODULES)) == set(MODULES) >= {"dnnlib.util", "dnnlib.urls", "dnnlib.progress"}


def test_a_circle_inside_a_function_is_found():
    circle = {"dnnlib.a": "import dnnlib.b", "dnnlib.b": "def f():\n    from dnnlib.a import g"}
    with pytest.raises(graphlib.CycleError):
        order(circle)


def test_no_module_imports_torch():
    assert [name for name, text in MODULES.items() if {"torch", "numpy"} & imports(text)] == []
