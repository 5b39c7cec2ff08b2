# SPDX-License-Identifier: Apache-2.0
"""The wheel: what is in it, its commands, and that it leaves the names of other packages alone."""

import importlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

import stylegan2_dgl
from dnnlib import __version__
from tests.support import ROOT

PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
COMMANDS = dict(re.findall(r'^(sg2-[\w-]+) = "stylegan2_dgl\.commands:(\w+)"$', PYPROJECT, re.MULTILINE))
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
LEFT_OUT = {"tests", "benchmarks", "scripts"}


def shipped() -> set[str]:
    """Files of the tree that belong into the wheel, relative to the root."""
    packages = [path.parent for path in ROOT.glob("*/__init__.py")]
    files = [*ROOT.glob("*.py"), *(path for package in packages for path in package.rglob("*.*"))]
    names = {path.relative_to(ROOT).as_posix() for path in files if path.parent.name != "__pycache__"}
    names = {name for name in names if name.split("/")[0] not in {*LEFT_OUT, "stylegan2_dgl"}}
    assert "torch_utils/ops/csrc/bias_act.cu" in names
    return names | {"scripts/train_detector.py", *(f"data/detectors/{name}.pt" for name in ("mnist", "fashion"))}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> pathlib.Path:
    """A folder of installed packages: the wheel's, and a stand-in for Deep Graph Library."""
    source = tmp_path_factory.mktemp("source")
    unwanted = shutil.ignore_patterns(".*", "runs", "build", "*.egg-info", "tests", "docs", "*.zip", "__pycache__")
    shutil.copytree(ROOT, source, ignore=unwanted, dirs_exist_ok=True)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    dist = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-c", build, dist], cwd=source, check=True, capture_output=True)
    (wheel,) = dist.iterdir()
    assert wheel.name == f"stylegan2_ada_dgl-{__version__}-py3-none-any.whl"
    site = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(site)
    (site / "dgl").mkdir()
    (site / "dgl" / "__init__.py").write_text("STAND_IN = True\n", encoding="utf-8")
    return site


def python(site: pathlib.Path, code: str, *arguments, cwd: pathlib.Path) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(site), "PYTHONWARNINGS": "error"}
    command = [sys.executable, "-P" if sys.version_info >= (3, 11) else "-B", "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


def command(site: pathlib.Path, name: str, *flags, cwd: pathlib.Path) -> subprocess.CompletedProcess:
    """Run a console command as pip's wrapper does."""
    code = f"import sys; from stylegan2_dgl.commands import {COMMANDS[name]} as main; sys.argv[0] = '{name}'; main()"
    return python(site, code, *flags, cwd=cwd)


def test_each_script_has_a_command():
    assert set(COMMANDS.values()) == {*SCRIPTS, "train_detector"}
    for name, function in COMMANDS.items():
        script = getattr(importlib.import_module("stylegan2_dgl.commands"), function).args[0]
        assert name == f"sg2-{function.replace('_', '-')}" and script.removeprefix("scripts.") == function


def test_the_wheel_has_the_tree_in_one_package(site):
    top = {path.name for path in site.iterdir()} - {"dgl"}
    assert top == {"stylegan2_dgl", f"stylegan2_ada_dgl-{__version__}.dist-info"}
    files = {path.relative_to(site / "stylegan2_dgl/project").as_posix() for path in site.glob("*/project/**/*")}
    assert shipped() <= files
    assert not [name for name in files if name.split("/")[0] in LEFT_OUT - {"scripts"}]


def test_torch_has_a_floor_and_no_cap():
    assert '"torch>=2.5"' in PYPROJECT


@pytest.mark.parametrize("page", ["CITATION.cff", "CHANGELOG.md"])
def test_the_version_is_that_of_dnnlib(page):
    assert re.search(rf"(^version: |^## ){re.escape(__version__)}\b", (ROOT / page).read_text("utf-8"), re.MULTILINE)


def test_help_of_a_command(site, tmp_path):
    done = command(site, "sg2-generate", "--help", cwd=tmp_path)
    assert done.returncode == 0 and "Usage: sg2-generate" in done.stdout, done.stderr


def test_others_keep_their_dgl_until_activate_is_called(site, tmp_path):
    code = (
        "import importlib.util, dgl, stylegan2_dgl\n"
        "assert dgl.STAND_IN\n"
        "assert not any(importlib.util.find_spec(name) for name in ('dnnlib', 'training', 'torch_utils', 'metrics'))\n"
        "folder = stylegan2_dgl.activate()\n"
        "import dnnlib.util, dgl\n"
        "assert dnnlib.__file__.startswith(str(folder)) and dgl.STAND_IN\n"
        "assert stylegan2_dgl.activate() == folder\n"
    )
    done = python(site, code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    code = "import stylegan2_dgl\nstylegan2_dgl.activate()\nimport dgl\nassert not hasattr(dgl, 'STAND_IN')\n"
    done = python(site, code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_activate_refuses_when_another_module_has_a_name(monkeypatch):
    assert stylegan2_dgl.activate() == ROOT  # in a clone
    monkeypatch.setitem(sys.modules, "metrics", type(sys)("metrics"))
    with pytest.raises(ImportError, match="imported as 'metrics'"):
        stylegan2_dgl.activate()


@pytest.mark.slow
def test_generate_export_and_guided_training_beside_another_dgl(site, tmp_path):
    teacher, data = ROOT / "data/teachers/fashion.pkl", ROOT / "data/fashion-train-32x32.zip"
    runs = [
        ("sg2-generate", f"--network={teacher}", "--seeds=0-1", "--class=1", "--outdir=out", "--device=cpu"),
        ("sg2-export", f"--network={teacher}", "--dest=teacher.safetensors"),
        ("sg2-export", "--network=teacher.safetensors", "--dest=teacher.onnx"),
        (
            "sg2-train", f"--data={data}", "--outdir=runs", "--cfg=cifar", "--cond=1", "--batch=32", "--kimg=1",
            "--cbase=0.5", f"--dgl-teacher={teacher}", "--dgl-recipe=paper", "--metrics=fid5k_full",
            "--detector=fashion", "--device=cpu",
        ),
    ]  # fmt: skip
    for name, *flags in runs:
        done = command(site, name, *flags, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").iterdir())) == 2 and (tmp_path / "teacher.onnx").is_file()
    assert list(tmp_path.glob("runs/*/network-snapshot-*.pkl"))
