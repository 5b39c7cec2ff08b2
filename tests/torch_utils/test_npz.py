# SPDX-License-Identifier: Apache-2.0
"""Arrays from npz files, and headers that state sizes which are not there."""

import struct

import numpy as np
import pytest

from tests.hostile import Member, bomb, memory_below, write_zip
from torch_utils import npz


def header(shape: str, dtype: str = "'<f4'", version: bytes = b"\x01\x00") -> bytes:
    text = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY" + version + struct.pack("<H" if version[0] == 1 else "<I", len(text)) + text.encode()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_those_that_were_saved(tmp_path, save):
    arrays = {
        "w": np.random.RandomState(0).randn(3, 4).astype(np.float32),
        "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "text": np.array("words"),
        "number": np.array(7),
        "empty": np.zeros([0, 5]),
    }
    save(tmp_path / "x.npz", other=np.zeros(2), **arrays)
    found = npz.read(tmp_path / "x.npz", [*arrays, "missing"])
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
    assert found["w"].flags.writeable


BAD = {
    "2^50 elements": Member(b"w.npy", header("(1125899906842624,)")),
    "2^50 elements without size": Member(b"w.npy", header("(1125899906842624,)", "'|S0'")),
    "negative sizes": Member(b"w.npy", header("(-2, -2)") + bytes(16)),
    "more than the header states": Member(b"w.npy", header("(2,)") + bytes(16)),
    "objects": Member(b"w.npy", header("(8,)", "'|O'") + b"A" * 64),
    "objects in a structure": Member(b"w.npy", header("(8,)", "[('a', '|O')]") + b"A" * 64),
    "deep header": Member(b"w.npy", header("(" * 90)),
    "header of 4 GiB": Member(b"w.npy", header("(1,)", version=b"\x02\x00").replace(b"v\0\0\0", b"\xff" * 4)),
    "unknown version": Member(b"w.npy", header("(1,)", version=b"\x09\x00") + bytes(4)),
    "no array": Member(b"w.npy", b"text"),
    "empty": Member(b"w.npy", b""),
    "bomb": bomb(b"w.npy", head=header(f"({600 << 20},)", "'|u1'")),
    "bomb of text": Member(b"w.npy", header("()", "'<U100000000'")),
    "damaged deflate": Member(b"w.npy", b"\xff" * 50, 8, 100),
    "encrypted": Member(b"w.npy", b"x" * 50, flags=1),
    "unknown method": Member(b"w.npy", b"x" * 50, 99),
    "newer version": Member(b"w.npy", b"x" * 50, version=255),
}


@pytest.mark.parametrize("member", BAD.values(), ids=BAD)
def test_damaged_arrays_raise_value_error(tmp_path, member):
    path = write_zip(tmp_path / "x.npz", [member])
    with memory_below(100), pytest.raises(ValueError):
        npz.read(path, ["w"])


def test_an_npy_file_is_no_npz_file(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(ValueError, match="not an intact zip"):
        npz.read(tmp_path / "x.npy", ["w"])
