# SPDX-License-Identifier: Apache-2.0
"""The CIFAR-10 archive for Python: a tar of five pickles, each a dict of uint8 pixels and class numbers."""

import tarfile
from typing import Any

import numpy as np

from dnnlib.archives import open_gzip
from dnnlib.text import printable
from torch_utils.pickle_reader import Builder, PickleReader, Unfinished
from training.data.image_files import DatasetError

CLASSES = 10
_NAMES = [f"cifar-10-batches-py/data_batch_{index}" for index in range(1, 6)]
_SHAPE = (3, 32, 32)
_MOST_BYTES = 1 << 29  # of the tar, which has 186 MB, or up to twice as many where pixels are stored as text
_MOST_BATCH_BYTES = 1 << 26  # of one pickle, which has 31 MB


def read(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels, uint8 [N, 32, 32, 3], and class numbers, int64 [N], of the training images in the archive `path`.

    Nothing in it is executed. Raises DatasetError if it is damaged or contains anything else.
    """
    found = {}
    try:
        with open_gzip(path, _MOST_BYTES) as file, tarfile.open(fileobj=file, mode="r|") as archive:
            for member in archive:
                if member.name in _NAMES:
                    found[member.name] = _read_batch(_contents(archive, member))
        pixels, labels = zip(*(found[name] for name in _NAMES))
    except _NotAllowed as err:
        raise DatasetError(f"'{path}' is damaged or contains something other than arrays: {err}.") from err
    except Exception as err:  # damaged data raise exceptions of any type
        raise DatasetError(f"'{path}' is truncated or not the CIFAR-10 archive: download it again.") from err
    return np.concatenate(pixels).reshape(-1, *_SHAPE).transpose(0, 2, 3, 1), np.concatenate(labels)


def _contents(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    # A sparse file can have any size, of which nothing but a number is in the archive.
    if not member.isreg() or member.issparse() or member.size > _MOST_BATCH_BYTES:
        raise ValueError("not a regular file of the usual size")
    return archive.extractfile(member).read()


def _read_batch(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Pixels, uint8 [n, 3072], and labels, int64 [n], of one pickle. Raises an exception of any type."""
    content = PickleReader(data, _Names(len(data)).resolve).load()
    content = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
    pixels, labels = content["data"], content["labels"]
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != np.prod(_SHAPE):
        raise ValueError("the pixels have the wrong shape")
    if type(labels) is not list or len(labels) != len(pixels) or set(map(type, labels)) - {int}:
        raise ValueError("the labels are not one number for each image")
    if not all(0 <= label < CLASSES for label in labels):
        raise ValueError("the labels are not class numbers")
    return pixels, np.array(labels, dtype=np.int64)


class _NotAllowed(Exception):
    """The pickle asks for something other than arrays."""


class _Dtype(Unfinished):
    """A numpy dtype, of which only uint8 is possible; its byte order follows later."""

    def __init__(self, name: Any, *_align_and_copy: Any):
        super().__init__()
        if name not in (b"u1", "u1"):
            raise ValueError("pixels other than uint8")

    def build(self, state: Any) -> np.dtype:
        return np.dtype(np.uint8)


class _Array(Unfinished):
    """A numpy array; its content follows later."""

    def __init__(self, *_class_shape_and_code: Any):
        super().__init__()

    def build(self, state: Any) -> np.ndarray:
        """A view of the bytes in the pickle. Raises an exception of any type."""
        _version, shape, dtype, fortran_order, data = state
        return _from_buffer(data, dtype, shape, "F" if fortran_order else "C")


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """A view of the bytes `data`. Raises an exception of any type."""
    if not isinstance(dtype, np.dtype) or order != "C" or not isinstance(data, (bytes, bytearray, memoryview)):
        raise ValueError("not an array of bytes, row by row")
    return np.frombuffer(data, dtype).reshape(shape)


# numpy.core was renamed in NumPy 2. The class is an argument of _reconstruct, and as no Builder it is never called.
_GLOBALS = {
    "numpy.core.multiarray._reconstruct": Builder("_reconstruct", _Array),
    "numpy._core.multiarray._reconstruct": Builder("_reconstruct", _Array),
    "numpy.core.numeric._frombuffer": Builder("_frombuffer", _from_buffer),  # of protocol 5
    "numpy._core.numeric._frombuffer": Builder("_frombuffer", _from_buffer),
    "numpy.dtype": Builder("numpy.dtype", _Dtype),
    "numpy.ndarray": np.ndarray,
}


class _Names:
    """What a pickle of `size` bytes may ask for."""

    def __init__(self, size: int):
        self._left = size
        self._globals = {**_GLOBALS, "_codecs.encode": Builder("_codecs.encode", self._encode)}

    def resolve(self, module: str, name: str) -> Any:
        full_name = f"{module}.{name}"
        if full_name not in self._globals:
            raise _NotAllowed(f"{printable(full_name)} is not allowed")
        return self._globals[full_name]

    def _encode(self, text: Any, encoding: Any) -> bytes:
        """Bytes, which Python 3 stores in protocol 2 as text. Together they are not longer than the pickle."""
        if type(text) is not str or encoding != "latin1":
            raise ValueError("bytes that are not stored as latin1 text")
        self._left -= len(text)
        if self._left < 0:
            raise ValueError("more bytes than the pickle has")
        return text.encode("latin1")
