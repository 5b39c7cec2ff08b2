# SPDX-License-Identifier: Apache-2.0
"""Image sources of dataset_tool.py: folders, zips, tars, MNIST, CIFAR-10 and LSUN files."""

import contextlib
import functools
import itertools
import math
import os
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import PIL.ExifTags
import PIL.Image

from dnnlib.archives import open_gzip
from dnnlib.files import check_regular
from dnnlib.text import printable
from training.data import cifar10, class_names
from training.data.image_files import (
    EXIF_CHUNK,
    FORMATS,
    JPEG_SIGNATURE,
    LABEL_FILE,
    PNG_SIGNATURE,
    DatasetError,
    Files,
    decode_image,
    image_names,
    open_files,
    open_picture,
    other_image_names,
    read_header,
)
from training.data.labels import label_array, read_labels

MNIST_PADDING = 2  # 28x28 -> 32x32
# How to show an image whose EXIF data have this orientation. PIL.ImageOps.exif_transpose also rewrites the EXIF data,
# which fails where they are damaged.
_TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
_COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_MOST_IDX_BYTES = 1 << 31
_GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "LA;16", "F")
_CIFAR10_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
# Of Fashion-MNIST, whose files have the names of MNIST's, where digits need no names.
_FASHION_NAMES = [
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
]


class SourceImage(NamedTuple):
    """One image: its name in error messages, its pixels or why there are none, its label as in `dataset.json`, or None.

    `mode` is that of the file (see `read_header`), `jpeg` the file itself if it is a JPEG with the same pixels;
    `turned`: it was rotated or mirrored as its EXIF data say.
    """

    where: str
    image: PIL.Image.Image | DatasetError
    label: int | list[float] | None
    mode: str = ""
    jpeg: bytes | None = None
    turned: bool = False


class Source(NamedTuple):
    """The number of images, an iterator that reads them one by one, in order, and the names of classes if known."""

    count: int
    images: Iterator[SourceImage]
    class_names: list[str] | None = None


def open_source(
    path: str,
    channels: int | None = None,
    labels_from: str | None = None,
    background: str = "white",
    max_images: int | None = None,
) -> Source:
    """Images at `path`; its name decides the kind of source.

    Args:
        path: A folder, zip, `*.tar`, `*_lmdb` folder (LSUN), `cifar-10-python.tar.gz`, or
            `*-images-idx3-ubyte.gz` (MNIST).
        channels: 1, 3 or 4 converts every image to 8-bit grey, RGB or RGBA; None chooses grey if all are, else RGB.
        labels_from: 'folders' uses the top-level folders in a folder, zip or tar as classes, not its `dataset.json`.
        background: Colour under transparent parts, if not RGBA is wanted.
        max_images: Only so many images count for the choice of channels; the source has all.

    Raises DatasetError if the source is missing, empty or damaged; an image that cannot be read has a DatasetError
    as its `image`.
    """
    name = os.path.basename(os.path.abspath(path))
    openers = {
        "cifar-10-python.tar.gz": _open_cifar10,
        "-images-idx3-ubyte.gz": _open_mnist,
    }
    if not name.endswith(("_lmdb", *openers)):
        _check_kind(path)
        return _open_files(path, channels, labels_from, background, max_images)
    if labels_from is not None:
        raise DatasetError(f"--labels-from={labels_from} needs a folder, zip or tar as --source, not '{name}'.")
    if not os.path.exists(path):
        raise DatasetError(f"There is no '{path}'.")
    if name.endswith("_lmdb"):
        source = _open_lsun(path, channels, background, max_images)
    else:
        source = next(opener for suffix, opener in openers.items() if name.endswith(suffix))(path, channels)
    if source.count == 0:
        raise DatasetError(f"'{path}' contains no images.")
    return source


def _check_kind(path: str) -> None:
    """Raises DatasetError if `path` is a file of a kind for which there is more to say than that it is not read."""
    if not os.path.isfile(path):
        return
    name = path.lower()
    if name.endswith(_COMPRESSED_TARS):
        raise DatasetError(
            f"'{path}' is a compressed tar, in which images cannot be found one by one: unpack the compression, for "
            f"example with gunzip, and use the .tar as --source, or unpack it all and use the folder."
        )
    if image_names([path]) or other_image_names([path]):
        raise DatasetError(f"'{path}' is one image: use the folder of your images as --source.")


