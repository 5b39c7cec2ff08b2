# SPDX-License-Identifier: Apache-2.0
"""Features of many images, gathered from all processes, and their mean and covariance. n items, d dimensions."""

from collections.abc import Mapping

import numpy as np
import torch

from dnnlib.util import open_atomic
from torch_utils import distributed, npz

ARRAYS = ("settings", "num_items", "features", "mean", "scatter")  # of `to_arrays`


class FeatureStats:
    """Collects features: all of them (`capture_all`), their mean and covariance (`capture_mean_cov`), or both.

    Items after the first `max_items` are ignored (None: no limit).
    """

    def __init__(self, capture_all: bool = False, capture_mean_cov: bool = False, max_items: int | None = None):
        self.capture_all = capture_all
        self.capture_mean_cov = capture_mean_cov
        self.max_items = max_items
        self.num_items = 0
        self.num_features: int | None = None
        self._parts: list[np.ndarray] = []
        self._mean: np.ndarray | None = None
        self._scatter: np.ndarray | None = None

    def is_full(self) -> bool:
        """Whether `max_items` items have been collected."""
        return self.max_items is not None and self.num_items >= self.max_items

    def append(self, x: np.ndarray) -> None:
        """Add the features `x` [n, d]."""
        x = np.asarray(x, dtype=np.float32)
        assert x.ndim == 2 and self.num_features in (None, x.shape[1])
        if self.max_items is not None:
            x = x[: self.max_items - self.num_items]
        if len(x) == 0:
            return
        self.num_features = x.shape[1]
        if self.capture_all:
            self._parts.append(x)
        if self.capture_mean_cov:
            self._merge(x.astype(np.float64))
        self.num_items += len(x)

    def _merge(self, x: np.ndarray) -> None:
        """Chan, Golub & LeVeque 1983: sums about the mean stay accurate where raw second moments cancel."""
        if self._mean is None:
            self._mean = np.zeros(x.shape[1])
            self._scatter = np.zeros([x.shape[1], x.shape[1]])
        mean = x.mean(axis=0)
        centred = x - mean
        offset = mean - self._mean
        total = self.num_items + len(x)
        self._scatter += centred.T @ centred + np.outer(offset, offset) * (self.num_items * len(x) / total)
        self._mean += offset * (len(x) / total)

    def append_torch(self, x: torch.Tensor, num_gpus: int = 1, rank: int = 0) -> None:
        """Add the features `x` [n, d] of all processes, interleaved item by item. n must be the same in all of them."""
        assert 0 <= rank < num_gpus
        x = x.detach().float()
        if num_gpus > 1:
            shares = [x.clone() for _ in range(num_gpus)]
            for source, share in enumerate(shares):
                distributed.broadcast_(share, src=source)
            x = torch.stack(shares, dim=1).flatten(0, 1)
        self.append(x.cpu().numpy())

    def get_all(self) -> np.ndarray:
        """All features, float32 [num_items, d]."""
        assert self.capture_all
        return np.concatenate(self._parts)

    def get_all_torch(self) -> torch.Tensor:
        """All features, float32 [num_items, d], on the CPU."""
        return torch.from_numpy(self.get_all())

    def get_mean_cov(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean [d] and covariance [d, d] (normalised by 1/n), float64."""
        assert self.capture_mean_cov and self._mean is not None
        return self._mean.copy(), self._scatter / self.num_items

    def first(self, num_items: int) -> "FeatureStats":
        """Statistics of the first `num_items` features. Needs `capture_all`."""
        stats = FeatureStats(self.capture_all, self.capture_mean_cov, num_items)
        stats.append(self.get_all())
        return stats

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The whole state as named arrays, for an npz file."""
        arrays = {
            "settings": np.array(
                [self.capture_all, self.capture_mean_cov, -1 if self.max_items is None else self.max_items]
            ),
            "num_items": np.array(self.num_items),
        }
        if self._parts:
            arrays["features"] = self.get_all()
        if self._mean is not None:
            arrays["mean"], arrays["scatter"] = self._mean, self._scatter
        return arrays

    @staticmethod
    def from_arrays(arrays: Mapping[str, np.ndarray]) -> "FeatureStats":
        """The inverse of `to_arrays`. Raises KeyError, ValueError or TypeError for invalid arrays."""
        capture_all, capture_mean_cov, max_items = (int(value) for value in arrays["settings"])
        stats = FeatureStats(bool(capture_all), bool(capture_mean_cov), None if max_items < 0 else max_items)
        stats.num_items = int(arrays["num_items"])
        if stats.capture_all and stats.num_items:
            stats._parts = [arrays["features"]]
            stats.num_features = stats._parts[0].shape[-1]
        if stats.capture_mean_cov and stats.num_items:
            stats._mean, stats._scatter = arrays["mean"], arrays["scatter"]
            stats.num_features = stats._mean.shape[-1]
        d = stats.num_features
        if d is None:
            raise ValueError("there are no statistics")
        if any(part.shape != (stats.num_items, d) or part.dtype != np.float32 for part in stats._parts):
            raise ValueError("features have the wrong shape or type")
        if stats._mean is not None and (stats._mean.shape, stats._scatter.shape) != ((d,), (d, d)):
            raise ValueError("mean or covariance has the wrong shape")
        for array in (*stats._parts, stats._mean, stats._scatter):
            if array is not None and (array.dtype.kind != "f" or not np.isfinite(array).all()):
                raise ValueError("not all values are finite numbers")
        return stats

    def save(self, path: str) -> None:
        """Write the whole state to an npz file. Raises OSError."""
        with open_atomic(path) as file:
            np.savez(file, **self.to_arrays())

    @staticmethod
    def load(path: str) -> "FeatureStats":
        """Read a file that `save` wrote. Raises OSError if it cannot be read, or as `from_arrays` if it is damaged."""
        return FeatureStats.from_arrays(npz.read(path, ARRAYS))
