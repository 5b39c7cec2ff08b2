# SPDX-License-Identifier: Apache-2.0
import builtins
import collections
import functools
import importlib
import io
import operator
import os
import pickle
import runpy
import shutil
import subprocess
import sys
import types
import urllib.request

import numpy as np
import pytest
import torch

import dnnlib
from dnnlib.util import EasyDict, UserError
from torch_utils import persistence, safe_pickle
from torch_utils.safe_pickle import BrokenPickleError, StoredObject, StoredTFNetwork, UnsafePickleError

PROTOCOLS = [2, 3, 4, 5]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128]
DTYPES += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]


@persistence.persistent_class
class Layer(torch.nn.Module):
    def __init__(self, size, gain=1.0, child=None):
        super().__init__()
        self.gain = np.float64(gain)
        self.size = np.broadcast_to(np.asarray(size), [2])
        self.weight = torch.nn.Parameter(torch.randn(size, size))
        self.register_buffer("seen", torch.zeros([], dtype=torch.int64))
        self.register_buffer("gone", None)
        self.child = child
        self.twin = child


class _Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args, state=None):
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.reduced


def _same(a, b):
    if isinstance(a, torch.Tensor):
        return type(a) is type(b) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray | np.generic):
        return type(a) is type(b) and a.dtype == b.dtype and np.array_equal(a, b)
    return type(a) is type(b) and a == b


VALUES = {
    "scalars": [None, True, False, 0, -5, 255, 65536, 2**40, -(2**70), 1.5, "text é \udc80", "x" * 300, 1 + 2j],
    "bytes": [b"", b"abc", bytes(range(256)) * 3, bytearray(b"ab"), bytearray()],
    "containers": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], [1, [2]], {}, {"a": {1: (2,)}}, {1, 2}, set()],
    "frozenset": frozenset(["a", (1, 2)]),
    "easy dict": EasyDict(a=EasyDict(b=1)),
    "torch odds and ends": [
        torch.float16,
        torch.bool,
        torch.Size([1, 2]),
        torch.device("cpu"),
        torch.device("cuda", 1),
    ],
    "arrays": [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
        np.arange(12).reshape(3, 4)[::2, ::2],
        np.zeros([0, 3], np.uint8),
        np.array(3.5, np.float16),
        np.array([True, False]),
    ],
    "array scalars": [np.float32(1.5), np.int64(-3), np.bool_(True), np.complex64(1j)],
    **{str(dtype): torch.arange(5).to(dtype) for dtype in DTYPES},
    "views": [torch.arange(12.0).reshape(3, 4)[:, 1:3], torch.arange(6.0).reshape(2, 3).T, torch.ones([]).expand(4)],
    "empty tensors": [torch.zeros(0), torch.zeros(3, 0, 2), torch.zeros([])],
    "parameters": [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2), requires_grad=False)],
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", VALUES)
def test_data_comes_back_as_it_was(kind, protocol):
    values = VALUES[kind] if isinstance(VALUES[kind], list) else [VALUES[kind]]
    loaded = safe_pickle.load(io.BytesIO(pickle.dumps(values, protocol)))
    for value, twin in zip(values, loaded, strict=True):
        assert _same(value, twin), (value, twin)
        if isinstance(value, torch.Tensor):
            assert twin.requires_grad == value.requires_grad


def test_big_endian_arrays_become_native():
    loaded = safe_pickle.loads(pickle.dumps(np.arange(3, dtype=">i4")))
    assert loaded.tolist() == [0, 1, 2] and loaded.dtype.isnative


def test_ordered_dicts_and_shared_objects():
    shared = torch.ones(3)
    data = collections.OrderedDict(b=[shared, shared[1:]], a=shared)
    loaded = safe_pickle.loads(pickle.dumps(data))
    assert list(loaded) == ["b", "a"] and loaded["b"][0] is loaded["a"]


