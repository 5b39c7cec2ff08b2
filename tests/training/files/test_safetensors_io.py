# SPDX-License-Identifier: Apache-2.0
"""Networks in safetensors files: they survive a round trip; other contents are refused."""

import json
import pathlib
import pickle
import random
import sys

import pytest
import safetensors.torch
import torch

from dgl import teacher
from dnnlib.util import UserError
from tests.metrics import stand_ins
from tests.support import rnd
from torch_utils import misc
from training import networks
from training.augment import AugmentPipe
from training.files import safetensors_io, snapshot


def make_data(channels=3, c_dim=0):
    shape = {"c_dim": c_dim, "img_resolution": 8, "img_channels": channels}
    return {
        "G": stand_ins.tiny_generator(channels=channels, c_dim=c_dim, seed=1),
        "D": networks.Discriminator(**shape, channel_base=32, channel_max=4, epilogue_kwargs={"mbstd_group_size": 2}),
        "G_ema": stand_ins.tiny_generator(channels=channels, c_dim=c_dim, seed=2),
        "augment_pipe": AugmentPipe(xflip=1, brightness=0.5),
        "training_set_kwargs": {"class_name": "training.dataset.ImageFolderDataset", "path": "x.zip", "xflip": False},
    }


def write(path, data=None):
    safetensors_io.write(path, data or make_data())
    return str(path)


def reopened(data: bytes, path):
    """All networks of a file with this content."""
    path.write_bytes(data)
    snap = snapshot.load_snapshot(str(path))
    return [snap[key] for key in snap]


@pytest.mark.parametrize("name", ["x.safetensors", "x.pkl"])
@pytest.mark.parametrize(("channels", "c_dim"), [(1, 2), (3, 0)])
def test_networks_come_back_the_same(tmp_path, channels, c_dim, name):
    data = make_data(channels, c_dim)
    snap = snapshot.load_snapshot(write(tmp_path / name, data))
    assert list(snap) == list(snapshot.KEYS)
    assert snap["training_set_kwargs"] == data["training_set_kwargs"]
    for key in snapshot.NETWORK_KEYS:
        ours, theirs = (dict(misc.named_params_and_buffers(net)) for net in (data[key], snap[key]))
        assert type(snap[key]) is type(data[key]) and snap[key].init_kwargs == data[key].init_kwargs
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert not snap[key].training and not any(tensor.requires_grad for tensor in theirs.values())
    z, c = rnd("z", (2, 4)), torch.eye(2)[:, :c_dim]
    images = snap["G_ema"](z, c, noise_mode="const")
    assert torch.equal(images, data["G_ema"](z, c, noise_mode="const"))
    assert torch.equal(snap["D"](images, c), data["D"].eval()(images, c))


def test_missing_networks_stay_missing(tmp_path):
    path = write(tmp_path / "x.safetensors", {**make_data(), "D": None, "augment_pipe": None})
    snap = snapshot.load_snapshot(path)
    assert list(snap) == ["G", "G_ema", "training_set_kwargs"]
    with pytest.raises(UserError, match="holds no D"):
        snap["D"]


def test_interleaved_and_shared_tensors_are_written_one_by_one(tmp_path):
    widths = {"channel_base": 32, "channel_max": 4, "num_fp16_res": 2, "fp16_channels_last": True}
    G = networks.Generator(4, 0, 4, 16, 3, mapping_kwargs={"num_layers": 2}, synthesis_kwargs=widths)
    G.mapping.fc1.bias.data = G.mapping.fc0.bias.data
    assert not all(tensor.is_contiguous() for tensor in misc.params_and_buffers(G))
    theirs = snapshot.load_snapshot(write(tmp_path / "x.safetensors", {"G_ema": G}))["G_ema"].state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in G.state_dict().items())


def test_the_same_networks_give_the_same_bytes_and_one_file(tmp_path):
    data = make_data()
    first, second = (pathlib.Path(write(tmp_path / name, data)).read_bytes() for name in ("a", "b"))
    assert first == second and len(list(tmp_path.iterdir())) == 2


def test_the_header_says_what_is_inside(tmp_path):
    path = write(tmp_path / "x.safetensors")
    with safetensors.safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
        assert file.get_tensor("G_ema.mapping.w_avg").shape == (4,)
    assert (config["format"], config["version"]) == ("stylegan2-networks", 1)
    assert config["networks"]["D"]["class_name"] == "Discriminator"
    assert config["networks"]["G"]["init_kwargs"]["img_resolution"] == 8


