# SPDX-License-Identifier: Apache-2.0
"""Classes whose pickles contain their source text, so that checkpoints outlive the code that wrote them.

The format (version 6) is that of StyleGAN2-ADA: `_reconstruct_persistent_obj` applied to a dict of `type`, `version`,
`module_src`, `class_name` and `state`. Unpickling it with plain `pickle` runs `module_src`, which requires trust. Our
own loaders never do that with a foreign file; they read it through `torch_utils.safe_pickle`.
"""

import copy
import copyreg
import functools
import inspect
import sys
import types
import uuid
from collections.abc import Callable
from typing import Any

from dnnlib.util import EasyDict, UserError

VERSION = 6

_classes: dict[tuple[str, str], type] = {}  # (source text of the module, class name) -> class
_fresh_sources: dict[str, str] = {}  # module name -> source text, for modules made from a pickle
_import_hooks: list[Callable[[EasyDict], EasyDict | None]] = []


def persistent_class(orig_class: type) -> type:
    """Class decorator: record the constructor arguments, and pickle with the source of the defining module.

    The class gets read-only properties `init_args` (tuple) and `init_kwargs` (EasyDict): deep copies of the
    constructor's arguments, in which dicts are EasyDicts. A subclass is persistent only if it is decorated too; an
    undecorated one pickles like any Python object, by reference to its module.

    Raises UserError if the source of the defining module cannot be read (a class typed at a prompt).
    """
    if is_persistent(orig_class):
        return orig_class
    source = sys.intern(
        _source_of(orig_class)
    )  # one object for all classes of a module, so that pickles contain it once
    original_init = orig_class.__init__

    @functools.wraps(original_init)
    def init(self, *args, **kwargs):
        recorded_args, recorded_kwargs = copy.deepcopy((args, kwargs))
        original_init(self, *args, **kwargs)
        # Recorded after the constructor ran, so that a class overrides what its decorated base has recorded.
        self.__dict__["_init_args"] = _with_easy_dicts(recorded_args)
        self.__dict__["_init_kwargs"] = {name: _with_easy_dicts(value) for name, value in recorded_kwargs.items()}

    orig_class.__init__ = init
    orig_class.__reduce__ = _reduce
    # Older files have plain dicts.
    orig_class.init_args = property(lambda self: _with_easy_dicts(copy.deepcopy(self.__dict__["_init_args"])))
    orig_class.init_kwargs = property(lambda self: _with_easy_dicts(copy.deepcopy(self.__dict__["_init_kwargs"])))
    orig_class._persistent_source = source
    _classes[source, orig_class.__name__] = orig_class
    return orig_class


def _with_easy_dicts(value: Any) -> Any:
    """`value` with an EasyDict for every dict, at any depth of dicts, lists and tuples; their other subclasses stay."""
    if type(value) in (dict, EasyDict):
        return EasyDict((key, _with_easy_dicts(item)) for key, item in value.items())
    if type(value) in (list, tuple):
        return type(value)(map(_with_easy_dicts, value))
    return value


def is_persistent(obj: Any) -> bool:
    """Whether `obj` is a class decorated with `persistent_class`, or an instance of exactly such a class."""
    cls = obj if isinstance(obj, type) else type(obj)
    return "_persistent_source" in vars(cls)


def source_of(cls: type) -> str | None:
    """The source text that pickles of a persistent class contain; None for any other class."""
    return vars(cls).get("_persistent_source")


def import_hook(hook: Callable[[EasyDict], EasyDict | None]) -> Callable:
    """Register a function that is called with each stored object before it is rebuilt; usable as a decorator.

    Its argument is the stored dict (`type, version, module_src, class_name, state`). It may change the dict, or replace
    it by returning another.
    """
    _import_hooks.append(hook)
    return hook


def _source_of(cls: type) -> str:
    module_name = cls.__module__
    if module_name in _fresh_sources:
        return _fresh_sources[module_name]
    try:
        return inspect.getsource(sys.modules[module_name])
    except (KeyError, OSError, TypeError):
        raise UserError(
            f"persistent_class: the source of module {module_name} cannot be read; define {cls.__name__} in a .py file"
        ) from None


def _reduce(self: Any) -> tuple:
    cls = type(self)
    getstate = getattr(self, "__getstate__", None)
    state = self.__dict__ if getstate is None else getstate()
    if not is_persistent(cls):
        return copyreg.__newobj__, (cls,), state
    meta = {
        "type": "class",
        "version": VERSION,
        "module_src": cls._persistent_source,
        "class_name": cls.__name__,
        "state": state,
    }
    return _reconstruct_persistent_obj, (meta,)


def _reconstruct_persistent_obj(meta: dict) -> Any:
    """Rebuild a stored object; pickles refer to this function. If the class is not ours, the stored source runs."""
    meta = EasyDict(meta)
    for hook in _import_hooks:
        meta = hook(meta) or meta
    if meta.get("type") != "class" or meta.get("version") != VERSION:
        raise UserError(
            f"cannot rebuild a stored object of type {meta.get('type')!r} and version {meta.get('version')!r}; "
            f"only type 'class' and version {VERSION} are supported"
        )
    cls = _find_class(meta.module_src, meta.class_name)
    obj = cls.__new__(cls)
    setstate = getattr(obj, "__setstate__", None)
    if setstate is not None:
        setstate(meta.state)
    else:
        obj.__dict__.update(meta.state)
    return obj


def _find_class(source: str, class_name: str) -> type:
    """The class with exactly this source if it is loaded, else the class of a new module made from the source."""
    if (source, class_name) not in _classes:
        name = f"_persistent_{uuid.uuid4().hex}"
        module = types.ModuleType(name)
        _fresh_sources[name] = source
        sys.modules[name] = module
        try:
            exec(compile(source, f"<{name}>", "exec"), vars(module))
            _classes.setdefault((source, class_name), vars(module)[class_name])
        except BaseException:
            del sys.modules[name], _fresh_sources[name]
            raise
    return _classes[source, class_name]
