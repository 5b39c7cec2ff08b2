# SPDX-License-Identifier: Apache-2.0
"""Checks of the result of a script."""

import os

import numpy as np
import PIL.Image
import torch


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
