# SPDX-License-Identifier: Apache-2.0
import collections
import copy
import importlib
import io
import pathlib
import pickle
import pickletools
import subprocess
import sys
import uuid

import pytest
import torch

from dnnlib.util import UserError
from tests.support import ROOT
from torch_utils import persistence

SOURCE = """
import torch
from torch_utils import persistence

@persistence.persistent_class
class Layer(torch.nn.Module):
    def __init__(self, size, gain=1, *, extra=None):
        super().__init__()
        self.gain = gain
        self.weight = torch.nn.Parameter(torch.randn(size, size))
        self.register_buffer("seen", torch.zeros([]))

    def forward(self, x):
        return x @ self.weight * self.gain

@persistence.persistent_class
class Net(Layer):
    def __init__(self, size, **kwargs):
        super().__init__(size, gain=3)
        self.first = Layer(size, **kwargs)
        self.second = Layer(size)

    def forward(self, x):
        return self.second(self.first(super().forward(x)))

class Plain(Net):
    pass

@persistence.persistent_class
class Note:
    def __init__(self, text):
        self.text = text

    def read(self):
        return "old " + self.text
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module with SOURCE in a separate file; another one with the same source would share its classes."""
    name = f"nets_{uuid.uuid4().hex}"
    (tmp_path / f"{name}.py").write_text(f"NAME = {name!r}\n{SOURCE}")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module(name)
    del sys.modules[name]


@pytest.fixture
def hooks(monkeypatch):
    monkeypatch.setattr(persistence, "_import_hooks", [])


def test_constructor_arguments_are_recorded_as_read_only_copies(module):
    extra = [1]
    layer = module.Layer(2, gain=5, extra=extra)
    extra.append(2)
    assert layer.init_args == (2,) and layer.init_kwargs == {"gain": 5, "extra": [1]}
    layer.init_kwargs["extra"].append(3)
    assert layer.init_kwargs.extra == [1]
    with pytest.raises(AttributeError):
        layer.init_args = ()
    net = module.Net(2, gain=7)
    assert (net.init_args, net.init_kwargs) == ((2,), {"gain": 7})
    assert (net.first.init_args, net.first.init_kwargs) == ((2,), {"gain": 7})


def test_nested_constructor_arguments_are_attributes(module):
    ordered, extra = collections.OrderedDict(d=1), [{"e": ({"f": 2},)}]
    layer = module.Layer(3, extra={"c": ordered, "extra": extra})
    for net in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert net.init_kwargs == {"extra": {"c": ordered, "extra": extra}}
        assert type(net.init_kwargs.extra.c) is collections.OrderedDict
        assert net.init_kwargs.extra.extra[0].e[0].f == 2
    assert type(extra[0]) is dict
    layer.__dict__["_init_kwargs"] = {"extra": {"of an older file": {"a": 1}}}
    assert layer.init_kwargs.extra["of an older file"].a == 1


def test_what_is_persistent(module):
    assert persistence.is_persistent(module.Net) and persistence.is_persistent(module.Net(2))
    assert not persistence.is_persistent(module.Plain) and not persistence.is_persistent(module.Plain(2))
    assert not persistence.is_persistent(torch.nn.Linear) and not persistence.is_persistent(3)
    assert persistence.persistent_class(module.Net) is module.Net


def test_stored_format(module):
    reconstruct, (meta,) = module.Net(2).__reduce__()
    assert reconstruct is persistence._reconstruct_persistent_obj
    assert list(meta) == ["type", "version", "module_src", "class_name", "state"]
    assert (meta["type"], meta["version"], meta["class_name"]) == ("class", 6, "Net")
    assert meta["module_src"] == pathlib.Path(module.__file__).read_text()
    assert meta["state"]["_init_args"] == (2,) and meta["state"]["_init_kwargs"] == {}
    assert type(meta["state"]["_init_kwargs"]) is dict and set(meta["state"]["_modules"]) == {"first", "second"}


def test_pickles_name_only_the_known_global(module):
    text = io.StringIO()
    pickletools.dis(pickle.dumps(module.Note("x"), 2), text)
    globals_named = [line.split("GLOBAL")[1].strip() for line in text.getvalue().splitlines() if "GLOBAL" in line]
    assert globals_named == ["'torch_utils.persistence _reconstruct_persistent_obj'"]


