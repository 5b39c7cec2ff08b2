# SPDX-License-Identifier: Apache-2.0
"""The work of dataset_tool.py: crop and resize images, and write them as a dataset, completely or not at all."""

import contextlib
import io
import itertools
import json
import math
import os
import secrets
import shutil
import zipfile
from collections.abc import Callable, Iterator

import PIL.Image

from dnnlib.progress import Progress
from dnnlib.util import UserError, open_atomic
from training.data.image_files import LABEL_FILE, MOST_PIXELS, DatasetError, check_same_shape, check_side
from training.data.sources import Source, open_source

FILTERS = {"box": PIL.Image.Resampling.BOX, "lanczos": PIL.Image.Resampling.LANCZOS}
_LARGEST_SIDE = 1 << (math.isqrt(MOST_PIXELS).bit_length() - 1)
_WIDE = ("center-crop-wide", "fit-wide")

Transform = Callable[[PIL.Image.Image], PIL.Image.Image | None]  # None: the image is left out
Write = Callable[[str, bytes], None]


def make_dataset(
    source: str,
    dest: str,
    *,
    max_images: int | None = None,
    resize_filter: str = "lanczos",
    transform: str | None = None,
    width: int | None = None,
    height: int | None = None,
    channels: str | None = None,
    labels_from: str | None = None,
    compress_level: int = 0,
) -> None:
    """Convert the images at `source` to the dataset `dest` and print their number, and that of those left out.

    The arguments are the values of the flags of dataset_tool.py. Raises UserError, naming the flag or the image.
    """
    apply = make_transform(transform, width, height, resize_filter)
    images = open_source(source, channels and int(channels), labels_from)
    written, left_out = convert(images, dest, apply, max_images, compress_level)
    print(f"Wrote {written} images to {dest}")
    if left_out:
        print(
            f"Left out {left_out} images that are less than --width={width} pixels wide, or less than "
            f"--height={height} high at that width; --transform=fit-wide keeps all."
        )


