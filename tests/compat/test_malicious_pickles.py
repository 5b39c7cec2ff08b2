# SPDX-License-Identifier: Apache-2.0
"""Malicious files: each is refused in one sentence that names what it asks for, and nothing in it runs.

The attacks are written opcode by opcode, including forms that no pickler writes.
"""

import copyreg
import io
import os
import pickle
import sys

import numpy as np
import pytest
import torch

import generate
import legacy
from dnnlib import cli
from tests.compat import canary
from tests.compat.foreign import easy_dict, module, stored, tensor
from tests.compat.opcodes import Raw, built, call, named, new, op, pickled, stack_named
from torch_utils import safe_pickle
from torch_utils.safe_pickle import BrokenPickleError, UnsafePickleError
from training.files import snapshot
from training.networks import Discriminator

TOUCH = "touch canary"
WRITE = "open('canary', 'w').close()"
INNER = pickle.dumps(os.getcwd, 2)  # harmless if run, but not data
EVIL = call("os.system", TOUCH)

CALLS = [
    ("os.system", TOUCH),
    ("posix.system", TOUCH),
    ("nt.system", TOUCH),
    ("os.popen", TOUCH),
    ("os.execvp", "touch", ["touch", "canary"]),
    ("os.remove", "net.pkl"),
    ("os.putenv", "A", "B"),
    ("builtins.eval", WRITE),
    ("builtins.exec", WRITE),
    ("builtins.compile", WRITE, "x", "exec"),
    ("builtins.__import__", "antigravity"),
    ("builtins.getattr", named("torch.float32"), "__class__"),
    ("builtins.setattr", easy_dict({}), "a", 1),
    ("builtins.open", "canary", "w"),
    ("builtins.type", "A", (), {}),
    ("builtins.breakpoint",),
    ("__builtin__.eval", WRITE),
    ("__builtin__.execfile", "net.pkl"),
    ("subprocess.Popen", ["touch", "canary"]),
    ("subprocess.check_output", ["touch", "canary"]),
    ("functools.partial", EVIL, TOUCH),
    ("functools.reduce", EVIL, [TOUCH]),
    ("operator.attrgetter", "system"),
    ("operator.methodcaller", "system", TOUCH),
    ("operator.itemgetter", 1),
    ("torch.load", INNER),
    ("torch.serialization.load", INNER),
    ("torch.jit.load", "net.pkl"),
    ("torch.hub.load", "x/y", "z"),
    ("torch.hub.load_state_dict_from_url", "http://localhost/"),
    ("torch.utils.cpp_extension.load", "x", ["net.pkl"]),
    ("torch._utils._import_dotted_name", "os.system"),
    ("torch._utils._rebuild_wrapper_subclass",),
    ("torch._tensor._rebuild_from_type_v2", EVIL, 1, (), {}),
    ("torch.nn.Linear", 2, 2),
    ("numpy.load", "net.pkl", None, True),
    ("numpy.fromfile", "net.pkl"),
    ("numpy.memmap", "canary", "f4", "w+", 0, (4,)),
    ("numpy.testing._private.utils.runstring", WRITE, {}),
    ("copyreg._reconstructor", named("numpy.ndarray"), named("numpy.ndarray"), None),
    ("copyreg.__newobj__", named("numpy.ndarray"), 3),
    ("copy_reg._reconstructor", named("numpy.ndarray"), named("numpy.ndarray"), None),
    ("types.FunctionType", None, {}),
    ("types.CodeType", 0, 0),
    ("types.SimpleNamespace",),
    ("importlib.import_module", "antigravity"),
    ("importlib._bootstrap._load_unlocked", None),
    ("pickle.loads", INNER),
    ("_pickle.loads", INNER),
    ("pickle.Unpickler", None),
    ("marshal.loads", b"N"),
    ("shutil.rmtree", "."),
    ("shutil.copy", "net.pkl", "canary"),
    ("webbrowser.open", "http://localhost/"),
    ("ctypes.CDLL", "libc.so.6"),
    ("runpy.run_path", "net.pkl"),
    ("timeit.timeit", WRITE),
    ("cProfile.run", WRITE),
    ("pty.spawn", "true"),
    ("socket.create_connection", ("localhost", 9)),
    ("urllib.request.urlopen", "http://localhost/"),
    ("tempfile.mkdtemp", "", "canary", "."),
    ("pathlib.Path", "canary"),
    ("sys.exit", 1),
    ("atexit.register", EVIL),
    ("threading.Thread", None, EVIL),
    ("multiprocessing.Process", None, EVIL),
    ("dnnlib.util.call_func_by_name", TOUCH),
    ("dnnlib.util.open_url", "http://localhost/"),
    ("torch_utils.persistence.persistent_class", named("numpy.ndarray")),
    ("torch_utils.persistence.import_hook", EVIL),
    ("training.networks.Generator", 4, 0, 4, 8, 1),
]