def test_tensors_share_no_memory_with_the_file():
    data = pickle.dumps(torch.ones(1000))
    loaded = safe_pickle.loads(data)
    loaded.zero_()
    assert safe_pickle.loads(data).sum() == 1000 and loaded.data_ptr() % 8 == 0


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (b"numpy._core.multiarray", b"numpy.core.multiarray"),
        (b"numpy.core.multiarray", b"numpy._core.multiarray"),
        (b"cdnnlib.util\n", b"cdnnlib\n"),
        (b"c__builtin__\n", b"cbuiltins\n"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_tensor\n"),
    ],
)
def test_names_of_other_versions(ours, theirs):
    # Protocol 2 writes names as lines, so that they can be replaced without breaking the pickle.
    data = pickle.dumps([np.arange(3), np.float32(2), EasyDict(a=1), {3}], 2)
    if b"_rebuild_tensor" in ours:
        data = pickle.dumps([torch.arange(3)], 2)
    loaded = safe_pickle.loads(data.replace(ours, theirs))
    assert list(loaded[0]) == [0, 1, 2]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_persistent_objects_are_read_as_data(protocol, monkeypatch):
    net = Layer(2, gain=2.0, child=Layer(3))
    monkeypatch.setattr(persistence, "_find_class", None)  # Looking up the class is the first step of running it.
    stored = safe_pickle.loads(pickle.dumps(net, protocol))
    assert type(stored) is StoredObject and repr(stored) == "StoredObject(Layer)"
    assert (stored.class_name, stored.version) == ("Layer", 6)
    assert stored.module_src == Layer._persistent_source
    assert stored.init_args == (2,) and stored.init_kwargs.gain == 2.0
    assert stored.state["gain"] == 2.0 and stored.state["size"].tolist() == [2, 2]
    expected = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    tensors = stored.tensors()
    assert set(tensors) == set(expected) == {"weight", "seen", "child.weight", "child.seen"}
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_tensorflow_networks_are_read_as_data(monkeypatch):
    module = types.ModuleType("dnnlib.tflib.network")
    network = type("Network", (), {"__module__": "dnnlib.tflib.network", "__qualname__": "Network"})
    module.Network = network
    monkeypatch.setitem(sys.modules, "dnnlib.tflib", types.ModuleType("dnnlib.tflib"))
    monkeypatch.setitem(sys.modules, "dnnlib.tflib.network", module)
    G, part = network(), network()
    part.__dict__.update(variables=[("weight", np.ones((2, 2), np.float32))])
    G.__dict__.update(version=4, static_kwargs=EasyDict(resolution=8), components=EasyDict(synthesis=part))
    for protocol in PROTOCOLS:
        stored = safe_pickle.loads(pickle.dumps((G, G), protocol))
        assert type(stored[0]) is StoredTFNetwork and stored[0] is stored[1]
        assert stored[0].state["static_kwargs"].resolution == 8
        name, array = stored[0].state["components"]["synthesis"].state["variables"][0]
        assert name == "weight" and array.sum() == 4


