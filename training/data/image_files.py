# SPDX-License-Identifier: Apache-2.0
"""Image files in a folder, zip or tar: list them, read them, and describe what is wrong with them.

Shared by the dataset and dataset_tool.py, so PyTorch, which is slow to import, is not used here. Files may come from
anywhere: whatever is wrong with one becomes a DatasetError, and none takes more memory than a large picture does.
"""

import contextlib
import io
import os
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Iterator

import numpy as np
import PIL.Image

from dnnlib.archives import open_zip, read_member
from dnnlib.files import check_regular, open_regular, read_regular
from dnnlib.text import printable
from dnnlib.util import UserError

try:
    import pyspng
except ImportError:
    pyspng = None

LABEL_FILE = "dataset.json"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
JPEG_SIGNATURE = b"\xff\xd8\xff"
JPEG_END = b"\xff\xd9"
HEAD_SIZE = 33  # signature and IHDR chunk of a PNG
TAIL_SIZE = len(PNG_END)
EXIF_CHUNK = b"eXIf"  # of a PNG
# Pillow goes by the content, not the name, and knows formats that start other programs, such as PostScript.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
_CAMERA_EXTENSIONS = frozenset((".heic", ".heif", ".avif", ".jxl", ".dng", ".cr2", ".nef"))
MOST_PIXELS = 2 * 89_478_485  # of one picture: where Pillow refuses, too
MOST_BYTES = 1 << 30  # of an image file: MOST_PIXELS with four channels and all kinds of notes

CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4}  # of the Pillow modes that networks take
KINDS = {1: "grey", 3: "RGB", 4: "RGBA"}

# Pillow mode: (what is wrong with it, value of `dataset_tool.py --channels` that fixes it). 'RGB;16' and others are not
# Pillow's: Pillow has 16-bit grey only and would silently drop the low bytes.
MODE_FAULTS = {
    "1": ("has 1, 2 or 4 bits per pixel instead of 8", 1),
    "I;16": ("is 16-bit grey instead of 8-bit", 1),
    "RGB;16": ("is 16-bit RGB instead of 8-bit", 3),
    "LA": ("has an alpha channel (grey + alpha)", 1),
    "RGBA;16": ("is 16-bit RGBA instead of 8-bit", 4),
    "LA;16": ("has an alpha channel (grey + alpha)", 1),
    "P": ("is a palette image", 3),
    "CMYK": ("is CMYK", 3),
}


class DatasetError(UserError, IOError):
    """An error in the user's images or labels: one sentence with the fault, the place and the fix."""


@contextlib.contextmanager
def _reading(name: str, path: str) -> Iterator[None]:
    """Inside this block, whatever is wrong with the file `name` in `path` becomes a DatasetError."""
    try:
        yield
    except Exception as err:  # damaged archives raise exceptions of any type
        reason = getattr(err, "strerror", None) or (err if isinstance(err, ValueError) else "it is damaged")
        raise DatasetError(f"Cannot read '{printable(name)}' in '{path}': {reason}.") from err


class FolderFiles:
    """All files in a folder and its subfolders, by relative path with forward slashes."""

    def __init__(self, path: str):
        self.path = path

    def names(self) -> list[str]:
        """Sorted paths of all files."""
        found = []
        for root, _dirs, files in os.walk(self.path):
            found += [os.path.relpath(os.path.join(root, file), self.path).replace(os.sep, "/") for file in files]
        return sorted(found)

    def read(self, name: str, limit: int = MOST_BYTES) -> bytes:
        """Contents of one file. Raises DatasetError where it cannot be read or exceeds `limit` bytes."""
        with _reading(name, self.path):
            return read_regular(os.path.join(self.path, name), limit)

    def ends(self, names: list[str]) -> Iterator[tuple[bytes, bytes]]:
        """First HEAD_SIZE and last TAIL_SIZE bytes of each file, without reading the rest."""
        for name in names:
            with _reading(name, self.path), open_regular(os.path.join(self.path, name)) as file:
                head = file.read(HEAD_SIZE)
                file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_SIZE))
                tail = file.read(TAIL_SIZE)
            yield head, tail

    def close(self) -> None:
        """Nothing is held open."""


