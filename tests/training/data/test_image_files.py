# SPDX-License-Identifier: Apache-2.0
"""Pictures and folders that no camera makes: PostScript under other names, sizes that are not there, pipes, devices."""

import ast
import io
import os
import struct

import numpy as np
import PIL.Image
import pytest

from tests.hostile import Member, bomb, memory_below, write_zip
from tests.support import ROOT
from training.data import image_files
from training.data.image_files import DatasetError
from training.data.sources import decode
from training.dataset import ImageFolderDataset


def encoded(kind: str, *shape: int) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(np.zeros(shape, np.uint8)).save(file, kind)
    return file.getvalue()


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"


@pytest.mark.skipif(os.name != "posix", reason="the stand-in is a shell script")
@pytest.mark.parametrize("name", ["a.eps", "a.jpg", "a.png"])
def test_pictures_start_no_program(tmp_path, monkeypatch, name):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # Pillow looks for the program once
    for read in (image_files.decode_image, lambda data, where: decode(data, where, channels=3)):
        with pytest.raises(DatasetError, match="a place"):
            read(POSTSCRIPT, "a place")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / name).write_bytes(POSTSCRIPT)
    with pytest.raises(DatasetError, match="contains no images" if name == "a.eps" else f"'{name}'"):
        ImageFolderDataset(str(tmp_path / "d"))
    assert not (tmp_path / "started").exists()


