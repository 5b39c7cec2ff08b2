# SPDX-License-Identifier: Apache-2.0
"""Images from a trained generator, and the work of style_mixing.py.

`seed_to_ws` and `synthesize` are for families with a latent space w; all else works for any family.

Letters in shape comments: Z Y D widths of z, label and w, L number of w vectors, C channels, R resolution.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from dnnlib.progress import Progress
from dnnlib.text import printable
from dnnlib.util import UserError
from torch_utils import distributed, images, misc
from torch_utils.ops import layout
from training import families
from training.data import class_names
from training.files.snapshot import Snapshot, load_snapshot

# Large enough for a full batch of small images, small enough for 1024x1024.
_PIXELS_AT_ONCE = 2**22
MOST_GRID_BYTES = 1 << 32  # of a grid, whose images are kept in memory


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
    if (len(rows) + 1) * (len(cols) + 1) * G.img_channels * G.img_resolution**2 > MOST_GRID_BYTES:
        raise UserError(
            f"--rows and --cols have {len(rows)} and {len(cols)} seeds, and a grid of so many images of "
            f"{G.img_resolution}x{G.img_resolution} would exceed {MOST_GRID_BYTES >> 30} GiB: use fewer."
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


def images_at_once(G: torch.nn.Module, most: int = 64) -> int:
    """Number of images of its resolution that `G` generates together, `most` at most."""
    return max(1, min(most, _PIXELS_AT_ONCE // G.img_resolution**2))


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


def seed_to_z(
    seed: int, z_dim: int, bound: float | None = None, rnd: np.random.RandomState | None = None
) -> torch.Tensor:
    """The latent z [1, Z] of `seed`, the same in every StyleGAN2-ADA tool; with a `bound`, see `truncated_z`.

    A given `rnd` is seeded and used: making a new one takes 0.1 ms, thirty times as long.
    """
    rnd = np.random.RandomState() if rnd is None else rnd
    rnd.seed(seed)
    return torch.from_numpy(truncated_z(rnd, (1, z_dim), bound).astype(np.float32))


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


def slerp(a: torch.Tensor, b: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Point at fraction `t` [..., 1] of the great arc from `a` to `b` [..., d], on the unit sphere."""
    a, b = (v / v.norm(dim=-1, keepdim=True) for v in (a, b))
    cosine = (a * b).sum(dim=-1, keepdim=True)
    angle = t * cosine.clamp(-1, 1).acos()
    tangent = b - cosine * a
    tangent = tangent / tangent.norm(dim=-1, keepdim=True).clamp_min(1e-12)  # 0 if a and b are equal
    point = a * angle.cos() + tangent * angle.sin()
    return point / point.norm(dim=-1, keepdim=True)


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
