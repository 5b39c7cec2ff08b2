# SPDX-License-Identifier: Apache-2.0
"""Statistics of real images, kept in the cache folder under a key over everything they depend on."""

import hashlib
import json
import os
import sys
import zipfile

from dnnlib.util import make_cache_dir_path
from metrics.feature_stats import FeatureStats

_FORMAT = 1


def dataset_fingerprint(path: str) -> str | None:
    """SHA-256 over what tells a dataset's contents from others, or None where that cannot be told.

    Of a zip: names, checksums and sizes; of a folder: names, sizes and times of change.
    """
    if os.path.isdir(path):
        found = []
        for root, _dirs, files in os.walk(path):
            for file in files:
                info = os.stat(os.path.join(root, file))
                found.append((os.path.relpath(os.path.join(root, file), path), info.st_size, info.st_mtime_ns))
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            found = [(member.filename, member.CRC, member.file_size) for member in archive.infolist()]
    else:
        return None
    return hashlib.sha256(json.dumps(sorted(found)).encode()).hexdigest()


def cache_path(dataset_kwargs: dict, detector_name: str, **identity) -> str | None:
    """The file for statistics of the dataset as it is now; None for data whose contents cannot be fingerprinted.

    `identity`: all else the statistics depend on, as JSON values.
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


def load(path: str) -> FeatureStats | None:
    """The statistics in the cache file, or None where there are none; a damaged file is passed over with a notice."""
    if not os.path.isfile(path):
        return None
    try:
        return FeatureStats.load(path)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        print(f"Note: passing over the damaged cache file {path} ({error}).", file=sys.stderr)
        return None


def save(path: str, stats: FeatureStats) -> None:
    """Keep `stats` in the cache file; where that fails, a notice says so, as the result does not depend on it."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        stats.save(path)
    except OSError as error:
        print(f"Note: the statistics of the reals could not be kept in {path} ({error}).", file=sys.stderr)
