# SPDX-License-Identifier: Apache-2.0
"""Conversion of images between networks (float, [-1, 1]) and files (uint8). N batch, C channels (1, 3, 4), H W size."""

import os
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from dnnlib import charts
from dnnlib.util import open_atomic


def to_uint8(img: torch.Tensor) -> torch.Tensor:
    """[N, C, H, W] float in [-1, 1] -> uint8 of the same shape; values outside are clamped."""
    return (img * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def from_uint8(img: torch.Tensor) -> torch.Tensor:
    """uint8 of any shape -> float32 in [-1, 1]."""
    return img.to(torch.float32) / 127.5 - 1


def on_white(img: torch.Tensor) -> torch.Tensor:
    """RGB images [N, 3, H, W] of RGBA ones on a white ground, uint8 or float in [-1, 1]; others as they are."""
    if img.shape[1] != 4:
        return img
    if img.dtype == torch.uint8:
        return ((on_white(from_uint8(img)) + 1) * 127.5).round().to(torch.uint8)  # opaque pixels stay as they are
    alpha = (img[:, 3:].clamp(-1, 1) + 1) / 2
    return img[:, :3] * alpha + (1 - alpha)


def _as_array(images: np.ndarray | torch.Tensor) -> np.ndarray:
    return images.detach().cpu().numpy() if isinstance(images, torch.Tensor) else np.asarray(images)


def make_grid(images: np.ndarray | torch.Tensor, grid_size: tuple[int, int]) -> np.ndarray:
    """[N, C, H, W] with N = gw * gh, row by row -> one image [gh * H, gw * W, C]. Raises ValueError for another N."""
    array = _as_array(images)
    gw, gh = grid_size
    n, c, h, w = array.shape
    if n != gw * gh:
        raise ValueError(f"{n} images do not fill a grid of {gw} x {gh}")
    return array.reshape(gh, gw, c, h, w).transpose(0, 3, 1, 4, 2).reshape(gh * h, gw * w, c)


def save_png(img: np.ndarray | torch.Tensor, path: str | os.PathLike) -> None:
    """Write a uint8 image, [H, W], [H, W, C] or [C, H, W] with C = 1, 3 or 4 (RGBA), as a PNG file, atomically.

    What could be either, such as [4, 4, 4], is taken for [C, H, W], unless the last number is 1 or 3.
    """
    array = _as_array(img)
    if array.ndim == 3 and array.shape[-1] not in (1, 3) and (array.shape[-1] != 4 or array.shape[0] in (1, 3, 4)):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
        raise ValueError(f"expected a grey, RGB or RGBA uint8 image, got {array.dtype} of shape {array.shape}")
    with open_atomic(path) as file:
        Image.fromarray(np.ascontiguousarray(array)).save(file, format="PNG")


def save_image_grid(
    img: np.ndarray | torch.Tensor,
    fname: str | os.PathLike,
    drange: Sequence[float],
    grid_size: tuple[int, int],
    captions: Sequence[Sequence[tuple[str, int]]] = (),
) -> None:
    """Write images [N, C, H, W] as one PNG grid; `drange` has the values of black and white.

    `captions`: for each row the texts, and how many images each is about; none leave the images alone.
    """
    array, (low, high) = _as_array(img), drange
    if array.dtype != np.uint8 or (low, high) != (0, 255):  # large grids take no copies that they do not need
        array = (array.astype(np.float32) - low) * (255 / (high - low))
        array = np.rint(array).clip(0, 255).astype(np.uint8)
    grid = make_grid(array, grid_size)
    if captions:
        picture = Image.fromarray(grid[..., 0] if grid.shape[-1] == 1 else grid)
        grid = np.asarray(charts.captioned(picture, captions, (array.shape[3], array.shape[2])))
    save_png(grid, fname)
