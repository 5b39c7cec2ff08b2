# SPDX-License-Identifier: Apache-2.0
"""Image sources of dataset_tool.py: folders, zips, MNIST, CIFAR-10 and LSUN files."""

import gzip
import io
import os
import pickle
import tarfile
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import PIL.Image

from training.data.image_files import (
    DatasetError,
    decode_image,
    image_names,
    open_files,
    read_header,
    read_label_file,
)

MNIST_PADDING = 2  # 28x28 -> 32x32


class SourceImage(NamedTuple):
    """One image: its name in error messages, its pixels, and its label as in `dataset.json`, or None."""

    where: str
    image: PIL.Image.Image
    label: int | list[float] | None


class Source(NamedTuple):
    """The number of images and an iterator that reads them one by one, in order."""

    count: int
    images: Iterator[SourceImage]


def open_source(path: str, channels: int | None = None, labels_from: str | None = None) -> Source:
    """Images at `path`; its name decides the kind of source.

    Args:
        path: A folder, zip, `*_lmdb` folder (LSUN), `cifar-10-python.tar.gz`, or `*-images-idx3-ubyte.gz` (MNIST).
        channels: 1 or 3 converts every image to 8-bit grey or RGB; None accepts only 8-bit grey and RGB.
        labels_from: 'folders' uses the top-level folders of a folder or zip as classes, instead of its `dataset.json`.

    Raises DatasetError if the source is missing, empty or damaged; reading an image may raise it too.
    """
    name = os.path.basename(os.path.abspath(path))
    openers = {
        "_lmdb": _open_lsun,
        "cifar-10-python.tar.gz": _open_cifar10,
        "-images-idx3-ubyte.gz": _open_mnist,
    }
    opener = next((opener for suffix, opener in openers.items() if name.endswith(suffix)), None)
    if opener is None:
        return _open_files(path, channels, labels_from)
    if labels_from is not None:
        raise DatasetError(f"--labels-from={labels_from} needs a folder or zip as --source, not '{name}'.")
    if not os.path.exists(path):
        raise DatasetError(f"There is no '{path}'.")
    return opener(path, channels)


def _convert(image: PIL.Image.Image, channels: int | None) -> PIL.Image.Image:
    if channels is None:
        return image
    if image.mode == "F":
        raise ValueError("floating-point pixels")
    if image.mode.startswith("I"):
        # 16-bit grey: keep the high byte, as Pillow does for 16-bit RGB.
        image = PIL.Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or (image.mode == "P" and "transparency" in image.info):
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return image.convert({1: "L", 3: "RGB"}[channels])


def decode(data: bytes, where: str, channels: int | None) -> PIL.Image.Image:
    """Decode an image file to 1 or 3 `channels` (None: unchanged). Errors name it as `where`."""
    mode = read_header(data, where)[0]
    if mode in ("L", "RGB") or channels is None:
        return _convert(PIL.Image.fromarray(_without_single_channel(decode_image(data, where))), channels)
    try:
        with PIL.Image.open(io.BytesIO(data)) as image:
            return _convert(image, channels)
    except Exception as err:  # decoders raise any exception on damaged data
        raise DatasetError(f"{where} is truncated, damaged or not convertible: replace or remove the file.") from err


def _without_single_channel(pixels: np.ndarray) -> np.ndarray:
    # Pillow expects grey images without a channel axis.
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels


def _open_files(path: str, channels: int | None, labels_from: str | None) -> Source:
    files = open_files(path)
    names = image_names(files.names())
    if not names:
        raise DatasetError(f"'{path}' contains no images.")
    labels = _folder_labels(path, names) if labels_from == "folders" else read_label_file(files)
    if labels is not None:
        missing = next((name for name in names if name not in labels), None)
        if missing is not None:
            raise DatasetError(f"'dataset.json' in '{path}' has no label for image '{missing}': add it there.")

    def images() -> Iterator[SourceImage]:
        for name in names:
            where = f"Image '{name}' in '{path}'"
            yield SourceImage(where, decode(files.read(name), where, channels), labels and labels[name])
        files.close()

    return Source(len(names), images())


def _folder_labels(path: str, names: list[str]) -> dict[str, int]:
    loose = next((name for name in names if "/" not in name), None)
    if loose is not None:
        raise DatasetError(f"--labels-from=folders: image '{loose}' is in no subfolder of '{path}': move it into one.")
    folders = sorted({name.split("/")[0] for name in names})
    if len(folders) < 2:
        raise DatasetError(
            f"--labels-from=folders: '{path}' has images in one folder only, '{folders[0]}', but two or more classes "
            f"are needed: use the parent of the class folders as --source."
        )
    return {name: folders.index(name.split("/")[0]) for name in names}


