# SPDX-License-Identifier: Apache-2.0
"""Fixed samples for `reals.png` and `fakes*.png`, so that the images of a run can be compared."""

import numpy as np
import torch

from torch_utils.images import save_image_grid, to_uint8
from training import families


class SampleGrid:
    """A grid of reals, and of generator images for fixed latents and the labels of those reals.

    With labels, each row of the grid shows one class. It has separate random generators, so it changes no other random
    sequence.
    """

    def __init__(self, training_set, z_dim: int, random_seed: int = 0):
        width, height = training_set.image_shape[2], training_set.image_shape[1]
        self.grid_size = (int(np.clip(1920 // width, 7, 16)), int(np.clip(1080 // height, 4, 8)))
        indices = self._pick(training_set, np.random.RandomState(random_seed))
        samples = [training_set[i] for i in indices]
        self.reals = np.stack([image for image, _label in samples])
        self.labels = torch.from_numpy(np.stack([label for _image, label in samples]))
        rng = torch.Generator().manual_seed(random_seed)
        self.latents = torch.randn([len(samples), z_dim], generator=rng)

    def _pick(self, training_set, rng) -> list[int]:
        columns, rows = self.grid_size
        if not training_set.has_labels:
            order = rng.permutation(len(training_set))
            return [int(order[i % len(order)]) for i in range(columns * rows)]
        by_label: dict[tuple, list[int]] = {}
        for i in range(len(training_set)):
            by_label.setdefault(tuple(training_set.get_details(i).raw_label.flat[::-1]), []).append(i)
        classes = sorted(by_label)
        picked = []
        for row in range(rows):
            members = rng.permutation(by_label[classes[row % len(classes)]])
            picked += [int(members[i % len(members)]) for i in range(columns)]
        return picked

    def save_reals(self, path: str) -> None:
        """Write the reals as a PNG."""
        save_image_grid(self.reals, path, drange=(0, 255), grid_size=self.grid_size)

    @torch.no_grad()
    def save_fakes(self, path: str, G: torch.nn.Module, batch: int, device: torch.device) -> None:
        """Write G's images of the fixed latents as a PNG, `batch` at a time, with constant noise."""
        pairs = zip(self.latents.split(batch), self.labels.split(batch))
        sample = families.of(G).sample
        images = [to_uint8(sample(G, z.to(device), c.to(device), noise_mode="const")).cpu() for z, c in pairs]
        save_image_grid(torch.cat(images).numpy(), path, drange=(0, 255), grid_size=self.grid_size)
