# SPDX-License-Identifier: Apache-2.0
"""Checks of the result of a script, and a stand-in for a video."""

import os

import numpy as np
import PIL.Image
import torch

from torch_utils import images
from training import sampling


def refused(result, *words: str) -> None:
    """Assert that `run_script` returned status 2, one sentence with `words`, and that nothing was created."""
    status, _, err, outdir = result
    message = err[err.index("Error: ") :]
    assert status == 2 and "Traceback" not in err
    for word in words:
        assert word in message
    assert not outdir.exists()


def pixels(path: str | os.PathLike) -> torch.Tensor:
    """uint8 [C, H, W] of an image file."""
    image = np.array(PIL.Image.open(path))
    return torch.from_numpy(image.reshape(*image.shape[:2], -1)).permute(2, 0, 1)


class FakeVideo(list):
    """Takes frames like imageio's writer, and writes a file when closed."""

    def open(self, path, **options):
        self.path, self.options = path, options
        return self

    append_data = list.append

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        with open(self.path, "wb") as file:
            file.write(b"video")


def image_of(G, seed, label, trunc=None):
    """uint8 [C, H, W] of a BigGAN's seed and class."""
    z = sampling.truncated_z(np.random.RandomState(seed), (1, G.z_dim), trunc)
    c = torch.eye(G.c_dim)[[label]]
    return images.to_uint8(G(torch.from_numpy(z.astype(np.float32)), c))[0]
