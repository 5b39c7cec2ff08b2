# SPDX-License-Identifier: Apache-2.0
"""Statistics of real images in a file of the user, for measuring without the images themselves.

The npz file holds the arrays of FeatureStats; `labels`, from which a conditional network draws; and `about`, JSON with
the dataset and the detector.
"""

import dataclasses
import json
import os

import numpy as np

from dnnlib.files import parse_json
from dnnlib.text import printable
from dnnlib.util import UserError, open_atomic
from metrics import detectors
from metrics.feature_stats import ARRAYS, FeatureStats
from torch_utils import npz
from training.data.labels import check_label_dim
from training.dataset import Dataset

ENDING = ".npz"
_FORMAT = "stylegan2-feature-statistics"
_FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class About:
    """Where statistics come from: a dataset of `num_images` (`xflip`: half of them mirrored) and a detector."""

    dataset: str
    num_images: int
    resolution: int
    xflip: bool
    detector: str
    detector_sha256: str
    detector_kwargs: dict


class SavedLabels(Dataset):
    """A dataset that has labels but no images: int64 [N] class numbers or float32 [N, L], L = 0 without labels."""

    def __init__(self, name: str, labels: np.ndarray):
        self._saved = labels
        super().__init__(name=name, raw_shape=[len(labels), 0, 0, 0], use_labels=True)

    def _load_raw_labels(self) -> np.ndarray:
        return self._saved


@dataclasses.dataclass(frozen=True)
class SavedStats:
    """Content of the file `path`, whose digest is `sha256`."""

    path: str
    sha256: str
    about: About
    stats: FeatureStats
    labels: SavedLabels

    def take(
        self,
        spec: detectors.DetectorSpec,
        detector_kwargs: dict,
        max_items: int | None,
        xflip: bool | None,
        capture_all: bool = False,
        capture_mean_cov: bool = False,
    ) -> FeatureStats:
        """The statistics that the dataset itself would give, of its first `max_items` images (None: all).

        `xflip` is whether to include mirrored copies (None: as saved). `capture_all` is whether the features are
        needed; mean and covariance are always available. Raises UserError if the file cannot provide them.
        """
        about = self.about
        if (about.detector_sha256, about.detector_kwargs) != (spec.sha256, detector_kwargs):
            raise UserError(
                f"{self.path} was made with the detector {about.detector} (SHA-256 {about.detector_sha256[:8]}...), "
                f"not {spec.name} ({spec.sha256[:8]}...): use the same --detector, or save the statistics again."
            )
        if xflip is not None and xflip != about.xflip:
            raise UserError(
                f"{self.path} includes mirrored images, which this metric excludes: save it without --mirror."
            )
        if capture_all and not self.stats.capture_all:
            raise UserError(
                f"{self.path} holds a mean and covariance only, and this metric needs the features: save it again with "
                f"the metric in --metrics."
            )
        wanted = about.num_images if max_items is None else min(about.num_images, max_items)
        if wanted == self.stats.num_items:
            return self.stats
        if wanted > self.stats.num_items or not self.stats.capture_all:
            raise UserError(
                f"{self.path} covers {self.stats.num_items} of {about.num_images} images, and this metric uses "
                f"{wanted}: save it again with the metric in --metrics."
            )
        return self.stats.first(wanted)


def save(path: str, stats: FeatureStats, about: About, dataset: Dataset) -> None:
    """Write the file atomically, including the labels of `dataset`. Raises OSError."""
    text = json.dumps({"format": _FORMAT, "version": _FORMAT_VERSION, **dataclasses.asdict(about)})
    labels = np.stack([dataset.get_details(idx).raw_label for idx in range(len(dataset))])
    with open_atomic(path) as file:
        np.savez(file, about=np.array(text), labels=labels, **stats.to_arrays())


def load(path: str) -> SavedStats:
    """Read a file that `save` wrote. Raises UserError if it is missing, damaged or of another kind."""
    if not os.path.isfile(path):
        raise UserError(f"There is no file of statistics {path}: check --data.")
    try:
        arrays = npz.read(path, ("about", "labels", *ARRAYS))
        fields = parse_json(str(arrays["about"])) if "about" in arrays else {}
        ours = (fields.pop("format", None), fields.pop("version", None)) == (_FORMAT, _FORMAT_VERSION)
        if ours:
            about, stats = _about(fields), FeatureStats.from_arrays(arrays)
            labels = _labels(arrays["labels"], about, path)
    except Exception as error:
        # Damaged bytes can raise any exception; the user gets one message for all of them.
        raise UserError(
            f"{path} is a damaged file of statistics ({printable(f'{type(error).__name__}: {error}')}): save it again "
            f"with --save-stats, or provide images with --data."
        ) from error
    if not ours:
        raise UserError(f"{path} is not a file that --save-stats wrote: provide such a file, or images, with --data.")
    return SavedStats(path, detectors.file_sha256(path, os.stat(path).st_mtime_ns), about, stats, labels)


def _about(fields: dict) -> About:
    about = About(**fields)
    for field in dataclasses.fields(About):
        if not isinstance(getattr(about, field.name), field.type):
            raise TypeError(f"{field.name} has the wrong type")
        if isinstance(getattr(about, field.name), str):  # for messages and results
            about = dataclasses.replace(about, **{field.name: printable(getattr(about, field.name))})
    return about


def _labels(values: np.ndarray, about: About, path: str) -> SavedLabels:
    if (values.dtype, values.ndim) not in [(np.int64, 1), (np.float32, 2)] or len(values) != about.num_images:
        raise ValueError("labels have the wrong shape or type")
    if not np.isfinite(values).all() or (values.ndim == 1 and values.min() < 0):
        raise ValueError("invalid labels")
    check_label_dim(int(values.max()) + 1 if values.ndim == 1 else values.shape[1], len(values), f"'{path}'")
    return SavedLabels(about.dataset, values)
