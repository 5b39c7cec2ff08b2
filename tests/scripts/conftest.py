# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of the scripts."""

import sys

import pytest
import torch

import dnnlib.cli
from metrics import catalogue
from tests.metrics import stand_ins
from torch_utils.ops import layout
from training.files.snapshot import save_snapshot


@pytest.fixture
def network(tmp_path):
    """Write a snapshot: `network(c_dim=..., ...)` -> (path, generator). `notes` are further entries of it."""

    def make(notes=None, **kwargs):
        G = stand_ins.tiny_generator(**kwargs)
        path = str(tmp_path / "network.pkl")
        data = {"G": G, "D": None, "G_ema": G, "augment_pipe": None, "training_set_kwargs": {}}
        save_snapshot(path, {**data, **(notes or {})})
        return path, layout.prepare(G, torch.device("cpu"))  # as the scripts do, for bitwise equality

    return make


@pytest.fixture
def biggan(tmp_path):
    """Write a snapshot of a BigGAN: `biggan(c_dim=..., ...)` -> (path, generator)."""

    def make(**kwargs):
        G = stand_ins.tiny_biggan(**kwargs)
        path = str(tmp_path / "biggan.pkl")
        save_snapshot(path, {"G": G, "D": None, "G_ema": G, "augment_pipe": None, "training_set_kwargs": {}})
        return path, layout.prepare(G, torch.device("cpu"))

    return make


@pytest.fixture
def run(monkeypatch, capsys):
    """`run(script, flag=value, ...)` -> (exit status, stdout, stderr)."""

    def call(script, **flags):
        argv = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *argv])
        with pytest.raises(SystemExit) as exit_info:
            dnnlib.cli.run(script.main)
        return (exit_info.value.code, *capsys.readouterr())

    return call


@pytest.fixture
def run_script(monkeypatch, capsys, tmp_path):
    """Run a command here: `run_script(command, flag=value, ...)` -> (exit status, stdout, stderr, outdir).

    A flag that is True is given without a value.
    """

    def run(command, outdir="out", **flags):
        outdir = tmp_path / outdir
        flags = {"outdir": outdir, "device": "cpu", **flags}
        argv = [f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}") for name, value in flags.items()]
        monkeypatch.setattr(sys, "argv", ["script.py", *argv])
        with pytest.raises(SystemExit) as exit_info:
            dnnlib.cli.run(command)
        return (exit_info.value.code, *capsys.readouterr(), outdir)

    return run


@pytest.fixture
def redefine(monkeypatch):
    """Make a metric smaller: `redefine(name, num_fakes=..., max_real=..., option=value)`."""
    return lambda name, **changes: monkeypatch.setitem(catalogue.METRICS, name, stand_ins.smaller(name, **changes))