def _convert(image: PIL.Image.Image, channels: int | None, background: str = "white") -> PIL.Image.Image:
    if channels is None:
        return image
    if image.mode == "F":
        raise ValueError("floating-point pixels")
    if image.mode.startswith("I"):
        # 16-bit grey: keep the high byte, as Pillow does for 16-bit RGB.
        image = PIL.Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or (image.mode == "P" and "transparency" in image.info):
        image = image.convert("RGBA")
        if channels < 4:
            image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, background), image)
    return image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])


def decode(data: bytes, where: str, channels: int, background: str = "white") -> PIL.Image.Image:
    """Decode an image file to 1 (grey), 3 (RGB) or 4 (RGBA) `channels`, upright. Errors name it as `where`."""
    return _decode(data, where, channels, background)[0]


def _decode(data: bytes, where: str, channels: int, background: str) -> tuple[PIL.Image.Image, bool]:
    """As `decode`, and whether it was turned to be upright."""
    png = data.startswith(PNG_SIGNATURE) and EXIF_CHUNK not in data
    if png and read_header(data, where)[0] in ("L", "RGB", "RGBA"):  # decode_image is faster than Pillow
        pixels = _without_single_channel(decode_image(data, where))
        return _convert(PIL.Image.fromarray(pixels), channels, background), False
    with open_picture(data, where) as image:
        turn = _turn(image)
        image = _convert(image, channels, background)
        return (image, False) if turn is None else (image.transpose(turn), True)


def _turn(image: PIL.Image.Image) -> PIL.Image.Transpose | None:
    """What makes the image upright, None if nothing is to be done."""
    image.load()  # after which those that Pillow turns itself have no orientation any more
    try:
        return _TURNS.get(image.getexif().get(PIL.ExifTags.Base.Orientation))
    except Exception:  # damaged EXIF data raise exceptions of any type; the picture is intact
        return None


def _read_image(
    read: Callable[[], bytes], where: str, channels: int, background: str, label: int | list[float] | None
) -> SourceImage:
    try:
        data = read()
        mode = read_header(data, where)[0]
        image, turned = _decode(data, where, channels, background)
    except DatasetError as error:
        return SourceImage(where, error, label)
    same = data.startswith(JPEG_SIGNATURE) and mode == image.mode and not turned
    return SourceImage(where, image, label, mode, data if same else None, turned)


def _choose_channels(headers: Iterable[Callable[[], bytes]]) -> int:
    """1 if all images are grey, as far as they can be read, else 3. No more are read than that takes."""
    for header in headers:
        with contextlib.suppress(DatasetError):  # reading the image says what is wrong with it
            if read_header(header(), "")[0] not in _GREY_MODES:
                return 3
    return 1


def _without_single_channel(pixels: np.ndarray) -> np.ndarray:
    # Pillow expects grey images without a channel axis.
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels


def _open_files(
    path: str, channels: int | None, labels_from: str | None, background: str, max_images: int | None
) -> Source:
    files = open_files(path)
    names = image_names(files.names())
    left_out = other_image_names(files.names())
    if left_out:
        print(
            f"Note: {len(left_out)} files such as '{printable(left_out[0])}' are left out: only {', '.join(FORMATS)} "
            f"images are read, so convert them first, for example with ImageMagick: magick mogrify -format png FILE",
            file=sys.stderr,
        )
    if not names:
        raise DatasetError(f"'{path}' contains no images ({', '.join(FORMATS)}).")
    labels, named = _folder_labels(path, names) if labels_from == "folders" else read_labels(files, names)
    if labels is not None and None not in labels:
        array = label_array(labels, f"'{LABEL_FILE}' in '{path}'")
        named = class_names.checked(named, int(array.max()) + 1) if array.ndim == 1 else None
    else:
        named = None
    if channels is None:
        channels = _choose_channels(functools.partial(_header, files, name) for name in names[:max_images])

    def images() -> Iterator[SourceImage]:
        for index, name in enumerate(names):
            where = f"Image '{printable(name)}' in '{path}'"
            read = functools.partial(files.read, name)
            yield _read_image(read, where, channels, background, labels and labels[index])
        files.close()

    return Source(len(names), images(), named)


def _header(files: Files, name: str) -> bytes:
    head = next(files.ends([name]))[0]
    return head if head.startswith(PNG_SIGNATURE) else files.read(name)