FORMS = {
    "a name alone": ("os.system", named("os.system")),
    "a name of protocol 4": ("os.system", stack_named("os", "system")),
    "an object made by a name": ("os._wrap_close", new("os._wrap_close", 1, 2)),
    "with keywords": ("subprocess.Popen", Raw(named("subprocess.Popen") + op(()) + op({"args": "true"}) + b"\x92")),
    "INST": ("os.system", Raw(b"(" + op(TOUCH) + b"ios\nsystem\n")),
    "OBJ": ("os.system", Raw(b"(" + named("os.system") + op(TOUCH) + b"o")),
    "a state": ("types.SimpleNamespace", built(new("types.SimpleNamespace"), {"a": 1})),
    "attributes of a module": (
        "torch_utils.persistence.sys.modules",
        stack_named("torch_utils.persistence", "sys.modules"),
    ),
    "attributes of a listed function": (
        "torch_utils.persistence._reconstruct_persistent_obj.__globals__",
        stack_named("torch_utils.persistence", "_reconstruct_persistent_obj.__globals__"),
    ),
    "attributes of a listed class": ("dnnlib.util.EasyDict.__init__", stack_named("dnnlib.util", "EasyDict.__init__")),
    "attributes of a listed package": ("dnnlib.util.os.system", stack_named("dnnlib", "util.os.system")),
    "subclasses of a class": (
        "collections.OrderedDict.__subclasses__",
        stack_named("collections", "OrderedDict.__subclasses__"),
    ),
    "a listed class's class": ("builtins.set.__class__", stack_named("builtins", "set.__class__")),
    "a storage from a file": ("torch.FloatStorage.from_file", stack_named("torch", "FloatStorage.from_file")),
    "the machinery of a dtype": ("numpy.dtype.__reduce__", stack_named("numpy", "dtype.__reduce__")),
    "a very long name": ("a" * 100, stack_named("a" * 10_000, "b" * 10_000)),
    "names with control characters": (r"os\x1b[2J.system", stack_named("os\x1b[2J", "system")),
}