class ZipFiles:
    """All files in a zip. Each process opens it on first use, so workers do not share a file position."""

    def __init__(self, path: str):
        self.path = path
        self._zip = None
        self._pid = None

    def _open(self) -> zipfile.ZipFile:
        if self._zip is None or self._pid != os.getpid():
            try:
                self._zip = open_zip(self.path)
            except OSError as err:
                raise DatasetError(f"Cannot read '{self.path}': {err.strerror}.") from err
            except ValueError as err:
                raise DatasetError(f"'{self.path}' is neither a folder nor an intact zip file.") from err
            self._pid = os.getpid()
        return self._zip

    def names(self) -> list[str]:
        """Sorted paths of all files."""
        return sorted(info.filename for info in self._open().infolist() if not info.filename.endswith("/"))

    def read(self, name: str, limit: int = MOST_BYTES) -> bytes:
        """Contents of one file. Raises DatasetError where it cannot be read or exceeds `limit` bytes."""
        archive = self._open()
        with _reading(name, self.path):
            return read_member(archive, archive.getinfo(name), limit)

    def ends(self, names: list[str]) -> Iterator[tuple[bytes, bytes]]:
        """First HEAD_SIZE and last TAIL_SIZE bytes of each file; only these are read if it is uncompressed."""
        archive = self._open()
        with open_regular(self.path) as raw:
            for name in names:
                info = archive.getinfo(name)
                if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:
                    with _reading(name, self.path):
                        ends = _stored_ends(raw, info)
                else:
                    data = self.read(name)
                    ends = data[:HEAD_SIZE], data[-TAIL_SIZE:]
                yield ends

    def close(self) -> None:
        """Close the archive; the next use opens it again."""
        if self._zip is not None:
            self._zip.close()
        self._zip = None

    def __getstate__(self):
        return {"path": self.path, "_zip": None, "_pid": None}


def _stored_ends(raw, info: zipfile.ZipInfo) -> tuple[bytes, bytes]:
    # The data follow the local header of 30 bytes, name and extra field; bytes 26..29 are the lengths of the last two.
    raw.seek(info.header_offset + 26)
    lengths = raw.read(4)
    if len(lengths) < 4:
        return b"", b""
    start = info.header_offset + 30 + sum(struct.unpack("<HH", lengths))
    raw.seek(start)
    head = raw.read(min(HEAD_SIZE, info.file_size))
    tail = min(TAIL_SIZE, info.file_size)
    raw.seek(start + info.file_size - tail)
    return head, raw.read(tail)


class TarFiles:
    """All regular files in an uncompressed tar, read in place: nothing in it is made on this machine."""

    def __init__(self, path: str):
        self.path = path
        self._places = {}
        try:
            check_regular(path)
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    if member.size < 0:
                        raise ValueError("it leads back to what was read before")
                    # A sparse file can have any size, of which nothing but a number is in the archive.
                    if member.isreg() and not member.issparse():
                        self._places[member.name.removeprefix("./")] = member.offset_data, member.size
                archive.fileobj.seek(archive.offset)
                if archive.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
                    raise ValueError("tarfile takes a damaged header for the end")
        except Exception as err:  # damaged archives raise exceptions of any type
            raise DatasetError(f"'{path}' is not an intact, uncompressed tar file.") from err

    def names(self) -> list[str]:
        """Sorted paths of all files."""
        return sorted(self._places)

    def read(self, name: str, limit: int = MOST_BYTES) -> bytes:
        """Contents of one file. Raises DatasetError where it cannot be read or exceeds `limit` bytes."""
        offset, size = self._places[name]
        with _reading(name, self.path), open_regular(self.path) as file:
            if size > limit:
                raise ValueError(f"larger than {limit >> 20} MiB")
            file.seek(offset)
            return file.read(size)

    def ends(self, names: list[str]) -> Iterator[tuple[bytes, bytes]]:
        """First HEAD_SIZE and last TAIL_SIZE bytes of each file."""
        for name in names:
            data = self.read(name)
            yield data[:HEAD_SIZE], data[-TAIL_SIZE:]

    def close(self) -> None:
        """Nothing is held open."""


Files = FolderFiles | ZipFiles | TarFiles


def open_files(path: str) -> Files:
    """Files in the folder, zip or `*.tar` at `path`. Raises DatasetError if it is missing or none of these."""
    if os.path.isdir(path):
        return FolderFiles(path)
    if not os.path.exists(path):
        raise DatasetError(f"There is no dataset at '{path}': use the path of a folder or zip of images.")
    if path.lower().endswith(".tar"):
        return TarFiles(path)
    files = ZipFiles(path)
    files.names()
    return files


def image_names(names: list[str]) -> list[str]:
    """The `names` with the extension of one of FORMATS, without macOS resource forks (`._name`)."""
    return _names_of(names, set(FORMATS))


def other_image_names(names: list[str]) -> list[str]:
    """The `names` of pictures in other formats: those that Pillow knows to read, and those of cameras."""
    PIL.Image.init()
    return _names_of(names, set(PIL.Image.OPEN) - set(FORMATS), _CAMERA_EXTENSIONS)


def _names_of(names: list[str], formats: set[str], others: frozenset[str] = frozenset()) -> list[str]:
    extensions = {ext for ext, kind in PIL.Image.registered_extensions().items() if kind in formats} | others
    return [
        name
        for name in names
        if os.path.splitext(name)[1].lower() in extensions and not os.path.basename(name).startswith("._")
    ]


