# SPDX-License-Identifier: Apache-2.0
"""Cache of the statistics of real images. The key covers everything they depend on."""

import hashlib
import json
import os
import sys

from dnnlib.archives import open_zip
from dnnlib.text import printable
from dnnlib.util import make_cache_dir_path
from metrics.feature_stats import FeatureStats

_FORMAT = 1


def dataset_fingerprint(path: str) -> str | None:
    """SHA-256 that identifies the contents of a dataset, or None for an unknown kind of file.

    For a zip it covers names, checksums and sizes; for a folder names, sizes and modification times.
    """
    if os.path.isdir(path):
        found = []
        for root, _dirs, files in os.walk(path):
            for file in files:
                name = os.path.join(root, file)
                info = os.stat(name) if os.path.exists(name) else os.lstat(name)  # a link without its file
                found.append((os.path.relpath(name, path), info.st_size, info.st_mtime_ns))
    else:
        try:
            with open_zip(path) as archive:
                found = [(member.filename, member.CRC, member.file_size) for member in archive.infolist()]
        except (OSError, ValueError):
            return None
    return hashlib.sha256(json.dumps(sorted(found)).encode()).hexdigest()


def cache_path(dataset_kwargs: dict, detector_name: str, **identity) -> str | None:
    """Path of the cache file for the dataset with its current contents; None for data without a fingerprint.

    `identity`: everything else that the statistics depend on, as JSON values.
    """
    data_path = dataset_kwargs.get("path")
    fingerprint = dataset_fingerprint(data_path) if isinstance(data_path, str) else None
    if fingerprint is None:
        return None
    data_path = os.path.abspath(data_path)
    identity |= {"format": _FORMAT, "contents": fingerprint, "dataset": {**dataset_kwargs, "path": data_path}}
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    data_name = os.path.splitext(os.path.basename(data_path))[0]
    return make_cache_dir_path("gan-metrics", f"{data_name}-{detector_name}-{key}.npz")


def load(path: str, num_items: int) -> FeatureStats | None:
    """The statistics of `num_items` images in the cache file, or None if there is none.

    A damaged file is ignored with a notice; `save` will replace it.
    """
    if not os.path.isfile(path):
        return None
    try:
        stats = FeatureStats.load(path)
        if stats.num_items != num_items:
            raise ValueError("another number of images")
    except Exception as error:
        # Damaged bytes can raise any exception, and no result depends on the file.
        reason = printable(f"{type(error).__name__}: {error}")
        print(f"Note: ignoring the damaged cache file {path} ({reason}).", file=sys.stderr)
        return None
    return stats


def save(path: str, stats: FeatureStats) -> None:
    """Write `stats` to the cache file. A failure is only a notice, because no result depends on it."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        stats.save(path)
    except OSError as error:
        print(f"Note: the statistics of the reals could not be cached in {path} ({error}).", file=sys.stderr)
