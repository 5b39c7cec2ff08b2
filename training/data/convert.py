# SPDX-License-Identifier: Apache-2.0
"""The work of dataset_tool.py: crop and resize images, and write them as a dataset, completely or not at all."""

import contextlib
import io
import itertools
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageColor

from dnnlib.files import folder_atomic
from dnnlib.progress import Progress
from dnnlib.util import UserError, open_atomic
from training.data import class_names
from training.data.image_files import LABEL_FILE, MOST_PIXELS, DatasetError, check_same_shape, check_side
from training.data.sources import Source, SourceImage, open_source
from training.data.summary import Summary

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
    background: str = "white",
    keep_jpeg: bool = False,
    overwrite: bool = False,
    skip_broken: bool = False,
) -> None:
    """Convert the images at `source` to the dataset `dest` and print a summary.

    The arguments are the values of the flags of dataset_tool.py. Raises UserError, naming the flag or the image.
    """
    apply = make_transform(transform, width, height, resize_filter)
    check_dest(dest, overwrite)
    images = open_source(source, channels and int(channels), labels_from, background, max_images)
    how = Output(compress_level, background, keep_jpeg, skip_broken)
    made = convert(images, dest, apply, max_images, how, overwrite)
    print("\n".join(made.lines(dest, background)))
    if made.left_out:
        print(
            f"Left out {made.left_out} images that are less than --width={width} pixels wide, or less than "
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
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def check_dest(dest: str, overwrite: bool = False) -> None:
    """Raises UserError if `dest` exists already: a zip unless `overwrite`, a folder unless it is empty."""
    if dest.lower().endswith((".tar", ".tgz", ".gz")):
        raise UserError(f"--dest='{dest}': datasets are folders or files ending in .zip: choose such a name.")
    if _is_zip(dest):
        if os.path.isdir(dest):
            raise UserError(f"--dest='{dest}' is a folder: choose another name.")
        if os.path.exists(dest) and not overwrite:
            raise UserError(f"--dest='{dest}' exists: choose another name, or replace it with --overwrite.")
    elif os.path.exists(dest) and (not os.path.isdir(dest) or os.listdir(dest)):
        raise UserError(
            f"--dest='{dest}' exists and is not an empty folder: choose a new one, or a file ending in .zip."
        )


def _is_zip(dest: str) -> bool:
    return dest.lower().endswith(".zip")


class Output(NamedTuple):
    """How images are written.

    `compress_level` is that of PNG, 0 (none, fastest to read) to 9; `background` the colour of wholly transparent parts
    of RGBA images, which nobody sees but networks learn. `keep_jpeg` copies JPEG files that the transform leaves as
    they are, instead of writing their pixels as PNG; `skip_broken` leaves out images that cannot be read.
    """

    compress_level: int = 0
    background: str = "white"
    keep_jpeg: bool = False
    skip_broken: bool = False


def convert(
    source: Source,
    dest: str,
    transform: Transform,
    max_images: int | None = None,
    how: Output | None = None,
    overwrite: bool = False,
) -> Summary:
    """Write a dataset and return what it has become.

    Args:
        source: Images and labels; labels are kept if every image has one.
        dest: Folder (new or empty) or `*.zip`. It appears complete or not at all.
        transform: Applied to every image.
        max_images: Use only the first `max_images` images of the source.
        how: How images are written; None for the defaults.
        overwrite: Replace `dest` if it is a zip.

    Raises UserError if `dest` cannot be written, DatasetError for an image that does not fit or if all are left out.
    """
    check_dest(dest, overwrite)
    count = source.count if max_images is None else min(max_images, source.count)
    opened = _zip_writer(dest) if _is_zip(dest) else _folder_writer(dest)
    how, summary = how or Output(), Summary()
    try:
        with opened as write, Progress(count, desc="Converting", unit="img") as progress:
            for item in itertools.islice(source.images, count):
                _add(item, transform, how, summary, write)
                progress.update()
            if progress.count < count:
                raise DatasetError(f"The source has {progress.count} instead of {count} images: it is damaged.")
            if not summary.labels:
                raise DatasetError(_nothing_left(summary))
            write(LABEL_FILE, _label_file(source, summary))
    except DatasetError:
        raise
    except OSError as err:
        raise UserError(f"Cannot write --dest='{dest}': {err.strerror or err}.") from err
    return summary


def _add(item: SourceImage, transform: Transform, how: Output, summary: Summary, write: Write) -> None:
    """Transform an image and write it, unless it is left out, and count it in `summary`."""
    if isinstance(item.image, DatasetError):
        if not how.skip_broken:
            raise DatasetError(f"{str(item.image).rstrip('.')}, or leave out such files with --skip-broken.")
        summary.broken.append(str(item.image))
        return
    image = transform(item.image)
    if image is None:
        summary.left_out += 1
        return
    _check_shape(image, item.where, summary)
    as_is = how.keep_jpeg and item.jpeg is not None and image is item.image
    name = f"{summary.written // 1000:05d}/img{summary.written:08d}.{'jpg' if as_is else 'png'}"
    write(name, item.jpeg if as_is else _png(image, how))
    summary.labels.append([name, item.label])
    summary.count(item.mode, image is not item.image, as_is, item.turned)


def _check_shape(image: PIL.Image.Image, where: str, summary: Summary) -> None:
    shape = [len(image.getbands()), image.height, image.width]
    if summary.shape is None:
        check_side(image.height, image.width, where)
        summary.shape = shape
    check_same_shape(shape, summary.shape, where)


def _png(image: PIL.Image.Image, how: Output) -> bytes:
    if image.mode == "RGBA":
        pixels = np.array(image)
        pixels[pixels[..., 3] == 0, :3] = PIL.ImageColor.getrgb(how.background)
        image = PIL.Image.fromarray(pixels)
    png = io.BytesIO()
    image.save(png, format="png", compress_level=how.compress_level)
    return png.getvalue()


def _nothing_left(summary: Summary) -> str:
    if summary.broken:
        return f"None of the images can be used; {summary.broken[0]}"
    return "All images are smaller than --width and --height: choose a smaller size."


def _label_file(source: Source, summary: Summary) -> bytes:
    """The content of `dataset.json`. Sets the names in `summary` to those that it has."""
    kept = summary.labels if all(label is not None for _name, label in summary.labels) else None
    content = {"labels": kept}
    if kept is not None and source.class_names is not None:
        summary.names = class_names.checked(source.class_names, int(max(label for _name, label in kept)) + 1)
        content[class_names.KEY] = summary.names
    return json.dumps(content, separators=(",", ":")).encode()


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
    os.makedirs(os.path.dirname(os.path.realpath(dest)), exist_ok=True)
    with folder_atomic(dest) as folder:

        def write(name: str, data: bytes) -> None:
            (folder / name).parent.mkdir(exist_ok=True)
            with open(folder / name, "wb") as file:
                file.write(data)

        yield write
