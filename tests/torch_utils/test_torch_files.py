# SPDX-License-Identifier: Apache-2.0
"""Tensors in files of torch.save, in both of its formats."""

import argparse
import io
import os
import pickle
import zipfile
from collections.abc import Callable

import numpy as np
import pytest
import torch

from dnnlib.util import UserError
from tests.compat import canary
from tests.compat.opcodes import Raw, call, named, op, pickled
from tests.hostile import Member, bomb, write_zip
from tests.support import rnd
from torch_utils import torch_files
from torch_utils.safe_pickle import BrokenPickleError, UnsafePickleError

FORMATS = pytest.mark.parametrize("zipped", [False, True])


def saved(content, zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def loads(data: bytes) -> dict[str, torch.Tensor]:
    assert torch_files.starts_like_torch_save(data)
    return torch_files.loads_tensors(data, "x.pth")


def refusal(data: bytes) -> str:
    """The sentence in which `data` are refused, without much memory."""
    with canary.at_most(1 << 29), canary.watched() as heard, pytest.raises(UserError) as caught:
        torch_files.loads_tensors(data, "x.pth")
    sentence = str(caught.value)
    assert heard == [] and not canary.ran_out(caught.value)
    assert sentence.startswith("x.pth ") and len(sentence) < 500 and sentence.isprintable()
    return sentence


def various() -> dict[str, torch.Tensor]:
    matrix = rnd("matrix", (3, 4))
    found = {
        "matrix": matrix,
        "transposed": matrix.t(),
        "row": matrix[1],
        "repeated": rnd("one", (1,)).expand(5),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "switches": torch.tensor([True, False, True]),
        "parameter": torch.nn.Parameter(rnd("parameter", (2, 2))),
    }
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.complex64):
        found[f"of {dtype}"] = (rnd("typed", (4,)) * 50).abs().to(dtype)
    return found


@FORMATS
def test_tensors_come_back_the_same_as_with_torch(zipped):
    data = saved(various(), zipped)
    found, theirs = loads(data), torch.load(io.BytesIO(data), weights_only=True)
    assert list(found) == list(theirs)
    for name, tensor in various().items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
        assert torch.equal(found[name], theirs[name])
    found["matrix"].zero_()
    assert found["row"].eq(0).all(), "views of one storage stay views of one storage"


