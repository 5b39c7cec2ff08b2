# SPDX-License-Identifier: Apache-2.0
"""Streams that no real pickler writes: false sizes, endless work, damage."""

import pickle
import struct

import numpy as np
import pytest

from dnnlib.util import UserError
from torch_utils import safe_pickle
from torch_utils.safe_pickle import BrokenPickleError


def _global(module, name):
    return f"c{module}\n{name}\n".encode()


def _reduce(name, *args):
    """Opcodes of a call; `args` are opcodes too."""
    return _global(*name.rsplit(".", 1)) + b"(" + b"".join(args) + b"tR"


def _op(value):
    return pickle.dumps(value, 2)[2:-1]


def _tensor_of(storage, offset, size, stride):
    name = "torch._utils._rebuild_tensor_v2"
    return _reduce(name, storage, _op(offset), _op(size), _op(stride), _op(False), _op({}))


def _array_of(data, shape, dtype="f4"):
    start = _reduce("numpy.core.multiarray._reconstruct", _global("numpy", "ndarray"), _op((0,)), _op("b"))
    described = (
        _reduce("numpy.dtype", _op(dtype), _op(False), _op(True)) + _op((3, "<", None, None, None, -1, -1, 0)) + b"b"
    )
    return start + b"(" + _op(1) + _op(shape) + described + _op(False) + b"C" + bytes([len(data)]) + data + b"tb"


