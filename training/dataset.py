# SPDX-License-Identifier: Apache-2.0
"""Image datasets: a folder or zip of equal square images, and the labels in its `dataset.json`.

Letters in shapes: N images, C channels (1, 3 or 4), H = W resolution, L label dimension.
"""

import os
from collections.abc import Callable

import numpy as np
import torch.utils.data

from dnnlib.text import printable
from dnnlib.util import EasyDict
from training.data.image_files import (
    FORMATS,
    PNG_SIGNATURE,
    DatasetError,
    check_same_shape,
    check_side,
    decode_image,
    ends_intact,
    header_shape,
    image_names,
    open_files,
)
from training.data.labels import load_labels


class Dataset(torch.utils.data.Dataset):
    """Images with label vectors, optionally a random subset and mirrored copies.

    Subclasses implement `_load_raw_image(raw_idx)` -> uint8 [C, H, W] and `_load_raw_labels()` -> int64 [N] (class
    numbers), float32 [N, L], or None.

    Args:
        name: Name of the dataset in logs and run directories.
        raw_shape: [N, C, H, W] of all images.
        max_size: Number of images to keep, drawn without replacement; None keeps all. Applied before `xflip`.
        use_labels: Whether to use the labels; False gives every image a label vector of length 0.
        xflip: Append a mirrored copy of every image, after all the originals.
        random_seed: Seed of the random subset for `max_size`.
    """

    def __init__(
        self,
        name: str,
        raw_shape: list[int],
        max_size: int | None = None,
        use_labels: bool = False,
        xflip: bool = False,
        random_seed: int = 0,
    ):
        self._name = name
        self._raw_shape = [int(size) for size in raw_shape]
        self._use_labels = use_labels
        self._labels = None
        self._label_shape: list[int] = []

        self._raw_idx = np.arange(self._raw_shape[0], dtype=np.int64)
        if max_size is not None and max_size < self._raw_idx.size:
            np.random.RandomState(random_seed).shuffle(self._raw_idx)
            self._raw_idx = np.sort(self._raw_idx[:max_size])
        self._xflip = np.zeros(self._raw_idx.size, dtype=bool)
        if xflip:
            self._raw_idx = np.concatenate([self._raw_idx, self._raw_idx])
            self._xflip = np.concatenate([self._xflip, ~self._xflip])

    def _load_raw_image(self, raw_idx: int) -> np.ndarray:
        raise NotImplementedError

    def _load_raw_labels(self) -> np.ndarray | None:
        raise NotImplementedError

    def _raw_labels(self) -> np.ndarray:
        if self._labels is None:
            labels = self._load_raw_labels() if self._use_labels else None
            self._labels = np.zeros([self._raw_shape[0], 0], dtype=np.float32) if labels is None else labels
            assert self._labels.shape[0] == self._raw_shape[0]
            assert (self._labels.dtype, self._labels.ndim) in [(np.int64, 1), (np.float32, 2)]
            classes = self._labels.dtype == np.int64
            self._label_shape = [int(self._labels.max()) + 1] if classes else list(self._labels.shape[1:])
        return self._labels

    def __len__(self) -> int:
        return self._raw_idx.size

    def __getitem__(self, idx: int) -> tuple[np.ndarray, np.ndarray]:
        """Image, uint8 [C, H, W], and label vector, float32 [L]; both are copies."""
        image = self._load_raw_image(int(self._raw_idx[idx]))
        assert list(image.shape) == self.image_shape and image.dtype == np.uint8
        if self._xflip[idx]:
            image = image[:, :, ::-1]
        return image.copy(), self.get_label(idx)

    def get_label(self, idx: int) -> np.ndarray:
        """Label vector of image `idx`, float32 [L]: one-hot for class numbers."""
        label = self._raw_labels()[self._raw_idx[idx]]
        if not self.has_onehot_labels:
            return label.copy()
        onehot = np.zeros(self.label_shape, dtype=np.float32)
        onehot[label] = 1
        return onehot

    def get_details(self, idx: int) -> EasyDict:
        """Origin of image `idx`: `raw_idx` (int), `xflip` (bool), `raw_label` (a copy, as stored)."""
        raw_idx = int(self._raw_idx[idx])
        return EasyDict(raw_idx=raw_idx, xflip=bool(self._xflip[idx]), raw_label=self._raw_labels()[raw_idx].copy())

    @property
    def name(self) -> str:
        """Name in logs and run directories."""
        return self._name

    @property
    def image_shape(self) -> list[int]:
        """[C, H, W]."""
        return list(self._raw_shape[1:])

    @property
    def num_files(self) -> int:
        """Images in storage, whatever `max_size` and `xflip` make of them."""
        return self._raw_shape[0]

    @property
    def num_channels(self) -> int:
        """1 for grey, 3 for RGB, 4 for RGBA."""
        return self._raw_shape[1]

    @property
    def resolution(self) -> int:
        """Side of the square images, in pixels."""
        return self._raw_shape[2]

    @property
    def label_shape(self) -> list[int]:
        """[L]: the number of classes, or the length of the label vectors; [0] without labels."""
        self._raw_labels()
        return list(self._label_shape)

    @property
    def label_dim(self) -> int:
        """L."""
        return self.label_shape[0]

    @property
    def has_labels(self) -> bool:
        """Whether label vectors are longer than 0."""
        return self.label_dim > 0

    @property
    def has_onehot_labels(self) -> bool:
        """Whether labels are stored as class numbers and returned as one-hot vectors."""
        return self._raw_labels().dtype == np.int64

    def close(self) -> None:
        """Close open files; the dataset stays usable."""


