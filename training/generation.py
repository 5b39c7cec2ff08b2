# SPDX-License-Identifier: Apache-2.0
"""The work of generate.py: images of seeds and of given w, as files, as a grid, as a video from one to the next.

Letters in shape comments: N batch, Z Y D widths of z, label and w, L number of w vectors, C channels, R resolution.
"""

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from dnnlib.background import Background
from dnnlib.progress import Progress
from dnnlib.util import UserError
from torch_utils import distributed, images, npz
from torch_utils.video import ffmpeg_available, save_mp4
from training import families
from training.data import class_names
from training.sampling import (
    MOST_GRID_BYTES,
    check_seeds,
    class_label,
    open_generator,
    output_folder,
    seed_to_z,
    slerp,
    synthesize,
)

# Files written at once, and images that wait for it: a disk takes longer to confirm a small file than a CPU to make it.
_WRITERS, _MOST_WAITING = 4, 32


class _Picture(NamedTuple):
    """One image: its file name, the seed of its noise (None: none is drawn), a function that gives what
    `_Pictures.draw` takes."""

    name: str
    seed: int | None
    latents: Callable[[], tuple[torch.Tensor, ...]]


_Draw = Callable[..., torch.Tensor]  # latents of N images -> images [N, C, R, R]
_Between = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]


class _Pictures(NamedTuple):
    """Images to make; `rows` of their grid, None: any."""

    items: list[_Picture]
    draw: _Draw
    rows: int | None = None


def generate_images(
    network: str,
    outdir: str | None,
    *,
    seeds: Sequence[int] | None = None,
    psi: float | None = None,
    classes: Sequence[int] | str | None = None,
    noise_mode: str = "const",
    projected_w: str | None = None,
    grid: bool = False,
    batch: int = 1,
    video: str | None = None,
    frames: int = 60,
    fps: int = 30,
    device: str = "auto",
    trust_pickle: bool = False,
) -> None:
    """Write images to `outdir`: one for each of `seeds`, or for each w in the npz file `projected_w`.

    The arguments are the values of the flags of generate.py; `psi` is the value of --trunc, None for no truncation.
    Raises UserError, naming the flag, for unusable ones.
    """
    if video is not None:
        _check_video(video, seeds, projected_w)
    torch_device = distributed.configure_device(distributed.resolve_device(device))
    G = open_generator(network, trust_pickle, torch_device)
    if noise_mode != "const" and not families.of(G).has_w:
        print("Note: --noise-mode has no effect, because the network takes no noise.", file=sys.stderr)
    bound = None
    if projected_w is None:
        check_seeds("--seeds", seeds)
        bound, psi = families.of(G).truncation(G, psi)
        pictures = _of_seeds(G, seeds, classes, bound, psi, noise_mode, torch_device)
        if video is not None and pictures.rows is not None:
            raise UserError("--video shows one class: give one with --class.")
    else:
        if seeds or classes is not None:
            print("Note: --seeds and --class have no effect with --projected-w.", file=sys.stderr)
        pictures = _of_latents(G, projected_w, noise_mode, torch_device)
        if video is not None and len(pictures.items) < 2:
            raise UserError(f"--video goes from one w to the next, and --projected-w={projected_w} has only one.")
    batch = 1 if noise_mode == "random" else batch  # the noise of an image would depend on the others
    if outdir is not None:
        if grid:
            _check_grid(G, len(pictures.items))
        with output_folder(outdir):
            _save(pictures, outdir, grid, batch)
    if video is not None:
        path = _path(G, pictures, bound, psi, noise_mode)
        try:
            _save_video(video, *path, frames, fps, batch, pictures.items[0].seed)
        except OSError as error:
            raise UserError(f"--video={video} cannot be written: {error.strerror or error}.") from error