def _legacy_storage(claimed, count, payload):
    """A float storage in torch.save's first format, whose stated sizes may be wrong."""
    reference = b"\x80\x02(" + _op("storage") + _global("torch", "FloatStorage") + _op("0") + _op("cpu") + _op(claimed)
    parts = [pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    blob = b"".join([*parts, reference + b"NtQ.", pickle.dumps(["0"], 2), struct.pack("<q", count), payload])
    return _reduce("torch.storage._load_from_bytes", b"B" + struct.pack("<I", len(blob)) + blob)


def test_hand_made_tensors_and_arrays_with_true_sizes():
    ones = np.ones(4, np.float32).tobytes()
    storage = _legacy_storage(4, 4, ones)
    assert safe_pickle.loads(b"\x80\x02" + _tensor_of(storage, 1, (3,), (1,)) + b".").tolist() == [1, 1, 1]
    assert safe_pickle.loads(b"\x80\x03" + _array_of(ones, (2, 2)) + b".").tolist() == [[1, 1], [1, 1]]


HUGE = 2**40
ONES = np.ones(4, np.float32).tobytes()
BOMBS = {
    "memo index": b"\x80\x02]r\xf0\xff\xff\xff.",
    "long bytes": b"\x80\x04\x8e" + struct.pack("<Q", HUGE) + b"abc.",
    "long text": b"\x80\x04\x8d" + struct.pack("<Q", 2**63) + b"abc.",
    "long bytearray": b"\x80\x05\x96" + struct.pack("<Q", HUGE) + b"abc.",
    "long integer": b"\x80\x02\x8b" + struct.pack("<I", 10_000_000) + b"\x7f" * 10_000_000 + b".",
    "negative size": b"\x80\x02\x8b" + struct.pack("<i", -1) + b".",
    "frame beyond the end": b"\x80\x04\x95" + struct.pack("<Q", HUGE)[:5],
    "storage claims more than is there": _tensor_of(_legacy_storage(HUGE, HUGE, ONES), 0, (2,), (1,)),
    "storage with two sizes": _tensor_of(_legacy_storage(HUGE, 4, ONES), 0, (2,), (1,)),
    "storage of negative size": _tensor_of(_legacy_storage(-4, -4, ONES), 0, (2,), (1,)),
    "tensor beyond its storage": _tensor_of(_legacy_storage(4, 4, ONES), 0, (5,), (1,)),
    "tensor by offset": _tensor_of(_legacy_storage(4, 4, ONES), 4, (1,), (1,)),
    "tensor by stride": _tensor_of(_legacy_storage(4, 4, ONES), 0, (2,), (4,)),
    "tensor by negative stride": _tensor_of(_legacy_storage(4, 4, ONES), 3, (2,), (-4,)),
    "tensor by negative offset": _tensor_of(_legacy_storage(4, 4, ONES), -1, (2,), (1,)),
    "expanded tensor": _tensor_of(_legacy_storage(4, 4, ONES), 0, (HUGE,), (0,)),
    "tensor of many dimensions": _tensor_of(_legacy_storage(4, 4, ONES), 0, (1,) * 10_000, (1,) * 10_000),
    "tensor of a shape that overflows": _tensor_of(_legacy_storage(4, 4, ONES), 0, (2**62, 4, 0), (1, 1, 1)),
    "array claims more than is there": _array_of(ONES, (HUGE,)),
    "array of negative shape": _array_of(ONES, (-1, -4)),
    "array with items of no size": _array_of(b"", (HUGE,), "S0"),
    "text array": _array_of(ONES, (1,), "U100000"),
    "one storage many times": b"]q\x00"
    + _legacy_storage(2500, 2500, bytes(10_000)).replace(b"tR", b"tq\x010")
    + b"h\x00"
    + (_global("torch.storage", "_load_from_bytes") + b"h\x01Ra") * 1000,
    "deep tuple as a key": b"}" + b")" + b"\x85" * 100_000 + b"Ns",
    "doubling tuple as a key": b"})" + b"q\x00h\x00\x86" * 60 + b"Ns",
    "doubling set": b"\x8f(" + b")" + b"q\x00h\x00\x86" * 60 + b"\x90",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_false_sizes_cost_no_memory_or_time(bomb):
    data = BOMBS[bomb] if BOMBS[bomb].startswith(b"\x80") else b"\x80\x04" + BOMBS[bomb] + b"."
    try:
        loaded = safe_pickle.loads(data)
    except UserError:
        return
    assert bomb in ("memo index", "tensor of a shape that overflows") and len(str(loaded)) < 100


@pytest.mark.parametrize("make", [int, float, lambda i: (i,), lambda i: ("text", i)])
def test_a_file_may_have_a_few_keys_whose_hashes_it_can_choose(make):
    assert len(safe_pickle.loads(pickle.dumps({make(i): None for i in range(4000)}, 2))) == 4000
    halves = [{make(i): None for i in range(half, half + 2500)} for half in (0, 2500)]
    for many in (halves, [set(half) for half in halves], [frozenset(half) for half in halves]):
        with pytest.raises(BrokenPickleError, match="keys that are not text"):
            safe_pickle.loads(pickle.dumps(many, 4))


def test_keys_of_text_are_not_counted():
    assert len(safe_pickle.loads(pickle.dumps({f"{i}": None for i in range(20_000)}, 2))) == 20_000


def test_deep_nesting_loads_and_is_released():
    loaded = safe_pickle.loads(b"\x80\x04" + b"]" * 200_000 + b"a" * 199_999 + b".")
    assert len(loaded) == 1
    del loaded


@pytest.mark.parametrize(
    "data",
    [
        b"", b".", b"\x80", b"\x80\x02", b"\x80\x09N.", b"N", b"0.", b"R.", b"(.", b"h\x05.", b"}(K\x01u.", b"]K\x01s.",
        b"K\x01K\x02a.", b"\xff\xff", b"PK\x03\x04 a zip file", b"\x89PNG\r\n", b"text that is no pickle at all",
        b"cos\n", b"cos", b"\x80\x04\x8c\x01a\x8c\x05abc", b"\x80\x04\x8c\x02\xff\xfe.", b"N}b.", b"Q.", b"Pid\n.",
        b"\x82\x01.", b"i", b"(o.", b"}]Ns.", b"]\x8f\x90.", b"NN\x93.", b"\x85.",
    ],
)  # fmt: skip
def test_malformed_data_is_one_clear_error(data):
    with pytest.raises(BrokenPickleError, match="the name"):
        safe_pickle.loads(data, "the name")