class ImageFolderDataset(Dataset):
    """A folder or zip of images, recursively, in sorted path order, with labels from its `dataset.json`.

    `{"labels": [["path/of/image.png", label], ...]}`, where a label is a class number or a list of floats; no file
    or `null` means no labels. `"class_names": ["name", ...]` beside it names the classes. The constructor reads only
    the first image's header; see `validate` for the others.

    Args:
        path: The folder or zip.
        resolution: Required side of the images in pixels; None accepts any.
        super_kwargs: Arguments of `Dataset`.

    Raises DatasetError (a UserError and an IOError), naming file and fix, if the data is missing, empty or unusable.
    """

    def __init__(self, path: str, resolution: int | None = None, **super_kwargs):
        self._path = os.fspath(path)
        self._class_names: list[str] | None = None
        self._files = open_files(self._path)
        self._image_names = image_names(self._files.names())
        if not self._image_names:
            raise DatasetError(f"Dataset '{self._path}' contains no images ({', '.join(FORMATS)}).")
        raw_shape = [len(self._image_names), *self._first_shape()]
        if resolution is not None and raw_shape[2] != resolution:
            raise DatasetError(
                f"Images in '{self._path}' are {raw_shape[2]}x{raw_shape[3]}, not {resolution}x{resolution}: "
                f"convert with dataset_tool.py --width={resolution} --height={resolution}."
            )
        name = os.path.splitext(os.path.basename(os.path.abspath(self._path)))[0]
        super().__init__(name=name, raw_shape=raw_shape, **super_kwargs)

    def _where(self, name: str) -> str:
        return f"Image '{printable(name)}' in '{self._path}'"

    def _first_shape(self) -> list[int]:
        name = self._image_names[0]
        shape = header_shape(self._files.read(name), self._where(name))
        check_side(*shape[1:], self._where(name))
        return shape

    def _load_raw_image(self, raw_idx: int) -> np.ndarray:
        name = self._image_names[raw_idx]
        pixels = decode_image(self._files.read(name), self._where(name))
        image = pixels.transpose(2, 0, 1)
        check_same_shape(list(image.shape), self.image_shape, self._where(name))
        return image

    def _load_raw_labels(self) -> np.ndarray | None:
        labels, self._class_names = load_labels(self._files, self._image_names)
        return labels

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes, by number, if the labels are used and `dataset.json` has them."""
        self._raw_labels()
        return self._class_names if self._use_labels else None

    @property
    def labels_available(self) -> bool:
        """Whether `dataset.json` has labels, even if unused. Raises DatasetError if it is malformed."""
        return self._load_raw_labels() is not None

    def validate(self, progress: Callable[[int], object] | None = None) -> None:
        """Check the mode, size and end of every file, and the labels, without decoding the images.

        Files without an intact end, and formats other than PNG and JPEG, are decoded completely. `progress(1)` is
        called after each file. Raises DatasetError naming the first bad file. Damage in the middle of a file is only
        detected when the file is read.
        """
        ends = self._files.ends(self._image_names)
        for name, (head, tail) in zip(self._image_names, ends):
            data = head if head.startswith(PNG_SIGNATURE) else self._files.read(name)
            check_same_shape(header_shape(data, self._where(name)), self.image_shape, self._where(name))
            if not ends_intact(head, tail):
                decode_image(self._files.read(name), self._where(name))
            if progress is not None:
                progress(1)
        self._raw_labels()

    def close(self) -> None:
        """Close the zip; the next read opens it again."""
        self._files.close()
