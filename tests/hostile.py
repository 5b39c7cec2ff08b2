# SPDX-License-Identifier: Apache-2.0
"""Files that no honest program writes: zips whose parts contradict each other, gigabytes of packed zeros."""

import contextlib
import gzip
import pathlib
import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from typing import NamedTuple


class Member(NamedTuple):
    """A file in a zip, as its headers describe it."""

    name: bytes
    packed: bytes
    method: int = 0
    size: int | None = None  # unpacked; None: that of `packed`
    crc: int | None = None  # None: that of `packed`
    flags: int = 0
    version: int = 20  # needed to unpack it


def write_zip(path: pathlib.Path, members: list[Member]) -> pathlib.Path:
    """A zip of `members`, none of whose statements is checked."""
    data, directory = b"", b""
    for name, packed, method, size, crc, flags, version in members:
        size = len(packed) if size is None else size
        crc = zlib.crc32(packed) if crc is None else crc
        fields = struct.pack("<HHHHHIIIHH", version, flags, method, 0, 33, crc, len(packed), size, len(name), 0)
        directory += (
            b"PK\x01\x02" + struct.pack("<H", 20) + fields + struct.pack("<HHHII", 0, 0, 0, 0, len(data)) + name
        )
        data += b"PK\x03\x04" + fields + name + packed
    count = len(members)
    end = struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), len(data), 0)
    path.write_bytes(data + directory + b"PK\x05\x06" + end)
    return path


def bomb(name: bytes, mebibytes: int = 600, stated: int | None = None, head: bytes = b"") -> Member:
    """`head` and zeros in a zip; `stated` is the size that the headers state, by default the true one."""
    size = len(head) + (mebibytes << 20)
    return Member(name, _deflated(head, mebibytes), 8, size if stated is None else stated)


def gzip_bomb(head: bytes, mebibytes: int = 600) -> bytes:
    """A gzip file of `head` and zeros; the checksum at its end is missing."""
    return gzip.compress(b"")[:10] + _deflated(head, mebibytes)


@contextlib.contextmanager
def memory_below(mebibytes: int) -> Iterator[None]:
    """Fails if the block needs more memory than that at any moment."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < mebibytes << 20
    finally:
        tracemalloc.stop()


def _deflated(head: bytes, mebibytes: int) -> bytes:
    """A deflate stream, a thousandth as long as the zeros in it."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    first = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + block * mebibytes + packer.flush(zlib.Z_FINISH)
