# SPDX-License-Identifier: Apache-2.0
"""Files of a projection: target images in; images, latents and a video out."""

import collections
import os
import shutil
import tempfile
from collections.abc import Iterator

import numpy as np
import torch

from dnnlib.progress import Progress
from dnnlib.util import open_atomic
from torch_utils import images
from training.data.convert import make_transform
from training.data.image_files import DatasetError, image_names
from training.data.sources import decode
from training.projection import Projection

_FRAMES_PER_SECOND = 30
_MOST_FRAMES = 100  # as PNGs, 1000 frames of a large network would take gigabytes


def read_targets(path: str, resolution: int, channels: int) -> dict[str, torch.Tensor]:
    """Target images at `path`, uint8 [C, R, R], by where their results go below --outdir.

    A file's results go to '' (--outdir itself), those of each image of a folder to its name without the extension.
    Every image is cropped to its centred square and resized. Raises DatasetError where one is missing or unreadable.
    """
    if not os.path.isdir(path):
        return {"": _read_target(path, resolution, channels)}
    # Not the folders inside it: the results of an earlier run may lie there.
    names = image_names(sorted(entry.name for entry in os.scandir(path) if entry.is_file()))
    if not names:
        raise DatasetError(f"--target={path} is a folder without images: name an image or a folder of images.")
    stems = collections.Counter(os.path.splitext(name)[0] for name in names)
    targets = {}
    for name in names:
        stem = os.path.splitext(name)[0]
        result = stem if stems[stem] == 1 else name
        targets[result] = _read_target(os.path.join(path, name), resolution, channels)
    return targets


def _read_target(path: str, resolution: int, channels: int) -> torch.Tensor:
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise DatasetError(f"--target={path} cannot be read: {error.strerror}.") from error
    image = decode(data, f"--target={path}", channels)
    image = make_transform("center-crop", resolution, resolution, "lanczos")(image)
    pixels = np.array(image).reshape(resolution, resolution, channels)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def render(G: torch.nn.Module, ws: torch.Tensor) -> torch.Tensor:
    """uint8 [C, R, R] of latents [L, D], as generate.py --projected-w makes it: with the network's own noise."""
    img = G.synthesis(ws.unsqueeze(0).to(next(G.parameters()).device), noise_mode="const")
    return images.to_uint8(img)[0].cpu()


def save_result(folder: str, G: torch.nn.Module, found: Projection, index: int) -> None:
    """Write proj.png and projected_w.npz (`w` [1, L, D]) of the image `index` of a projection."""
    ws = found.ws[index]
    images.save_png(render(G, ws), os.path.join(folder, "proj.png"))
    with open_atomic(os.path.join(folder, "projected_w.npz")) as file:
        np.savez(file, w=ws.unsqueeze(0).numpy())


def choose_frames(num_steps: int) -> list[int]:
    """Which steps a video shows: all; or, without ffmpeg, at most 100, evenly spaced from the first to the last."""
    if ffmpeg_available() or num_steps <= _MOST_FRAMES:
        return list(range(num_steps))
    return np.linspace(0, num_steps - 1, _MOST_FRAMES).round().astype(int).tolist()


def save_video(folder: str, G: torch.nn.Module, target: torch.Tensor, path: torch.Tensor, progress: Progress) -> None:
    """Write the images of the latents `path` [T, D] as a video, each with `target` [C, R, R] on its left.

    It is proj.mp4 where imageio finds ffmpeg, and elsewhere the folder proj_frames of PNGs.
    """
    frames = _frames(G, target, path, progress)
    if ffmpeg_available():
        _save_mp4(os.path.join(folder, "proj.mp4"), frames)
    else:
        _save_frames(os.path.join(folder, "proj_frames"), frames)


def ffmpeg_available() -> bool:
    """Whether imageio can write videos here."""
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        return False
    return True


def _frames(G: torch.nn.Module, target: torch.Tensor, path: torch.Tensor, progress: Progress) -> Iterator[np.ndarray]:
    """uint8 [R, 2R, C] of each of the latents `path` [T, D]."""
    for w in path:
        img = render(G, w.repeat(G.num_ws, 1))
        yield torch.cat([target, img], dim=2).permute(1, 2, 0).numpy()
        progress.update()


def _save_mp4(path: str, frames: Iterator[np.ndarray]) -> None:
    import imageio.v2

    with tempfile.TemporaryDirectory() as scratch:
        draft = os.path.join(scratch, "proj.mp4")
        # A network's image is as wide as it needs to be: a power of two from 4 up, though not always 16.
        with imageio.v2.get_writer(draft, format="FFMPEG", fps=_FRAMES_PER_SECOND, macro_block_size=2) as video:
            for frame in frames:
                video.append_data(np.broadcast_to(frame, [*frame.shape[:2], 3]))
        with open(draft, "rb") as source, open_atomic(path) as file:
            shutil.copyfileobj(source, file)


def _save_frames(folder: str, frames: Iterator[np.ndarray]) -> None:
    os.makedirs(folder, exist_ok=True)
    for name in os.listdir(folder):
        # Frames of an earlier, longer run would follow ours.
        if name.startswith("frame") and name.endswith(".png"):
            os.remove(os.path.join(folder, name))
    for index, frame in enumerate(frames):
        images.save_png(frame, os.path.join(folder, f"frame{index:04d}.png"))