BROKEN = {
    "text of protocol 0": Raw(b"S'touch canary'\n"),
    "extension registry, 1 byte": Raw(b"\x82\xf0"),
    "extension registry, 2 bytes": Raw(b"\x83\xf0\x00"),
    "extension registry, 4 bytes": Raw(b"\x84\xf0\x00\x00\x00"),
    "persistent id": Raw(op("id") + b"Q"),
    "persistent id as text": Raw(b"Pid\n"),
    "a call of a value": Raw(op("text") + op(()) + b"R"),
    "a call of a stored object": Raw(stored("A", {}) + op(()) + b"R"),
    "a call with keywords": Raw(named("collections.OrderedDict") + op(()) + op({"a": 1}) + b"\x92"),
    "a call with a list": Raw(named("collections.OrderedDict") + op([]) + b"R"),
    "state for a dict": built(op({}), {"__class__": 1}),
    "state for an EasyDict": built(new("dnnlib.util.EasyDict"), {"__class__": 1, "__setstate__": 2}),
    "state for an EasyDict in two parts": built(new("dnnlib.util.EasyDict"), (None, {"keys": 1})),
    "state for an OrderedDict": built(call("collections.OrderedDict"), {"__dict__": {"a": 1}}),
    "state for a stored object": built(stored("A", {}), {"__class__": 1}),
    "state for a tensor": built(tensor(np.zeros(2, np.float32)), {"data": 1}),
    "items for a stored object": Raw(stored("A", {}) + b"(" + op("a") + op(1) + b"u"),
    "members for a tuple": Raw(op(()) + b"(" + op(1) + b"e"),
    "tensor of text": call("torch._utils._rebuild_tensor_v2", "x", 0, (1,), (1,), False, {}),
    "tensor of too few arguments": call("torch._utils._rebuild_tensor_v2"),
    "tensor of a tensor": call("torch._utils._rebuild_tensor_v2", tensor(np.ones(2)), 0, (1,), (1,), False, {}),
    "parameter of text": call("torch._utils._rebuild_parameter", "x", True, {}),
    "storage of a zip file": call("torch.storage._load_from_bytes", b"PK\x03\x04" + bytes(50)),
    "storage of nested text": call("torch.storage._load_from_bytes", "x"),
    "module of torch.save": call(
        "torch.storage._load_from_bytes",
        b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
        + b"\x80\x02" + op(("module", named("collections.OrderedDict"), "x.py", WRITE)) + b"Q.",
    ),
    "array of objects": call("numpy.core.multiarray.scalar", call("numpy.dtype", "O8", False, True), INNER),
    "array of no bytes": built(call("numpy.core.multiarray._reconstruct", named("numpy.ndarray"), (0,), b"b"), (1,)),
    "text for bytes": call("_codecs.encode", WRITE, "unicode_escape"),
    "stored object without a source": call("torch_utils.persistence._reconstruct_persistent_obj", {"type": "class"}),
    "stored function": stored("A", {}, type="function"),
    "stored object of a list": stored("A", [1, 2]),
}  # fmt: skip


def test_the_canary_reports_attacks(tmp_path, monkeypatch):
    """The premise of these tests: Python's own unpickler runs the attacks, and the canary reports it."""
    monkeypatch.chdir(tmp_path)
    for attack in (EVIL, call("builtins.eval", WRITE)):
        with canary.watched() as heard:
            pickle.loads(pickled(attack))
        assert os.path.exists("canary") and any("canary" in event for event in heard)
        os.remove("canary")
    error = None
    with canary.at_most(1 << 29):
        try:
            bytearray(1 << 31)
        except MemoryError as caught:
            error = caught
    assert canary.ran_out(error)


def test_there_are_enough_attacks():
    assert len(CALLS) + len(FORMS) + len(BROKEN) >= 100
    assert len({name for name, *_ in CALLS}) == len(CALLS)


@pytest.mark.parametrize("attack", CALLS, ids=lambda attack: attack[0])
def test_calls_of_other_names_are_refused(attack, refusal):
    name, *arguments = attack
    evil = call(name, *arguments)
    error = refusal(pickled({"G": evil, "training_set_kwargs": {}}))
    assert type(error) is UnsafePickleError
    assert f"asks for '{name}'" in str(error) and "use --trust-pickle" in str(error)


@pytest.mark.parametrize("form", FORMS)
def test_other_forms_of_requests_are_refused(form, refusal):
    name, evil = FORMS[form]
    error = refusal(pickled({"G": evil}, 4))
    assert type(error) is UnsafePickleError
    assert f"asks for '{name}" in str(error) and "use --trust-pickle" in str(error)


@pytest.mark.parametrize("form", BROKEN)
def test_malformed_pickles_are_reported_as_damaged(form, refusal, monkeypatch):
    monkeypatch.setitem(copyreg._inverted_registry, 0xF0, ("posix", "system"))
    assert type(refusal(pickled({"G": BROKEN[form]}, 4))) is BrokenPickleError


