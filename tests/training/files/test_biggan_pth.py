# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of BigGAN's public PyTorch implementation open like snapshots, or are refused by name."""

import hashlib
import os

import pytest
import torch

from dnnlib.util import UserError
from tests.compat import canary
from tests.training.files import biggan_checkpoint
from training.biggan_import import network_from_state
from training.files.snapshot import load_snapshot, read_snapshot, save_snapshot

FILES = ("G.pth", "D.pth", "G_ema.pth")


def equal(found: torch.nn.Module, expected: torch.nn.Module) -> bool:
    ours, theirs = found.state_dict(), expected.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def digest(folder, *names: str) -> str:
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in names)).hexdigest()


@pytest.fixture(scope="module")
def networks():
    return biggan_checkpoint.networks()


@pytest.fixture
def folder(networks, tmp_path):
    return biggan_checkpoint.write(tmp_path / "weights", networks)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("kind", ["IMAGENET", "CIFAR"])
def test_any_file_and_the_folder_name_the_whole_checkpoint(tmp_path, kind, zipped):
    expected = biggan_checkpoint.networks(**getattr(biggan_checkpoint, kind))
    folder = biggan_checkpoint.write(tmp_path / "weights", expected, zipped=zipped)
    for path in (folder, *(folder / name for name in FILES)):
        snap = load_snapshot(path)
        assert list(snap) == ["G", "D", "G_ema"] and snap.sha256 == digest(folder, *FILES)
        assert snap.path == str(folder / "G_ema.pth" if path == folder else path)
        for key, network in expected.items():
            assert equal(snap[key], network) and not snap[key].training
            recorded = snap[key].init_kwargs
            assert all(recorded[name] == value for name, value in network.init_kwargs.items())
            assert not any(parameter.requires_grad for parameter in snap[key].parameters())


def test_a_suffix_names_the_files_that_share_it(folder, networks):
    best = biggan_checkpoint.networks(**biggan_checkpoint.CIFAR)
    biggan_checkpoint.write(folder, {key: best[key] for key in ("D", "G_ema")}, suffix="_best3")
    snap = load_snapshot(folder / "G_ema_best3.pth")
    assert set(snap) == {"D", "G_ema"} and snap.sha256 == digest(folder, "D_best3.pth", "G_ema_best3.pth")
    assert equal(snap["D"], best["D"]) and equal(snap["G_ema"], best["G_ema"])
    assert equal(load_snapshot(folder)["D"], networks["D"])


def test_a_folder_of_files_with_a_suffix(tmp_path, networks):
    folder = biggan_checkpoint.write(tmp_path / "weights", networks, suffix="_copy0")
    assert equal(load_snapshot(folder)["G"], networks["G"])
    biggan_checkpoint.write(folder, networks, suffix="_best0")
    with pytest.raises(UserError, match=r"weights holds several checkpoints: .* G_ema_best0\.pth, G_ema_copy0\.pth$"):
        load_snapshot(folder)


def test_missing_companions(folder, networks):
    os.remove(folder / "D.pth")
    assert set(load_snapshot(folder / "G.pth")) == {"G", "G_ema"}
    os.remove(folder / "G.pth")
    snap = load_snapshot(folder)
    assert set(snap) == {"G_ema"} and snap.sha256 == digest(folder, "G_ema.pth")
    with pytest.raises(UserError, match=r"G_ema\.pth holds no D; it has G_ema"):
        snap["D"]


def test_without_an_average_g_stands_for_it(folder, networks):
    os.remove(folder / "G_ema.pth")
    for path in (folder, folder / "G.pth", folder / "D.pth"):
        snap = load_snapshot(path)
        assert equal(snap["G"], networks["G"]) and equal(snap["G_ema"], networks["G"])
        assert snap["G"] is not snap["G_ema"]


def test_a_file_of_another_name_stands_alone(folder, networks):
    for name, key in (("D", "D"), ("G_ema", "G_ema"), ("G", "G_ema")):
        path = folder / f"biggan-{name}.pth"
        path.write_bytes((folder / f"{name}.pth").read_bytes())
        snap = load_snapshot(path)
        assert set(snap) == {key} and equal(snap[key], networks[name]) and snap.sha256 == digest(folder, path.name)


