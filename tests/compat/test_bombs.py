# SPDX-License-Identifier: Apache-2.0
"""Small files that demand much: each is refused before it takes much memory or time."""

import struct

import numpy as np
import pytest

from tests.compat.foreign import module, scalar, storage, storage_bytes, stored, tensor
from tests.compat.opcodes import Raw, built, call, named, new, op, pickled


def keys(count: int) -> list[str]:
    return [f"{i:06}" for i in range(count)]


def put(value, key: int = 0) -> Raw:
    """A value in the memo, for `get`."""
    return Raw(op(value) + b"r" + struct.pack("<I", 1 << 20 | key))


def get(key: int = 0) -> Raw:
    return Raw(b"j" + struct.pack("<I", 1 << 20 | key))


def repeated_calls(function: str, argument, times: int) -> Raw:
    """Calls that share one argument and drop their results."""
    prepared = put(named(function), 8) + b"0" + put(argument, 9) + b"0"
    return Raw(prepared + (get(8) + get(9) + b"\x85R0") * times + b"N")


def tuples_with_one_hash(count: int) -> list[tuple[int, int]]:
    """Pairs that CPython hashes alike: the second number undoes what the first does to the xxHash of a tuple."""
    first, second, start, mask = 11400714785074694791, 14029467366897019727, 2870177450012600261, 2**64 - 1
    undo, pairs, number = pow(second, -1, 2**64), [], 0
    while len(pairs) < count:
        number += 1
        state = (start + number * second) & mask
        state = ((state << 31 | state >> 33) * first) & mask
        other = (-state * undo) & mask
        if other < 2**60:
            pairs.append((number, other))
    return pairs


def doubled(times: int) -> Raw:
    """A list of 2 ** `times` members, each list twice in the next."""
    return Raw(op([]) + b"".join(b"q\xff0](h\xffh\xffe" for _ in range(times)))


def stored_with(**changes) -> Raw:
    meta = {"type": "class", "version": 6, "module_src": "", "class_name": "Discriminator", "state": {}}
    return call("torch_utils.persistence._reconstruct_persistent_obj", {**meta, **changes})


TENSORFLOW = "dnnlib.tflib.network.Network"
LITTLE = {"c_dim": 0, "img_resolution": 8, "img_channels": 1, "channel_max": 2}


def with_arguments(**kwargs) -> Raw:
    return module("Discriminator", {"b4.fc.weight": tensor(np.zeros(4, np.float32))}, init_kwargs={**LITTLE, **kwargs})


def nested_modules(first_name: Raw, name: Raw, depth: int) -> Raw:
    """Modules nested to `depth`."""
    start = named("torch_utils.persistence._reconstruct_persistent_obj") + b"(}("
    for key, value in {"type": "class", "version": 6, "module_src": "", "class_name": "Discriminator"}.items():
        start += op(key) + op(value)
    start += op("state") + b"}(" + op("_modules") + b"}("
    return Raw(start + first_name + (start + name) * (depth - 1) + op(None) + b"uuutR" * depth)


def modules_that_share_parameters(count: int) -> Raw:
    parameters = put(dict.fromkeys(keys(1500), get(1)))
    modules = {key: stored("X", {"_parameters": get()}, source="") for key in keys(count)}
    first = Raw(put(tensor(np.zeros(1, np.float32)), 1) + b"0" + parameters)
    return stored("Discriminator", {"_parameters": first, "_modules": modules})


def repeated_element(count: int, **kwargs) -> Raw:
    """A network whose large tensors all repeat one stored element."""
    storages = [put(storage(np.zeros(1, np.float32))), *[get()] * (count - 1)]
    name, shape = "torch._utils._rebuild_tensor_v2", (1 << 20,)
    tensors = {f"x{i}": call(name, where, 0, shape, (0,), False, {}) for i, where in enumerate(storages)}
    return module("Discriminator", tensors, init_kwargs={**LITTLE, **kwargs})


def tensorflow_network(parts: list[str], variables: list[str]) -> Raw:
    """A network of many components that are all the same object."""
    names = [(key, put(scalar(1.5), 1) if i == 0 else get(1)) for i, key in enumerate(variables)]
    part = put(built(new(TENSORFLOW), {"version": 4, "static_kwargs": {}, "variables": names}), 2)
    components = {key: part if i == 0 else get(2) for i, key in enumerate(parts)}
    return built(new(TENSORFLOW), {"version": 4, "static_kwargs": {}, "variables": [], "components": components})