HIDING_PLACES = {
    "as the whole file": EVIL,
    "as a key": op({EVIL: 1}),
    "behind the networks": op({"G": None, "training_set_kwargs": {"path": [(EVIL,)]}}),
    "in an unused entry": op({"G": None, "notes": EVIL}),
    "in a network's state": op({"D": stored("Discriminator", {"_modules": {"b4": stored("X", {"a": EVIL})}})}),
    "in constructor arguments": op({"D": stored("Discriminator", {"_init_kwargs": {"c_dim": EVIL}})}),
    "in an EasyDict": op({"G": None, "training_set_kwargs": easy_dict({"a": EVIL})}),
    "in a hook": op({"D": stored("Discriminator", {"_forward_hooks": {0: EVIL}})}),
    "in the hooks of a tensor": call("torch._utils._rebuild_parameter", tensor(np.ones(1)), True, {0: EVIL}),
    "as a tensor's storage": call("torch._utils._rebuild_tensor_v2", EVIL, 0, (1,), (1,), False, {}),
    "in a storage's bytes": call("torch.storage._load_from_bytes", pickled(EVIL)),
    "in the second pickle of a storage": call("torch.storage._load_from_bytes", pickled(1) + pickled(EVIL)),
    "as a numpy dtype": call("numpy.core.multiarray.scalar", EVIL, b"x"),
    "as an array's state": built(call("numpy.core.multiarray._reconstruct", named("numpy.ndarray"), (0,), b"b"), EVIL),
    "in a TensorFlow network": op((built(new("dnnlib.tflib.network.Network"), {"build_func_name": EVIL}),) * 3),
    "discarded at once": Raw(EVIL + b"0" + op({"G": None})),
    "in the memo": Raw(EVIL + b"q\x050" + op({"G": None})),
    "after much else": op({"a": list(range(1000)), "G": EVIL}),
}


@pytest.mark.parametrize("place", HIDING_PLACES)
def test_attacks_are_found_in_every_place(place, refusal):
    error = refusal(pickled(HIDING_PLACES[place]))
    assert type(error) is UnsafePickleError and "'os.system'" in str(error)


def test_notebooks_and_scripts_refuse_attacks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    content = pickled({"G_ema": EVIL})
    with pytest.raises(UnsafePickleError, match=r"'os\.system'"):
        legacy.load_network_pkl(io.BytesIO(content))
    (tmp_path / "net.pkl").write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["generate.py", "--network=net.pkl", "--seeds=1", "--outdir=out", "--device=cpu"])
    with pytest.raises(SystemExit) as exited:
        cli.run(generate.main)
    error = capsys.readouterr().err
    assert exited.value.code == 2 and error.startswith("Error: net.pkl asks for 'os.system'")
    assert os.listdir() == ["net.pkl"]


def test_bytes_after_the_end_are_ignored(tmp_path):
    assert safe_pickle.loads(pickled(3) + pickled(EVIL)) == 3


def polluted(state: dict) -> bytes:
    """A discriminator with additional entries in its stored state."""
    D = Discriminator(0, 8, 1, channel_max=2)
    tensors = {name: tensor(value.detach().numpy()) for name, value in D.state_dict().items()}
    network = module("Discriminator", tensors, init_args=(0, 8, 1), init_kwargs={"channel_max": 2})
    at = network.rindex(op("training"))
    return pickled({"D": Raw(network[:at] + b"".join(op(k) + op(v) for k, v in state.items()) + network[at:])})


def test_names_in_a_stored_state_do_not_become_attributes(tmp_path):
    names = [
        "__class__",
        "__dict__",
        "__setstate__",
        "__reduce__",
        "__getattr__",
        "forward",
        "_init_me",
        "eval",
        "c_dim",
    ]
    path = tmp_path / "net.pkl"
    path.write_bytes(polluted(dict.fromkeys(names, "pollution")))
    before = dict(vars(Discriminator))
    D = snapshot.load_snapshot(path)["D"]
    assert type(D) is Discriminator and dict(vars(Discriminator)) == before
    assert "pollution" not in [value for value in vars(D).values() if isinstance(value, str)]
    assert D(torch.zeros(4, 1, 8, 8), None).shape == (4, 1)
