# SPDX-License-Identifier: Apache-2.0
"""The dataset of another project: the interface of StyleGAN2-ADA's, without the additions of this project."""

import json
import os
import zipfile

import numpy as np
import torch
from PIL import Image

from dnnlib import EasyDict


class Dataset(torch.utils.data.Dataset):
    def __init__(self, name, raw_shape, max_size=None, use_labels=False, xflip=False, random_seed=0):
        self._name, self._raw_shape, self._use_labels, self._raw_labels = name, list(raw_shape), use_labels, None
        self._raw_idx = np.arange(self._raw_shape[0])
        if max_size is not None and max_size < len(self._raw_idx):
            np.random.RandomState(random_seed).shuffle(self._raw_idx)
            self._raw_idx = np.sort(self._raw_idx[:max_size])
        self._flipped = np.repeat([False, True], len(self._raw_idx)) if xflip else np.zeros(len(self._raw_idx), bool)
        self._raw_idx = np.tile(self._raw_idx, 1 + xflip)

    def __getstate__(self):
        return dict(self.__dict__, _raw_labels=None)

    def _labels(self):
        if self._raw_labels is None:
            labels = self._load_raw_labels() if self._use_labels else None
            self._raw_labels = np.zeros([self._raw_shape[0], 0], np.float32) if labels is None else labels
        return self._raw_labels

    def __len__(self):
        return len(self._raw_idx)

    def __getitem__(self, idx):
        image = self._load_raw_image(self._raw_idx[idx])
        return (image[:, :, ::-1] if self._flipped[idx] else image).copy(), self.get_label(idx)

    def get_label(self, idx):
        label = self._labels()[self._raw_idx[idx]]
        return np.eye(*self.label_shape, dtype=np.float32)[label] if self.has_onehot_labels else label.copy()

    def get_details(self, idx):
        raw_idx = int(self._raw_idx[idx])
        return EasyDict(raw_idx=raw_idx, xflip=bool(self._flipped[idx]), raw_label=self._labels()[raw_idx].copy())

    def close(self):
        pass

    @property
    def name(self):
        return self._name

    @property
    def image_shape(self):
        return self._raw_shape[1:]

    @property
    def num_channels(self):
        return self._raw_shape[1]

    @property
    def resolution(self):
        return self._raw_shape[2]

    @property
    def label_shape(self):
        labels = self._labels()
        return [int(labels.max()) + 1] if labels.dtype == np.int64 else list(labels.shape[1:])

    @property
    def label_dim(self):
        return self.label_shape[0]

    @property
    def has_labels(self):
        return self.label_dim > 0

    @property
    def has_onehot_labels(self):
        return self._labels().dtype == np.int64


class ImageFolderDataset(Dataset):
    """A zip of RGB images with class numbers, or without labels."""

    def __init__(self, path, resolution=None, **super_kwargs):
        self._path, self._zip = path, None
        if not os.path.isfile(path):
            raise OSError("Path must point to a zip")
        self._names = sorted(name for name in self._archive().namelist() if name.endswith(".png"))
        name = os.path.splitext(os.path.basename(path))[0]
        self._raw_shape = [len(self._names), *self._load_raw_image(0).shape]
        if resolution is not None and resolution != self._raw_shape[2]:
            raise OSError("Image files do not match the specified resolution")
        super().__init__(name, self._raw_shape, **super_kwargs)

    def _archive(self):
        if self._zip is None:
            self._zip = zipfile.ZipFile(self._path)
        return self._zip

    def close(self):
        if self._zip is not None:
            self._zip.close()
        self._zip = None

    def __getstate__(self):
        return dict(super().__getstate__(), _zip=None)

    def _load_raw_image(self, raw_idx):
        with self._archive().open(self._names[raw_idx]) as file:
            return np.array(Image.open(file)).transpose(2, 0, 1)

    def _load_raw_labels(self):
        with self._archive().open("dataset.json") as file:
            labels = json.load(file)["labels"]
        return None if labels is None else np.array([dict(labels)[name] for name in self._names], np.int64)