def _of_seeds(
    G: torch.nn.Module,
    seeds: Sequence[int],
    classes: Sequence[int] | str | None,
    bound: float | None,
    psi: float,
    noise_mode: str,
    device: torch.device,
) -> _Pictures:
    """Images of `seeds`, of each class in turn; latents are z [1, Z] within `bound` and c [1, Y]."""
    family = families.of(G)
    labels = [class_label(G, k, device) for k in _each(G, classes)]
    several = len(labels) > 1
    rnd = np.random.RandomState()
    items = [
        _Picture(
            f"seed{seed:04d}-class{int(c.argmax())}.png" if several else f"seed{seed:04d}.png",
            seed if noise_mode == "random" else None,
            lambda seed=seed, c=c: (seed_to_z(seed, G.z_dim, bound, rnd).to(device), c),
        )
        for c in labels
        for seed in seeds
    ]

    def draw(z: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return family.sample(G, z, c, truncation_psi=psi, noise_mode=noise_mode)

    return _Pictures(items, draw, rows=len(labels) if several else None)


def _each(G: torch.nn.Module, classes: Sequence[int] | str | None) -> list[int | str | None]:
    """The values of --class one by one; a name may have commas in it."""
    if isinstance(classes, str):
        known = class_names.find(getattr(G, "class_names", None) or [], classes) is not None
        parts = [classes] if known else [part.strip() for part in classes.split(",")]
        classes = [int(part) if part.isdecimal() else part for part in parts] if len(parts) > 1 else parts
    return list(classes or [None])[: None if G.c_dim else 1]


def _of_latents(G: torch.nn.Module, path: str, noise_mode: str, device: torch.device) -> _Pictures:
    """Images of the w in an npz file; latents are ws [1, L, D]."""
    families.require_w(G, "--projected-w")
    ws = _read_latents(G, path).to(device)
    items = [
        _Picture(f"proj{idx:02d}.png", idx if noise_mode == "random" else None, lambda w=w: (w.unsqueeze(0),))
        for idx, w in enumerate(ws)
    ]
    return _Pictures(items, lambda ws: synthesize(G, ws, noise_mode))


def _read_latents(G: torch.nn.Module, path: str) -> torch.Tensor:
    """float32 [n, L, D], the array `w` of an npz file. Raises UserError."""
    try:
        ws = torch.from_numpy(npz.read(path, ["w"])["w"]).to(torch.float32)
    except OSError as error:
        raise UserError(f"--projected-w={path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"--projected-w={path} is not an npz file with an array 'w' of numbers.") from error
    if not ws.isfinite().all():
        raise UserError(f"--projected-w={path} contains values that are not finite numbers: project again.")
    if ws.ndim != 3 or list(ws.shape[1:]) != [G.num_ws, G.w_dim]:
        raise UserError(
            f"--projected-w={path} contains a w of shape {list(ws.shape)}, and this network takes "
            f"[n, {G.num_ws}, {G.w_dim}]: project with the same --network."
        )
    return ws


def _save(pictures: _Pictures, outdir: str, grid: bool, batch: int) -> None:
    """Write each image, or one grid.png of all."""
    cells = []
    with Progress(len(pictures.items), "Generating", "img") as progress, Background(_WRITERS, _MOST_WAITING) as writers:
        for first in range(0, len(pictures.items), batch):
            group = pictures.items[first : first + batch]
            latents = [torch.cat(parts) for parts in zip(*(item.latents() for item in group))]
            _seed_noise(group[0].seed)
            for item, img in zip(group, images.to_uint8(pictures.draw(*latents)).cpu()):
                if grid:
                    cells.append(img)
                else:
                    writers.submit(images.save_png, img, os.path.join(outdir, item.name))
            progress.update(len(group))
    if grid:
        height = pictures.rows or math.ceil(len(cells) / math.ceil(len(cells) ** 0.5))
        width = math.ceil(len(cells) / height)
        cells += [torch.zeros_like(cells[0])] * (width * height - len(cells))
        images.save_png(images.make_grid(torch.stack(cells), (width, height)), os.path.join(outdir, "grid.png"))


def _seed_noise(seed: int | None) -> None:
    """Seed the noise that is drawn next; where none is drawn (None), save the millisecond that PyTorch takes."""
    if seed is not None:
        torch.manual_seed(seed)


def _check_grid(G: torch.nn.Module, count: int) -> None:
    if count * G.img_channels * G.img_resolution**2 > MOST_GRID_BYTES:
        raise UserError(
            f"--grid: {count} images of {G.img_resolution}x{G.img_resolution} would exceed {MOST_GRID_BYTES >> 30} GiB "
            "in one file: use fewer --seeds."
        )


def _check_video(path: str, seeds: Sequence[int] | None, projected_w: str | None) -> None:
    """Raises UserError, before any work, if a video cannot be made."""
    if not path.lower().endswith(".mp4"):
        raise UserError(f"--video={path} must end in .mp4.")
    if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise UserError(f"--video={path} is in a folder that does not exist.")
    if projected_w is None and len(seeds) < 2:
        raise UserError("--video goes from seed to seed: give two or more with --seeds.")
    if not ffmpeg_available():
        raise UserError(f"--video={path} needs the package imageio-ffmpeg: pip install imageio-ffmpeg")


def _path(
    G: torch.nn.Module, pictures: _Pictures, bound: float | None, psi: float, noise_mode: str
) -> tuple[list[torch.Tensor], _Draw, _Between]:
    """Ends of a video's segments, each ws [1, L, D] or z [1, Z]; how to draw points between them, and to find one."""
    latents = [item.latents() for item in pictures.items]
    if families.of(G).has_w:
        ends = [given[0] if len(given) == 1 else G.mapping(*given, truncation_psi=psi) for given in latents]
        return ends, lambda ws: synthesize(G, ws, noise_mode), torch.lerp
    c, limit = latents[0][1], math.inf if bound is None else bound
    ends = [z for z, _ in latents]
    return ends, lambda z: pictures.draw(z, c.expand(len(z), -1)), lambda a, b, t: _arc(a, b, t).clamp(-limit, limit)


def _arc(a: torch.Tensor, b: torch.Tensor, t: float) -> torch.Tensor:
    """From `a` to `b` [1, Z] on a great arc, with lengths in between: latents stay as likely as those of seeds."""
    length = a.norm().lerp(b.norm(), t)
    return slerp(a, b, a.new_tensor([t])) * length


def _save_video(
    path: str,
    ends: list[torch.Tensor],
    draw: _Draw,
    between: _Between,
    frames: int,
    fps: int,
    batch: int,
    seed: int | None,
) -> None:
    """From each point to the next in `frames` frames, and from the last back to the first; noise of `seed`."""
    total = len(ends) * frames

    def point(index: int) -> torch.Tensor:
        number, frame = divmod(index, frames)
        return between(ends[number], ends[(number + 1) % len(ends)], frame / frames)

    with Progress(total, "Writing video", "frame") as progress:

        def pixels() -> Iterator[np.ndarray]:
            for first in range(0, total, batch):
                latents = torch.cat([point(index) for index in range(first, min(first + batch, total))])
                _seed_noise(seed)
                yield from images.on_white(images.to_uint8(draw(latents))).permute(0, 2, 3, 1).cpu().numpy()
                progress.update(len(latents))

        save_mp4(path, pixels(), fps)
