# SPDX-License-Identifier: Apache-2.0
"""The only place that reads foreign pickles: an allow-list of plain data. No code from the file ever runs.

Names outside the list are refused with UnsafePickleError. Those on the list are rebuilt by the functions below, not by
the libraries' own: each checks its arguments, and together they copy at most a few times as many bytes as the file has.
"""

import collections
import os
import re
from typing import IO, Any

import numpy as np
import torch

from dnnlib.text import printable
from dnnlib.util import EasyDict, UserError
from torch_utils import persistence
from torch_utils.pickle_reader import Builder, Keys, PickleReader, Unfinished
from torch_utils.torch_storages import STORAGE_DTYPES, Storage, StorageType, read_first_format

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in STORAGE_DTYPES.values()}
_NUMPY_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|c(8|16))")
_MOST_DIMENSIONS = 32
_SMALL_TENSOR = 1 << 20  # a tensor of at most so many elements may repeat elements of its storage
COPIES = 4  # in protocol 2, a storage is text, then bytes, then a tensor
_MOST_MEMBERS = 2000  # modules and tensors of a network; the largest networks have a few hundred
_LONGEST_NAME = 200  # dotted


class UnsafePickleError(UserError):
    """The pickle asks for something that network files do not need."""


class BrokenPickleError(UserError):
    """The data is not a pickle, or is a damaged one."""


