# SPDX-License-Identifier: Apache-2.0
"""Zips and gzip files that are damaged, or would unpack to more than fits into memory."""

import bz2
import gzip
import os
import zipfile
import zlib

import pytest

from dnnlib import archives
from tests.hostile import Member, bomb, gzip_bomb, memory_below, write_zip

LIMIT = 1 << 30


def read(path, name="a", limit=LIMIT) -> bytes:
    with archives.open_zip(path) as archive:
        return archives.read_member(archive, archive.getinfo(name), limit)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_whole_files_are_read(tmp_path, method):
    content = os.urandom(100_000) + bytes(100_000)
    with zipfile.ZipFile(tmp_path / "z.zip", "w", method) as archive:
        archive.writestr("a", content)
        archive.writestr("empty", b"")
    assert read(tmp_path / "z.zip") == content and read(tmp_path / "z.zip", "empty") == b""
    assert read(tmp_path / "z.zip", limit=200_000) == content
    with pytest.raises(ValueError, match="unpack to more"):
        read(tmp_path / "z.zip", limit=199_999)


def test_a_flat_picture_of_64_mib_is_no_bomb(tmp_path):
    content = bytes(64 << 20)
    path = write_zip(tmp_path / "z.zip", [bomb(b"a", 64)._replace(crc=zlib.crc32(content))])
    assert read(path) == content


BOMBS = {
    "true size": bomb(b"a"),
    "stated to be small": bomb(b"a", stated=1000),
    "stated to be within the bound": bomb(b"a", stated=60 << 20),
    "stated to be packed": Member(b"a", b"\0" * 10, size=LIMIT - 1),
}


@pytest.mark.parametrize("member", BOMBS.values(), ids=BOMBS)
def test_bombs_in_zips_do_not_unpack(tmp_path, member):
    path = write_zip(tmp_path / "z.zip", [member])
    with memory_below(200), pytest.raises(ValueError, match=r"unpack to more|damaged"):
        read(path)


def test_methods_without_a_bound_are_not_used(tmp_path):
    content = bytes(1000)
    member = Member(b"a", bz2.compress(content), zipfile.ZIP_BZIP2, 1000, zlib.crc32(content))
    with pytest.raises(ValueError, match="only 'stored' and 'deflated' are read"):
        read(write_zip(tmp_path / "z.zip", [member]))


def test_a_bomb_whose_packed_size_is_false_does_not_unpack(tmp_path):
    path = write_zip(tmp_path / "z.zip", [bomb(b"a")])
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02") + 20
    data[at : at + 4] = (LIMIT).to_bytes(4, "little")
    path.write_bytes(data)
    with memory_below(200), pytest.raises(ValueError, match="unpack to more"):
        read(path)


DAMAGED = {
    "newer version": Member(b"a", b"x", version=255),
    "name that is not UTF-8": Member(b"\xff", b"x", flags=0x800),
    "encrypted": Member(b"a", b"x" * 50, flags=1),
    "no deflate": Member(b"a", b"\xff" * 50, 8, 100),
    "LZMA": Member(b"a", b"\x09\x04\x05\x00" + b"x" * 50, zipfile.ZIP_LZMA, 100),
    "unknown method": Member(b"a", b"x", 99),
    "checksum": Member(b"a", b"x", crc=1),
    "too short": Member(b"a", b"x", size=2),
}


@pytest.mark.parametrize("member", DAMAGED.values(), ids=DAMAGED)
def test_damaged_zips_raise_value_error(tmp_path, member):
    with pytest.raises(ValueError):
        read(write_zip(tmp_path / "z.zip", [member]))


def test_gzip_files_give_at_most_their_limit(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"0123456789"))
    with archives.open_gzip(tmp_path / "a.gz", 10) as file:
        assert (file.read(4), file.left, file.read(100), file.read(1)) == (b"0123", 6, b"456789", b"")
    with archives.open_gzip(tmp_path / "a.gz", 9) as file, pytest.raises(ValueError, match="too much"):
        file.read(100)
    (tmp_path / "bomb.gz").write_bytes(gzip_bomb(b"head"))
    with memory_below(200), archives.open_gzip(tmp_path / "bomb.gz", LIMIT) as file:
        assert file.read(4) == b"head" and file.left < 150 << 20
        with pytest.raises(ValueError, match="too much"):
            while file.read(1 << 20):
                pass


@pytest.mark.skipif(os.name != "posix", reason="pipes are POSIX")
@pytest.mark.parametrize("open_file", [archives.open_zip, lambda path: archives.open_gzip(path, 1).__enter__()])
def test_pipes_and_devices_are_not_opened(tmp_path, open_file):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(OSError, match="not a regular file"):
            open_file(path)
