# SPDX-License-Identifier: Apache-2.0
"""The work of projector.py: read the target images, project them, write images, latents and videos."""

import collections
import contextlib
import os
from collections.abc import Iterator

import numpy as np
import torch

from dnnlib.files import read_regular
from dnnlib.progress import Progress
from dnnlib.text import printable
from dnnlib.util import open_atomic
from metrics import detectors, lpips
from torch_utils import distributed, images
from torch_utils.video import ffmpeg_available, save_mp4
from training import families, sampling
from training.data.convert import make_transform
from training.data.image_files import MOST_BYTES, DatasetError, image_names
from training.data.sources import decode
from training.projection import Projection, project

_MAX_FRAMES = 100  # 1000 PNG frames of a large network would take gigabytes


def project_images(
    network: str,
    target: str,
    outdir: str,
    *,
    num_steps: int = 1000,
    seed: int = 303,
    save_video: bool = True,
    class_idx: int | str | None = None,
    batch: int = 1,
    detector: str | None = None,
    device: str = "auto",
    trust_pickle: bool = False,
    trust_detector: bool = False,
) -> None:
    """Project the image `target`, or each image of the folder `target`, and write the results to `outdir`.

    The arguments are the values of the flags of projector.py. Raises UserError, naming the flag, for unusable ones.
    """
    torch_device = distributed.configure_device(distributed.resolve_device(device))
    G = sampling.open_generator(network, trust_pickle, torch_device)
    families.require_w(G, "Projection")
    c = sampling.class_label(G, class_idx, torch_device)
    targets = read_targets(target, G.img_resolution, G.img_channels)
    if trust_detector and detector != lpips.PIXELS:
        detectors.trust(detector)
    features = lpips.open_features(detector, torch_device)
    kind = "pixel" if detector == lpips.PIXELS else "LPIPS"
    torch.backends.cudnn.deterministic = True

    if save_video and not ffmpeg_available():
        print("Note: the videos will be PNGs in proj_frames, because there is no ffmpeg: pip install imageio-ffmpeg.")
    paths, summary = {}, []
    names = list(targets)
    groups = [names[first : first + batch] for first in range(0, len(names), batch)]
    with sampling.output_folder(outdir):
        with Progress(len(groups) * num_steps, "Projecting", "step") as progress:
            for group in groups:
                for name in group:
                    os.makedirs(os.path.join(outdir, name), exist_ok=True)
                    images.save_png(targets[name], os.path.join(outdir, name, "target.png"))
                wanted = torch.stack([targets[name] for name in group])
                found = project(G, wanted, features, c=c, num_steps=num_steps, seed=seed, progress=progress)
                for index, name in enumerate(group):
                    folder = os.path.join(outdir, name)
                    save_result(folder, G, found, index)
                    paths[name] = found.w[index]
                    first, last = found.distance[index, [0, -1]].tolist()
                    path = printable(os.path.join(folder, "proj.png"), 1000)
                    summary.append(f"{path}: {kind} distance {first:.4g} -> {last:.4g}")
        print("\n".join(summary), flush=True)
        if save_video:
            _save_videos(outdir, G, targets, paths, num_steps)


def read_targets(path: str, resolution: int, channels: int) -> dict[str, torch.Tensor]:
    """Target images at `path`, uint8 [C, R, R], by the folder of their results below --outdir.

    That is '' (--outdir itself) for a file, and the name without the extension for each image of a folder. Every image
    is cropped to its centred square and resized. Raises DatasetError if one is missing or unreadable.
    """
    if not os.path.isdir(path):
        return {"": _read_target(path, resolution, channels)}
    # Without subfolders: they may contain the results of an earlier run.
    names = image_names(sorted(entry.name for entry in os.scandir(path) if entry.is_file()))
    if not names:
        raise DatasetError(f"--target={path} is a folder without images: choose an image or a folder of images.")
    stems = collections.Counter(os.path.splitext(name)[0] for name in names)
    targets = {}
    for name in names:
        stem = os.path.splitext(name)[0]
        result = stem if stems[stem] == 1 else name
        targets[result] = _read_target(os.path.join(path, name), resolution, channels)
    return targets


