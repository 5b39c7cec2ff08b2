# SPDX-License-Identifier: Apache-2.0
"""Pictures of a comparison: images of the same seeds, at several truncations, and the reals nearest to them.

C image channels, R resolution.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image

from dnnlib import charts
from dnnlib.util import UserError, construct_class_by_name
from metrics import catalogue, detectors, metric_utils
from metrics.reports.subjects import Subject
from torch_utils import images
from training import families, sampling
from training.data import class_names

COLUMNS, ROWS = 10, 4  # classes (without any: seeds), and rows of them for each network
SWEEP_SEEDS = 3
SWEEPS = {False: (0, 0.25, 0.5, 0.75, 1), True: (0.25, 0.5, 1, None)}  # psi; bounds on z, None for none
_BATCH = 16

Wanted = Sequence[tuple[int, int | None]]  # seeds, with the class of each


@torch.no_grad()
def draw(G: torch.nn.Module, wanted: Wanted, trunc: float | None, device: torch.device) -> list[np.ndarray]:
    """Images uint8 [R, R, C] of seeds and classes, truncated as --trunc says. A network without classes ignores them.

    Raises UserError if truncation is not possible.
    """
    family = families.of(G)
    bound, psi = family.truncation(G, trunc)
    found: list[np.ndarray] = []
    for first in range(0, len(wanted), _BATCH):
        part = wanted[first : first + _BATCH]
        z = torch.cat([sampling.seed_to_z(seed, G.z_dim, bound) for seed, _class in part]).to(device)
        c = torch.zeros([len(part), G.c_dim], device=device)
        for row, (_seed, number) in enumerate(part):
            if G.c_dim and number is not None:
                c[row, number] = 1
        img = images.to_uint8(family.sample(G, z, c, truncation_psi=psi, noise_mode="const"))
        found += list(img.permute(0, 2, 3, 1).cpu().numpy())
    return found


def classes_shown(subjects: Sequence[Subject]) -> list[int]:
    """At most `COLUMNS` classes at equal distances; empty without classes."""
    count = max(subject.G.c_dim for subject in subjects)
    return np.linspace(0, count - 1, min(count, COLUMNS)).round().astype(int).tolist() if count else []


def cell_size(resolution: int) -> int:
    """Pixels of an image in the pictures: small ones whole times as large, large ones reduced."""
    return resolution * max(1, 72 // resolution) if resolution < 128 else 128


def side_by_side(
    placed: Mapping[str, torch.nn.Module],
    classes: Sequence[int],
    names: Sequence[str] | None,
    trunc: float | None,
    device: torch.device,
) -> Image.Image:
    """Rows of the same seeds for each network, one below the other; a column is a class, or without any a seed.

    `names` of all classes, if they have any, are above the columns.
    """
    rows = []
    for row in range(ROWS):
        columns = [(row, number) for number in classes] or [(row * COLUMNS + i, None) for i in range(COLUMNS)]
        rows += [(name, draw(G, columns, trunc, device)) for name, G in placed.items()]
    if names is None:
        heads = [f"class {number}" if len(classes) < 6 else f"{number}" for number in classes]
    else:
        heads = [class_names.caption(names, number) for number in classes]
    return _grid(rows, heads, placed)


def truncation_sweeps(
    placed: Mapping[str, torch.nn.Module], classes: Sequence[int], device: torch.device
) -> tuple[list[Image.Image], list[str]]:
    """Rows of the same seeds at several values of --trunc, a picture for each kind of truncation; and notes."""
    pictures, notes = [], []
    for truncates_z, values in SWEEPS.items():
        usable = {}
        for name, G in placed.items():
            if families.of(G).truncates_z == truncates_z:
                try:
                    families.of(G).check_truncation(G, 0.5)
                    usable[name] = G
                except UserError as error:
                    notes.append(f"{name}: {error}")
        rows = []
        for seed in range(SWEEP_SEEDS if usable else 0):
            wanted = [(seed, classes[seed % len(classes)] if classes else None)]
            rows += [(name, [draw(G, wanted, value, device)[0] for value in values]) for name, G in usable.items()]
        if rows:
            what = "|z| < " if truncates_z else "psi "
            heads = ["all z" if value is None else f"{what}{value:g}" for value in values]
            pictures.append(_grid(rows, heads, usable))
    return pictures, notes


def _grid(rows: list, heads: Sequence[str], placed: Mapping[str, torch.nn.Module]) -> Image.Image:
    return charts.grid(rows, heads, cell_size(next(iter(placed.values())).img_resolution), group=len(placed))


@dataclasses.dataclass(frozen=True)
class Nearest:
    """Samples of a network over the reals nearest to them in the features of a detector.

    Attributes:
        picture: A column for each sample: the sample, below it the reals, the nearest first.
        distance: Median Euclidean distance of a sample from its nearest real.
        between_reals: The same of a real from its nearest other real.
    """

    picture: Image.Image
    distance: float
    between_reals: float


@torch.no_grad()
def nearest_reals(
    subject: Subject,
    G: torch.nn.Module,
    opts: metric_utils.MetricOptions,
    kind: str,
    classes: Sequence[int],
    trunc: float | None,
    count: int = 3,
) -> Nearest:
    """The `count` reals nearest to each of `COLUMNS` samples. `opts`: of the metrics, with reals.

    The detector is that of `opts`, or the default of `kind`.
    """
    spec = detectors.resolve(opts.detector, kind)
    opts.dataset_kwargs.update(catalogue.find("kid50k_full").dataset)  # the whole set, without mirrored copies
    stats = metric_utils.compute_feature_stats_for_dataset(
        opts, spec, {"return_features": True}, max_items=200_000, capture_all=True
    )
    reals = stats.get_all_torch()
    wanted = [(seed, classes[seed % len(classes)] if classes else None) for seed in range(COLUMNS)]
    drawn = draw(G, wanted, trunc, opts.device)
    batch = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).to(opts.device)
    features = detectors.apply(detectors.load(spec, opts.device), batch.expand(-1, 3, -1, -1), return_features=True).to(
        reals
    )
    distances, picks = torch.cdist(features, reals).topk(min(count, len(reals)), largest=False)
    some = reals[:: max(1, len(reals) // 500)]
    between = torch.cdist(some, reals).topk(min(2, len(reals)), largest=False).values[:, -1]  # after itself
    dataset = construct_class_by_name(**opts.dataset_kwargs)
    rows = [(subject.name, drawn)]
    for rank in range(picks.shape[1]):
        label = "nearest real" if rank == 0 else f"{rank + 1}. nearest"
        rows.append((label, [dataset[int(pick)][0].transpose(1, 2, 0) for pick in picks[:, rank]]))
    dataset.close()
    picture = charts.grid(rows, [], cell_size(G.img_resolution))
    return Nearest(picture, distances[:, 0].median().item(), between.median().item())