def test_pillow_is_told_the_formats_wherever_it_opens_a_file():
    files = [*ROOT.glob("*.py"), *(path for path in ROOT.glob("[!.]*/**/*.py") if path.parts[-2] != "tests")]
    calls = []
    for path in files:
        if path.relative_to(ROOT).parts[0] in ("tests", "build", "runs"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Image.open", "PIL.Image.open"):
                calls.append((path.name, [keyword.arg for keyword in node.keywords]))
    assert ("image_files.py", ["formats"]) in calls
    assert [call for call in calls if call[1] != ["formats"]] == []


@pytest.mark.parametrize("kind", image_files.FORMATS)
def test_every_format_is_read(kind):
    assert decode(encoded(kind, 16, 8, 3), "x", channels=3).size == (8, 16)
    assert len(image_files.image_names([f"a.{kind.lower()}", f"b.{kind}", f"._c.{kind}"])) == 2


def jpeg_of(width: int, height: int) -> bytes:
    data = encoded("JPEG", 8, 8)
    return patched(data, data.index(b"\xff\xc0") + 5, struct.pack(">HH", height, width))


def test_neither_large_photos_nor_their_notes_are_a_reason_for_a_warning():
    # Pillow warns from 89 million pixels on, and warnings are errors in this test.
    assert image_files.read_header(jpeg_of(12_000, 14_000), "x") == ("L", 12_000, 14_000)
    noted = io.BytesIO()
    PIL.Image.new("L", (8, 8)).save(noted, "TIFF", description="x" * 99)
    cut = noted.getvalue().replace(struct.pack("<HHI", 270, 2, 100), struct.pack("<HHI", 270, 2, 1 << 20))
    assert cut != noted.getvalue() and decode(cut, "x", channels=3).size == (8, 8)


LARGE = 1 << 17
TOO_LARGE = {
    "PNG": patched(encoded("PNG", 8, 8), 16, struct.pack(">II", 1 << 15, 1 << 15)),
    "PNG palette": patched(encoded("PNG", 8, 8), 16, struct.pack(">IIBB", 1 << 15, 1 << 15, 8, 3)),
    "JPEG": jpeg_of(65_500, 65_500),
    "BMP": patched(encoded("BMP", 8, 8), 18, struct.pack("<ii", LARGE, LARGE)),
    "GIF": patched(encoded("GIF", 8, 8), 6, b"\xff\xff\xff\xff"),
    "TIFF": encoded("TIFF", 8, 8)
    .replace(struct.pack("<HHII", 256, 4, 1, 8), struct.pack("<HHII", 256, 4, 1, LARGE))
    .replace(struct.pack("<HHII", 257, 4, 1, 8), struct.pack("<HHII", 257, 4, 1, LARGE)),
    "PPM": b"P6 99999999 99999999 255\n",
}


@pytest.mark.parametrize("data", TOO_LARGE.values(), ids=TOO_LARGE)
def test_pictures_of_impossible_sizes_are_refused_by_their_headers(tmp_path, data):
    for read in (image_files.read_header, image_files.decode_image, lambda data, where: decode(data, where, 3)):
        with memory_below(50), pytest.raises(DatasetError, match=r"a place.*million pixels"):
            read(data, "a place")


OTHERS = {
    "PSD": b"8BPS" + bytes(100),
    "DDS": b"DDS " + bytes(200),
    "SGI": b"\x01\xda" + bytes(600),
    "long number": b"P6 " + b"9" * 5000 + b" 9 255\n",
    "cut WEBP": encoded("WEBP", 8, 8, 3)[:20],
}


@pytest.mark.parametrize("data", OTHERS.values(), ids=OTHERS)
def test_other_formats_and_damage_are_refused(data):
    for read in (image_files.read_header, image_files.decode_image, lambda data, where: decode(data, where, 3)):
        with pytest.raises(DatasetError, match=r"a place.*no usable PNG"):
            read(data, "a place")


PICTURE = encoded("PNG", 8, 8)
ZIPS = {
    "newer version": [Member(b"a.png", PICTURE, version=255)],
    "name that is not UTF-8": [Member(b"\xff.png", PICTURE, flags=0x800)],
    "LZMA": [Member(b"a.png", b"\x09\x04\x05\x00" + b"x" * 50, 14, 500)],
    "encrypted": [Member(b"a.png", PICTURE, flags=1)],
    "first is a bomb": [bomb(b"a.png")],
    "first is a bomb, unsaid": [bomb(b"a.png", stated=1000)],
    "later is a bomb": [Member(b"a.png", PICTURE), bomb(b"b.png")],
    "size beyond the end": [Member(b"a.png", PICTURE), Member(b"b.png", PICTURE, size=0xFFFFFFF0)],
    "empty name": [Member(b"a.png", PICTURE), Member(b"", PICTURE), Member(b"b.png", b"")],
    "labels are a bomb": [Member(b"a.png", PICTURE), bomb(b"dataset.json")],
}


@pytest.mark.parametrize("members", ZIPS.values(), ids=ZIPS)
def test_damaged_zips_are_refused(tmp_path, members):
    path = str(write_zip(tmp_path / "d.zip", members))
    with memory_below(100), pytest.raises(DatasetError, match=r"d\.zip"):
        ImageFolderDataset(path, use_labels=True).validate()


def test_names_are_printed_short_and_without_control_characters(tmp_path):
    names = (b"\x1b[2J\x07.png", b"x" * 60_000 + b".png")
    for member in (Member(name, b"damaged", flags=flags) for name in names for flags in (0, 1)):
        path = str(write_zip(tmp_path / "d.zip", [member]))
        with pytest.raises(DatasetError) as caught:
            ImageFolderDataset(path)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 600


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices are POSIX")
def test_pipes_and_devices_are_refused(tmp_path):
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "a.png")
    (tmp_path / "device").mkdir()
    (tmp_path / "device" / "a.png").symlink_to("/dev/zero")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.png").write_bytes(PICTURE)
    (tmp_path / "labels" / "dataset.json").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", tmp_path / "device", tmp_path / "labels", tmp_path / "pipe" / "a.png"):
        with pytest.raises(DatasetError, match="not a regular file"):
            ImageFolderDataset(str(path), use_labels=True).validate()


def test_a_link_to_a_picture_is_read(tmp_path):
    (tmp_path / "real.png").write_bytes(PICTURE)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.png").symlink_to("../real.png")
    ImageFolderDataset(str(tmp_path / "d")).validate()
