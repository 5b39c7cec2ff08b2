# SPDX-License-Identifier: Apache-2.0
"""dnnlib works without PyTorch and numpy."""

from tests.support import ROOT
from tests.test_import_ranks import imported_modules

MODULES = {f"dnnlib.{path.stem}": path.read_text(encoding="utf-8") for path in (ROOT / "dnnlib").glob("[!_]*.py")}


def test_no_module_imports_torch():
    found = {target.split(".")[0] for text in MODULES.values() for target in imported_modules(text)}
    assert "click" in found and not found & {"torch", "numpy"}
