# SPDX-License-Identifier: Apache-2.0
import os
import pathlib
import subprocess
import sys
import types

import pytest
import torch.utils.cpp_extension

from tests.support import ROOT
from torch_utils import custom_ops


@pytest.fixture
def builds(monkeypatch, tmp_path):
    """Calls of a fake compiler, which writes a library and returns an empty module, or fails for the name `broken`."""
    calls = []

    def load(name, **kwargs):
        calls.append({"name": name, **kwargs})
        if name == "broken":
            raise RuntimeError("no compiler")
        pathlib.Path(kwargs["build_directory"], f"{name}.so").touch()
        return types.ModuleType(name)

    monkeypatch.setattr(torch.utils.cpp_extension, "load", load)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "built"))
    new_process(monkeypatch)
    return calls


def new_process(monkeypatch):
    monkeypatch.setattr(custom_ops, "_plugins", {})
    monkeypatch.setattr(custom_ops, "_failures", {})


@pytest.fixture
def sources(tmp_path):
    folder = tmp_path / "csrc"
    folder.mkdir()
    for name in ("a.cpp", "a.cu", "a.h"):
        (folder / name).write_text(f"// {name}")
    return [folder / "a.cpp", folder / "a.cu"]


def test_a_plugin_is_built_once(builds, sources, monkeypatch):
    monkeypatch.setattr(custom_ops, "verbosity", "none")
    first = custom_ops.get_plugin("a", [str(sources[0]), sources[1]], extra_cuda_cflags=["--use_fast_math"])
    again = custom_ops.get_plugin("a", sources)
    other = custom_ops.get_plugin("b", sources=sources[:1])
    assert first is again and first is not other and first.__name__ == "a"
    directories = [build.pop("build_directory") for build in builds]
    assert [pathlib.Path(directory).parts[-3:-1] for directory in directories] == [("built", "a"), ("built", "b")]
    assert builds == [
        {
            "name": "a",
            "sources": [str(path) for path in sources],
            "verbose": False,
            "extra_cuda_cflags": ["--use_fast_math"],
        },
        {"name": "b", "sources": [str(sources[0])], "verbose": False},
    ]


def test_the_caller_may_choose_where_to_build(builds, tmp_path):
    custom_ops.get_plugin("a", [], build_directory=tmp_path / "here")
    assert pathlib.Path(builds[0]["build_directory"]).parent == tmp_path / "here" / "a"


def test_everything_a_build_depends_on_changes_its_directory(builds, sources, monkeypatch):
    def directory(**kwargs):
        new_process(monkeypatch)
        custom_ops.get_plugin("a", sources, **kwargs)
        return builds[-1]["build_directory"]

    seen = [directory()]
    assert directory() == seen[0]
    for name in ("a.cpp", "a.cu", "a.h"):
        (sources[0].parent / name).write_text(f"// {name}, changed")
        seen.append(directory())
    seen.append(directory(extra_cflags=["-O1"]))
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    seen.append(directory())
    monkeypatch.setattr(torch.version, "cuda", "99.9")
    seen.append(directory())
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for capability in ((8, 0), (9, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, value=capability: value)
        seen.append(directory())
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0")
    seen.append(directory())
    assert len(set(seen)) == len(seen) == 10


@pytest.mark.parametrize(
    ("verbosity", "expected"),
    [("none", ""), ("brief", "Compiling a: done in 0s\n"), ("full", "Compiling a: \ndone in 0s\n")],
)
def test_what_is_printed(verbosity, expected, builds, monkeypatch, capsys):
    monkeypatch.setattr(custom_ops, "verbosity", verbosity)
    custom_ops.get_plugin("a", [])
    assert capsys.readouterr().out == expected and builds[0]["verbose"] == (verbosity == "full")


def test_by_default_one_line_is_printed_and_none_without_a_compilation(builds, monkeypatch, capsys):
    custom_ops.get_plugin("a", [])
    assert custom_ops.verbosity == "brief" and capsys.readouterr().out.count("\n") == 1
    new_process(monkeypatch)
    custom_ops.get_plugin("a", [])
    assert len(builds) == 2 and capsys.readouterr().out == ""


def test_a_failure_reaches_the_caller_and_is_not_tried_again(builds, capsys):
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no compiler"):
            custom_ops.get_plugin("broken", [])
    assert len(builds) == 1 and capsys.readouterr().out == "Compiling broken: failed\n"


def test_a_missing_source_raises_an_os_error(builds, tmp_path):
    with pytest.raises(FileNotFoundError):
        custom_ops.get_plugin("a", [tmp_path / "missing.cpp"])


def test_unknown_verbosity(builds, monkeypatch):
    monkeypatch.setattr(custom_ops, "verbosity", "loud")
    with pytest.raises(ValueError, match="none, brief, full"):
        custom_ops.get_plugin("a", [])


# Processes that build like PyTorch, behind a lock file that each removes at the end, if it gets that far.
PROCESSES = """
import multiprocessing, os, pathlib, sys, time, types
import torch.utils.cpp_extension
from torch.utils.file_baton import FileBaton
from torch_utils import custom_ops

def report(line):
    os.write(1, f"{line}\\n".encode())

def load(name, build_directory, **kwargs):
    directory = pathlib.Path(build_directory)
    baton = FileBaton(str(directory / "lock"))
    if baton.try_acquire():
        if not (directory / f"{name}.so").exists():
            report("built")
            time.sleep(seconds)
            if name == "broken":
                baton.release()
                raise OSError("no compiler")
            (directory / f"{name}.so").touch()
        baton.release()
    else:
        report("waited for a lock that may be nobody's")
        baton.wait()
    return types.ModuleType(name)

def ask(name):
    try:
        custom_ops.get_plugin(name, [])
        report("loaded")
    except (OSError, RuntimeError) as error:
        report(error)

def start(name):
    process = multiprocessing.Process(target=ask, args=[name])
    process.start()
    return process

def several(name):
    together = [start(name) for _ in range(3)]
    for process in together:
        process.join()

multiprocessing.set_start_method("fork")
root = pathlib.Path(os.environ["TORCH_EXTENSIONS_DIR"])
torch.utils.cpp_extension.load = load
custom_ops.verbosity = "none"

seconds = 60
killed = start("a")
while not list(root.rglob("lock")):
    time.sleep(0.01)
killed.kill()
killed.join()
report(f"left behind: {[path.name for path in root.rglob('lock')]}")
seconds = 0.5
several("a")
report("broken:")
seconds = 1
several("broken")
report("again:")
start("broken").join()
"""


@pytest.mark.slow
def test_a_killed_process_leaves_no_stale_lock_and_one_of_several_builds(tmp_path):
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROCESSES]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    _, left_behind, others = result.stdout.partition("left behind: ['lock']\n")
    whole, _, broken = others.partition("broken:\n")
    broken, _, again = broken.partition("again:\n")
    assert left_behind and sorted(whole.splitlines()) == ["built", "loaded", "loaded", "loaded"]
    assert sorted(broken.splitlines()) == ["built", "no compiler", "no compiler", "no compiler"]
    assert again.splitlines() == [
        "built",
        "no compiler",
    ]  # a later run tries again, because the machine may have been fixed
