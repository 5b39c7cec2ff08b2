# SPDX-License-Identifier: Apache-2.0
"""The modules of dnnlib import each other without circles, also inside functions, and nothing above them."""

import graphlib

import pytest

from tests.support import ROOT
from tests.test_import_ranks import imported_modules

MODULES = {f"dnnlib.{path.stem}": path.read_text(encoding="utf-8") for path in (ROOT / "dnnlib").glob("[!_]*.py")}


def order(modules: dict[str, str]) -> list[str]:
    """The modules in an order in which each imports only earlier ones. Raises CycleError if there is none."""
    targets = {name: imported_modules(text) for name, text in modules.items()}
    graph = {name: {m for m in modules if any(f"{t}.".startswith(f"{m}.") for t in targets[name])} for name in modules}
    return list(graphlib.TopologicalSorter(graph).static_order())


def test_there_are_no_circles():
    assert set(order(MODULES)) == set(MODULES) >= {"dnnlib.util", "dnnlib.urls", "dnnlib.progress"}


def test_a_circle_inside_a_function_is_found():
    circle = {"dnnlib.a": "import dnnlib.b", "dnnlib.b": "def f():\n    from dnnlib.a import g"}
    with pytest.raises(graphlib.CycleError):
        order(circle)


def test_no_module_imports_torch():
    found = {target.split(".")[0] for text in MODULES.values() for target in imported_modules(text)}
    assert "click" in found and not found & {"torch", "numpy"}