def make_transform(
    transform: str | None, width: int | None, height: int | None, resize_filter: str = "lanczos"
) -> Transform:
    """The function that crops and resizes each image.

    Args:
        transform: None stretches to `width` x `height` (None keeps the size). 'center-crop' keeps the largest centred
            square. 'fit-wide' keeps the largest centred part with the aspect ratio width : height and puts it,
            resized, on a black square of side `width`. 'center-crop-wide' keeps the full width, and as many central
            rows as the image would have at `width`, instead; it leaves out images that are smaller.
        width: Pixels; with the wide ones, of the picture and the square.
        height: Pixels; with the wide ones, of the picture between the bars.
        resize_filter: 'box' or 'lanczos'.

    Raises UserError if the result would not be square with a power of two as its side.
    """
    _check_size(transform, width, height)
    resample = FILTERS[resize_filter]

    def stretch(image: PIL.Image.Image) -> PIL.Image.Image:
        return _resize(image, width or image.width, height or image.height, resample)

    def crop(image: PIL.Image.Image) -> PIL.Image.Image:
        return _resize(_center_crop(image, 1.0), width, height, resample)

    def on_square(part: PIL.Image.Image) -> PIL.Image.Image:
        square = PIL.Image.new(part.mode, (width, width))
        square.paste(_resize(part, width, height, resample), (0, (width - height) // 2))
        return square

    def fit_wide(image: PIL.Image.Image) -> PIL.Image.Image:
        return on_square(_center_crop(image, width / height))

    def crop_wide(image: PIL.Image.Image) -> PIL.Image.Image | None:
        rows = round(width * image.height / image.width)
        if image.width < width or rows < height:
            return None
        top = (image.height - rows) // 2
        return on_square(image.crop((0, top, image.width, top + rows)))

    return {None: stretch, "center-crop": crop, "center-crop-wide": crop_wide, "fit-wide": fit_wide}[transform]


def _check_size(transform: str | None, width: int | None, height: int | None) -> None:
    if (width is None) != (height is None):
        raise UserError("--width and --height belong together: give both or neither.")
    if width is None:
        if transform is not None:
            raise UserError(f"--transform={transform} needs --width and --height.")
        return
    if not 4 <= width <= _LARGEST_SIDE or width & (width - 1):
        raise UserError(f"--width must be a power of two from 4 to {_LARGEST_SIDE}, not {width}.")
    if transform in _WIDE and height > width:
        raise UserError(f"--height={height} must not exceed --width={width} with --transform={transform}.")
    if transform not in _WIDE and height != width:
        raise UserError(f"--height={height} must equal --width={width}: training takes square images.")


def _resize(image: PIL.Image.Image, width: int, height: int, resample: int) -> PIL.Image.Image:
    return image if image.size == (width, height) else image.resize((width, height), resample)


def _center_crop(image: PIL.Image.Image, aspect: float) -> PIL.Image.Image:
    width = min(image.width, max(1, round(image.height * aspect)))
    height = min(image.height, max(1, round(image.width / aspect)))
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def convert(
    source: Source, dest: str, transform: Transform, max_images: int | None = None, compress_level: int = 0
) -> tuple[int, int]:
    """Write a dataset and return the numbers of images written, and left out by `transform`.

    Args:
        source: Images and labels; labels are kept if every image has one.
        dest: Folder (new or empty) or `*.zip` (replaced if it exists). It appears complete or not at all.
        transform: Applied to every image.
        max_images: Use only the first `max_images` images of the source.
        compress_level: PNG compression, 0 (none, fastest to read) to 9.

    Raises UserError if `dest` cannot be written, DatasetError for an image that does not fit or if all are left out.
    """
    count = source.count if max_images is None else min(max_images, source.count)
    opened = _zip_writer(dest) if dest.lower().endswith(".zip") else _folder_writer(dest)
    labels: list[list] = []
    expected = None
    try:
        with opened as write, Progress(count, desc="Converting", unit="img") as progress:
            for where, image, label in itertools.islice(source.images, count):
                image = transform(image)
                if image is not None:
                    shape = [len(image.getbands()), image.height, image.width]
                    if expected is None:
                        check_side(image.height, image.width, where)
                        expected = shape
                    check_same_shape(shape, expected, where)
                    name = f"{len(labels) // 1000:05d}/img{len(labels):08d}.png"
                    png = io.BytesIO()
                    image.save(png, format="png", compress_level=compress_level)
                    write(name, png.getvalue())
                    labels.append([name, label])
                progress.update()
            if progress.count < count:
                raise DatasetError(f"The source has {progress.count} instead of {count} images: it is damaged.")
            if not labels:
                raise DatasetError("All images are smaller than --width and --height: choose a smaller size.")
            kept = labels if all(label is not None for _name, label in labels) else None
            write(LABEL_FILE, json.dumps({"labels": kept}, separators=(",", ":")).encode())
    except DatasetError:
        raise
    except OSError as err:
        raise UserError(f"Cannot write --dest='{dest}': {err.strerror or err}.") from err
    return len(labels), count - len(labels)


@contextlib.contextmanager
def _zip_writer(dest: str) -> Iterator[Write]:
    os.makedirs(os.path.dirname(os.path.abspath(dest)), exist_ok=True)
    with open_atomic(dest) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:

        def write(name: str, data: bytes) -> None:
            # ZipInfo has a fixed date, so equal input gives equal bytes, and no permissions.
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)

        yield write


@contextlib.contextmanager
def _folder_writer(dest: str) -> Iterator[Write]:
    dest = os.path.realpath(dest)  # an empty folder behind a link is filled, and the link stays
    if os.path.exists(dest) and (not os.path.isdir(dest) or os.listdir(dest)):
        raise UserError(
            f"--dest='{dest}' exists and is not an empty folder: choose a new one, or a file ending in .zip."
        )
    os.makedirs(os.path.dirname(dest), exist_ok=True)
    partial = f"{dest}.{secrets.token_hex(4)}.partial"

    def write(name: str, data: bytes) -> None:
        path = os.path.join(partial, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)

    try:
        os.mkdir(partial)
        yield write
        if os.path.isdir(dest):
            os.rmdir(dest)
        os.rename(partial, dest)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
