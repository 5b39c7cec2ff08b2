# SPDX-License-Identifier: Apache-2.0
"""Packed input: zips and gzip files, never unpacked to more than real data would need.

A few kilobytes can be made to unpack to gigabytes. Sizes are compared with a bound before anything is unpacked, and the
sizes that a file states are not trusted.
"""

import contextlib
import gzip
import os
import zipfile
from collections.abc import Iterator

from dnnlib.files import check_regular, open_regular

_UNPACKED_FREELY = 1 << 26  # bytes of any one file, such as an empty picture of 4096x4096 pixels
_LARGEST_RATIO = 64  # beyond that; pictures and features pack to a half, lists of labels to a tenth


def most_unpacked(packed: int) -> int:
    """The number of bytes that `packed` bytes may unpack to."""
    return _UNPACKED_FREELY + _LARGEST_RATIO * packed


def open_zip(path: str | os.PathLike) -> zipfile.ZipFile:
    """The zip at `path`. Raises OSError if it cannot be read or is no regular file, ValueError if it is not intact."""
    check_regular(path)
    try:
        return zipfile.ZipFile(path)
    except OSError:
        raise
    except Exception as error:  # damaged directories raise exceptions of any type
        raise ValueError("it is not an intact zip file") from error


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> bytes:
    """Contents of a file in a zip. Raises ValueError, with the reason, if it is damaged or exceeds `limit` bytes."""
    check_member(archive, info, limit)
    try:
        with archive.open(info) as file:
            data = file.read(info.file_size + 1)  # with a number, zlib makes no more than that
        if len(data) != info.file_size:
            raise ValueError("another size than stated")
        return data
    except Exception as error:  # damaged data raise exceptions of any type
        raise ValueError("the zip is damaged or encrypted") from error


def check_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> None:
    """Raises ValueError, with the reason, if a file in a zip exceeds `limit` bytes or is packed beyond belief.

    What has passed can be read in pieces without unpacking more than `info.file_size` bytes.
    """
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # The other methods unpack their input in pieces of any size.
        raise ValueError("of the methods of zip only 'stored' and 'deflated' are read: pack it again, or unpack it")
    if info.file_size > min(limit, _UNPACKED_FREELY):
        limit = min(limit, most_unpacked(min(info.compress_size, os.path.getsize(archive.filename))))
        if info.file_size > limit:
            raise ValueError(f"it would unpack to more than {limit >> 20} MiB")


class GzipReader:
    """The unpacked contents of a gzip file, of which `left` bytes may still be read."""

    def __init__(self, file: gzip.GzipFile, left: int):
        self.left = left
        self._file = file

    def read(self, size: int) -> bytes:
        """The next `size` bytes; fewer at the end. Raises ValueError if that is too much, or what gzip raises."""
        data = self._file.read(min(size, self.left + 1))
        self.left -= len(data)
        if self.left < 0:
            raise ValueError("it unpacks to too much")
        return data


@contextlib.contextmanager
def open_gzip(path: str | os.PathLike, limit: int) -> Iterator[GzipReader]:
    """The gzip file `path`, of which at most `limit` bytes can be read. Raises OSError as `open_regular` does."""
    with open_regular(path) as packed, gzip.GzipFile(fileobj=packed) as file:
        yield GzipReader(file, min(limit, most_unpacked(os.fstat(packed.fileno()).st_size)))