@contextlib.contextmanager
def open_picture(data: bytes, where: str) -> Iterator[PIL.Image.Image]:
    """The image file `data`, opened with Pillow; its pixels are decoded on first use.

    Raises DatasetError, naming `where`, if it is not an image in one of FORMATS or is too large, and for whatever goes
    wrong inside the block.
    """
    try:
        with warnings.catch_warnings():
            # Of pictures half as large as those that it refuses, and of damage in notes about the picture.
            warnings.filterwarnings("ignore", module="PIL")
            with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_pixels(image.width, image.height, where)
                yield image
    except DatasetError:
        raise
    except PIL.Image.DecompressionBombError as err:
        raise _too_large(where) from err
    except Exception as err:  # decoders raise any exception on damaged data
        raise DatasetError(
            f"{where} is empty, truncated, damaged or no usable {', '.join(FORMATS)} image: replace or remove the file."
        ) from err


def _check_pixels(width: int, height: int, where: str) -> None:
    if width * height > MOST_PIXELS:
        raise _too_large(where)


def _too_large(where: str) -> DatasetError:
    return DatasetError(f"{where} has more than {MOST_PIXELS // 10**6} million pixels: make it smaller or remove it.")


def read_header(data: bytes, where: str) -> tuple[str, int, int]:
    """Pillow mode (or 'RGB;16', 'LA;16', 'RGBA;16'), width and height of an image file; 26 bytes are enough for a PNG.

    Raises DatasetError, naming `where`, if it is not an image or has more than MOST_PIXELS.
    """
    if data.startswith(PNG_SIGNATURE):
        if len(data) < 26:
            raise DatasetError(f"{where} is truncated: replace or remove the file.")
        width, height, depth, kind = struct.unpack(">IIBB", data[16:26])
        _check_pixels(width, height, where)
        if depth not in (8, 16) and kind == 0:
            mode = "1"
        else:
            mode = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}.get(kind, "unknown")
        if depth == 16:
            mode = {"L": "I;16", "RGB": "RGB;16", "LA": "LA;16", "RGBA": "RGBA;16"}.get(mode, mode)
        return mode, width, height
    with open_picture(data, where) as image:
        return image.mode, image.width, image.height


def check_mode(mode: str, where: str) -> None:
    """Raises DatasetError if `mode` is not 8-bit grey, RGB or RGBA."""
    if mode not in CHANNELS:
        fault, channels = MODE_FAULTS.get(mode, (f"has the colour mode {mode}", 3))
        raise DatasetError(
            f"{where} {fault}, and only 8-bit grey, RGB and RGBA are supported: "
            f"convert the dataset with dataset_tool.py --channels={channels}."
        )


def header_shape(data: bytes, where: str) -> list[int]:
    """[C, H, W] of an image file, from its header. Raises DatasetError if it is not 8-bit grey, RGB or RGBA."""
    mode, width, height = read_header(data, where)
    check_mode(mode, where)
    return [CHANNELS[mode], height, width]


def check_side(height: int, width: int, where: str) -> None:
    """Raises DatasetError if the image is not square with a power of two, at least 4, as its side."""
    if width != height or width < 4 or width & (width - 1):
        side = 1 << max(2, min(width, height).bit_length() - 1)
        raise DatasetError(
            f"{where} is {width}x{height}, and images must be square with a power of two from 4 up as their side: "
            f"convert with dataset_tool.py --transform=center-crop --width={side} --height={side}."
        )


def check_same_shape(shape: list[int], expected: list[int], where: str) -> None:
    """Raises DatasetError if an image's [C, H, W] differs from that of the first image."""
    if shape[1:] != expected[1:]:
        _channels, height, width = expected
        raise DatasetError(
            f"{where} is {shape[2]}x{shape[1]}, while the first image is {width}x{height}: convert all to one size "
            f"with dataset_tool.py --transform=center-crop --width={width} --height={height}."
        )
    if shape[0] != expected[0]:
        raise DatasetError(
            f"{where} is {KINDS[shape[0]]}, while the first image is {KINDS[expected[0]]}: convert all to one kind "
            f"with dataset_tool.py --channels=3."
        )


def ends_intact(head: bytes, tail: bytes) -> bool:
    """Whether a file with this beginning and end is a complete PNG or JPEG. False means unknown."""
    if head.startswith(PNG_SIGNATURE):
        return tail == PNG_END
    return head.startswith(JPEG_SIGNATURE) and tail.endswith(JPEG_END)


def decode_image(data: bytes, where: str) -> np.ndarray:
    """Pixels of an image file, uint8 [H, W, C]. Raises DatasetError if it is damaged or has an unsupported mode."""
    mode, _width, _height = read_header(data, where)
    check_mode(mode, where)
    if pyspng is not None and data.startswith(PNG_SIGNATURE):
        try:
            pixels = pyspng.load(data, format=mode)
        except Exception as err:  # decoders raise any exception on damaged data
            raise DatasetError(f"{where} is truncated or damaged: replace or remove the file.") from err
    else:
        with open_picture(data, where) as image:
            pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], -1)
