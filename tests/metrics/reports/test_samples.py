# SPDX-License-Identifier: Apache-2.0
"""Pictures of a comparison: the images are those of generate.py, and the nearest reals are the nearest."""

import numpy as np
import pytest
import torch

from dnnlib.util import UserError
from metrics import metric_utils
from metrics.reports import samples
from metrics.reports.subjects import Subject
from tests.metrics import stand_ins
from torch_utils import images
from training import sampling
from training.families.stylegan2 import STYLEGAN2

CPU = torch.device("cpu")


def test_images_are_those_of_the_seeds_classes_and_truncation():
    G = sampling.freeze(stand_ins.tiny_generator(c_dim=2))
    drawn = samples.draw(G, [(seed, seed % 2) for seed in range(18)], 0.5, CPU)
    for seed in (0, 5, 17):
        c = torch.eye(2)[[seed % 2]]
        img = STYLEGAN2.sample(G, sampling.seed_to_z(seed, 4), c, truncation_psi=0.5, noise_mode="const")
        expected = images.to_uint8(img)[0].permute(1, 2, 0).numpy()
        assert np.abs(drawn[seed].astype(int) - expected).max() <= 1  # batches may round in another way
    with pytest.raises(UserError, match="--trunc=-1"):
        samples.draw(stand_ins.tiny_biggan(), [(0, 0)], -1, CPU)


def subject(**kwargs) -> Subject:
    return Subject("a", None, stand_ins.tiny_generator(**kwargs))


def test_classes_in_the_columns_are_spread_over_all():
    assert samples.classes_shown([subject(), subject()]) == []
    assert samples.classes_shown([subject(), subject(c_dim=3)]) == [0, 1, 2]
    many = samples.classes_shown([subject(c_dim=100)])
    assert len(many) == samples.COLUMNS and many[0] == 0 and many[-1] == 99


@pytest.mark.parametrize(("resolution", "cell"), [(8, 72), (32, 64), (64, 64), (100, 100), (128, 128), (1024, 128)])
def test_cells_are_readable_and_not_huge(resolution, cell):
    assert samples.cell_size(resolution) == cell


def test_nearest_reals_of_copied_images_are_those_images(tmp_path):
    shown = subject()
    G = shown.placed(CPU)
    copies = np.stack(samples.draw(G, [(seed, None) for seed in range(samples.COLUMNS)], None, CPU))
    reals = np.concatenate([stand_ins.make_images(20), copies[::-1]])
    data = stand_ins.write_zip(tmp_path / "data.zip", reals)
    detector = stand_ins.save_detector(stand_ins.Inception(), tmp_path / "eyes.pt")
    options = {"dataset_kwargs": stand_ins.dataset_options(data, max_size=3, xflip=True), "detector": detector}
    opts = metric_utils.MetricOptions(G=shown.G, device=CPU, **options)
    found = samples.nearest_reals(shown, G, opts, "inception", [], None)
    assert found.distance < 1e-3 * found.between_reals
    picture, cell = np.asarray(found.picture), samples.cell_size(8)
    left = picture.shape[1] - samples.COLUMNS * (cell + 1)
    rows = [picture[top : top + cell, left:] for top in (0, cell + 1 + 8)]
    np.testing.assert_array_equal(*rows)
