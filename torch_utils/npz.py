# SPDX-License-Identifier: Apache-2.0
"""Arrays in npz files that may come from anywhere; `numpy.load` makes arrays of any size that a file states."""

import math
import os
import zipfile
from collections.abc import Collection

import numpy as np

from dnnlib.archives import check_member, open_zip
from dnnlib.text import printable

_MOST_BYTES = 1 << 40  # of one array: its own packed size is the real bound
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read(path: str | os.PathLike, names: Collection[str]) -> dict[str, np.ndarray]:
    """The arrays `names` of an npz file, as far as it has them; arrays of objects are refused.

    Raises OSError if the file cannot be read or is no regular file, ValueError, with the reason, for a damaged one.
    """
    with open_zip(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        return {name: _read_array(archive, info) for name, info in members.items() if name in names}


def _read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    check_member(archive, info, _MOST_BYTES)
    try:
        with archive.open(info) as file:
            shape, _fortran_order, dtype = _HEADERS[np.lib.format.read_magic(file)](file)
            if dtype.hasobject or not dtype.itemsize:
                raise ValueError("it has no plain elements")
            if math.prod(shape) * dtype.itemsize != info.file_size - file.tell():
                raise ValueError("its header states another size")
        with archive.open(info) as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # damaged data raise exceptions of any type
        raise ValueError(f"the array '{printable(info.filename)}' is damaged or not of plain numbers") from error
