# SPDX-License-Identifier: Apache-2.0
"""Precision and recall of generated images (Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric for
Assessing Generative Models", section 2).

Legend: n points, d feature dimensions. Features are rounded to fp16; distances are computed in float32.
"""

from collections.abc import Callable, Iterator

import torch

from dnnlib.util import UserError
from metrics import metric_utils
from torch_utils import distributed

# Distances in memory at once: limits a block to half a gigabyte for any number of points.
BLOCK_ELEMENTS = 2**27


def _distance_blocks(
    probes: torch.Tensor, points: torch.Tensor, num_gpus: int, rank: int, tell: Callable[[int], None]
) -> Iterator[tuple[int, torch.Tensor]]:
    """(first row, distances [rows, len(points)]) of this rank's blocks of `probes`; `tell` is called with rows done."""
    rows = max(1, min(BLOCK_ELEMENTS // len(points), -(-len(probes) // num_gpus)))
    for first in range(rank * rows, len(probes), num_gpus * rows):
        block = probes[first : first + rows]
        yield first, torch.cdist(block, points)
        tell(len(block) * num_gpus)


def _ignore(rows: int) -> None:
    """No-op progress callback."""


def _gathered(values: torch.Tensor, num_gpus: int) -> torch.Tensor:
    """The sum over ranks: each rank filled its own entries and left zeros elsewhere."""
    if num_gpus > 1:
        distributed.all_reduce_(values)
    return values


def neighbour_radius(
    points: torch.Tensor, k: int, num_gpus: int = 1, rank: int = 0, tell: Callable[[int], None] = _ignore
) -> torch.Tensor:
    """Distance [n] of each of `points` [n, d] to its k-th nearest neighbour among them. n must be larger than k."""
    radius = torch.zeros(len(points), device=points.device)
    for first, dist in _distance_blocks(points, points, num_gpus, rank, tell):
        # The nearest point is the point itself.
        radius[first : first + len(dist)] = dist.topk(k + 1, dim=1, largest=False).values[:, -1]
    return _gathered(radius, num_gpus)


def manifold_share(
    probes: torch.Tensor,
    points: torch.Tensor,
    radius: torch.Tensor,
    num_gpus: int = 1,
    rank: int = 0,
    tell: Callable[[int], None] = _ignore,
) -> float:
    """Share of `probes` [m, d] that lie within `radius` [n] of at least one of `points` [n, d]."""
    inside = torch.zeros(len(probes), device=probes.device)
    for first, dist in _distance_blocks(probes, points, num_gpus, rank, tell):
        inside[first : first + len(dist)] = (dist <= radius).any(dim=1).float()
    return _gathered(inside, num_gpus).sum().item() / len(probes)


def precision_recall(
    real: torch.Tensor,
    fake: torch.Tensor,
    k: int,
    num_gpus: int = 1,
    rank: int = 0,
    tell: Callable[[int], None] = _ignore,
) -> tuple[float, float]:
    """(precision, recall) of `fake` [m, d] against `real` [n, d] with k-nearest-neighbour manifolds.

    The features are rounded to fp16 first. With several processes each must have all the features. `tell` is called
    with the number of rows of distances just computed; there are 2 (n + m) in total.
    Raises UserError unless both sides have more than k points.
    """
    if min(len(real), len(fake)) <= k:
        raise UserError(
            f"Precision/recall needs more than {k} images on each side, got {len(real)} reals (--data) and "
            f"{len(fake)} fakes."
        )
    real, fake = (features.to(torch.float16).float() for features in (real, fake))
    shares = []
    for points, probes in ((real, fake), (fake, real)):
        radius = neighbour_radius(points, k, num_gpus, rank, tell)
        shares.append(manifold_share(probes, points, radius, num_gpus, rank, tell))
    return shares[0], shares[1]


def compute_pr(opts: metric_utils.MetricOptions, max_real: int, num_gen: int, nhood_size: int) -> tuple[float, float]:
    """(precision, recall) of `num_gen` fakes against at most `max_real` reals; the same on every rank."""
    real, fake = metric_utils.compute_feature_stats_of_both(
        opts, "vgg16", max_real, num_gen, rel_hi=0.8, capture_all=True
    )
    real_features, fake_features = (stats.get_all_torch().to(opts.device) for stats in (real, fake))
    progress = opts.progress.sub("distances", 2 * (len(real_features) + len(fake_features)), rel_lo=0.8)
    done = 0

    def tell(rows: int) -> None:
        nonlocal done
        done += rows
        progress.update(done)

    return precision_recall(real_features, fake_features, nhood_size, opts.num_gpus, opts.rank, tell)