def test_an_open_file_is_read_alone(folder, networks):
    with open(folder / "D.pth", "rb") as file:
        snap = read_snapshot(file)
    assert set(snap) == {"D"} and equal(snap["D"], networks["D"])


def test_a_file_url(folder):
    assert set(load_snapshot((folder / "D.pth").as_uri())) == {"G", "D", "G_ema"}


@pytest.mark.parametrize("suffix", ["", "_best0"])
@pytest.mark.parametrize("name", ["state_dict", "G_optim", "D_optim"])
@pytest.mark.parametrize("zipped", [False, True])
def test_other_files_of_the_folder_are_refused_by_name(tmp_path, networks, name, suffix, zipped):
    folder = biggan_checkpoint.write(tmp_path / "weights", networks, suffix, zipped=zipped)
    what = "the configuration of a run" if name == "state_dict" else "the state of an optimizer"
    with pytest.raises(UserError, match=rf"{name}{suffix}\.pth is {what}, .* name G_ema\.pth"):
        load_snapshot(folder / f"{name}{suffix}.pth")
    os.rename(folder / f"{name}{suffix}.pth", folder / "x.pth")
    reason = "torch.nn.modules.activation.ReLU" if name == "state_dict" else "state is of type dict"
    with pytest.raises(UserError, match=rf"x\.pth .*{reason}"):
        load_snapshot(folder / "x.pth")


def test_a_network_in_the_place_of_another(folder):
    (folder / "G.pth").write_bytes((folder / "D.pth").read_bytes())
    snap = load_snapshot(folder)
    assert snap["G_ema"] is not None
    with pytest.raises(UserError, match=r"G in .* is a BigGANDiscriminator, where a network of the kind generator"):
        snap["G"]


def test_a_damaged_companion_is_named(folder):
    (folder / "D.pth").write_bytes((folder / "D.pth").read_bytes()[:-100])
    with pytest.raises(UserError, match=r"weights/D\.pth is .*damaged .*ends too early"):
        load_snapshot(folder / "G_ema.pth")


def test_a_folder_without_networks(tmp_path):
    biggan_checkpoint.write(tmp_path, {})
    with pytest.raises(UserError, match="is a folder; name the network pickle in it"):
        load_snapshot(tmp_path)


def test_half_precision(tmp_path, networks):
    halves = {name: tensor.half() for name, tensor in networks["G"].state_dict().items()}
    found = load_snapshot(biggan_checkpoint.save(tmp_path / "G.pth", halves))["G"].state_dict()
    assert all(torch.equal(found[name], tensor.float()) for name, tensor in halves.items())


@pytest.mark.parametrize("kind", ["running", "stored", "sums"])
def test_other_batch_norms(tmp_path, networks, kind):
    """Synchronised ones, and those of standing statistics, which hold sums if a counter says so."""
    G = networks["G"]
    renamed, passes = {}, torch.tensor([5.0 if kind == "sums" else 0.0])
    for name, tensor in G.state_dict().items():
        norm, dot, statistic = name.rpartition(".stored_")
        if not dot:
            renamed[name] = tensor
        elif kind == "running":
            renamed[f"{norm}.bn.running_{statistic}"] = tensor
            renamed[f"{norm}.bn.num_batches_tracked"] = torch.tensor(7)
        else:
            renamed[f"{norm}.bn.stored_{statistic}"] = tensor * (5 if kind == "sums" else 1)
            renamed[f"{norm}.bn.accumulation_counter"] = passes
    found = load_snapshot(biggan_checkpoint.save(tmp_path / "G.pth", renamed))["G"].state_dict()
    for name, tensor in G.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=0)
    renamed["blocks.0.0.bn1.stored_mean"] = torch.zeros(8)
    with pytest.raises(UserError, match=r"G\.pth has two sets of statistics for one batch norm: blocks\.0\.0\.bn1"):
        load_snapshot(biggan_checkpoint.save(tmp_path / "G.pth", renamed))


