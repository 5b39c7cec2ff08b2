# SPDX-License-Identifier: Apache-2.0
"""Imports go down only (docs/architecture.md): packages import only packages below them."""

import ast
import graphlib
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.support import ROOT
from torch_utils.images import save_png

RANKS = [  # first prefix that matches
    ("dnnlib", 0),
    ("torch_utils", 1),
    ("training.networks", 2),
    ("training.augment", 2),
    ("training.data", 2),
    ("training.projection_files", 4),
    ("training.training_loop", 5),
    ("training.initial", 5),
    ("training.run_networks", 5),
    ("training.run_state", 5),
    ("training.options", 6),
    ("training.continuing", 6),
    ("training.preflight", 6),
    ("training.guidance", 6),
    ("training", 3),
    ("metrics", 4),
    ("dgl", 4),
    ("benchmarks", 8),
    ("stylegan2_dgl", 8),
    ("scripts", 9),
]
PACKAGES = sorted({prefix.split(".")[0] for prefix, _rank in RANKS})
SCRIPT_RANK = 7
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
FILES = [*ROOT.glob("*.py"), *(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))]


def rank_of(module: str) -> int:
    matching = (rank for prefix, rank in RANKS if module.startswith(prefix))
    return next(matching, SCRIPT_RANK)


def module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(source: str) -> set[str]:
    """Modules and names imported anywhere in `source`, also inside functions; '.' stands for a relative import."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." if node.level else node.module
            found.update(f"{module}.{alias.name}" for alias in node.names)
    return found


def faults(name: str, source: str) -> list[str]:
    """Imports of the module `name` that are relative, go up, or reach a root script."""
    found = []
    for target in sorted(imported_modules(source)):
        package = target.split(".")[0]
        if package == "":
            found.append(f"{name} imports relatively")
        elif package in SCRIPTS:
            found.append(f"{name} imports the script {package}")
        elif package in PACKAGES and rank_of(target) > rank_of(name):
            found.append(f"{name} imports {target}, which is above it")
    return found


def order(sources: dict[str, str]) -> list[str]:
    """Modules ordered so that each imports only earlier ones, also in functions. Raises CycleError for a circle."""
    graph = {}
    for name, source in sources.items():
        targets = imported_modules(source)
        graph[name] = {target if target in sources else target.rpartition(".")[0] for target in targets} & {*sources}
    return list(graphlib.TopologicalSorter(graph).static_order())


def test_no_two_files_import_each_other():
    sources = {module_name(path): path.read_text(encoding="utf-8") for path in FILES}
    sources = {name: text for name, text in sources.items() if name.split(".")[-1] != "__main__"}
    assert {"dnnlib.util", "metrics.detectors", "torch_utils.ops.bias_act", "training.options"} <= set(order(sources))


@pytest.mark.parametrize("inner", ["import a.b", "from a import b", "def f():\n    from a.b import g"])
def test_a_circle_is_found(inner):
    sources = {"a.b": "import a.c", "a.c": "from a.d import f", "a.d": inner}
    with pytest.raises(graphlib.CycleError):
        order(sources)
    assert order({**sources, "a.d": ""}) == ["a.d", "a.c", "a.b"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    assert faults(module_name(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("dnnlib.util", "import torch_utils.misc"),
        ("torch_utils.misc", "def f():\n    from training import networks"),
        ("training.loss", "from dgl.loss import DGLLoss"),
        ("training.networks", "from training.loss import Loss"),
        ("metrics.metric_main", "from training.training_loop import training_loop"),
        ("training.training_loop", "from training import options"),
        ("dgl.teacher", "from . import loss"),
        ("metrics.metric_main", "import train"),
        ("generate", "from train import main"),
        ("training.phases", "from benchmarks import plain"),
        ("train", "import benchmarks.measure"),
    ],
)
def test_an_upward_import_is_found(name, source):
    assert len(faults(name, source)) == 1


def check_in_new_process(code: str) -> None:
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_training_without_a_teacher_does_not_import_dgl(tmp_path):
    for index in range(4):
        image = np.random.RandomState(index).randint(0, 256, (3, 8, 8)).astype(np.uint8)
        save_png(image, tmp_path / f"{index}.png")
    code = (
        "import runpy, sys\n"
        "import training.training_loop\n"
        f"sys.argv = ['train.py', '--outdir={tmp_path}/runs', '--data={tmp_path}', '--metrics=none', '--dry-run']\n"
        "try:\n    runpy.run_path('train.py', run_name='__main__')\n"
        "except SystemExit as done:\n    assert not done.code, done.code\n"
        "assert 'training.options' in sys.modules\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'dgl']\n"
    )
    check_in_new_process(code)


def test_scripts_load_nothing_that_their_start_does_not_need():
    heavy = "scipy imageio requests tensorboard torch._dynamo torch._inductor torch.onnx torch.utils.tensorboard"
    heavy += " sympy onnx onnxruntime matplotlib dgl"
    code = (
        "import sys, torch\n"
        f"heavy = set({heavy!r}.split()) - set(sys.modules)\n"  # less what PyTorch loads itself
        "import training.generation\n"
        "found = heavy & set(sys.modules) | ({'metrics', 'training.training_loop'} & set(sys.modules))\n"
        "assert not found, f'generate.py: {found}'\n"
        "import train, training.preflight, training.training_loop\n"
        "assert not heavy & set(sys.modules), f'train.py: {heavy & set(sys.modules)}'\n"
    )
    check_in_new_process(code)