MALICIOUS = {
    "os.system": _Call(os.system, "touch {}"),
    "subprocess": _Call(subprocess.check_call, ["touch", "{}"]),
    "Popen": _Call(subprocess.Popen, ["touch", "{}"]),
    "eval": _Call(builtins.eval, "open('{}', 'w')"),
    "exec": _Call(builtins.exec, "open('{}', 'w')"),
    "open": _Call(builtins.open, "{}", "w"),
    "__import__": _Call(builtins.__import__, "antigravity"),
    "getattr": _Call(builtins.getattr, "x", "__class__"),
    "setattr": _Call(builtins.setattr, EasyDict(), "a", 1),
    "type": _Call(builtins.type, "A", (), {}),
    "partial": _Call(functools.partial, os.system, "touch {}"),
    "methodcaller": _Call(operator.methodcaller, "system", "touch {}"),
    "attrgetter": _Call(operator.attrgetter, "system"),
    "import_module": _Call(importlib.import_module, "antigravity"),
    "runpy": _Call(runpy.run_path, "{}"),
    "rmtree": _Call(shutil.rmtree, "{}"),
    "urlopen": _Call(urllib.request.urlopen, "http://localhost/"),
    "numpy.load": _Call(np.load, "{}", None, True),
    "numpy.save": _Call(np.save, "{}", [1]),
    "torch.load": _Call(torch.load, "{}"),
    "torch.save": _Call(torch.save, [1], "{}"),
    "torch.hub": _Call(torch.hub.load, "{}", "x"),
    "pickle.loads": _Call(pickle.loads, pickle.dumps(1)),
    "code": _Call(builtins.compile, "1", "{}", "exec"),
    "module": _Call(torch.nn.Linear, 2, 2),
    "by name": _Call(dnnlib.util.call_func_by_name, "{}"),
    "open_url": _Call(dnnlib.util.open_url, "{}"),
    "a class as a value": os._wrap_close,
    "a function as a value": [{"a": os.system}],
    "an instance of another class": types.SimpleNamespace(a=1),
    "a plain torch module": torch.nn.Linear(1, 1),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("attack", MALICIOUS)
def test_anything_else_is_refused_and_not_run(attack, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps({"G": MALICIOUS[attack]}, protocol)
    with pytest.raises(UnsafePickleError, match=r"evil.pkl asks for '[\w.]+'.*--trust-pickle"):
        safe_pickle.loads(data, "evil.pkl")
    assert os.listdir(tmp_path) == []


def _global(module, name):
    return f"c{module}\n{name}\n".encode()


def test_dotted_names_reach_nothing():
    for module, name in [
        ("builtins", "eval"), ("torch", "serialization.load"), ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("dnnlib.util", "os.system"), ("torch_utils.persistence", "sys"), ("collections", "OrderedDict.__init__"),
        ("numpy", "dtype.__class__"), ("torch.storage", "torch.load"), ("", ""), ("os", "system"), ("posix", "system"),
        ("torch_utils.persistence", "persistent_class"), ("torch", "load"), ("torch", "FloatStorage.from_file"),
    ]:  # fmt: skip
        for data in (
            b"\x80\x02" + _global(module, name) + b".",
            pickle.dumps(module, 4)[:-1] + pickle.dumps(name, 4)[2:-1] + b"\x93.",
        ):
            with pytest.raises(UserError):
                safe_pickle.loads(data)


def test_the_code_inside_a_nested_storage_is_refused_too():
    evil = pickle.dumps(_Call(os.system, "true"), 2)
    for blob in (evil, pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + evil):
        with pytest.raises(UnsafePickleError, match="system"):
            safe_pickle.loads(pickle.dumps(_Call(torch.storage._load_from_bytes, blob)))


@pytest.mark.parametrize(
    "call",
    [
        _Call(torch._utils._rebuild_tensor_v2, torch.ones(2), 0, (2,), (1,), False, {}),
        _Call(torch._utils._rebuild_parameter, 3, True, {}),
        _Call(torch.storage._load_from_bytes, b"PK\x03\x04"),
        _Call(torch.storage._load_from_bytes, "text"),
        _Call(torch.device, "nonsense"),
        _Call(torch.Size, [-1]),
        _Call(np.dtype, "O"),
        _Call(np.dtype, "f4,O"),
        _Call(np.dtype, "(1000000,1000000)f4"),
        _Call(EasyDict, 3),
        _Call(collections.OrderedDict, [1, 2]),
        _Call(collections.OrderedDict, [[[], 2]]),
        _Call(set, [[1]]),
        _Call(set, "text"),
        _Call(bytearray, 10**12),
        _Call(bytearray, "a", "utf-8"),
        _Call(persistence._reconstruct_persistent_obj, 3),
        _Call(persistence._reconstruct_persistent_obj, {}),
        _Call(persistence._reconstruct_persistent_obj, {"type": "function", "module_src": "1/0", "state": {}}),
        _Call(
            persistence._reconstruct_persistent_obj,
            {"type": "class", "version": 6, "class_name": "A", "module_src": "", "state": {"_init_args": 3}},
        ),
        _Call(collections.OrderedDict, state={"items": 3}),
        _Call(EasyDict, state={"items": 3}),
    ],
)
def test_known_names_with_wrong_arguments_are_broken_pickles(call):
    with pytest.raises(BrokenPickleError):
        safe_pickle.loads(pickle.dumps(call))


def _stored(state):
    meta = {"type": "class", "version": 6, "class_name": "A", "module_src": "", "state": state}
    return _Call(persistence._reconstruct_persistent_obj, meta)


def test_invalid_module_trees():
    for state in ({"_parameters": {"a": 3}}, {"_modules": {"a": 3}}, {"_buffers": [1]}, {"_modules": {3: None}}):
        stored = safe_pickle.loads(pickle.dumps(_stored(state)))
        with pytest.raises(UserError):
            stored.tensors()


def test_a_module_that_contains_itself_is_walked_once():
    stored = safe_pickle.loads(pickle.dumps(_stored({"_buffers": {"a": torch.ones(1)}, "_modules": {}})))
    stored.state["_modules"].update(x=stored, y=stored)
    assert list(stored.tensors()) == ["a"]


def test_messages_name_the_file(tmp_path):
    path = tmp_path / "net.pkl"
    path.write_bytes(b"nothing")
    with open(path, "rb") as file, pytest.raises(BrokenPickleError, match=r"net\.pkl"):
        safe_pickle.load(file)
    with open(path, "rb") as file, pytest.raises(BrokenPickleError, match="another name"):
        safe_pickle.load(file, name="another name")


def test_mutated_pickles_never_fail_in_another_way():
    net = Layer(2, child=Layer(3))
    data = pickle.dumps({"G": net, "training_set_kwargs": EasyDict(path="x", size=np.arange(3))}, 4)
    seed = int.from_bytes(os.urandom(4), "little")
    print("seed", seed)
    rng = np.random.RandomState(seed)
    source_at = data.index(b"# SPDX")
    interesting = np.concatenate(
        [np.arange(source_at), np.arange(source_at + len(Layer._persistent_source), len(data))]
    )
    refused = 0
    for _ in range(400):
        mutant = bytearray(data)
        for position in rng.choice(interesting, rng.randint(1, 4)):
            mutant[position] = rng.randint(256)
        if rng.rand() < 0.2:
            del mutant[rng.choice(interesting) :]
        try:
            loaded = safe_pickle.loads(bytes(mutant))
            if isinstance(loaded, dict) and isinstance(loaded.get("G"), StoredObject):
                loaded["G"].tensors()
        except UserError:
            refused += 1
    assert refused > 100