def test_a_teacher_opens_from_safetensors(tmp_path):
    data = make_data()
    opened = teacher.open_teacher(write(tmp_path / "x.safetensors", data), device=torch.device("cpu"))
    images = rnd("images", (2, 3, 8, 8))
    assert torch.equal(opened.D(images, torch.zeros(2, 0)), data["D"].eval()(images, torch.zeros(2, 0)))


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_are_not_taken_for_safetensors(protocol):
    for content in ({}, {"a": 1}, [b"{" * 300] * 200, "{" * 70_000, {"G": torch.zeros(100_000)}):
        assert not safetensors_io.starts_like_safetensors(pickle.dumps(content, protocol))
    assert not safetensors_io.starts_like_safetensors(b"")


def with_config(path, change):
    """The file's bytes after `change(config)`, which may return another config."""
    tensors = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
    changed = change(config)
    config = config if changed is None else changed
    return safetensors.torch.save(tensors, {"config": json.dumps(config)})


def description(**changes):
    def change(config):
        config["networks"]["G_ema"].update(changes)

    return change


REFUSED = {
    "another format": (lambda config: {"format": "other"}, "not one written by export"),
    "not an object": (lambda config: [], "not one written by export"),
    "a later version": (lambda config: {**config, "version": 2}, "version 2"),
    "no networks": (lambda config: {**config, "networks": None}, "damaged"),
    "a network without tensors' names": (lambda config: config["networks"].pop("G_ema") and None, "damaged"),
    "an invalid description": (lambda config: config["networks"].update(D=3), "damaged"),
    "invalid arguments": (description(init_kwargs=[]), "damaged"),
    "a foreign class": (description(class_name="os.system"), "os.system"),
    "unknown arguments": (description(init_kwargs={"colour": "red"}), "arguments"),
    "too large a network": (description(init_kwargs={"z_dim": 1 << 40}), "arguments"),
    "another kind of network": (description(class_name="AugmentPipe", init_kwargs={}), "of the kind generator"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_invalid_configs_are_refused_in_one_sentence(tmp_path, case):
    change, words = REFUSED[case]
    path = tmp_path / "x.safetensors"
    data = with_config(write(path), change)
    with pytest.raises(UserError, match=words) as caught:
        reopened(data, path)
    assert "x.safetensors" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"config": "{"}, {"config": "[" * 100_000}])
def test_other_safetensors_files_are_refused(tmp_path, metadata):
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors.torch.save({"a": torch.zeros(2)}, metadata))
    with pytest.raises(UserError, match=r"x\.safetensors"):
        snapshot.load_snapshot(path)


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    data = pathlib.Path(write(path)).read_bytes()
    cut = [data[:9], data[:200], data[: len(data) // 2], data[:-1], data + b"x"]
    wrong = [data.replace(b'"F32"', b'"F99"', 1), data.replace(b'"F32"', b'"I64"', 1), data.replace(b"{", b"\xff", 1)]
    for damaged in cut + wrong:
        with pytest.raises(UserError, match=r"x\.safetensors"):
            reopened(damaged, path)


def test_mutated_headers_are_refused_or_harmless(tmp_path):
    path = tmp_path / "x.safetensors"
    data = pathlib.Path(write(path, {"G_ema": stand_ins.tiny_generator(resolution=4)})).read_bytes()
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    refused = 0
    for _ in range(300):
        mutated = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            mutated[rng.randrange(8 + int.from_bytes(data[:8], "little"))] = rng.randrange(256)
        try:
            reopened(bytes(mutated), path)
        except UserError:
            refused += 1
    assert refused > 100


def test_foreign_networks_and_arguments_are_not_written(tmp_path):
    with pytest.raises(UserError, match=r"Linear.*--trust-pickle"):
        write(tmp_path / "x", {"G_ema": torch.nn.Linear(2, 2)})
    with pytest.raises(UserError, match="plain values"):
        write(tmp_path / "x", {**make_data(), "training_set_kwargs": {"path": b"bytes"}})
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "x.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for attempt in (lambda: snapshot.load_snapshot(path), lambda: write(tmp_path / "y.safetensors")):
        with pytest.raises(UserError, match="pip install safetensors"):
            attempt()
