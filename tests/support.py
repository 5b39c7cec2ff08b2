# SPDX-License-Identifier: Apache-2.0
"""What several test modules share: golden files and the recipe that makes their inputs (tests/golden/README.md)."""

import json
import pathlib
import zlib

import numpy as np
import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOLDEN = pathlib.Path(__file__).resolve().parent / "golden"


def rnd(key: str, shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Standard normal tensor of `shape`, a function of `key` alone."""
    rng = np.random.RandomState(zlib.crc32(key.encode()) % 2**32)
    return torch.as_tensor(rng.standard_normal(tuple(shape))).to(dtype)


def golden_json(name: str):
    """Parsed `tests/golden/<name>.json`."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def golden_arrays(name: str) -> dict[str, np.ndarray]:
    """All arrays of `tests/golden/<name>.npz`."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}
