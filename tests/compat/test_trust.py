# SPDX-License-Identifier: Apache-2.0
"""--trust-pickle: networks of other architectures run the code in the file, after a warning."""

import importlib
import os
import sys
import uuid

import pytest
import torch

import generate
from dnnlib import cli
from dnnlib.util import UserError
from tests.compat.opcodes import call, pickled
from tests.support import ROOT
from torch_utils import persistence
from training.files import snapshot

# An architecture unknown to this project. Its source leaves a trace when it runs.
SOURCE = """
import os
import torch
from torch_utils import persistence

open(os.environ["TRACE"], "a").close()

@persistence.persistent_class
class Painter(torch.nn.Module):
    def __init__(self, size, colour=0.5):
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim, self.num_ws = 4, 0, 4, 1
        self.img_resolution, self.img_channels = size, 3
        self.colour = torch.nn.Parameter(torch.full([3], colour))

    def mapping(self, z, c, truncation_psi=1, **_):
        return z[:, None]

    def synthesis(self, ws, noise_mode="const"):
        size = self.img_resolution
        return self.colour[None, :, None, None].expand(len(ws), 3, size, size)

    def forward(self, z, c, truncation_psi=1, **synthesis_kwargs):
        return self.synthesis(self.mapping(z, c, truncation_psi), **synthesis_kwargs)
"""


@pytest.fixture
def painting(tmp_path, monkeypatch):
    """A snapshot of a Painter, a class that this process has forgotten; running its source makes the file `ran`."""
    name = f"painter_{uuid.uuid4().hex}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.setenv("TRACE", str(tmp_path / "first"))
    monkeypatch.syspath_prepend(tmp_path)
    G = importlib.import_module(name).Painter(8, colour=0.25)
    path = tmp_path / "painter.pkl"
    snapshot.save_snapshot(path, {"G": G, "D": None, "G_ema": G, "augment_pipe": None, "training_set_kwargs": {}})
    del sys.modules[name]
    (tmp_path / f"{name}.py").unlink()
    monkeypatch.setenv("TRACE", str(tmp_path / "ran"))
    monkeypatch.setattr(persistence, "_classes", {})
    return path


def test_a_custom_network_is_refused_with_a_hint(painting, tmp_path, capsys):
    snap = snapshot.load_snapshot(painting)
    for key in ("G", "G_ema"):
        with pytest.raises(UserError, match=rf"{key} in .*painter\.pkl is a 'Painter' .*use --trust-pickle"):
            snap[key]
    assert not (tmp_path / "ran").exists() and capsys.readouterr().err == ""


def test_a_trusted_network_runs_its_own_source(painting, tmp_path):
    G = snapshot.load_snapshot(painting, trust=True)["G_ema"]
    assert (tmp_path / "ran").exists()
    assert type(G).__name__ == "Painter" and G.init_kwargs == {"colour": 0.25} and not G.training
    assert torch.equal(G.synthesis(torch.zeros(2, 1, 4)), torch.full([2, 3, 8, 8], 0.25))


def test_the_warning_is_given_once_per_file(painting, tmp_path, capsys):
    for _ in range(3):
        snapshot.load_snapshot(painting, trust=True)
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("WARNING: --trust-pickle") and str(painting) in line
    other = tmp_path / "other.pkl"
    other.write_bytes(painting.read_bytes())
    snapshot.load_snapshot(other, trust=True)
    assert str(other) in capsys.readouterr().err


def test_trust_means_pythons_own_semantics(tmp_path, monkeypatch):
    """Code refused elsewhere runs; a file that is not a snapshot, or that fails, still gives one clear message."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "net.pkl"
    path.write_bytes(pickled({"training_set_kwargs": call("os.mkdir", "made")}))
    with pytest.raises(UserError, match=r"net\.pkl is not a network file"):
        snapshot.load_snapshot(path, trust=True)
    assert os.path.isdir("made")
    path.write_bytes(pickled({"G": call("os.mkdir", "made")}))
    with pytest.raises(UserError, match=r"net\.pkl cannot be loaded, even with --trust-pickle \(FileExistsError"):
        snapshot.load_snapshot(path, trust=True)


def run(argv, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["generate.py", *argv])
    with pytest.raises(SystemExit) as exited:
        cli.run(generate.main)
    return exited.value.code, capsys.readouterr().err


def test_generate_with_and_without_trust(painting, tmp_path, monkeypatch, capsys):
    argv = [f"--network={painting}", "--seeds=1", f"--outdir={tmp_path / 'out'}", "--device=cpu"]
    status, error = run(argv, monkeypatch, capsys)
    assert status == 2 and "Error: G_ema in" in error and "--trust-pickle" in error
    assert not (tmp_path / "out").exists() and not (tmp_path / "ran").exists()
    status, error = run([*argv, "--trust-pickle"], monkeypatch, capsys)
    assert status == 0 and error.count("WARNING: --trust-pickle") == 1
    assert (tmp_path / "ran").exists() and os.listdir(tmp_path / "out") == ["seed0001.png"]


def flags_of(script: str) -> dict[str, str]:
    """The flags of a root script, and what each takes."""
    options = importlib.import_module(script).main.params
    return {flag: option.metavar or "" for option in options for flag in option.opts}


SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
TAKING_NETWORKS = [name for name in SCRIPTS if any("PKL" in metavar for metavar in flags_of(name).values())]


def test_scripts_that_take_networks_are_found():
    assert {"train", "generate", "legacy"} <= set(TAKING_NETWORKS) and "dataset_tool" not in TAKING_NETWORKS


@pytest.mark.parametrize("script", TAKING_NETWORKS)
def test_every_script_that_takes_networks_has_the_flag(script):
    assert "--trust-pickle" in flags_of(script)
