# SPDX-License-Identifier: Apache-2.0
"""From what the flags of the image scripts say to latents: the network, its labels, seeds, and the output folder.

Letters in shape comments: Z Y D widths of z, label and w, L number of w vectors.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from dnnlib.util import UserError
from torch_utils.ops import layout
from training.files.snapshot import load_snapshot


def open_generator(path: str, trust: bool, device: torch.device) -> torch.nn.Module:
    """G_ema of the network pickle at `path` (file or URL), frozen, on `device`. Raises UserError as the loader does."""
    return layout.prepare(load_snapshot(path, trust=trust)["G_ema"].eval().requires_grad_(False), device)


def class_label(G: torch.nn.Module, class_idx: int | None, device: torch.device) -> torch.Tensor:
    """Label [1, Y] of class `class_idx` for `G`; Y is 0 for an unconditional network, where a class is but noted.

    Raises UserError where a conditional network is given no class, or one that it does not have.
    """
    c = torch.zeros([1, G.c_dim], device=device)
    if G.c_dim == 0:
        if class_idx is not None:
            print("Note: --class has no effect, as the network is unconditional.", file=sys.stderr)
        return c
    if class_idx is None:
        raise UserError(f"The network is conditional: choose a class with --class, 0 to {G.c_dim - 1}.")
    if class_idx >= G.c_dim:
        raise UserError(f"--class={class_idx} is out of range: the network has classes 0 to {G.c_dim - 1}.")
    c[:, class_idx] = 1
    return c


def check_seeds(flag: str, seeds: Sequence[int]) -> None:
    """Raises UserError, naming `flag`, where one of `seeds` is larger than a seed can be."""
    if max(seeds) >= 2**32:
        raise UserError(f"{flag}={max(seeds)} is too large: seeds are below 2**32.")


def seed_to_z(seed: int, z_dim: int) -> torch.Tensor:
    """The latent z [1, Z] that `seed` stands for in every StyleGAN2-ADA tool."""
    return torch.from_numpy(np.random.RandomState(seed).randn(1, z_dim).astype(np.float32))


def check_truncation(G: torch.nn.Module, psi: float) -> None:
    """Raises UserError where truncation to `psi` is asked of a network that does not know its mean w."""
    if psi != 1 and G.mapping.w_avg_beta is None:
        raise UserError(f"--trunc={psi:g} needs a mean w, which this network does not hold: use --trunc=1.")


def seed_to_ws(G: torch.nn.Module, seed: int, c: torch.Tensor, psi: float) -> torch.Tensor:
    """ws [1, L, D] of `seed` with label `c` [1, Y], truncated to `psi`."""
    return G.mapping(seed_to_z(seed, G.z_dim).to(c.device), c, truncation_psi=psi)


@contextlib.contextmanager
def output_folder(path: str) -> Iterator[None]:
    """Make the folder of --outdir; inside the block, failures to write are the user's to mend and say so.

    Raises UserError where the folder cannot be made or written to (permissions, a full disk).
    """
    try:
        os.makedirs(path, exist_ok=True)
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"--outdir={path} cannot be written to: {error.strerror or error}.") from error
