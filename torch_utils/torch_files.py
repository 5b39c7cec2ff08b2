# SPDX-License-Identifier: Apache-2.0
"""Files of torch.save with nothing but tensors in dicts, such as a `state_dict()`, read by our own pickle reader.

torch.load is not used: in some versions of PyTorch it runs code from crafted files even with weights_only=True
(CVE-2025-32434), and in none is its memory bounded by the size of the file.
"""

import io
import re
import zipfile
from typing import Any

import torch

from dnnlib.text import printable
from dnnlib.util import UserError
from torch_utils.pickle_reader import Builder, Keys, PickleReader, Unfinished
from torch_utils.safe_pickle import COPIES, BrokenPickleError, Rebuilder
from torch_utils.torch_storages import MAGIC, Resolve, Spend, Storages, read_first_format

_START = re.compile(rb"PK\x03\x04|\x80[\x02-\x05](\x95.{8})?\x8a\x0a" + re.escape(MAGIC.to_bytes(10, "little")), re.S)
_ZIP_ENTRY, _MOST_ZIP_ENTRIES = b"PK\x01\x02", 10_000  # of a network about 200


def starts_like_torch_save(data: bytes) -> bool:
    """Whether `data` starts like a file of torch.save: a zip, or what it wrote before PyTorch 1.6."""
    return _START.match(data) is not None


def loads_tensors(data: bytes, name: str) -> dict[str, torch.Tensor]:
    """The tensors by name in `data`, a file of torch.save that holds nothing else; such as a `state_dict()`.

    They are on the CPU. Messages call the file `name`. Raises UnsafePickleError or BrokenPickleError for another one.
    """
    return tensors_by_name(loads(data, name), name)


def loads(data: bytes, name: str) -> Any:
    """What torch.save wrote in `data`: dicts, lists, text, numbers, and tensors on the CPU.

    An argparse.Namespace is a `Skipped`. Messages call the file `name`. Raises UnsafePickleError for any other type,
    BrokenPickleError for damaged data.
    """
    try:
        rebuilder = _TensorRebuilder(name, COPIES * len(data))
        read = _read_zip if data.startswith(b"PK") else read_first_format
        return read(data, rebuilder.resolve, rebuilder.spend, rebuilder.all_keys)
    except UserError:
        raise
    except Exception as error:
        # Damaged bytes can make any step fail in any way; to the user these are all the same error.
        raise BrokenPickleError(
            f"{name} is not a file of torch.save, or is damaged ({type(error).__name__}: {printable(str(error))})"
        ) from error


def tensors_by_name(found: Any, name: str) -> dict[str, torch.Tensor]:
    """`found` from `loads`, if it is tensors by name and nothing else. Raises BrokenPickleError otherwise."""
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise BrokenPickleError(f"{name} is a file of torch.save, but does not hold tensors by name")
    for key, value in found.items():
        if not isinstance(value, torch.Tensor):
            kind = type(value).__name__
            raise BrokenPickleError(f"{name} does not hold tensors only: {printable(key, 100)} is of type {kind}")
    return dict(found)


def _read_zip(data: bytes, resolve: Resolve, spend: Spend, keys: Keys) -> Any:
    """The object in a zip: <name>/data.pkl, and the elements of its storages as <name>/data/<key>."""
    if data.count(_ZIP_ENTRY) > _MOST_ZIP_ENTRIES:
        raise ValueError("a zip of too many files")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
            raise ValueError("a packed zip, which torch.save does not write")
        if sum(info.file_size for info in entries.values()) > len(data):
            raise ValueError("a zip whose files overlap")
        folders = [name.removesuffix("data.pkl") for name in entries if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(folders) != 1:
            raise ValueError("a zip that is not from torch.save")
        (folder,) = folders
        if f"{folder}byteorder" in entries and archive.read(f"{folder}byteorder") != b"little":
            raise ValueError("a file that is not little-endian")
        storages = Storages(spend)
        found = PickleReader(archive.read(f"{folder}data.pkl"), resolve, storages.refer, keys).load()
        for key, storage in storages.by_key.items():
            storage.fill(archive.read(f"{folder}data/{key}"))
    return found


class _OrderedDict(dict, Unfinished):
    """An OrderedDict whose attributes follow; `Module.state_dict` keeps versions of the modules there."""

    def __init__(self, items: dict):
        dict.__init__(self, items)
        Unfinished.__init__(self)

    def build(self, state: Any) -> "_OrderedDict":
        return self


class Skipped(Unfinished):
    """An object of the file of which nothing was kept, such as the flags of the program that wrote it."""

    def build(self, state: Any) -> "Skipped":
        """Forget the object's state."""
        return self


class _TensorRebuilder(Rebuilder):
    """Resolves the global names of a file of tensors, which needs fewer."""

    refusal = "which no file of tensors needs, so it is not loaded"

    def __init__(self, name: str, budget: int):
        super().__init__(name, budget)
        needed = ("torch.Size", "torch._utils._rebuild_")
        self.builders = {name: builder for name, builder in self.builders.items() if name.startswith(needed)}
        self.builders["collections.OrderedDict"] = Builder(
            "collections.OrderedDict", lambda *items: _OrderedDict(self.ordered_dict(*items))
        )
        self.builders["argparse.Namespace"] = Builder("argparse.Namespace", lambda *_nothing: Skipped())
