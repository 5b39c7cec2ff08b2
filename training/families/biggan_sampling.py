# SPDX-License-Identifier: Apache-2.0
"""Images from a trained BigGAN."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dnnlib.util import UserError

if TYPE_CHECKING:
    import torch

_LEAST_BOUND = 0.001  # of latents: about 1 draw in 1000 is within it


def sample(G: torch.nn.Module, z: torch.Tensor, c: torch.Tensor, **kwargs) -> torch.Tensor:
    """Images of z and c; there is no noise, and truncation is a matter of how z is drawn."""
    return G(z, c)


def freeze(G: torch.nn.Module) -> None:
    """Divide the weights of `G` by their spectral norms once, which each pass would do: 8 to 16 % of one image's time.

    Tensors stay as they are; the layers return the normalised weight, in eval mode or not. A frozen network cannot be
    pickled, so no file holds one.
    """
    for layer in G.modules():
        if hasattr(type(layer), "normalised_weight"):
            weight = type(layer).normalised_weight(layer).detach()
            layer.normalised_weight = lambda weight=weight: weight


def check_truncation(G: torch.nn.Module, trunc: float) -> None:
    """Raises UserError for a bound on z that is too small: values beyond it are drawn again and again."""
    if not trunc >= _LEAST_BOUND:
        raise UserError(
            f"--trunc={trunc:g}: BigGAN redraws latents beyond ±--trunc, which must be at least {_LEAST_BOUND:g} "
            "(no truncation without the flag)."
        )