BN = "blocks.0.0.bn1.bn"
REFUSED = {  # changes of a generator's state, None for a missing tensor, or other content; and the message
    "BigGAN-deep": ({"blocks.0.0.conv3.weight": torch.zeros(1)}, "is a BigGAN-deep network"),
    "half a block": ({"blocks.0.0.conv1.weight": None}, r"conv1\.weight .* is missing there"),
    "a block too many": ({"blocks.3.0.x": torch.zeros(1)}, "does not have the tensors"),
    "an unknown tensor": ({"extra": torch.zeros(1)}, r"extra \[1\] is unknown here"),
    "a scalar weight": ({"output_layer.2.weight": torch.zeros([])}, "does not have the tensors"),
    "no width": ({"blocks.2.0.conv2.weight": torch.zeros(0, 8, 3, 3)}, "ch cannot be 0"),
    "an odd width": ({"blocks.2.0.conv2.weight": torch.zeros(7, 8, 3, 3)}, "does not have the tensors"),
    "complex": ({"linear.weight": torch.zeros(128, 2, dtype=torch.complex64)}, "linear.weight is complex"),
    "z too long": ({"linear.weight": torch.zeros(1, 4000)}, "z_dim cannot be 16000"),
    "a counter of two": (
        {f"{BN}.stored_mean": torch.zeros(8), f"{BN}.accumulation_counter": torch.ones(2)},
        "a counter of passes that is not a number",
    ),
    "no tensors": ({"output_layer.2.weight": 3}, "is of type int"),
    "numbers as names": ({0: torch.zeros(2)}, "does not hold tensors by name"),
    "a list": ([torch.zeros(2)], "does not hold tensors by name"),
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_other_content_is_refused_in_one_sentence(tmp_path, networks, name, zipped):
    content, reason = REFUSED[name]
    if isinstance(content, dict):
        content = {key: value for key, value in {**networks["G"].state_dict(), **content}.items() if value is not None}
    path = biggan_checkpoint.save(tmp_path / "G.pth", content, zipped)
    with pytest.raises(UserError, match=reason) as caught:
        load_snapshot(path)["G"]
    sentence = str(caught.value)
    assert "G.pth" in sentence and len(sentence) < 3000 and sentence.isprintable()


def test_tensors_of_no_network(tmp_path):
    for content in ({}, {"x": torch.zeros(2)}):
        with pytest.raises(UserError, match=r"G\.pth does not have the tensors of .* BigGAN"):
            load_snapshot(biggan_checkpoint.save(tmp_path / "G.pth", content))


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("blocks.2.0.conv2.weight", (1 << 18,), "ch cannot be 65536"),
        ("blocks.2.0.conv2.weight", (1 << 14,), "a network much larger than the one stored"),
        ("shared.weight", (1 << 10, 1 << 10), "does not fit"),
        ("linear.weight", (1, 2048), "does not fit"),
    ],
)
def test_small_files_cannot_ask_for_large_networks(tmp_path, networks, name, shape, reason):
    """One tensor shows the same element everywhere, so the file stays small."""
    content = {**networks["G"].state_dict(), name: torch.zeros([1]).expand(shape)}
    path = biggan_checkpoint.save(tmp_path / "G.pth", content)
    assert path.stat().st_size < 1 << 20
    with canary.at_most(1 << 29), pytest.raises(UserError, match=reason) as caught:
        load_snapshot(path)["G"]
    assert not canary.ran_out(caught.value)


def test_the_same_network_as_by_import(folder, networks):
    found = load_snapshot(folder)["G_ema"]
    assert equal(found, network_from_state(networks["G_ema"].state_dict()))


def test_a_round_trip_through_a_snapshot_is_exact(folder, networks, tmp_path):
    snap = load_snapshot(folder)
    save_snapshot(tmp_path / "x.pkl", dict(snap))
    again = load_snapshot(tmp_path / "x.pkl")
    for key, network in networks.items():
        assert equal(again[key], network) and again[key].init_kwargs == snap[key].init_kwargs
