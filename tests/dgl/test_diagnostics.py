# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus

from dgl import diagnostics
from dgl.diagnostics import auc, describe, number_of_images, safe_lambda, score_reals
from dgl.loss import DGLLoss
from tests.dgl.tiny import ADAM, BATCH, Student, same, save_teacher
from tests.support import make_image_zip, rnd
from training.dataset import ImageFolderDataset

CPU = torch.device("cpu")


class Brightness:
    """A teacher whose score is `gain` times the mean of the image plus the index of the label."""

    def __init__(self, gain: float = 1.0):
        self.gain, self.batches, self.D = gain, [], torch.nn.Identity()

    def scores(self, img, c):
        self.batches.append(len(img))
        return self.gain * img.mean([1, 2, 3]).unsqueeze(1) + c.argmax(1, keepdim=True)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Training and held-out images: 12 and 9 of 16x16, in three classes."""
    folder = tmp_path_factory.mktemp("data")
    made = []
    for i, count in enumerate((12, 9)):
        path = make_image_zip(folder / f"{i}.zip", resolution=16, num_images=count, num_labels=3)
        made.append(ImageFolderDataset(str(path), use_labels=True))
    yield made
    for dataset in made:
        dataset.close()


# Formulas


def test_safe_lambda_from_its_definition():
    losses = torch.arange(101.0)
    assert safe_lambda(losses) == pytest.approx(math.log(2) / (99 - 50))


def test_an_even_teacher_is_safe_at_any_weight():
    assert safe_lambda(torch.full([50], 0.3)) == math.inf


def test_safe_lambda_falls_with_the_spread_of_the_scores():
    scores = 2 + rnd("scores", (1000,))
    limits = [safe_lambda(softplus(-scores * gain)) for gain in (0.5, 1, 2, 4)]
    assert limits == sorted(limits, reverse=True) and limits[0] > 2 * limits[-1]


def test_auc_is_the_share_of_ordered_pairs():
    a, b = (rnd(name, (size,)).round(decimals=1) for name, size in (("a", 40), ("b", 70)))
    pairs = a.unsqueeze(1) - b.unsqueeze(0)
    assert (pairs == 0).any()  # the case should have ties
    assert auc(a, b) == pytest.approx(float((pairs > 0).double().mean() + 0.5 * (pairs == 0).double().mean()))


def test_auc_at_its_ends():
    low, high = torch.zeros(5), torch.ones(3)
    assert (auc(high, low), auc(low, high), auc(low, low)) == (1.0, 0.0, 0.5)


# Scores of real images


@pytest.mark.parametrize(
    ("resolution", "batch", "device", "expected"),
    [(32, 64, "cpu", 512), (256, 4, "cpu", 64), (1024, 4, "cpu", 32), (1024, 8, "cuda", 256), (16, 600, "cpu", 600)],
)
def test_the_number_of_images_falls_with_the_resolution(resolution, batch, device, expected):
    assert number_of_images(resolution, batch, torch.device(device)) == expected


def test_each_image_is_scored_once_with_its_label_in_whole_batches(datasets):
    teacher, dataset = Brightness(), datasets[0]
    found = score_reals([teacher], dataset, 4, CPU)
    expected = [dataset[i][0].mean() / 127.5 - 1 + i % 3 for i in range(12)]
    assert teacher.batches == [4, 4, 4] and found.shape == (12, 1)
    np.testing.assert_allclose(np.sort(found[:, 0].numpy()), np.sort(expected), rtol=1e-5, atol=1e-6)


def test_a_small_dataset_fills_a_batch(datasets):
    teacher = Brightness()
    assert score_reals([teacher, teacher], datasets[1], 16, CPU).shape == (16, 2) and teacher.batches == [16, 16]


def test_scoring_draws_no_random_number_and_is_repeatable(datasets):
    np.random.seed(1)
    state = torch.get_rng_state()
    first = score_reals([Brightness()], datasets[0], 4, CPU)
    assert torch.equal(first, score_reals([Brightness()], datasets[0], 4, CPU))
    assert torch.equal(state, torch.get_rng_state()) and np.random.rand() == np.random.RandomState(1).rand()


# The lines


def test_lines_without_held_out_images(datasets):
    lines = describe([Brightness()], datasets[0], None, 4, CPU, weight=0.1)
    seen = score_reals([Brightness()], datasets[0], 4, CPU)
    assert lines == [
        f"Teacher 0: mean score {float(seen.mean()):.2f} of 12 training images.",
        f"Safe --dgl-weight, by training images: up to {safe_lambda(softplus(-seen).squeeze(1)):.2g}.",
    ]


def test_lines_with_held_out_images_and_two_teachers(datasets):
    teachers = [Brightness(), Brightness(30.0)]
    lines = describe(teachers, *datasets, 3, CPU, weight=50.0)
    seen, unseen = (score_reals(teachers, dataset, 3, CPU) for dataset in datasets)
    assert len(lines) == 4
    for i, line in enumerate(lines[:2]):
        means = [float(scores[:, i].mean()) for scores in (seen, unseen)]
        assert f"Teacher {i}: mean score {means[0]:.2f} of 12 training" in line
        assert f"{means[1]:.2f} of 9 held-out" in line and f"AUC {auc(seen[:, i], unseen[:, i]):.2f} " in line
    assert f"by held-out images: up to {safe_lambda(softplus(-unseen).sum(1)):.2g}" in lines[2]
    assert lines[3].startswith("Notice: --dgl-weight=50 is above that")


def test_no_safe_weight_where_the_theory_does_not_hold(tmp_path, datasets):
    live = {"dgl_update": ADAM}
    for kwargs, shown in (
        ({}, True),
        ({"dgl_weighting": "score"}, False),
        ({"dgl_form": "hinge"}, False),
        (live, False),
    ):
        loss = Student([save_teacher(tmp_path)], **kwargs).loss
        lines = loss.describe_teachers(datasets[0], BATCH)
        assert lines[0].startswith("Teacher 0: ") and any("Safe" in line for line in lines) is shown


def test_describing_the_teachers_changes_no_update(tmp_path, datasets):
    path = save_teacher(tmp_path)
    plain, described = Student([path]).train(), Student([path])
    described.loss.describe_teachers(datasets[0], BATCH)
    assert same(plain, described.train())


def test_weight_zero_needs_no_description(tmp_path, datasets, monkeypatch):
    monkeypatch.setattr(diagnostics, "describe", lambda *_: pytest.fail("a teacher was evaluated"))
    loss: DGLLoss = Student([save_teacher(tmp_path)], dgl_weight=0).loss
    assert loss.describe_teachers(datasets[0], BATCH) == []
