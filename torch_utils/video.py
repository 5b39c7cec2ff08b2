# SPDX-License-Identifier: Apache-2.0
"""MP4 files, written by imageio with the ffmpeg of the optional package imageio-ffmpeg."""

import os
import shutil
import tempfile
from collections.abc import Iterable

import numpy as np

from dnnlib.util import open_atomic

_FORMAT = {"format": "FFMPEG", "codec": "libx264", "bitrate": "16M"}


def ffmpeg_available() -> bool:
    """Whether imageio can write videos."""
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        return False
    return True


def save_mp4(path: str | os.PathLike, frames: Iterable[np.ndarray], fps: int = 10) -> None:
    """Write a video atomically. Frames are uint8 [H, W, C] of one size, even, with C = 1 or 3."""
    import imageio.v2

    with tempfile.TemporaryDirectory() as scratch:
        draft = os.path.join(scratch, "video.mp4")
        # Sizes are even, and imageio would otherwise round them up to multiples of 16.
        with imageio.v2.get_writer(draft, **_FORMAT, fps=fps, macro_block_size=2) as video:
            for frame in frames:
                video.append_data(np.broadcast_to(frame, [*frame.shape[:2], 3]))
        with open(draft, "rb") as source, open_atomic(path) as file:
            shutil.copyfileobj(source, file)
