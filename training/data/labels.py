# SPDX-License-Identifier: Apache-2.0
"""Labels of images in `dataset.json`: class numbers, which may have names, or vectors. N images, L label dimension."""

from typing import Any

import numpy as np

from dnnlib.files import parse_json
from dnnlib.text import printable
from training.data import class_names
from training.data.image_files import LABEL_FILE, DatasetError, Files

# The labels of a large dataset may lie beside a few of its images, and a vector may have thousands of digits. An empty
# list takes thirty times as much memory as text.
_MOST_BYTES, _MOST_BYTES_PER_IMAGE = 1 << 25, 1 << 14
_MOST_LISTS, _MOST_LISTS_PER_IMAGE = 1 << 22, 4
_MOST_CLASSES = 1 << 16  # unless there are more images: each takes memory in the networks


def read_labels(files: Files, names: list[str]) -> tuple[list | None, Any]:
    """Labels of the images `names` and names of classes from `dataset.json`, as parsed JSON; None if there are none.

    Raises DatasetError if the file is malformed or has no label for an image, which it names.
    """
    if LABEL_FILE not in files.names():
        return None, None
    where = _where(files)
    try:
        data = files.read(LABEL_FILE, _MOST_BYTES + _MOST_BYTES_PER_IMAGE * len(names))
        if data.count(b"[") + data.count(b"{") > _MOST_LISTS + _MOST_LISTS_PER_IMAGE * len(names):
            raise ValueError("it has too many lists")
        content = parse_json(data)
    except ValueError as err:
        raise DatasetError(f"{where} is not valid JSON: {printable(str(err))}.") from err
    entries = content.get("labels") if isinstance(content, dict) else ()
    if entries is None:
        return None, None
    if not isinstance(entries, list) or not all(
        isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) for entry in entries
    ):
        raise DatasetError(f'{where} must read {{"labels": [["path/of/image.png", label], ...]}}.')
    by_name = dict(entries)
    missing = next((name for name in names if name not in by_name), None)
    if missing is not None:
        raise DatasetError(f"{where} has no label for image '{printable(missing)}': add it there.")
    return [by_name[name] for name in names], content.get(class_names.KEY)


def load_labels(files: Files, names: list[str]) -> tuple[np.ndarray | None, list[str] | None]:
    """Labels of the images `names`: int64 [N] class numbers, float32 [N, L] vectors, or None; and names of the classes.

    Names are None for vectors, and where there are none for all classes. Raises DatasetError as `read_labels` and
    `label_array` do.
    """
    labels, named = read_labels(files, names)
    if labels is None:
        return None, None
    array = label_array(labels, _where(files))
    return array, class_names.checked(named, int(array.max()) + 1) if array.ndim == 1 else None


def label_array(labels: list, where: str) -> np.ndarray:
    """`labels`, one or more, as int64 [N] class numbers or float32 [N, L] vectors.

    Raises DatasetError, naming the file as `where`, if they are neither or there are too many classes.
    """
    array = _as_array(labels)
    if array is None:
        raise DatasetError(
            f"Labels in {where} must all be integer class numbers from 0 up, or all be lists of the same length of "
            f"numbers in the range of float32."
        )
    check_label_dim(int(array.max()) + 1 if array.ndim == 1 else array.shape[1], len(array), where)
    return array


def check_label_dim(label_dim: int, num_images: int, where: str) -> None:
    """Raises DatasetError if there are more classes than `num_images` images can have."""
    limit = max(_MOST_CLASSES, num_images)
    if label_dim > limit:
        raise DatasetError(
            f"Labels in {where} have {label_dim} classes or dimensions, and at most {limit} are possible: number the "
            f"classes from 0 up without gaps."
        )


def _as_array(labels: list) -> np.ndarray | None:
    # Types first: NumPy would make text of everything where a single label is text, each as long as the longest.
    if _are_numbers(labels):
        numbers = np.array(labels)
        if numbers.dtype.kind in "iuf" and 0 <= numbers.min() <= numbers.max() < 2**31 and (numbers % 1 == 0).all():
            return numbers.astype(np.int64)
        return None
    if not all(isinstance(label, list) and len(label) == len(labels[0]) and _are_numbers(label) for label in labels):
        return None
    try:
        with np.errstate(over="ignore"):
            vectors = np.array(labels, dtype=np.float32)
    except OverflowError:  # an integer beyond the range of float64
        return None
    return vectors if np.isfinite(vectors).all() else None


def _are_numbers(values: list[Any]) -> bool:
    return set(map(type, values)) <= {int, float}


def _where(files: Files) -> str:
    return f"'{LABEL_FILE}' in '{files.path}'"