class StoredObject:
    """A persistent object as stored in a file: constructor arguments and values, but no behaviour.

    `class_name` and `module_src` are text (the source never runs), `state` is the object's `__dict__`, and `version` is
    the version of the format. Its tensors are on the CPU and share no memory with the file.
    """

    def __init__(self, class_name: str, module_src: str, state: dict[str, Any], version: int):
        self.class_name = class_name
        self.module_src = module_src
        self.state = state
        self.version = version

    @classmethod
    def of(
        cls, class_name: str, init_kwargs: dict[str, Any], tensors: dict[str, torch.Tensor], init_args: tuple = ()
    ) -> "StoredObject":
        """A module of the class `class_name` in the current format version, with `tensors` by dotted name."""
        state = {"_init_args": init_args, "_init_kwargs": init_kwargs, "_parameters": tensors}
        return cls(class_name, "", state, persistence.VERSION)

    def __repr__(self) -> str:
        return f"StoredObject({self.class_name})"

    @property
    def init_args(self) -> tuple:
        """Positional constructor arguments."""
        return tuple(self.state.get("_init_args", ()))

    @property
    def init_kwargs(self) -> EasyDict:
        """Keyword constructor arguments."""
        return EasyDict(self.state.get("_init_kwargs", {}))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers of the whole module tree by dotted name. Raises BrokenPickleError if it is damaged."""
        found: dict[str, torch.Tensor] = {}
        waiting = collections.deque([("", self)])
        seen = set()
        try:
            while waiting:
                name, module = waiting.popleft()
                if id(module) in seen:
                    continue
                seen.add(id(module))
                prefix = f"{name}." if name else ""
                for kind in ("_parameters", "_buffers"):
                    found.update(module._members(kind, torch.Tensor, prefix))
                waiting.extend(module._members("_modules", StoredObject, prefix))
                if len(found) + len(waiting) + len(seen) > _MOST_MEMBERS:
                    raise TypeError("it has too many parts")
        except TypeError as error:
            name = printable(self.class_name, 100)
            raise BrokenPickleError(f"the stored '{name}' is damaged: {printable(str(error))}") from error
        return found

    def _members(self, kind: str, wanted: type, prefix: str) -> list[tuple[str, Any]]:
        """(dotted name, value) of each entry of `state[kind]` that is not None, all of the type `wanted`."""
        members = self.state.get(kind, {})
        if len(members) > _MOST_MEMBERS:
            raise TypeError("it has too many parts")
        found = [(prefix + name, value) for name, value in _as_dict(members).items() if value is not None]
        for name, value in found:
            if len(name) > _LONGEST_NAME or not name.isprintable():
                raise TypeError("a part of it has an invalid name")
            if not isinstance(value, wanted):
                raise TypeError(f"{name} is of type {type(value).__name__}")
        return found


class StoredTFNetwork(Unfinished):
    """A `dnnlib.tflib.network.Network` of the TensorFlow codebases; `state` is its pickled state."""

    def __init__(self) -> None:
        super().__init__()
        self.state: dict[str, Any] = {}

    def build(self, state: Any) -> "StoredTFNetwork":
        """Take the state, a dict with text keys."""
        self.state = _as_dict(state)
        return self


def load(fileobj: IO[bytes], name: str | None = None) -> Any:
    """Read one pickle without running anything from it.

    Returns dicts (also for an OrderedDict), lists, tuples, sets, EasyDicts, text, numbers, bytes (memory views if they
    are very long), numpy arrays, CPU tensors, StoredObject and StoredTFNetwork. Messages call the file `name`, by
    default its own name.

    Raises UnsafePickleError for anything else, BrokenPickleError for damaged data; both are UserErrors.
    """
    name = name or getattr(fileobj, "name", None) or "the pickle"
    return loads(fileobj.read(), os.fspath(name) if isinstance(name, (str, os.PathLike)) else "the pickle")


def loads(data: bytes, name: str = "the pickle") -> Any:
    """As `load`, for data in memory."""
    if len(data) == 0:
        raise BrokenPickleError(f"{name} is empty, not a network pickle")
    try:
        rebuilder = Rebuilder(name, COPIES * len(data))
        return PickleReader(data, rebuilder.resolve, keys=rebuilder.all_keys).load()
    except UserError:
        raise
    except Exception as error:
        # Damaged bytes can make any step fail in any way; to the user these are all the same error.
        raise BrokenPickleError(
            f"{name} is not a network pickle, or is damaged ({type(error).__name__}: {printable(str(error))})"
        ) from error


def _as_dict(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise TypeError("an object's state is not a dict with text keys")
    return value


def _contiguous_count(sizes: Any) -> int:
    """Number of elements of a shape. Raises ValueError unless it is a tuple of a few non-negative ints."""
    if not isinstance(sizes, (tuple, list)) or len(sizes) > _MOST_DIMENSIONS:
        raise ValueError("an invalid shape")
    count = 1
    for size in sizes:
        if type(size) is not int or size < 0:
            raise ValueError("an invalid shape")
        count *= size
    return count


def _numpy_dtype(text: Any) -> np.dtype:
    if isinstance(text, str) and _NUMPY_DTYPE.fullmatch(text):
        return np.dtype(text)
    raise ValueError("a numpy dtype that is not numeric")


class _Dtype(Unfinished):
    """`numpy.dtype(text, align, copy)`; its byte order follows later."""

    def __init__(self, text: str):
        super().__init__()
        self.dtype = _numpy_dtype(text)

    def build(self, state: Any) -> np.dtype:
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "|", "="):
            raise ValueError("a numpy dtype with an unknown state")
        return self.dtype if state[1] == "|" else self.dtype.newbyteorder(state[1])


class _Array(Unfinished):
    """A numpy array; its content follows later."""

    def __init__(self, rebuilder: "Rebuilder"):
        super().__init__()
        self.rebuilder = rebuilder

    def build(self, state: Any) -> np.ndarray:
        _version, shape, dtype, fortran_order, data = state
        return self.rebuilder.array(data, dtype, shape, "F" if fortran_order else "C")


class Rebuilder:
    """Resolves the global names of one file. `budget` is the number of bytes that may still be copied."""

    refusal = (
        "which no network file needs, so it is not loaded; "
        "use --trust-pickle only if you trust its author with your machine"
    )

    def __init__(self, name: str, budget: int):
        self.name = name
        self.budget = budget
        self.all_keys = Keys()
        functions = {
            "_codecs.encode": self.encode,
            "collections.OrderedDict": self.ordered_dict,
            "dnnlib.EasyDict": self.easy_dict,
            "dnnlib.util.EasyDict": self.easy_dict,
            "dnnlib.tflib.network.Network": StoredTFNetwork,
            "numpy.dtype": lambda text, *_align_and_copy: _Dtype(text),
            "torch.Size": self.size,
            "torch.device": self.device,
            "torch._utils._rebuild_parameter": self.parameter,
            "torch._utils._rebuild_parameter_with_state": self.parameter,
            "torch._utils._rebuild_tensor": self.tensor,
            "torch._utils._rebuild_tensor_v2": self.tensor,
            "torch.storage._load_from_bytes": self.storage,
            "torch_utils.persistence._reconstruct_persistent_obj": self.persistent_object,
        }
        for core in ("numpy.core", "numpy._core"):
            functions[f"{core}.multiarray._reconstruct"] = lambda *_class_shape_and_code: _Array(self)
            functions[f"{core}.multiarray.scalar"] = self.scalar
            functions[f"{core}.numeric._frombuffer"] = self.array
        for builtins in ("builtins", "__builtin__"):
            functions[f"{builtins}.bytearray"] = self.bytearray
            functions[f"{builtins}.bytes"] = lambda: b""
            functions[f"{builtins}.complex"] = self.complex
            functions[f"{builtins}.frozenset"] = lambda items=(): frozenset(self.keys(items))
            functions[f"{builtins}.set"] = lambda items=(): set(self.keys(items))
        self.builders = {name: Builder(name, function) for name, function in functions.items()}

    def resolve(self, module: str, name: str) -> Any:
        """The value or Builder for `module`.`name`. Raises UnsafePickleError for a name that is not on the list."""
        full_name = f"{module}.{name}"
        if full_name in self.builders:
            return self.builders[full_name]
        if module in ("torch", "torch.cuda", "torch.storage") and name in STORAGE_DTYPES:
            return StorageType(STORAGE_DTYPES[name])
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if full_name == "numpy.ndarray":
            return np.ndarray
        raise UnsafePickleError(f"{self.name} asks for '{printable(full_name)}', {self.refusal}")

    def spend(self, size: int) -> None:
        """Account for `size` bytes copied out of the file."""
        self.budget -= size
        if self.budget < 0:
            raise ValueError("it unpacks to more data than it contains")

    def keys(self, items: Any) -> list[Any]:
        if not isinstance(items, (list, tuple, set, frozenset)):
            raise TypeError("the members of a set that are not in a list")
        self.spend(len(items))
        return [self.all_keys.check(item) for item in items]

    def encode(self, text: Any, encoding: Any) -> bytes:
        if not isinstance(text, str) or encoding != "latin1":
            raise TypeError("bytes that are not encoded as latin1 text")
        self.spend(len(text))
        return text.encode("latin1")

    def bytearray(self, *args: Any) -> bytearray:
        if args and not isinstance(args[0], (bytes, memoryview)):
            raise TypeError("a bytearray that is not made of bytes")
        self.spend(len(args[0]) if args else 0)
        return bytearray(args[0] if args else b"")

    def complex(self, real: Any, imag: Any) -> complex:
        return complex(float(real), float(imag))

    def ordered_dict(self, items: Any = ()) -> dict:
        """A dict from a dict or a list of pairs."""
        pairs = list(items.items()) if isinstance(items, dict) else items
        if not isinstance(pairs, (list, tuple)):
            raise TypeError("the items of a dict that are not in a list")
        self.spend(len(pairs))
        return {self.all_keys.check(key): value for key, value in pairs}

    def easy_dict(self, items: Any = ()) -> EasyDict:
        return EasyDict(self.ordered_dict(items))

    def size(self, sizes: Any) -> torch.Size:
        _contiguous_count(sizes)
        return torch.Size(sizes)

    def device(self, kind: Any, index: Any = None) -> torch.device:
        if not isinstance(kind, str) or not (index is None or type(index) is int):
            raise TypeError("an invalid device")
        return torch.device(kind) if index is None else torch.device(kind, index)

    def array(self, data: Any, dtype: Any, shape: Any, order: Any = "C") -> np.ndarray:
        """A separate array in native byte order, which `data` fills exactly."""
        dtype = dtype.dtype if isinstance(dtype, _Dtype) else dtype
        if not isinstance(dtype, np.dtype) or not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError("a numpy array that is not made of bytes")
        if _contiguous_count(shape) * dtype.itemsize != len(data):
            raise ValueError("a numpy array whose bytes do not fill its shape")
        self.spend(len(data))
        native = dtype.newbyteorder("=")
        flat = np.frombuffer(data, dtype) if len(data) else np.zeros(0, native)
        return np.array(flat, native).reshape(shape, order="F" if order == "F" else "C")

    def scalar(self, dtype: Any, data: Any = b"") -> np.generic:
        return self.array(data, dtype, ())[()]

    def persistent_object(self, meta: Any) -> StoredObject:
        """The object that `torch_utils.persistence` would rebuild, left as data."""
        self.spend(len(meta))
        meta = _as_dict(meta)
        kind, class_name, module_src, state = map(meta.get, ("type", "class_name", "module_src", "state"))
        # Comparing or printing any other value could take forever, or fail: it may be a nested structure or an array.
        if not all(isinstance(text, str) for text in (kind, class_name, module_src)) or kind != "class":
            raise TypeError("a stored object that is not of the type 'class'")
        if type(meta.get("version")) is not int:
            raise TypeError("a stored object without a format version")
        self.spend(len(state))
        state = _as_dict(state)
        args, kwargs = state.get("_init_args", ()), state.get("_init_kwargs", {})
        if not isinstance(args, (tuple, list)) or not isinstance(kwargs, dict):
            raise TypeError("a stored object without valid constructor arguments")
        return StoredObject(class_name, module_src, state, meta["version"])

    def storage(self, data: Any) -> Storage:
        """A nested storage in torch.save's first format."""
        if not isinstance(data, (bytes, memoryview)):
            raise TypeError("a storage that is not made of bytes")
        self.spend(len(data))
        found = read_first_format(data, self.resolve, self.spend, self.all_keys)
        if not isinstance(found, Storage):
            raise TypeError("something other than a storage in its place")
        return found

    def tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_flags: Any) -> torch.Tensor:
        """A view of a storage. The flags (requires_grad, hooks, metadata) are irrelevant for stored values."""
        count = _contiguous_count(size)
        _contiguous_count(stride)
        if not isinstance(storage, Storage) or type(offset) is not int or offset < 0 or len(size) != len(stride):
            raise TypeError("a tensor that is not a view of a storage")
        available = storage.elements.numel()
        last = offset + sum((n - 1) * step for n, step in zip(size, stride)) if count else 0
        if last >= max(available, 1) or (count and not available) or count > max(available, _SMALL_TENSOR):
            raise ValueError("a tensor that reaches beyond its storage")
        return torch.as_strided(storage.elements, size, stride, offset if count else 0)

    def parameter(self, data: Any, requires_grad: Any = True, *_hooks: Any) -> torch.nn.Parameter:
        if not isinstance(data, torch.Tensor):
            raise TypeError("a parameter that is not a tensor")
        return torch.nn.Parameter(data, requires_grad=bool(requires_grad) and data.is_floating_point())