def _folder_labels(path: str, names: list[str]) -> tuple[list[int], list[str]]:
    """Class numbers of the images `names`, and the names of the classes."""
    loose = next((name for name in names if "/" not in name), None)
    if loose is not None:
        raise DatasetError(
            f"--labels-from=folders: image '{printable(loose)}' is in no subfolder of '{path}': move it into one."
        )
    folders = sorted({name.split("/")[0] for name in names})
    if len(folders) < 2:
        raise DatasetError(
            f"--labels-from=folders: '{path}' has images in one folder only, '{printable(folders[0])}', but two or "
            f"more classes are needed: use the parent of the class folders as --source."
        )
    classes = {folder: index for index, folder in enumerate(folders)}
    return [classes[name.split("/")[0]] for name in names], folders


def _read_idx(path: str, num_dims: int) -> np.ndarray:
    """The uint8 array in a gzipped IDX file: two zero bytes, type 8, number of dimensions, big-endian sizes, data."""
    try:
        with open_gzip(path, _MOST_IDX_BYTES) as file:
            magic, *sizes = struct.unpack(f">I{num_dims}I", file.read(4 + 4 * num_dims))
            size = math.prod(sizes)
            data = file.read(size + 1) if magic == 0x800 + num_dims and size <= file.left else b""
    except FileNotFoundError as err:
        raise DatasetError(f"MNIST also needs '{path}': put the file there.") from err
    except Exception as err:  # damaged data raise exceptions of any type
        raise DatasetError(f"'{path}' is truncated or not a gzip file: download it again.") from err
    if size == 0:
        raise DatasetError(f"'{path}' contains no images.")
    if len(data) != size:
        raise DatasetError(f"'{path}' is not an MNIST file of {num_dims}-dimensional bytes: download it again.")
    return np.frombuffer(data, dtype=np.uint8).reshape(sizes)


def _open_mnist(path: str, channels: int | None) -> Source:
    pixels = _read_idx(path, num_dims=3)
    labels_path = path.removesuffix("images-idx3-ubyte.gz") + "labels-idx1-ubyte.gz"
    labels = _read_idx(labels_path, num_dims=1)
    if len(labels) != len(pixels):
        raise DatasetError(f"'{path}' has {len(pixels)} images but '{labels_path}' has {len(labels)} labels.")
    if pixels.shape[1:] == (28, 28):
        pixels = np.pad(pixels, [(0, 0), (MNIST_PADDING, MNIST_PADDING), (MNIST_PADDING, MNIST_PADDING)])
    fashion = any("fashion" in part.lower() for part in os.path.abspath(path).split(os.sep)[-2:])
    return _array_source(path, pixels, labels, channels, _FASHION_NAMES if fashion else None)


def _open_cifar10(path: str, channels: int | None) -> Source:
    pixels, labels = cifar10.read(path)
    return _array_source(path, pixels, labels, channels, _CIFAR10_NAMES)


def _array_source(
    path: str, pixels: np.ndarray, labels: np.ndarray, channels: int | None, names: list[str] | None
) -> Source:
    """Images from uint8 [N, H, W] or [N, H, W, 3] and class numbers [N]."""
    mode = "L" if pixels.ndim == 3 else "RGB"
    items = (
        SourceImage(f"Image {index} in '{path}'", _convert(PIL.Image.fromarray(image), channels), int(label), mode)
        for index, (image, label) in enumerate(zip(pixels, labels))
    )
    return Source(len(pixels), items, class_names.checked(names, int(labels.max()) + 1 if len(labels) else 0))


def _open_lsun(path: str, channels: int | None, background: str, max_images: int | None) -> Source:
    try:
        import lmdb
    except ImportError as err:
        raise DatasetError("LSUN sources need the package lmdb: install it with pip install '.[lmdb]'.") from err
    try:
        check_regular(os.path.join(path, "data.mdb"))
        database = lmdb.open(path, readonly=True, lock=False, readahead=False)
    except (lmdb.Error, OSError) as err:
        raise DatasetError(f"'{path}' is not an LMDB folder: download it again.") from err

    def images() -> Iterator[SourceImage]:
        with database, database.begin(buffers=True) as transaction:
            for key, data in transaction.cursor():
                where = f"Image '{printable(bytes(key).decode(errors='replace'))}' in '{path}'"
                yield _read_image(functools.partial(bytes, data), where, channels, background, None)

    if channels is None:
        with database.begin(buffers=True) as transaction:
            first = itertools.islice(transaction.cursor(), max_images)
            channels = _choose_channels(functools.partial(bytes, data) for _key, data in first)
    return Source(database.stat()["entries"], images())
