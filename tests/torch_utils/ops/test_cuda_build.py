# SPDX-License-Identifier: Apache-2.0
"""The kernels compile wherever nvcc is found, without a GPU."""

import importlib.util
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig

import pytest
import torch

from scripts.kernel_report import PYTORCH_FLAGS
from tests.support import ROOT
from torch_utils.ops import _plugin

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")

FLAGS = [*PYTORCH_FLAGS, "-std=c++17"]


@pytest.mark.parametrize(
    "source", [path for path in _plugin.SOURCES if path.suffix == ".cu"], ids=lambda path: path.name
)
def test_kernels_compile_without_warnings(source, tmp_path):
    """To intermediate code without optimisation, which takes a fifth of the time."""
    command = ["nvcc", *FLAGS, "-O0", "-Xcicc=-O0", "-arch=sm_80", "-Werror=all-warnings", "-ptx", str(source)]
    subprocess.run([*command, "-o", str(tmp_path / "out.ptx")], check=True)
    assert ".entry" in (tmp_path / "out.ptx").read_text()


@pytest.mark.slow
def test_kernels_compile_for_both_architectures_and_spill_nothing(tmp_path):
    page = tmp_path / "kernels.md"
    command = [sys.executable, "-m", "scripts.kernel_report", "--arch=80,90", f"--out={page}"]
    subprocess.run(command, cwd=ROOT, check=True)
    rows = re.findall(r"^\| `(\w+)<.*>` \| (\d+) \| (\d+) \| 0 \| \d+ \|$", page.read_text(), re.MULTILINE)
    assert {name for name, *_ in rows} == {"any_kernel", "bias_act_kernel", "channel_kernel", "plane_kernel"}
    assert len(rows) == len((ROOT / "docs/benchmarks/kernels.md").read_text().split("\n| `")) - 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_the_module_links_loads_and_reports_errors(tmp_path):
    folders = [pathlib.Path(torch.__file__).parent / "include", pathlib.Path(sysconfig.get_paths()["include"])]
    if not (folders[1] / "Python.h").exists():
        pytest.skip("no headers of Python")
    library = tmp_path / f"kernels{sysconfig.get_config_var('EXT_SUFFIX')}"
    command = ["nvcc", *FLAGS, "-O0", "-Xcicc=-O0", "-Xptxas=-O0", "-arch=sm_80", "-DTORCH_EXTENSION_NAME=kernels"]
    command += [*(f"-I{folder}" for folder in folders), "-Xcompiler=-fPIC", "-shared", "-o", str(library)]
    subprocess.run([*command, *map(str, _plugin.SOURCES)], check=True)
    spec = importlib.util.spec_from_file_location("kernels", library)
    kernels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernels)
    with pytest.raises(RuntimeError, match="bias_act: invalid argument"):
        kernels.bias_act(99, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0.0, 1.0, -1.0, 0)
    nothing, ones = [0, 0, 0, 0], [1, 1]
    with pytest.raises(RuntimeError, match="upfirdn2d: invalid argument"):
        kernels.upfirdn2d(99, 0, 0, 0, *[nothing] * 4, ones, ones, ones, ones, False, 1.0, 0)
