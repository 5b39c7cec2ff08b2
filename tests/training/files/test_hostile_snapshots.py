# SPDX-License-Identifier: Apache-2.0
"""Network files that are well-formed pickles and yet not what they claim to be."""

import json
import pickle

import numpy as np
import pytest
import torch

from dnnlib import urls
from dnnlib.util import UserError
from torch_utils.safe_pickle import StoredObject
from training.augment import AugmentPipe
from training.files import snapshot
from training.networks import Discriminator, Generator

SHAPE = {"c_dim": 0, "img_resolution": 8, "img_channels": 1}


def make_G() -> Generator:
    return Generator(z_dim=4, w_dim=4, synthesis_kwargs={"channel_max": 4}, **SHAPE)


def make_D() -> Discriminator:
    return Discriminator(channel_max=4, **SHAPE)


def saved(path, **entries) -> snapshot.Snapshot:
    path.write_bytes(pickle.dumps(entries, 4))
    return snapshot.load_snapshot(path)


@pytest.mark.parametrize("trust", [False, True])
def test_a_network_of_another_kind_is_refused_under_each_key(tmp_path, trust):
    makers = {"generator": make_G, "discriminator": make_D, "augmentation": AugmentPipe}
    wanted = {"G": "generator", "G_ema": "generator", "D": "discriminator", "augment_pipe": "augmentation"}
    for kind, make in makers.items():
        saved(tmp_path / "net.pkl", **dict.fromkeys(wanted, make()))
        snap = snapshot.load_snapshot(tmp_path / "net.pkl", trust=trust)
        for key, belongs in wanted.items():
            if belongs == kind:
                assert isinstance(snap[key], type(make()))
            else:
                with pytest.raises(UserError, match=f"^{key} in .*net.pkl is a .*of the kind {belongs} belongs"):
                    snap[key]


def test_what_a_file_may_claim_is_counted_in_bytes():
    wide = {**SHAPE, "channel_base": 2**20, "channel_max": 1024}  # 200 MB in fp32
    small = {"b4.fc.weight": torch.zeros(20_000_000, dtype=torch.int8)}
    with pytest.raises(UserError, match="much larger than the one stored"):
        snapshot.rebuild(StoredObject.of("Discriminator", wide, small), "D")


def test_a_network_in_half_precision_is_rebuilt():
    half = {name: tensor.half() for name, tensor in make_D().state_dict().items()}
    assert snapshot.rebuild(StoredObject.of("Discriminator", {**SHAPE, "channel_max": 4}, half), "D").c_dim == 0


def test_a_message_lists_a_few_of_many_tensors_that_do_not_fit():
    unknown = {f"{i}{'x' * 150}": torch.zeros(1) for i in range(1500)}
    with pytest.raises(UserError, match=r"and 1\d\d\d more") as caught:
        snapshot.rebuild(StoredObject.of("Discriminator", {**SHAPE, "channel_max": 4}, unknown), "D")
    assert len(str(caught.value)) < 4000


@pytest.mark.parametrize(
    "make", [lambda x: [x, x], lambda x: {"a": x, "b": x}, lambda x: (x, x)], ids=["list", "dict", "tuple"]
)
def test_dataset_arguments_that_grow_without_end_are_refused(tmp_path, make):
    value = 1
    for _ in range(60):
        value = make(value)
    for kwargs in ({"path": value}, {"path": ["x"] * 10_000}, {"path": "x" * 100_000}):
        snap = saved(tmp_path / "net.pkl", D=make_D(), training_set_kwargs=kwargs)
        with pytest.raises(UserError, match=r"training_set_kwargs in .*too long for a description of a dataset"):
            snap["training_set_kwargs"]


def test_usual_dataset_arguments_are_returned(tmp_path):
    kwargs = {"class_name": "training.dataset.ImageFolderDataset", "path": "/a" * 100, "max_size": None, "xflip": True}
    found = saved(tmp_path / "net.pkl", D=make_D(), training_set_kwargs=kwargs)["training_set_kwargs"]
    assert found == kwargs and json.dumps(found)


@pytest.mark.parametrize("path", ["/dev/zero", "a\0b", "http://[::1/x.pkl", "file:///%00"])
def test_names_that_are_no_files(path):
    with pytest.raises(UserError):
        snapshot.load_snapshot(path)


def test_a_damaged_download_is_named_so_that_it_can_be_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path))
    url = "http://127.0.0.1:9/net.pkl"
    cached = tmp_path / "downloads" / f"{urls._cache_key(url)}_net.pkl"
    cached.parent.mkdir()
    for content in (b"", b"<html>please log in</html>", pickle.dumps({"a": np.zeros(3)})):
        cached.write_bytes(content)
        with pytest.raises(UserError, match=f"127.0.0.1:9/net.pkl .*remove {cached}"):
            snapshot.load_snapshot(url)
    cached.unlink()
    cached.mkdir()
    with pytest.raises(UserError, match=f"remove {cached}"):
        snapshot.load_snapshot(url)
