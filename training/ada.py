# SPDX-License-Identifier: Apache-2.0
"""Adaptive discriminator augmentation (arXiv 2006.06676, section 3): adjust p by D's confidence on reals."""

import torch

from torch_utils import training_stats


class AdaController:
    """Moves the augmentation probability `augment_pipe.p` so that E[sign D(x)] stays at `target`.

    Every `interval` iterations p moves by at most batch_size·interval / (kimg·1000), that is from 0 to 1 in
    `kimg` thousand images.
    """

    def __init__(
        self, augment_pipe: torch.nn.Module, target: float, batch_size: int, interval: int = 4, kimg: float = 500
    ):
        self.augment_pipe = augment_pipe
        self.target = target
        self.interval = interval
        self.step_size = batch_size * interval / (kimg * 1000)
        self.signs = training_stats.Tally("Loss/signs/real", augment_pipe.p.device)

    def update(self, iteration: int) -> None:
        """Adjust p if `iteration` is due, on the pipe's device. In a multi-process run every process must call this."""
        if iteration % self.interval != 0:
            return
        p = self.augment_pipe.p
        direction = (self.signs.take_mean() - self.target).nan_to_num(nan=0).sign()  # NaN: no usable data
        p.copy_((p + direction.to(p.dtype) * self.step_size).clamp_min(0))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """p, and the sums of this process since the last adjustment."""
        return {"p": self.augment_pipe.p.clone(), "signs": self.signs.sums.clone()}

    def load_state_dict(self, states: list[dict[str, torch.Tensor]]) -> None:
        """Restore one or several results of `state_dict`, whose sums are added up."""
        self.augment_pipe.p.copy_(states[0]["p"])
        self.signs.sums.copy_(torch.stack([state["signs"] for state in states]).sum(dim=0).to(self.signs.sums))
