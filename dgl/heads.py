# SPDX-License-Identifier: Apache-2.0
"""Fresh critics on a teacher's frozen features: what the teacher knows without what it has decided.

A frozen verdict keeps its bias however good the student gets; heads are trained against the student and have none:
where fakes are distributed like reals they cannot tell them apart. Sources: Vision-aided GAN (arXiv 2112.09130),
Projected GAN (arXiv 2111.01007). Shapes: N images in a batch, C channels, H W image, K labels.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.utils.parametrizations import spectral_norm

from dgl.teacher import Teacher
from torch_utils import training_stats
from training.loss import Fakes, Term, d_logistic_fake, d_logistic_real, g_nonsaturating
from training.phases import Phase, build_phases, load_optimizer

ADAM = {"class_name": "torch.optim.Adam", "lr": 0.002, "betas": [0, 0.99], "eps": 1e-8}


class Head(torch.nn.Module):
    """A critic on one feature map: [N, C, H, W] and labels [N, K] -> logits [N, 1].

    A fixed random 1x1 convolution to `width` channels, a 3x3 convolution, and a linear layer on the mean over positions
    with a projection of the label (arXiv 1802.05637); the trained layers have spectral norm 1.
    """

    def __init__(self, channels: int, c_dim: int, width: int = 32):
        super().__init__()
        self.register_buffer("mix", torch.randn([width, channels, 1, 1]) / channels**0.5)
        self.conv = spectral_norm(torch.nn.Conv2d(width, width, 3, padding=1))
        self.out = spectral_norm(torch.nn.Linear(width, 1))
        self.label = spectral_norm(torch.nn.Linear(c_dim, width, bias=False)) if c_dim > 0 else None

    def forward(self, features: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.conv2d(features.float(), self.mix)
        x = torch.nn.functional.leaky_relu(self.conv(x), 0.2).mean(dim=[2, 3])
        logits = self.out(x)
        return logits if self.label is None else logits + (x * self.label(c)).sum(dim=1, keepdim=True)


class Heads(torch.nn.Module):
    """A head for each feature map: features and labels -> the sum of their losses per image [N, 1]."""

    def __init__(self, channels: Sequence[int], c_dim: int):
        super().__init__()
        self.heads = torch.nn.ModuleList(Head(count, c_dim) for count in channels)

    def forward(self, features: Sequence[torch.Tensor], c: torch.Tensor, loss: Callable) -> torch.Tensor:
        return sum(loss(head(feature, c)) for head, feature in zip(self.heads, features))


class HeadsTerm(Term):
    """weight · mean over heads of softplus(-h(φ(G(z)))), with heads h trained on the features φ of the first teacher.

    weight: >= 0; at 0 nothing is evaluated or trained.

    Phase 'headsboth' trains the heads with the logistic loss on fakes and reals. Reports Loss/DGL/heads_G, heads_D.
    """

    def __init__(self, teachers: Sequence[Teacher], weight: float = 0.1, opt_kwargs: dict[str, Any] = ADAM):
        self.teacher = teachers[0]
        self.weight = weight
        self.active = weight > 0
        self._phases: list[Phase] = []
        if self.active:
            D = self.teacher.D
            device = next(D.parameters()).device
            img = torch.zeros([self.teacher.group_size or 1, D.img_channels, *[D.img_resolution] * 2], device=device)
            with torch.random.fork_rng(devices=[]), torch.no_grad():  # the run draws what it draws without heads
                _scores, features = self.teacher.scores_and_features(img, img.new_zeros([len(img), D.c_dim]))
                self.heads = Heads([feature.shape[1] for feature in features], D.c_dim).to(device)
            self.heads.requires_grad_(False)
            self._phases = build_phases("heads", self.heads, opt_kwargs, reg_interval=None)

    def _loss(self, img: torch.Tensor, c: torch.Tensor, loss: Callable) -> torch.Tensor:
        _scores, features = self.teacher.scores_and_features(img, c)
        return self.heads(features, c, loss) / len(self.heads.heads)

    def __call__(self, fakes: Fakes) -> torch.Tensor:
        """The weighted loss per sample [N, 1]."""
        self.heads.eval()  # power iteration only where the heads are trained
        loss = self._loss(fakes.img, fakes.c, g_nonsaturating)
        training_stats.report("Loss/DGL/heads_G", loss)
        return self.weight * loss

    def phases(self) -> list[Phase]:
        return self._phases

    def accumulate_gradients(
        self, phase: str, real_img: torch.Tensor, real_c: torch.Tensor, fakes: Fakes, gain: float
    ) -> None:
        """Gradients of softplus(h(φ(G(z)))) + softplus(-h(φ(x)))."""
        self.heads.train()
        loss = self._loss(fakes.img, fakes.c, d_logistic_fake) + self._loss(real_img, real_c, d_logistic_real)
        training_stats.report("Loss/DGL/heads_D", loss)
        loss.mean().mul(gain).backward()

    def state_dict(self) -> dict:
        """Weights and optimiser of the heads."""
        if not self.active:
            return {}
        state = {"heads": self.heads.state_dict(), "optimizer": self._phases[0].optimizer.state_dict()}
        return copy.deepcopy(state)  # as in dgl.live: training goes on with these tensors

    def load_state_dict(self, state: dict) -> None:
        if self.active:
            self.heads.load_state_dict(state["heads"])
            # An optimiser keeps the tensors that it is given.
            load_optimizer(self._phases[0].optimizer, state["optimizer"])
