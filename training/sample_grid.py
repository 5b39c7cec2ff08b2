# SPDX-License-Identifier: Apache-2.0
"""Fixed samples for `reals.png` and `fakes*.png`, so that the images of a run can be compared."""

import itertools

import numpy as np
import torch

from torch_utils.images import save_image_grid, to_uint8
from training import families
from training.data import class_names


def setup_snapshot_image_grid(
    training_set, random_seed: int = 0, small: bool = False
) -> tuple[tuple[int, int], np.ndarray, np.ndarray]:
    """Reals for a grid that fills a large screen: its columns and rows, images uint8 [N, C, H, W], labels [N, K].

    With labels each row shows one class, the rows all classes in turn; the images of a class continue in its next row.
    `small`: fewer of both, but still a row for each class of up to 32. Classes that have names share rows where there
    are more classes than rows, so that all are shown if there is room.
    """
    width, height = training_set.image_shape[2], training_set.image_shape[1]
    grid_size = (int(np.clip(7680 // width, 7, 32)), int(np.clip(4320 // height, 4, 32)))
    orders = _orders(training_set, np.random.RandomState(random_seed))
    if small:
        enough = max(int(np.clip(1080 // height, 4, 8)), len(orders))
        grid_size = (int(np.clip(1920 // width, 7, 16)), min(enough, grid_size[1]))
    columns, rows = grid_size
    named = training_set.has_labels and class_names.of(training_set) is not None
    shares = min(columns, -(-len(orders) // rows)) if named else 1  # classes in a row
    picked = []
    for part in range(rows * shares):
        order, first = orders[part % len(orders)], part // len(orders) * columns
        share = part % shares
        count = (share + 1) * columns // shares - share * columns // shares
        picked += [int(order[i % len(order)]) for i in range(first, first + count)]
    images, labels = zip(*(training_set[i] for i in picked))
    return grid_size, np.stack(images), np.stack(labels)


def _orders(training_set, rng: np.random.RandomState) -> list[np.ndarray]:
    """Shuffled indices of the images, of each class if there are labels."""
    if not training_set.has_labels:
        return [rng.permutation(len(training_set))]
    by_label: dict[tuple, list[int]] = {}
    for i in range(len(training_set)):
        by_label.setdefault(tuple(training_set.get_details(i).raw_label.flat[::-1]), []).append(i)
    return [rng.permutation(by_label[label]) for label in sorted(by_label)]


def _captions(training_set, labels: np.ndarray, columns: int) -> list[list[tuple[str, int]]]:
    """The names of the classes in each row, and how many images of each follow each other; empty without names."""
    names = class_names.of(training_set) if training_set.has_labels else None
    if names is None or not ((labels != 0).sum(axis=1) == 1).all():
        return []
    rows = labels.argmax(axis=1).reshape(-1, columns)
    return [[(class_names.caption(names, k), len(list(same))) for k, same in itertools.groupby(row)] for row in rows]


class SampleGrid:
    """A grid of reals, which are the same for every `random_seed`, and of images for fixed latents and their labels.

    Where the dataset names its classes, their names stand beside or above the images. It has separate random
    generators, so it changes no other random sequence. `small` as above.
    """

    def __init__(self, training_set, z_dim: int, random_seed: int = 0, small: bool = False):
        self.grid_size, self.reals, labels = setup_snapshot_image_grid(training_set, small=small)
        self.labels = torch.from_numpy(labels)
        self._captions = _captions(training_set, labels, self.grid_size[0])
        rng = torch.Generator().manual_seed(random_seed)
        self.latents = torch.randn([len(labels), z_dim], generator=rng)

    def save_reals(self, path: str) -> None:
        """Write the reals as a PNG."""
        self._save(self.reals, path)

    @torch.no_grad()
    def save_fakes(self, path: str, G: torch.nn.Module, batch: int, device: torch.device) -> None:
        """Write G's images of the fixed latents as a PNG, `batch` at a time, with constant noise."""
        pairs = zip(self.latents.split(batch), self.labels.split(batch))
        sample = families.of(G).sample
        images = [to_uint8(sample(G, z.to(device), c.to(device), noise_mode="const")).cpu() for z, c in pairs]
        self._save(torch.cat(images).numpy(), path)

    def _save(self, images: np.ndarray, path: str) -> None:
        save_image_grid(images, path, drange=(0, 255), grid_size=self.grid_size, captions=self._captions)
