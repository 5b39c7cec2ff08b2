# SPDX-License-Identifier: Apache-2.0
"""Storages of tensors in pickles, and the format that torch.save had before it wrote zips."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from torch_utils.pickle_reader import Keys, PickleReader

STORAGE_DTYPES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
    "UntypedStorage": torch.uint8,
}
MAGIC = 0x1950A86A20F9469CFC6C  # a pickle of it starts each file

Resolve = Callable[[str, str], Any]
Spend = Callable[[int], None]  # accounts for a number of bytes copied out of the file


class StorageType:
    """What a pickle calls 'torch.FloatStorage' and the like."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype


class Storage:
    """The elements that tensors are views of: a flat tensor, to be filled later."""

    def __init__(self, dtype: torch.dtype, count: int):
        self._raw = torch.empty(count * dtype.itemsize, dtype=torch.uint8)
        self.elements = self._raw.view(dtype)

    def fill(self, raw: bytes | memoryview) -> None:
        """Copy the elements from `raw`, little-endian. Raises ValueError for another number of bytes."""
        if len(raw) != self._raw.numel():
            raise ValueError("a storage that does not match its description")
        values = np.frombuffer(raw, np.uint8)
        self._raw.numpy()[:] = values != 0 if self.elements.dtype == torch.bool else values


class Storages:
    """The storages that one file refers to, by key."""

    def __init__(self, spend: Spend):
        self._spend = spend
        self.by_key: dict[str, Storage] = {}

    def refer(self, identifier: Any) -> Storage:
        """The storage of a reference ('storage', type, key, location, count) with an optional sixth part, None."""
        kind, storage_type, key, _location, count, *view = identifier
        if kind != "storage" or not isinstance(storage_type, StorageType) or view not in ([], [None]):
            raise ValueError("a reference to something that is not a storage")
        if not isinstance(key, str) or type(count) is not int or count < 0:
            raise ValueError("a storage without a valid name or size")
        dtype = storage_type.dtype
        if key not in self.by_key:
            self._spend(count * dtype.itemsize)
            self.by_key[key] = Storage(dtype, count)
        elements = self.by_key[key].elements
        if (elements.dtype, elements.numel()) != (dtype, count):
            raise ValueError("a storage that is described in two ways")
        return self.by_key[key]


def read_first_format(data: bytes | memoryview, resolve: Resolve, spend: Spend, keys: Keys) -> Any:
    """The object in data from before the zips: header pickles, the object, keys of its storages, their elements."""
    storages = Storages(spend)
    reader = PickleReader(data, resolve, storages.refer, keys)
    magic, _protocol, system = reader.load(), reader.load(), reader.load()
    if magic != MAGIC or not isinstance(system, dict) or system.get("little_endian") is False:
        raise ValueError("a storage that is not in torch's plain little-endian format")
    found, order = reader.load(), reader.load()
    if not isinstance(order, list) or sorted(order) != sorted(storages.by_key):
        raise ValueError("storages that do not match the references to them")
    for key in order:
        storage = storages.by_key[key]
        if int.from_bytes(reader.take(8), "little") != storage.elements.numel():
            raise ValueError("a storage that does not match its description")
        storage.fill(reader.take(storage.elements.numel() * storage.elements.itemsize))
    return found
