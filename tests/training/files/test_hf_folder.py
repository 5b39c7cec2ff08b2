# SPDX-License-Identifier: Apache-2.0
"""Folders of the Hugging Face Hub's layout: written, opened like snapshots, or refused by name."""

import json

import pytest
import safetensors.torch
import torch

from dnnlib.util import UserError
from tests.metrics import stand_ins
from tests.training.files import biggan_checkpoint
from training.export import export_folder
from training.files import hf_folder
from training.files.snapshot import load_snapshot, save_snapshot

NETWORKS = {
    "stylegan2": lambda: stand_ins.tiny_generator(c_dim=2, channels=1),
    "biggan": lambda: stand_ins.tiny_biggan(),
}


@pytest.fixture
def run_dir(tmp_path):
    """A run directory with a snapshot: its path, and the generator."""
    folder = tmp_path / "run"
    folder.mkdir()
    G = NETWORKS["stylegan2"]()
    save_snapshot(folder / "network-snapshot-000020.pkl", {"G_ema": G, "D": None})
    return folder, G


@pytest.mark.parametrize("family", NETWORKS)
def test_a_folder_gives_the_same_network(tmp_path, family):
    G, folder = NETWORKS[family](), tmp_path / "model"
    G.class_names = ["cat", "dog"]
    hf_folder.write(str(folder), G, "x.pkl", "mit")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model"]
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    z, c = torch.randn(2, G.z_dim), torch.eye(2)
    for path in (folder, folder / "model.safetensors"):
        found = load_snapshot(path)
        assert list(found) == ["G_ema"] and found.path == str(folder / "model.safetensors")
        assert found.class_names == ["cat", "dog"]
        assert type(found["G_ema"]) is type(G) and not found["G_ema"].training
        assert torch.equal(found["G_ema"](z, c, **extra(family)), G(z, c, **extra(family)))
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["classes"], config["range"]) == (family, 2, [-1, 1])


def extra(family):
    return {"noise_mode": "const"} if family == "stylegan2" else {}


def test_other_libraries_find_the_tensors_under_their_own_names(tmp_path):
    G = NETWORKS["stylegan2"]()
    hf_folder.write(str(tmp_path / "model"), G, "x.pkl", None)
    with safetensors.safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"} and {*file.keys()} == {*G.state_dict()}


def test_the_digest_covers_both_files(tmp_path):
    hf_folder.write(str(tmp_path / "model"), NETWORKS["stylegan2"](), "x.pkl", None)
    before = load_snapshot(tmp_path / "model").sha256
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text() + " ")
    assert load_snapshot(tmp_path / "model").sha256 != before


def test_the_card_has_figures_licence_and_teacher(run_dir, tmp_path, capsys):
    folder, G = run_dir
    lines = [
        {"results": {"fid5k_full": 40.0}, "metric": "fid5k_full", "snapshot_pkl": "network-snapshot-000020.pkl"},
        {"results": {"fid5k_full": 12.345}, "metric": "fid5k_full", "snapshot_pkl": "network-snapshot-000020.pkl"},
        {"results": {"fid5k_full": 99.0}, "metric": "fid5k_full", "snapshot_pkl": "network-snapshot-000000.pkl"},
    ]
    (folder / "metric-fid5k_full.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\nbroken\n")
    teachers = [{"path": "/home/me/teacher.pkl", "sha256": "0"}]
    (folder / "training_options.json").write_text(json.dumps({"loss_kwargs": {"teachers": teachers}}))
    export_folder(str(folder / "network-snapshot-000020.pkl"), str(tmp_path / "clothes"), "MIT")
    card = (tmp_path / "clothes" / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n") and "| fid5k_full | 12.35 |" in card and "99" not in card
    assert "teacher `teacher.pkl`" in card and "/home/me" not in card and "in 2 classes" in card
    assert f"{sum(p.numel() for p in G.parameters()):,} parameters" in card
    assert "--network=clothes --seeds=0-9 --class=0" in card
    assert f"hf upload USER/NAME {tmp_path / 'clothes'}" in capsys.readouterr().out


def test_an_unmeasured_network_says_so(tmp_path):
    G = NETWORKS["biggan"]()
    card = hf_folder.card(G, "model", str(tmp_path / "x.pkl"), None)
    assert "license: unknown" in card and "Not measured." in card and "teacher" not in card


def test_a_folder_with_files_is_not_overwritten(run_dir, tmp_path):
    folder, _ = run_dir
    with pytest.raises(UserError, match=r"--dest=.*exists already"):
        export_folder(str(folder / "network-snapshot-000020.pkl"), str(folder))
    (tmp_path / "empty").mkdir()
    export_folder(str(folder / "network-snapshot-000020.pkl"), str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"--dest=.*cannot be written"):
        export_folder(str(folder / "network-snapshot-000020.pkl"), str(tmp_path / "no" / "model"))
    with pytest.raises(UserError, match=r"--license=a.*b: 1: a model card takes an identifier"):
        export_folder(str(folder / "network-snapshot-000020.pkl"), str(tmp_path / "x"), "a\nb: 1")


def test_nothing_is_left_of_a_failed_export(tmp_path, monkeypatch):
    monkeypatch.setattr(hf_folder, "card", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        hf_folder.write(str(tmp_path / "model"), NETWORKS["stylegan2"](), "x.pkl", None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{", "not one written by export.py"),
        ("[]", "not one written by export.py"),
        ("[" * 100_000, "not one written by export.py"),
        ('{"format": "diffusers"}', "not one written by export.py"),
        (" " * (1 << 21), "too long"),
        ('{"format": "stylegan2-networks", "networks": {"G_ema": 3}}', "how to build G_ema"),
    ],
)
def test_a_config_of_another_kind_is_refused(tmp_path, config, words):
    hf_folder.write(str(tmp_path / "model"), NETWORKS["stylegan2"](), "x.pkl", None)
    (tmp_path / "model" / "config.json").write_text(config)
    with pytest.raises(UserError, match=words):
        load_snapshot(tmp_path / "model")["G_ema"]


def test_damaged_tensors_are_refused(tmp_path):
    hf_folder.write(str(tmp_path / "model"), NETWORKS["stylegan2"](), "x.pkl", None)
    path = tmp_path / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"model\.safetensors is a damaged safetensors file"):
        load_snapshot(tmp_path / "model")


def test_a_biggan_checkpoint_folder_still_opens(tmp_path):
    networks = biggan_checkpoint.networks()
    folder = biggan_checkpoint.write(tmp_path / "weights", networks)
    (folder / "config.json").write_text("{}")
    assert load_snapshot(folder).path.endswith("G_ema.pth")
