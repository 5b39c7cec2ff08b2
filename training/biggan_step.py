# SPDX-License-Identifier: Apache-2.0
"""The steps of a BigGAN iteration (arXiv 1809.11096, appendix C): several of D, each on new reals, then one of G."""

from collections.abc import Iterator
from functools import partial

import torch

from training.loss_biggan import BigGANLoss, add_orthogonal_gradients
from training.phases import Phase, run_due


def build_phases(
    G: torch.nn.Module,
    D: torch.nn.Module,
    G_opt: torch.optim.Optimizer,
    D_opt: torch.optim.Optimizer,
    d_steps: int = 1,
    G_batch: int | None = None,
    G_ortho: float = 0.0,
    D_ortho: float = 0.0,
) -> list[Phase]:
    """`d_steps` phases of D, then one of G on `G_batch` latents over all processes (None: as many as D's reals).

    `G_ortho`, `D_ortho`: strength of orthogonal regularisation.
    """
    d_term = partial(add_orthogonal_gradients, strength=D_ortho) if D_ortho else None
    g_term = partial(add_orthogonal_gradients, strength=G_ortho) if G_ortho else None
    step = Phase("Dmain", D, D_opt, interval=1, fresh_reals=True, regularise=d_term)
    return [step] * d_steps + [Phase("Gmain", G, G_opt, interval=1, batch_size=G_batch, regularise=g_term)]


def run_iteration(
    loss: BigGANLoss,
    G: torch.nn.Module,
    D: torch.nn.Module,
    G_opt: torch.optim.Optimizer,
    D_opt: torch.optim.Optimizer,
    real_img: torch.Tensor,
    real_c: torch.Tensor,
    gen_z: torch.Tensor,
    gen_c: torch.Tensor,
    *,
    batch: int,
    d_steps: int,
    d_accum: int,
    g_accum: int,
    g_ortho: float = 0.0,
    d_ortho: float = 0.0,
) -> None:
    """One iteration in one process, in chunks of `batch` images; draws no random numbers.

    real_img [d_steps·d_accum·batch, C, H, W] in [-1, 1] with labels real_c; gen_z and gen_c have as many rows for D
    first, then g_accum·batch for G.
    """
    sizes = [d_accum * batch] * d_steps + [g_accum * batch]
    latents: Iterator = zip(gen_z.split(sizes), gen_c.split(sizes))
    reals = zip(real_img.split(d_accum * batch), real_c.split(d_accum * batch))
    phases = build_phases(G, D, G_opt, D_opt, d_steps, sizes[-1], g_ortho, d_ortho)
    run_due(phases, 0, loss, reals, lambda phase: next(latents), batch)