def _read_idx(path: str, num_dims: int) -> np.ndarray:
    """The uint8 array in a gzipped IDX file: two zero bytes, type 8, number of dimensions, big-endian sizes, data."""
    try:
        with gzip.open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError as err:
        raise DatasetError(f"MNIST also needs '{path}': put the file there.") from err
    except (OSError, EOFError, zlib.error) as err:
        raise DatasetError(f"'{path}' is truncated or not a gzip file: download it again.") from err
    sizes = np.frombuffer(data[4 : 4 + 4 * num_dims], dtype=">u4").astype(np.int64)
    if data[:4] != bytes([0, 0, 8, num_dims]) or len(data) != 4 + 4 * num_dims + sizes.prod():
        raise DatasetError(f"'{path}' is not an MNIST file of {num_dims}-dimensional bytes: download it again.")
    return np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * num_dims).reshape(sizes)


def _open_mnist(path: str, channels: int | None) -> Source:
    pixels = _read_idx(path, num_dims=3)
    labels_path = path.removesuffix("images-idx3-ubyte.gz") + "labels-idx1-ubyte.gz"
    labels = _read_idx(labels_path, num_dims=1)
    if len(labels) != len(pixels):
        raise DatasetError(f"'{path}' has {len(pixels)} images but '{labels_path}' has {len(labels)} labels.")
    if pixels.shape[1:] == (28, 28):
        pixels = np.pad(pixels, [(0, 0), (MNIST_PADDING, MNIST_PADDING), (MNIST_PADDING, MNIST_PADDING)])
    return _array_source(path, pixels, labels, channels)


class _ArrayUnpickler(pickle.Unpickler):
    """Reads dicts, lists, strings, numbers and numpy arrays; anything else could run code and is refused.

    Separate from `torch_utils.safe_pickle`, which reads networks and imports PyTorch: a converter starts without it.
    """

    def find_class(self, module: str, name: str):
        """Arrays are stored under numpy's old private name, which may differ from the current one."""
        reconstruct = np.empty(0).__reduce__()[0]
        if (module, name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")):
            return reconstruct
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


def _open_cifar10(path: str, channels: int | None) -> Source:
    batches = []
    try:
        with tarfile.open(path, "r:gz") as archive:
            for index in range(1, 6):
                file = archive.extractfile(f"cifar-10-batches-py/data_batch_{index}")
                batches.append(_ArrayUnpickler(file, encoding="latin1").load())
        pixels = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
        labels = np.concatenate([batch["labels"] for batch in batches])
    except pickle.UnpicklingError as err:
        raise DatasetError(f"'{path}' is damaged or contains something other than arrays: {err}.") from err
    except (tarfile.TarError, OSError, EOFError, zlib.error, LookupError, TypeError, ValueError) as err:
        raise DatasetError(f"'{path}' is truncated or not the CIFAR-10 archive: download it again.") from err
    return _array_source(path, pixels.transpose(0, 2, 3, 1), labels, channels)


def _array_source(path: str, pixels: np.ndarray, labels: np.ndarray, channels: int | None) -> Source:
    """Images from uint8 [N, H, W] or [N, H, W, 3] and class numbers [N]."""
    items = (
        SourceImage(f"Image {index} in '{path}'", _convert(PIL.Image.fromarray(image), channels), int(label))
        for index, (image, label) in enumerate(zip(pixels, labels))
    )
    return Source(len(pixels), items)


def _open_lsun(path: str, channels: int | None) -> Source:
    try:
        import lmdb
    except ImportError as err:
        raise DatasetError("LSUN sources need the package lmdb: install it with pip install '.[lmdb]'.") from err
    try:
        database = lmdb.open(path, readonly=True, lock=False, readahead=False)
    except lmdb.Error as err:
        raise DatasetError(f"'{path}' is not an LMDB folder: download it again.") from err

    def images() -> Iterator[SourceImage]:
        with database, database.begin(buffers=True) as transaction:
            for key, data in transaction.cursor():
                where = f"Image '{bytes(key).decode(errors='replace')}' in '{path}'"
                yield SourceImage(where, decode(bytes(data), where, channels), None)

    return Source(database.stat()["entries"], images())