@pytest.mark.parametrize("kind", ["Layer", "Net", "Plain"])
def test_deepcopy_is_equal_and_separate(module, kind):
    net = getattr(module, kind)(3)
    twin = copy.deepcopy(net)
    x = torch.randn(2, 3)
    assert type(twin) is type(net) and torch.equal(twin(x), net(x))
    assert [n for n, _ in twin.named_parameters()] == [n for n, _ in net.named_parameters()]
    assert twin.init_args == net.init_args
    with torch.no_grad():
        twin.weight.zero_()
    assert net.weight.any()
    net.second = net.first if kind != "Layer" else None
    twin = copy.deepcopy(net)
    assert kind == "Layer" or twin.second is twin.first


def test_pickle_gives_the_loaded_class_while_its_source_is_the_same(module):
    net = module.Net(2)
    twin = pickle.loads(pickle.dumps(net))
    assert type(twin) is module.Net and isinstance(twin, module.Layer) and type(twin.first) is module.Layer
    assert torch.equal(twin.first.weight, net.first.weight)
    assert not net.seen.any() and not twin.seen.requires_grad and twin.weight.requires_grad


def test_undecorated_subclass_pickles_by_reference(module):
    plain = module.Plain(2)
    twin = pickle.loads(pickle.dumps(plain))
    assert type(twin) is module.Plain and torch.equal(twin.weight, plain.weight)
    assert type(twin.first) is module.Layer


READ_ELSEWHERE = """
import pickle, sys
module = __import__(sys.argv[1])
note = pickle.load(open(sys.argv[2], "rb"))
fresh = module.Note("new")
print(note.read(), "|", fresh.read(), "|", type(note) is module.Note, "|", note.init_args)
again = pickle.loads(pickle.dumps(note))
print(again.read(), "|", type(again) is type(note))
"""


@pytest.mark.parametrize("change", ["none", "edited"])
def test_plain_pickle_in_another_process_runs_the_stored_source(tmp_path, change):
    source = "from torch_utils import persistence\n\n" + SOURCE[SOURCE.rindex("@persistence") :]
    (tmp_path / "notes.py").write_text(source)
    path = tmp_path / "note.pkl"
    write = f"import notes, pickle; pickle.dump(notes.Note('text'), open({str(path)!r}, 'wb'))"
    environment = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", write], env=environment, check=True)
    if change == "edited":
        (tmp_path / "notes.py").write_text(source.replace('"old "', '"newer "'))
    run = subprocess.run(
        [sys.executable, "-c", READ_ELSEWHERE, "notes", str(path)],
        env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    same = change == "none"
    fresh = "old new" if same else "newer new"
    assert run.stdout.splitlines() == [f"old text | {fresh} | {same} | ('text',)", "old text | True"]


def test_stored_source_of_another_tree_runs_in_a_fresh_module_once(hooks):
    source = SOURCE.replace('"old "', '"foreign "')
    meta = {"type": "class", "version": 6, "module_src": source, "class_name": "Note", "state": {"text": "t"}}
    first, second = (persistence._reconstruct_persistent_obj(dict(meta)) for _ in range(2))
    assert first.read() == "foreign t" and type(first) is type(second) and persistence.is_persistent(first)
    assert sys.modules[type(first).__module__].Note is type(first)
    assert pickle.loads(pickle.dumps(first)).read() == "foreign t"


def test_broken_source_leaves_no_module_behind(hooks):
    before = set(sys.modules)
    meta = {"type": "class", "version": 6, "module_src": "1 / 0", "class_name": "X", "state": {}}
    with pytest.raises(ZeroDivisionError):
        persistence._reconstruct_persistent_obj(meta)
    assert set(sys.modules) == before


def test_unknown_format_is_refused(hooks):
    for meta in ({"type": "function", "version": 6}, {"type": "class", "version": 7}):
        with pytest.raises(UserError, match="version 6"):
            persistence._reconstruct_persistent_obj(meta)


def test_import_hook_may_change_what_is_stored(hooks):
    @persistence.import_hook
    def rename(meta):
        meta.module_src = meta.module_src.replace('"old "', '"hooked "')
        return meta

    meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": "Note", "state": {"text": "t"}}
    assert persistence._reconstruct_persistent_obj(meta).read() == "hooked t"


def test_class_without_source_is_a_user_error():
    namespace = {"__name__": "no_such_module"}
    with pytest.raises(UserError, match=r"\.py file"):
        exec("from torch_utils import persistence\n@persistence.persistent_class\nclass A: pass", namespace)