@FORMATS
def test_a_state_dict(zipped):
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    state = module.state_dict()
    assert state._metadata
    found = loads(saved(state, zipped))
    assert type(found) is dict and all(torch.equal(found[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_protocols(protocol):
    for zipped in (False, True):
        file = io.BytesIO()
        torch.save(various(), file, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
        assert torch.equal(loads(file.getvalue())["matrix"], various()["matrix"])


@pytest.mark.parametrize("data", [b"", b"PK", b"PK\x05\x06", pickle.dumps({}), b"\x80\x02\x8a\x0a", b"\x80\x02}q\x00."])
def test_other_files_start_differently(data):
    assert not torch_files.starts_like_torch_save(data)


class Harmful:
    def __repr__(self):  # in the names of tests, which must be the same in every process
        return "Harmful()"

    def __reduce__(self):
        return os.system, ("touch canary",)


@FORMATS
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (Harmful(), "system'"),
        ({"x": Harmful()}, "system', which no file of tensors needs"),
        ({"x": torch.zeros(2), "act": torch.nn.ReLU()}, "'torch.nn.modules.activation.ReLU'"),
        ({"x": np.zeros(3)}, "_reconstruct'"),
        ({"x": torch.zeros(2).to_sparse()}, "_rebuild_sparse_tensor'"),
        ([torch.zeros(2)], "does not hold tensors by name"),
        ({1: torch.zeros(2)}, "does not hold tensors by name"),
        ({"x": {"y": torch.zeros(2)}}, "x is of type dict"),
        ({"x\x1b[2J" * 100: 1}, r"x\\x1b\[2J"),
        ({"args": argparse.Namespace(x=Harmful())}, "system'"),
        ({"args": argparse.Namespace(x=1)}, "args is of type Skipped"),
    ],
    ids=str,
)
def test_other_content_is_refused(content, reason, zipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = saved(content, zipped)
    with pytest.raises(UserError, match=reason) as caught:
        torch_files.loads_tensors(data, "x.pth")
    assert isinstance(caught.value, (BrokenPickleError, UnsafePickleError))
    assert refusal(data) == str(caught.value) and "--trust" not in str(caught.value) and os.listdir() == []


@FORMATS
def test_flags_of_a_program_are_skipped_and_dicts_may_be_nested(zipped):
    flags = argparse.Namespace(lr=0.1, sizes=[1, 2], matrix=rnd("matrix", (3, 4)))
    content = {"g": {"x": rnd("x", (2,))}, "args": flags, "again": flags, "optim": {"state": {0: {"step": 3}}}}
    with canary.watched() as heard:
        found = torch_files.loads(saved(content, zipped), "x.pt")
    assert heard == [] and list(found) == list(content)
    assert torch.equal(found["g"]["x"], rnd("x", (2,))) and found["optim"] == content["optim"]
    assert type(found["args"]) is torch_files.Skipped and found["again"] is found["args"]
    assert set(vars(found["args"])) == {"memo_keys"}


Change = Callable[[list[Member]], list[Member]]


def without(end: bytes) -> Change:
    return lambda members: [member for member in members if not member.name.endswith(end)]


def replaced(end: bytes, packed: bytes) -> Change:
    return lambda members: [
        member._replace(packed=packed) if member.name.endswith(end) else member for member in members
    ]


def added(*more: Member) -> Change:
    return lambda members: [*members, *more]


ZIPS = {
    "no pickle": (without(b"data.pkl"), "not from torch.save"),
    "two pickles": (added(Member(b"other/data.pkl", b"")), "not from torch.save"),
    "no elements": (without(b"data/0"), "There is no item named"),
    "an element too few": (replaced(b"data/0", bytes(36)), "does not match its description"),
    "a byte too many": (replaced(b"data/0", bytes(41)), "does not match its description"),
    "big-endian": (replaced(b"byteorder", b"big"), "not little-endian"),
    "packed": (added(bomb(b"x", 1)), "a packed zip"),
    "too many files": (added(*[Member(b"%d" % i, b"") for i in range(10_001)]), "a zip of too many files"),
    "more than the file": (added(Member(b"x", b"", size=1 << 30)), "files overlap"),
}


def rezipped(data: bytes, path, change: Change) -> bytes:
    """A zip with the changed members of `data`."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [Member(name.encode(), archive.read(name)) for name in archive.namelist()]
    return write_zip(path, change(members)).read_bytes()


@pytest.mark.parametrize("name", ZIPS)
def test_other_zips_are_refused(name, tmp_path):
    data, (change, reason) = saved({"x": rnd("x", (10,))}, zipped=True), ZIPS[name]
    assert torch.equal(loads(rezipped(data, tmp_path / "x.zip", added()))["x"], rnd("x", (10,)))
    assert reason in refusal(rezipped(data, tmp_path / "x.zip", change))


def test_files_from_big_endian_machines_are_refused():
    data = saved({"x": torch.zeros(2)}, zipped=False)
    true = data.index(b"\x88", data.index(b"little_endian"))
    assert "little-endian" in refusal(data[:true] + b"\x89" + data[true + 1 :])


def claiming(*counts: int) -> bytes:
    """The first format: tensors of one element in storage '0', which is said to have so many elements; it has one."""
    references = {}
    for i, count in enumerate(counts):
        reference = Raw(op(("storage", named("torch.FloatStorage"), "0", "cpu", count, None)) + b"Q")
        references[f"x{i}"] = call("torch._utils._rebuild_tensor_v2", reference, 0, (1,), (1,), False, {})
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    header = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, system))
    return header + pickled(references) + pickle.dumps(["0"], 2) + (1).to_bytes(8, "little") + bytes(4)


def test_switches_are_zero_or_one_in_memory():
    data = saved({"x": torch.tensor([True, False])}, zipped=False)
    assert data.endswith(b"\1\0")
    found = loads(data[:-2] + b"\7\0")["x"]
    assert found.view(torch.uint8).tolist() == [1, 0]


def test_claims_are_checked_before_memory_is_taken():
    assert torch.equal(loads(claiming(1, 1))["x1"], torch.zeros(1))
    assert "more data than it contains" in refusal(claiming(1 << 40))
    assert "described in two ways" in refusal(claiming(1, 2))
    assert "does not match" in refusal(claiming(2))
    assert "valid name or size" in refusal(claiming(-1))


@FORMATS
def test_damaged_files_open_or_are_refused(zipped):
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    rng = np.random.RandomState(seed)
    intact = saved({f"layer{i}.weight": rnd(f"{i}", (3, 4)) for i in range(8)}, zipped)
    refused = 0
    for number in range(150):
        data = bytearray(intact)
        if number % 3 == 0:
            del data[rng.randint(20, len(data)) :]
        else:
            for _ in range(rng.randint(1, 5)):
                data[rng.randint(15, len(data))] = rng.choice([0, 1, 127, 255, rng.randint(256)])
        with canary.at_most(1 << 29), canary.watched() as heard:
            try:
                found = torch_files.loads_tensors(bytes(data), "x.pth")
                assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())
            except UserError as error:
                refused += 1
                assert not canary.ran_out(error) and str(error).isprintable()
        assert heard == []
    assert refused > 20