def _read_target(path: str, resolution: int, channels: int) -> torch.Tensor:
    where = f"--target={printable(path, 1000)}"
    try:
        data = read_regular(path, MOST_BYTES)
    except OSError as error:
        raise DatasetError(f"{where} cannot be read: {error.strerror}.") from error
    image = decode(data, where, channels)
    image = make_transform("center-crop", resolution, resolution, "lanczos")(image)
    pixels = np.array(image).reshape(resolution, resolution, channels)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def render(G: torch.nn.Module, ws: torch.Tensor) -> torch.Tensor:
    """Image uint8 [C, R, R] of latents [L, D] with the network's own noise, as generate.py --projected-w makes it."""
    img = sampling.synthesize(G, ws.unsqueeze(0).to(next(G.parameters()).device), noise_mode="const")
    return images.to_uint8(img)[0].cpu()


def save_result(folder: str, G: torch.nn.Module, found: Projection, index: int) -> None:
    """Write proj.png and projected_w.npz (`w` [1, L, D]) of image `index` of a projection."""
    ws = found.ws[index]
    images.save_png(render(G, ws), os.path.join(folder, "proj.png"))
    with open_atomic(os.path.join(folder, "projected_w.npz")) as file:
        np.savez(file, w=ws.unsqueeze(0).numpy())


def choose_frames(num_steps: int) -> list[int]:
    """Steps shown in a video: all; without ffmpeg at most 100, evenly spaced from the first to the last."""
    if ffmpeg_available() or num_steps <= _MAX_FRAMES:
        return list(range(num_steps))
    return np.linspace(0, num_steps - 1, _MAX_FRAMES).round().astype(int).tolist()


def _save_videos(
    outdir: str, G: torch.nn.Module, targets: dict[str, torch.Tensor], paths: dict[str, torch.Tensor], num_steps: int
) -> None:
    steps = choose_frames(num_steps)
    with Progress(len(targets) * len(steps), "Writing video", "frame") as progress:
        for name, path in paths.items():
            save_video(os.path.join(outdir, name), G, targets[name], path[steps], progress)


def save_video(folder: str, G: torch.nn.Module, target: torch.Tensor, path: torch.Tensor, progress: Progress) -> None:
    """Write the images of the latents `path` [T, D] as a video, each with `target` [C, R, R] on its left.

    The result is proj.mp4 if imageio finds ffmpeg, otherwise a folder proj_frames of PNGs. The other one, of an earlier
    run, is removed.
    """
    frames = _frames(G, target, path, progress)
    video, pngs = os.path.join(folder, "proj.mp4"), os.path.join(folder, "proj_frames")
    if ffmpeg_available():
        save_mp4(video, frames)
        _remove_frames(pngs)
        with contextlib.suppress(OSError):  # there is none, or it has other files
            os.rmdir(pngs)
    else:
        _save_frames(pngs, frames)
        with contextlib.suppress(FileNotFoundError):
            os.remove(video)


def _frames(G: torch.nn.Module, target: torch.Tensor, path: torch.Tensor, progress: Progress) -> Iterator[np.ndarray]:
    """Frames uint8 [R, 2R, C] of the latents `path` [T, D]; videos have no transparency, so RGBA is on white."""
    for w in path:
        img = render(G, w.repeat(G.num_ws, 1))
        both = images.on_white(torch.cat([target, img], dim=2).unsqueeze(0))
        yield both[0].permute(1, 2, 0).numpy()
        progress.update()


def _save_frames(folder: str, frames: Iterator[np.ndarray]) -> None:
    os.makedirs(folder, exist_ok=True)
    _remove_frames(folder)  # those of an earlier, longer run would follow the new ones
    for index, frame in enumerate(frames):
        images.save_png(frame, os.path.join(folder, f"frame{index:04d}.png"))


def _remove_frames(folder: str) -> None:
    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        if name.startswith("frame") and name.endswith(".png"):
            os.remove(os.path.join(folder, name))
