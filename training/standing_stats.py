# SPDX-License-Identifier: Apache-2.0
"""Standing statistics: batch norm for samples of one kind (BigGAN, arXiv 1809.11096, section 4 and appendix C)."""

from collections.abc import Iterable

import torch


@torch.no_grad()
def accumulate(G: torch.nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Replace running statistics of `G` by the mean over `batches` (z [N, Z], c [N, K]) of means and biased variances.

    The batches pass in training mode, which advances the vectors of spectral norm; `G` ends in eval mode. The
    statistics hold for latents drawn as these are, so a truncated z needs its own. A network without batch norm, and
    no batches, change nothing.
    """
    norms = [module for module in G.modules() if hasattr(module, "stored_mean")]
    sums = {norm: [torch.zeros_like(norm.stored_mean), torch.zeros_like(norm.stored_var)] for norm in norms}

    def add(norm, inputs):
        mean, var = sums[norm]
        mean += inputs[0].mean(dim=[0, 2, 3])
        var += inputs[0].var(dim=[0, 2, 3], correction=0)

    hooks = [norm.register_forward_pre_hook(add) for norm in norms]
    count = 0
    try:
        G.train()
        for z, c in batches:
            G(z, c)
            count += 1
    finally:
        for hook in hooks:
            hook.remove()
        G.eval()
    for norm, (mean, var) in sums.items():
        if count:
            norm.stored_mean.copy_(mean / count)
            norm.stored_var.copy_(var / count)
