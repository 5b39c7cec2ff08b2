# SPDX-License-Identifier: Apache-2.0
"""Networks stored with code that this project does not know are named when a file is opened without running it."""

import importlib.util
import inspect
import pathlib
import sys

import pytest
import torch

import generate
from tests.compat.surface import NAMES
from tests.scripts.conftest import run_script  # noqa: F401
from tests.support import ROOT
from tests.training import toy_family
from torch_utils import persistence
from torch_utils.safe_pickle import StoredObject
from training import families, networks, networks_biggan
from training.families.stylegan2 import STYLEGAN2
from training.files import snapshot, stored_code

NETWORKS = (ROOT / "training" / "networks.py").read_text(encoding="utf-8")
# A source with the names of the original's classes and functions, and nothing else of it
ORIGINAL = "import torch\n" + "".join(f"\ndef {name}():\n    pass\n" for name in sorted(STYLEGAN2.original_names))


def unknown(source: str, class_name: str = "Generator") -> str | None:
    return stored_code.unknown(StoredObject(class_name, source, {}, persistence.VERSION))


@pytest.mark.parametrize("module", [networks, networks_biggan])
def test_the_current_source_is_listed_for_later_versions(module):
    digest = stored_code.digest(inspect.getsource(module))
    assert digest in stored_code.OURS, f"add {digest!r} to OURS in training/files/stored_code.py"


def test_names_of_the_original_are_those_of_its_surface():
    assert set(NAMES["training.networks"]) == STYLEGAN2.original_names


def test_known_sources():
    assert unknown(NETWORKS) is None
    assert unknown(NETWORKS.replace("\n", " \r\n") + "\n\n") is None
    assert unknown(ORIGINAL) is None
    assert unknown("") is None  # not from a pickle
    assert unknown("anything", "AugmentPipe") is None


def test_older_versions_of_this_project(monkeypatch):
    monkeypatch.setattr(stored_code, "source_of", lambda cls: "a later version")
    assert unknown(NETWORKS) is None
    assert unknown(NETWORKS + "\n1").startswith("adds _")


def test_changed_versions_of_this_project():
    assert unknown(NETWORKS.replace("def _unit_max", "def _unit_min")) == "adds _unit_min and lacks _unit_max"
    assert unknown(NETWORKS + "\n1") == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda source: source + "\nclass Attention(torch.nn.Module):\n    pass\n", "adds Attention"),
        (lambda source: source.replace("def modulated_conv2d", "def conv"), "adds conv and lacks modulated_conv2d"),
        (lambda source: source + "\ndef a(): 1\ndef b(): 1\nclass c: 1\nclass d: 1\n", "adds a, b, c and 1 more"),
        (lambda source: source + f"\nclass {'x' * 999}: pass", f"adds {'x' * 57}..."),
    ],
)
def test_forks_by_their_names(change, words):
    assert unknown(change(ORIGINAL)) == words


def test_forks_by_their_digest_once_the_originals_are_listed(monkeypatch):
    changed = ORIGINAL.replace("pass", "return -1", 1)
    assert unknown(changed) is None
    monkeypatch.setattr(stored_code, "ORIGINALS", frozenset({stored_code.digest(ORIGINAL)}))
    assert unknown(ORIGINAL) is None and unknown(changed) == ""


def test_a_family_without_an_original(monkeypatch):
    families.register(toy_family.TOY)
    try:
        source = pathlib.Path(toy_family.__file__).read_text()
        assert unknown(source, "ToyG") is None and unknown(source + "\n1", "ToyG") == ""
    finally:
        families.unregister(toy_family.TOY.name)


@pytest.fixture
def fork(tmp_path, monkeypatch):
    """A snapshot of networks whose G gives negatives."""
    path = tmp_path / "fork.py"
    source = NETWORKS.replace("        return img\n", "        return _negative(img)\n", 1)
    path.write_text(source + "\n\ndef _negative(img):\n    return -img\n")
    monkeypatch.setattr(persistence, "_classes", {})
    spec = importlib.util.spec_from_file_location("fork_of_networks", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    G = module.Generator(4, 0, 4, 8, 3, {"num_layers": 1}, {"channel_base": 32, "channel_max": 4}).eval()
    D = module.Discriminator(0, 8, 3, channel_base=32, channel_max=4)
    snapshot.save_snapshot(tmp_path / "fork.pkl", {"G": G, "D": D, "G_ema": G, "augment_pipe": None})
    return str(tmp_path / "fork.pkl"), G


def test_a_fork_is_named_once_a_file(fork, capsys):
    path, G = fork
    snap = snapshot.load_snapshot(path)
    assert capsys.readouterr() == ("", "")  # not before a network is used
    z = torch.randn(2, 4)
    assert torch.equal(snap["G_ema"](z, None, noise_mode="const"), -G(z, None, noise_mode="const"))
    assert type(snap["D"]) is networks.Discriminator and type(snap["G"]) is networks.Generator
    assert type(snapshot.load_snapshot(path)["G"]) is networks.Generator
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"Notice: the networks in {path} were stored with code") and "(it adds _negative)" in err
    assert "its own forward may differ" in err and "--trust-pickle runs it" in err


def test_generate_names_a_fork_unless_its_code_runs(fork, run_script):  # noqa: F811
    path, _G = fork
    status, _out, err, _outdir = run_script(generate.main, network=path, seeds="1")
    assert status == 0 and "Notice: the networks in" in err
    status, _out, err, _outdir = run_script(generate.main, network=path, seeds="1", trust_pickle=True)
    assert status == 0 and "Notice" not in err and "WARNING: --trust-pickle" in err


def test_our_own_networks_are_not(tmp_path, capsys):
    D = networks.Discriminator(0, 8, 3, channel_base=32, channel_max=4)
    snapshot.save_snapshot(tmp_path / "net.pkl", {"D": D})
    assert "D" in snapshot.load_snapshot(tmp_path / "net.pkl")
    assert snapshot.load_snapshot(ROOT / "data" / "teachers" / "fashion.pkl")["D"].img_resolution == 32
    assert capsys.readouterr().err == ""
