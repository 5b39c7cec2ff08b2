# SPDX-License-Identifier: Apache-2.0
import os

import numpy as np
import pytest
import torch
from PIL import Image

from torch_utils import images


def test_uint8_and_back():
    img = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0]).reshape(1, 1, 2, 3)
    assert images.to_uint8(img).flatten().tolist() == [0, 0, 128, 191, 255, 255]
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    floats = images.from_uint8(values)
    assert floats.dtype == torch.float32 and floats.min() == -1 and floats.max() == 1
    # The two formulas differ by half a step, so a value may come back one higher, but nothing else.
    assert set((images.to_uint8(floats).int() - values.int()).unique().tolist()) <= {0, 1}


def test_grid_is_filled_row_by_row():
    batch = torch.arange(6).reshape(6, 1, 1, 1).expand(6, 3, 2, 4)
    grid = images.make_grid(batch, (3, 2))
    assert grid.shape == (4, 12, 3)
    assert grid[::2, ::4, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ValueError, match="6 images"):
        images.make_grid(batch, (2, 2))


@pytest.mark.parametrize(
    "shape", [(8, 6), (8, 6, 1), (8, 6, 3), (8, 6, 4), (1, 8, 6), (3, 8, 6), (4, 8, 6), (3, 4, 4), (4, 4, 4)]
)
@pytest.mark.parametrize("as_tensor", [True, False])
def test_png_contains_the_image(tmp_path, shape, as_tensor):
    array = np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)
    path = tmp_path / "img.png"
    images.save_png(torch.from_numpy(array) if as_tensor else array, path)
    expected = array.transpose(1, 2, 0) if len(shape) == 3 and shape[0] != 8 else array
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[1 if len(shape) == 2 else expected.shape[-1]]
    with Image.open(path) as png:
        assert png.format == "PNG" and png.mode == mode
        assert np.array_equal(np.asarray(png), expected[..., 0] if expected.shape[-1] == 1 else expected)
    assert os.listdir(tmp_path) == ["img.png"]


def test_png_refuses_other_arrays(tmp_path):
    for array in (np.zeros((4, 4), np.float32), np.zeros((5, 5, 5), np.uint8), np.zeros(4, np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            images.save_png(array, tmp_path / "x.png")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_image_grid_file(tmp_path, channels):
    batch = torch.stack([torch.full([channels, 4, 4], value) for value in (-1.0, 0.0, 1.0, 3.0)])
    images.save_image_grid(batch, tmp_path / "grid.png", drange=[-1, 1], grid_size=(2, 2))
    with Image.open(tmp_path / "grid.png") as png:
        pixels = np.asarray(png).reshape(8, 8, -1)
    assert pixels.shape[-1] == channels
    assert pixels[::4, ::4, 0].tolist() == [[0, 128], [255, 255]]


def test_rgba_is_seen_on_white():
    rgba = torch.randint(256, [2, 4, 8, 8], dtype=torch.uint8)
    rgba[0, 3], rgba[1, 3] = 255, 0
    assert torch.equal(images.on_white(rgba)[0], rgba[0, :3]) and images.on_white(rgba)[1].min() == 255
    half = torch.tensor([-1.0, 0.0, 1.0, 0.0]).reshape(1, 4, 1, 1)
    assert images.on_white(half).flatten().tolist() == [0, 0.5, 1]
    assert torch.equal(images.on_white(rgba[:, :3]), rgba[:, :3]) and torch.equal(
        images.on_white(rgba[:, :1]), rgba[:, :1]
    )