STATE = {"type": "class", "version": 6, "module_src": "", "class_name": "A", "state": dict.fromkeys(keys(20_000))}
BOMBS = {
    "one byte per object": Raw(b"\x8f" * 3_000_000),
    "one byte per memo entry": Raw(b"N" + b"\x94" * 3_000_000),
    "one byte per nested tuple": Raw(b")" + b"\x85" * 3_000_000),
    "one byte per mark": Raw(b"(" * 3_000_000),
    "a long integer": Raw(b"\x8b" + struct.pack("<I", 1_000_000) + b"\x7f" * 1_000_000),
    "an integer longer than the file": Raw(b"\x8b" + struct.pack("<i", 2**31 - 1)),
    "an integer of digits": Raw(b"I" + b"9" * 1_000_000 + b"\n"),
    "a frame": Raw(b"\x95" + struct.pack("<Q", 2**63) + b"N0" * 20 + b"\xff"),
    "text longer than the file": Raw(b"\x8d" + struct.pack("<Q", 2**62)),
    "a long name": Raw(b"c" + b"a" * 3_000_000),
    "a doubling tuple as a key": Raw(b"})" + (put(Raw(b"")) + get() + b"\x86") * 60 + b"Ns"),
    "a long tuple as a key, repeatedly": Raw(b"}(" + put((1,) * 100_000) + b"0" + (get() + b"N") * 100_000 + b"u"),
    "keys with one hash": Raw(b"}(" + b"".join(op(i * (2**61 - 1)) + b"N" for i in range(1, 50_000)) + b"u"),
    "tuples with one hash": Raw(b"}(" + b"".join(op(pair) + b"N" for pair in tuples_with_one_hash(60_000)) + b"u"),
    "a set of tuples with one hash, repeatedly": repeated_calls("builtins.set", tuples_with_one_hash(2_000), 20_000),
    "a version of nested lists": stored_with(version=doubled(40)),
    "a class name of nested lists": stored_with(class_name=doubled(40)),
    "a type of nested lists": stored_with(type=doubled(40)),
    "a version of arrays": stored_with(version=scalar(6.0)),
    "a version of deep lists": stored_with(version=Raw(b"]" * 100_000 + b"a" * 99_999)),
    "a storage read repeatedly": repeated_calls(
        "torch.storage._load_from_bytes", b"N0" * 50_000 + storage_bytes(np.zeros(0, np.float32)), 20_000
    ),
    "a repeated state": repeated_calls("torch_utils.persistence._reconstruct_persistent_obj", STATE, 20_000),
    "a repeated set": repeated_calls("builtins.set", keys(20_000), 20_000),
    "a repeated OrderedDict": repeated_calls("collections.OrderedDict", [("a", 1)] * 10_000, 20_000),
    "repeated bytes": repeated_calls("builtins.bytearray", bytes(1_000_000), 50_000),
    "nested modules with a long name": nested_modules(put("x" * 1_000_000), get(), 5000),
    "deeply nested modules": nested_modules(op("x"), op("y"), 20_000),
    "modules that share their parameters": modules_that_share_parameters(5000),
    "a tensor of one element, a million times": repeated_element(1500, channel_base=2**20, channel_max=2**14),
    "arguments within arguments": with_arguments(
        a=put(dict.fromkeys(keys(400), 0)),
        b=put(dict.fromkeys(keys(400), get()), 1),
        c=dict.fromkeys(keys(400), get(1)),
    ),
    "a filter of many taps": with_arguments(block_kwargs={"resample_filter": [1] * 200_000}),
    "a network of many layers": with_arguments(c_dim=1, mapping_kwargs={"num_layers": 10**9}),
    "a network of wide layers": with_arguments(channel_base=2**20, channel_max=2**20),
    "an image of a million pixels per side": with_arguments(img_resolution=2**20),
    "an array that claims more elements": built(
        call("numpy.core.multiarray._reconstruct", named("numpy.ndarray"), (0,), b"b"),
        (1, (2**40,), Raw(call("numpy.dtype", "f8", False, True)), False, bytes(64)),
    ),
}

TENSORFLOW_BOMBS = {
    "components that share their variables": tensorflow_network(keys(10_000), keys(10_000)),
    "long names": tensorflow_network(["x" * 1_000_000], keys(10_000)),
    "a network in itself": Raw(
        put(new(TENSORFLOW))
        + op({"version": 4, "static_kwargs": {}, "variables": [], "components": {"a": get()}})
        + b"b"
    ),
}


@pytest.mark.parametrize("bomb", TENSORFLOW_BOMBS)
def test_tensorflow_bombs_are_refused(bomb, refusal):
    refusal(pickled((None, TENSORFLOW_BOMBS[bomb], None)), "D")


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_refused(bomb, refusal):
    refusal(pickled({"D": BOMBS[bomb]}, 4), "D")
