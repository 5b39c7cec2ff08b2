# SPDX-License-Identifier: Apache-2.0
"""Shared by test modules: golden files and the recipe for their inputs (tests/golden/README.md)."""

import io
import json
import pathlib
import zipfile
import zlib

import numpy as np
import torch
from PIL import Image

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


def make_image_zip(
    path: pathlib.Path, resolution: int, num_images: int, num_labels: int = 0, channels: int = 3, **notes
):
    """Write a dataset zip of noise images, fixed by its shape; image i has label i mod `num_labels` (none for 0).

    `notes` are further entries of `dataset.json`.
    """
    rng = np.random.RandomState(resolution)
    labels = []
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(num_images):
            name = f"00000/img{i:08d}.png"
            pixels = rng.randint(0, 256, [resolution, resolution, channels], dtype=np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(buffer, format="PNG")
            archive.writestr(name, buffer.getvalue())
            labels.append([name, i % num_labels] if num_labels else None)
        archive.writestr("dataset.json", json.dumps({"labels": labels if num_labels else None, **notes}))
    return path
