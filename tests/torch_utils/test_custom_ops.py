# SPDX-License-Identifier: Apache-2.0
import pathlib
import types

import pytest
import torch.utils.cpp_extension

from torch_utils import custom_ops


@pytest.fixture
def builds(monkeypatch):
    """Calls of the compiler, which gives an empty module, or fails for the name `broken`."""
    calls = []

    def load(name, **kwargs):
        calls.append({"name": name, **kwargs})
        if name == "broken":
            raise RuntimeError("no compiler")
        return types.ModuleType(name)

    monkeypatch.setattr(torch.utils.cpp_extension, "load", load)
    monkeypatch.setattr(custom_ops, "_plugins", {})
    return calls


def test_a_plugin_is_built_once(builds, monkeypatch):
    monkeypatch.setattr(custom_ops, "verbosity", "none")
    first = custom_ops.get_plugin("a", ["a.cpp", pathlib.Path("a.cu")], extra_cuda_cflags=["--use_fast_math"])
    again = custom_ops.get_plugin("a", ["a.cpp"])
    other = custom_ops.get_plugin("b", sources=["b.cpp"])
    assert first is again and first is not other and first.__name__ == "a"
    assert builds == [
        {"name": "a", "sources": ["a.cpp", "a.cu"], "verbose": False, "extra_cuda_cflags": ["--use_fast_math"]},
        {"name": "b", "sources": ["b.cpp"], "verbose": False},
    ]


@pytest.mark.parametrize(
    ("verbosity", "expected"),
    [("none", ""), ("brief", "Compiling a: done in 0s\n"), ("full", "Compiling a: \ndone in 0s\n")],
)
def test_what_is_said(verbosity, expected, builds, monkeypatch, capsys):
    monkeypatch.setattr(custom_ops, "verbosity", verbosity)
    custom_ops.get_plugin("a", [])
    assert capsys.readouterr().out == expected and builds[0]["verbose"] == (verbosity == "full")


def test_by_default_there_is_one_line(builds, capsys):
    custom_ops.get_plugin("a", [])
    assert custom_ops.verbosity == "brief" and capsys.readouterr().out.count("\n") == 1


def test_a_failure_reaches_the_caller_and_is_tried_again(builds, capsys):
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no compiler"):
            custom_ops.get_plugin("broken", [])
    assert len(builds) == 2 and capsys.readouterr().out == "Compiling broken: failed\n" * 2


def test_unknown_verbosity(builds, monkeypatch):
    monkeypatch.setattr(custom_ops, "verbosity", "loud")
    with pytest.raises(ValueError, match="none, brief, full"):
        custom_ops.get_plugin("a", [])
