# SPDX-License-Identifier: Apache-2.0
"""Distillation: the student's images resemble those that a teacher makes of the same draws.

Both generators get the same ws, style mixing included, and the same noise, so that the images differ by what the
student cannot do and by nothing else. First the formulas, then the term. Shapes: N images in a batch, C channels, H W
image; features are lists of [N, C_l, H_l, W_l].
"""

from collections.abc import Sequence

import torch
from torch.nn.functional import normalize, softplus

from dgl.schedule import cosine_decay
from dgl.teacher import Teacher
from dnnlib.util import UserError
from torch_utils import training_stats
from training.loss import Fakes, Term


def l1_distance(img: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """mean |x - x̄| over the pixels of each image, [N, 1] (Content-Aware GAN Compression, arXiv 2104.02244)."""
    return (img - target).abs().flatten(1).mean(dim=1, keepdim=True)


def feature_distance(features: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> torch.Tensor:
    """Σ_l of the squared distance between unit feature vectors, averaged over positions, [N, 1].

    As in LPIPS (arXiv 1801.03924, equation 1) with all weights 1; between 0 and 4 for each layer.
    """
    distances = [(_unit(f) - _unit(t)).square().sum(dim=1).flatten(1).mean(dim=1) for f, t in zip(features, targets)]
    return torch.stack(distances).sum(dim=0).unsqueeze(1)


def _unit(features: torch.Tensor) -> torch.Tensor:
    return normalize(features.float(), dim=1, eps=1e-6)


def verdict_distance(scores: torch.Tensor, targets: torch.Tensor, balance: float = 0.5) -> torch.Tensor:
    """((ā - a) / ā)² + balance ((b̄ - b) / b̄)², [N, 1]; a = softplus(-s̄), b = softplus(s̄), ā and b̄ of the targets.

    Self-supervised GAN compression (arXiv 2007.01491). A bounded denominator keeps pairs with a certain verdict finite.
    """

    def relative(sign: float) -> torch.Tensor:
        of_target = softplus(sign * targets)
        return ((of_target - softplus(sign * scores)) / of_target.clamp_min(0.01)).square()

    return relative(-1.0) + balance * relative(1.0)


class DistillationTerm(Term):
    """α mean|x - x̄| + β Σ_l d(φ_l(x), φ_l(x̄)) + γ v(s̄(x), s̄(x̄)): x̄ = Ḡ(w) is the target of x = G(w).

    teachers:       the first has a generator Ḡ; φ_l are the outputs of its discriminator's blocks, s̄ its score.
    output_weight:  α >= 0, of `l1_distance`.
    feature_weight: β >= 0, of `feature_distance`.
    verdict_weight: γ >= 0, of `verdict_distance`; with β and γ 0 no discriminator is evaluated.
    stop:           in kimg; both weights fall to 0 there along half a cosine wave, and the term ends. None: they stay.

    Raises UserError if the teacher's file has no usable generator.
    Reports the distances as Loss/DGL/distill_output, distill_features and distill_verdict, before their weights.
    """

    needs_teacher_G = True

    def __init__(
        self,
        teachers: Sequence[Teacher],
        output_weight: float = 0.0,
        feature_weight: float = 0.0,
        verdict_weight: float = 0.0,
        stop: float | None = None,
    ):
        self.teacher = teachers[0]
        if self.teacher.G is None:
            raise UserError(f"--dgl-distill: {self.teacher.path} has no generator to distil; use --dgl-distill=0")
        self.output_weight = output_weight
        self.feature_weight = feature_weight
        self.verdict_weight = verdict_weight
        self.stop = stop
        self.begin_iteration(cur_nimg=0, new_tick=True)

    def begin_iteration(self, cur_nimg: int, new_tick: bool) -> None:
        self.scale = 1.0 if self.stop is None else cosine_decay(cur_nimg / 1000 / self.stop)
        self.active = self.scale > 0 and max(self.output_weight, self.feature_weight, self.verdict_weight) > 0

    def __call__(self, fakes: Fakes) -> torch.Tensor:
        """The weighted distances per sample [N, 1]."""
        target = self.teacher.matching_images(fakes)
        distance = l1_distance(fakes.img, target)
        training_stats.report("Loss/DGL/distill_output", distance)
        loss = self.output_weight * distance
        if self.feature_weight > 0 or self.verdict_weight > 0:
            loss = loss + self._seen_by_discriminator(fakes, target)
        return self.scale * loss

    def _seen_by_discriminator(self, fakes: Fakes, target: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            target_scores, target_features = self.teacher.scores_and_features(target, fakes.c)
        scores, features = self.teacher.scores_and_features(fakes.img, fakes.c)
        in_features = feature_distance(features, target_features)
        in_verdict = verdict_distance(scores, target_scores)
        training_stats.report("Loss/DGL/distill_features", in_features)
        training_stats.report("Loss/DGL/distill_verdict", in_verdict)
        return self.feature_weight * in_features + self.verdict_weight * in_verdict
