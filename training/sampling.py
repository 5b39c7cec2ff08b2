# SPDX-License-Identifier: Apache-2.0
"""Images from a trained generator: the work of generate.py and style_mixing.py.

`seed_to_ws` and `synthesize` are for families with a latent space w; all else works for any family.

Letters in shape comments: Z Y D widths of z, label and w, L number of w vectors, C channels, R resolution.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from dnnlib.progress import Progress
from dnnlib.text import printable
from dnnlib.util import UserError
from torch_utils import distributed, images, misc, npz
from torch_utils.ops import layout
from training import families
from training.data import class_names
from training.files.snapshot import Snapshot, load_snapshot

_MOST_GRID_BYTES = 1 << 32  # of style_mixing.py, whose images are kept in memory


def generate_images(
    network: str,
    outdir: str,
    *,
    seeds: Sequence[int] | None = None,
    psi: float | None = None,
    class_idx: int | str | None = None,
    noise_mode: str = "const",
    projected_w: str | None = None,
    device: str = "auto",
    trust_pickle: bool = False,
) -> None:
    """Write seedNNNN.png to `outdir` for each of `seeds`, or projNN.png for each w in the npz file `projected_w`.

    The arguments are the values of the flags of generate.py; `psi` is the value of --trunc, None for no truncation.
    Raises UserError, naming the flag, for unusable ones.
    """
    torch_device = distributed.configure_device(distributed.resolve_device(device))
    G = open_generator(network, trust_pickle, torch_device)
    if noise_mode != "const" and not families.of(G).has_w:
        print("Note: --noise-mode has no effect, because the network takes no noise.", file=sys.stderr)
    if projected_w is None:
        to_draw = _of_seeds(G, seeds, class_idx, psi, noise_mode, torch_device)
    else:
        if seeds or class_idx is not None:
            print("Note: --seeds and --class have no effect with --projected-w.", file=sys.stderr)
        to_draw = _of_latents(G, projected_w, noise_mode, torch_device)
    with output_folder(outdir), Progress(len(to_draw), "Generating", "img") as progress:
        for name, noise_seed, draw in to_draw:
            torch.manual_seed(noise_seed)
            images.save_png(images.to_uint8(draw())[0], os.path.join(outdir, name))
            progress.update()


_ToDraw = tuple[str, int, Callable[[], torch.Tensor]]  # file name, seed of the noise, function giving [1, C, R, R]


def _of_seeds(
    G: torch.nn.Module,
    seeds: Sequence[int],
    class_idx: int | str | None,
    trunc: float | None,
    noise_mode: str,
    device: torch.device,
) -> list[_ToDraw]:
    check_seeds("--seeds", seeds)
    family = families.of(G)
    bound, psi = family.truncation(G, trunc)
    c = class_label(G, class_idx, device)

    def draw(seed: int) -> torch.Tensor:
        z = seed_to_z(seed, G.z_dim, bound).to(device)
        return family.sample(G, z, c, truncation_psi=psi, noise_mode=noise_mode)

    return [(f"seed{seed:04d}.png", seed, lambda seed=seed: draw(seed)) for seed in seeds]


def _of_latents(G: torch.nn.Module, path: str, noise_mode: str, device: torch.device) -> list[_ToDraw]:
    families.require_w(G, "--projected-w")
    ws = _read_latents(G, path).to(device)
    return [
        (f"proj{idx:02d}.png", idx, lambda w=w: synthesize(G, w.unsqueeze(0), noise_mode)) for idx, w in enumerate(ws)
    ]


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


def mix_styles(
    network: str,
    outdir: str,
    *,
    rows: Sequence[int],
    cols: Sequence[int],
    styles: Sequence[int] | None = None,
    psi: float = 1,
    class_idx: int | str | None = None,
    noise_mode: str = "const",
    device: str = "auto",
    trust_pickle: bool = False,
) -> None:
    """Write ROW-COL.png for all pairs of the seeds `rows` and `cols`, SEED-SEED.png for each seed, and grid.png.

    `styles` are the indices of the w vectors that come from the column's seed, by default the first seven. The
    arguments are the values of the flags of style_mixing.py. Raises UserError, naming the flag, for unusable ones.
    """
    check_seeds("--rows", rows)
    check_seeds("--cols", cols)
    torch_device = distributed.configure_device(distributed.resolve_device(device))
    G = open_generator(network, trust_pickle, torch_device)
    families.require_w(G, "Style mixing")
    _check_grid(G, rows, cols)
    styles = range(min(7, G.num_ws)) if styles is None else styles
    if max(styles) >= G.num_ws:
        raise UserError(f"--styles={max(styles)} is out of range: the network has styles 0 to {G.num_ws - 1}.")
    families.of(G).check_truncation(G, psi)
    c = class_label(G, class_idx, torch_device)
    ws = {seed: seed_to_ws(G, seed, c, psi) for seed in {*rows, *cols}}

    alone = [(seed, seed) for seed in dict.fromkeys([*rows, *cols])]
    drawn = dict.fromkeys(alone + [(row, col) for row in rows for col in cols])
    with output_folder(outdir):
        with Progress(len(drawn), "Generating", "img") as progress:
            for row, col in drawn:
                mixed = ws[row].clone()
                mixed[:, styles] = ws[col][:, styles]
                torch.manual_seed(row)
                drawn[row, col] = images.to_uint8(synthesize(G, mixed, noise_mode))[0].cpu()
                images.save_png(drawn[row, col], os.path.join(outdir, f"{row}-{col}.png"))
                progress.update()
        images.save_png(_style_grid(drawn, rows, cols), os.path.join(outdir, "grid.png"))


def _check_grid(G: torch.nn.Module, rows: Sequence[int], cols: Sequence[int]) -> None:
    if (len(rows) + 1) * (len(cols) + 1) * G.img_channels * G.img_resolution**2 > _MOST_GRID_BYTES:
        raise UserError(
            f"--rows and --cols have {len(rows)} and {len(cols)} seeds, and a grid of so many images of "
            f"{G.img_resolution}x{G.img_resolution} would exceed {_MOST_GRID_BYTES >> 30} GiB: use fewer."
        )


def _style_grid(drawn: dict[tuple[int, int], torch.Tensor], rows: Sequence[int], cols: Sequence[int]) -> np.ndarray:
    """uint8 [height, width, C]: columns' own images above, rows' own images on the left, mixtures elsewhere."""
    above = [drawn[col, col] for col in cols]
    cells = [torch.zeros_like(above[0]), *above]
    for row in rows:
        cells += [drawn[row, row], *(drawn[row, col] for col in cols)]
    return images.make_grid(torch.stack(cells), (len(cols) + 1, len(rows) + 1))


def seed_to_ws(G: torch.nn.Module, seed: int, c: torch.Tensor, psi: float) -> torch.Tensor:
    """ws [1, L, D] of `seed` with label `c` [1, Y], truncated to `psi`."""
    return G.mapping(seed_to_z(seed, G.z_dim).to(c.device), c, truncation_psi=psi)


def synthesize(G: torch.nn.Module, ws: torch.Tensor, noise_mode: str) -> torch.Tensor:
    """Images [N, C, R, R] in [-1, 1] of ws [N, L, D]."""
    return G.synthesis(ws, noise_mode=noise_mode)


def open_generator(path: str, trust: bool, device: torch.device) -> torch.nn.Module:
    """G_ema of the network pickle at `path` (file or URL), frozen, on `device`.

    Its `class_names` are those in the file, or None. Raises UserError as the loader and `usable_generator` do.
    """
    snapshot = load_snapshot(path, trust=trust)
    G = usable_generator(snapshot)
    G.class_names = class_names.checked(snapshot.class_names, G.c_dim)
    return freeze(layout.prepare(G.eval().requires_grad_(False), device))


def freeze(G: torch.nn.Module) -> torch.nn.Module:
    """Returns `G`, which is only sampled from now on: in eval mode, with its present weights, on its device."""
    family = families.of(G)
    if family.freeze is not None:
        family.freeze(G)
    return G


def usable_generator(snapshot: Snapshot) -> torch.nn.Module:
    """G_ema of an open network file.

    Raises UserError if it cannot make pictures: weights that are NaN or infinite give black ones or noise, and
    pictures are grey, RGB or RGBA. A mean w may be NaN; `check_truncation` of the family refuses to use it.
    """
    G, name = snapshot["G_ema"], f"G_ema in {snapshot.path}"
    missing = [key for key in ("z_dim", "c_dim", "img_resolution", "img_channels") if not hasattr(G, key)]
    if missing:
        raise UserError(f"{name} is a {type(G).__name__} without {', '.join(missing)}, not a generator of images.")
    if G.img_channels not in (1, 3, 4):
        raise UserError(
            f"{name} makes images of {G.img_channels} channels: only grey, RGB and RGBA ones are supported."
        )
    damaged = misc.first_nonfinite(G, ignore_ending="w_avg")
    if damaged is not None:
        raise UserError(f"{name} is damaged: {damaged} holds NaN or infinite values; try an earlier snapshot.")
    return G


def class_label(G: torch.nn.Module, class_idx: int | str | None, device: torch.device) -> torch.Tensor:
    """Label [1, Y] of the class with this number or name. For an unconditional `G` Y is 0, and it has no effect.

    Raises UserError if a conditional network gets no class, or a class that it does not have.
    """
    c = torch.zeros([1, G.c_dim], device=device)
    if G.c_dim == 0:
        if class_idx is not None:
            print("Note: --class has no effect, because the network is unconditional.", file=sys.stderr)
        return c
    names = getattr(G, "class_names", None)
    known = "" if names is None else f" ({', '.join(class_names.listing(names))})"
    if class_idx is None:
        raise UserError(f"The network is conditional: choose a class with --class, 0 to {G.c_dim - 1}{known}.")
    number = class_names.find(names or [], class_idx) if isinstance(class_idx, str) else class_idx
    if number is None:
        what = "no names of classes" if names is None else "no class of that name"
        raise UserError(
            f"--class={printable(class_idx)}: the network has {what}: choose one of 0 to {G.c_dim - 1}{known}."
        )
    if number >= G.c_dim:
        raise UserError(f"--class={number} is out of range: the network has classes 0 to {G.c_dim - 1}{known}.")
    c[:, number] = 1
    return c


def check_seeds(flag: str, seeds: Sequence[int]) -> None:
    """Raises UserError, naming `flag`, if one of `seeds` is too large."""
    if max(seeds) >= 2**32:
        raise UserError(f"{flag}={max(seeds)} is too large: seeds are below 2**32.")


def seed_to_z(seed: int, z_dim: int, bound: float | None = None) -> torch.Tensor:
    """The latent z [1, Z] of `seed`, the same in every StyleGAN2-ADA tool; with a `bound`, see `truncated_z`."""
    return torch.from_numpy(truncated_z(np.random.RandomState(seed), (1, z_dim), bound).astype(np.float32))


def truncated_z(rnd: np.random.RandomState, shape: tuple[int, ...], threshold: float | None) -> np.ndarray:
    """Latents of `shape` from N(0, 1), each value drawn anew until it is within ±`threshold`; None: no bound.

    Source: the truncation trick of BigGAN (arXiv 1809.11096, section 3.1). Float64; the draws of each round are in
    C order. Raises UserError for a threshold that is not above 0.
    """
    if threshold is not None and not threshold > 0:
        raise UserError(f"--trunc={threshold:g}: BigGAN redraws latents beyond ±--trunc, which must be above 0.")
    z = rnd.standard_normal(shape)
    while threshold is not None and (outside := np.abs(z) > threshold).any():
        z[outside] = rnd.standard_normal(np.count_nonzero(outside))
    return z


@contextlib.contextmanager
def output_folder(path: str) -> Iterator[None]:
    """Make the folder of --outdir; errors while writing inside the block become a UserError.

    Raises UserError if the folder cannot be made or written to (permissions, a full disk).
    """
    try:
        os.makedirs(path, exist_ok=True)
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"--outdir={path} cannot be written to: {error.strerror or error}.") from error
