# SPDX-License-Identifier: Apache-2.0
"""What a detector was made for: a record inside its file, by which images of another kind can be recognised.

N images, d features. Statistics are kept for each class that the detector itself sees, so that any mixture of the
classes can be compared with them, even a single class.
"""

import dataclasses
import io
import json

import numpy as np

FACTS, STATISTICS = "record.json", "record.npz"  # extra files of the TorchScript archive
_FORMAT = "detector-record"
_FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Record:
    """The images that a detector was made for.

    Attributes:
        dataset: Name of their dataset.
        image_shape: [C, H, W].
        num_images: Number of images that the statistics cover.
        classes: Number of classes.
        accuracy: Share of right answers on `held_out` images that were not used for training.
        held_out: Number of these images.
        bound: Largest Fréchet distance of images of the same kind: half the mean squared distance of the features from
            the mean of their class.
        means: Means of the features by class, float32 [classes, d].
        covs: Their covariances, normalised by 1/n, float32 [classes, d, d].
    """

    dataset: str
    image_shape: list[int]
    num_images: int
    classes: int
    accuracy: float
    held_out: int
    bound: float
    means: np.ndarray
    covs: np.ndarray

    def mixture(self, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean [d] and covariance [d, d] of features of the classes in the proportions `shares` [classes]."""
        means, covs = self.means.astype(np.float64), self.covs.astype(np.float64)
        mean = shares @ means
        offsets = means - mean
        return mean, np.tensordot(shares, covs, 1) + (offsets.T * shares) @ offsets


def statistics(features: np.ndarray, seen: np.ndarray, classes: int) -> dict[str, np.ndarray | float]:
    """`bound`, `means` and `covs` of a record, from features [N, d] and the classes [N] that the detector sees."""
    features = features.astype(np.float64)
    groups = [features[seen == index] for index in range(classes)]
    scatter = sum(((group - group.mean(0)) ** 2).sum() for group in groups if len(group)) / len(features)
    groups = [group if len(group) else features for group in groups]  # a class that is never seen has no statistics
    means = np.stack([group.mean(0) for group in groups])
    covs = np.stack([np.cov(group.T, bias=True) for group in groups])
    bound = float(f"{scatter / 2:.6g}")
    return {"bound": bound, "means": means.astype(np.float32), "covs": covs.astype(np.float32)}


def to_files(record: Record) -> dict[str, bytes]:
    """The extra files of the archive, by name; equal records give equal bytes."""
    facts = dataclasses.asdict(record)
    means, covs = facts.pop("means"), facts.pop("covs")
    upper = np.triu_indices(means.shape[1])
    content = io.BytesIO()
    np.savez(content, means=means, covs=np.stack([cov[upper] for cov in covs]))
    text = json.dumps({"format": _FORMAT, "version": _FORMAT_VERSION, **facts}, indent=1)
    return {FACTS: text.encode(), STATISTICS: content.getvalue()}


def from_files(files: dict[str, bytes]) -> Record:
    """The inverse of `to_files`. Raises an exception of any type for other contents."""
    facts = json.loads(files[FACTS])
    if (facts.pop("format"), facts.pop("version")) != (_FORMAT, _FORMAT_VERSION):
        raise ValueError("another format or version")
    with np.load(io.BytesIO(files[STATISTICS]), allow_pickle=False) as arrays:
        means, uppers = arrays["means"], arrays["covs"]
    rows, columns = np.triu_indices(means.shape[1])
    covs = np.zeros([len(means), means.shape[1], means.shape[1]], np.float32)
    covs[:, rows, columns] = covs[:, columns, rows] = uppers
    record = Record(**facts, means=means, covs=covs)
    _check(record)
    return record


def _check(record: Record) -> None:
    """Raises ValueError or TypeError unless the values fit each other."""
    channels, height, width = record.image_shape
    sizes = (height, width, record.num_images, record.classes)
    if channels not in (1, 3) or not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError("invalid sizes")
    if not isinstance(record.dataset, str) or not isinstance(record.bound, float) or not 0 < record.bound < np.inf:
        raise ValueError("no name or bound")
    if len(record.means) != record.classes or not (np.isfinite(record.means).all() and np.isfinite(record.covs).all()):
        raise ValueError("invalid statistics")
