# SPDX-License-Identifier: Apache-2.0
"""Which reals the grids of a run show."""

import itertools
import types

import numpy as np
import pytest
from PIL import Image

from tests.support import make_image_zip
from training import training_loop
from training.data import class_names
from training.dataset import ImageFolderDataset
from training.sample_grid import SampleGrid


class Blank:
    """A dataset of black images without labels."""

    has_labels = False
    label_dim = 0

    def __init__(self, resolution: int):
        self.image_shape = [1, resolution, resolution]

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return np.zeros(self.image_shape, np.uint8), np.full([self.label_dim], 0.5, np.float32)


@pytest.fixture
def classes(tmp_path):
    """A labelled dataset of 16x16 images: `classes(images, classes, channels=3, class_names=[...])`."""
    return lambda images, number, **kwargs: ImageFolderDataset(
        str(make_image_zip(tmp_path / "toy.zip", 16, images, number, **kwargs)), use_labels=True
    )


@pytest.mark.parametrize(("resolution", "grid_size"), [(64, (32, 32)), (256, (30, 16)), (512, (15, 8)), (1024, (7, 4))])
def test_the_grid_has_the_size_of_the_originals(resolution, grid_size):
    found, images, labels = training_loop.setup_snapshot_image_grid(Blank(resolution))
    assert found == grid_size and type(found) is tuple
    assert images.shape == (grid_size[0] * grid_size[1], 1, resolution, resolution) and images.dtype == np.uint8
    assert labels.shape == (len(images), 0)


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("number", [3, 10, 40])
def test_rows_show_all_classes_in_turn(classes, number, small):
    (columns, rows), _images, labels = training_loop.setup_snapshot_image_grid(classes(80, number), small=small)
    assert columns == (16 if small else 32)
    assert rows == ({3: 8, 10: 10, 40: 32}[number] if small else 32)
    shown = labels.reshape(rows, columns, number)
    assert (shown == shown[:, :1]).all()
    assert shown[:, 0].argmax(axis=1).tolist() == [row % number for row in range(rows)]


def test_the_next_row_of_a_class_continues_its_images(classes):
    (columns, _rows), images, _labels = training_loop.setup_snapshot_image_grid(classes(80, 1))
    first, again = images[:80], images[80:160]
    assert columns < 80 and len(np.unique(first, axis=0)) == 80 and np.array_equal(first, again)


@pytest.mark.parametrize("number", [40, 100])
def test_classes_with_names_share_rows_until_all_are_shown(classes, number):
    dataset = classes(number, number, class_names=[f"n{k}" for k in range(number)])
    (columns, rows), _images, labels = training_loop.setup_snapshot_image_grid(dataset, small=True)
    assert (columns, rows) == (16, 32) and len(labels) == columns * rows
    runs = [list(group) for row in labels.argmax(axis=1).reshape(rows, columns) for _, group in itertools.groupby(row)]
    shares = -(-number // rows)
    assert len(runs) == rows * shares and {len(run) for run in runs} <= {columns // shares, columns // shares + 1}
    assert [run[0] for run in runs] == [k % number for k in range(len(runs))]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_names_of_classes_stand_beside_unchanged_images(classes, tmp_path, channels):
    path = str(tmp_path / "reals.png")
    SampleGrid(classes(80, 2, channels=channels), z_dim=8, small=True).save_reals(path)
    plain = Image.open(path).copy()
    SampleGrid(classes(80, 2, channels=channels, class_names=["cat", "a longer name"]), 8, small=True).save_reals(path)
    with Image.open(path) as named:
        left = named.width - plain.width
        assert left > 60 and named.mode == plain.mode == {1: "L", 3: "RGB", 4: "RGBA"}[channels]
        assert named.crop((left, 0, *named.size)).tobytes() == plain.tobytes()
        names = np.asarray(named.convert("RGB").convert("L"))[:, :left]
    inked = [(row < 128).sum() for row in np.split(names, named.height // 16)]
    assert 0 < inked[0] < inked[1] and inked[2:4] == inked[:2]


def test_names_of_shared_rows_stand_above_unchanged_images(classes, tmp_path):
    dataset, path = classes(40, 40, class_names=[f"n{k}" for k in range(40)]), str(tmp_path / "reals.png")
    grid = SampleGrid(dataset, z_dim=8, small=True)
    grid.save_reals(path)
    with Image.open(path) as named:
        rows = np.split(np.asarray(named), 32)
    reals = grid.reals.reshape(32, 16, 3, 16, 16).transpose(0, 3, 1, 4, 2).reshape(32, 16, 16 * 16, 3)
    assert np.array_equal(np.stack([row[-16:] for row in rows]), reals)
    assert all((half < 128).any() for row in rows for half in np.split(row[:-16], 2, axis=1))


def test_names_are_for_classes_alone(tmp_path):
    """Label vectors of other kinds have no names; names with letters that cannot be drawn give way to numbers."""
    dataset = Blank(512)
    dataset.has_labels, dataset.label_dim, dataset.class_names = True, 2, ["a", "b"]
    dataset.get_details = lambda index: types.SimpleNamespace(raw_label=np.full(2, 0.5))
    assert SampleGrid(dataset, z_dim=8)._captions == []
    names = ["Caf\u00e9", "\u732b", "two\nlines \u202e"]
    assert [class_names.caption(names, k) for k in range(3)] == ["Cafe", "class 1", r"two\nlines \u202e"]


def test_reals_do_not_depend_on_the_seed_of_the_run(classes):
    training_set = classes(80, 3)
    grids = [SampleGrid(training_set, z_dim=8, random_seed=seed) for seed in (0, 5)]
    other = training_loop.setup_snapshot_image_grid(training_set, random_seed=5)
    assert np.array_equal(grids[0].reals, grids[1].reals) and not np.array_equal(grids[0].reals, other[1])
    assert not grids[0].latents.equal(grids[1].latents)
    assert np.array_equal(grids[0].labels, grids[1].labels.numpy())


def test_grids_are_saved_by_the_names_of_the_original(tmp_path):
    img = np.stack([np.full([3, 4, 4], value, np.uint8) for value in (0, 80, 160, 255)])
    training_loop.save_image_grid(img=img, fname=str(tmp_path / "a.png"), drange=[0, 255], grid_size=(2, 2))
    training_loop.save_image_grid(img / 127.5 - 1, str(tmp_path / "b.png"), [-1, 1], (2, 2))
    for name in ("a.png", "b.png"):
        with Image.open(tmp_path / name) as png:
            assert np.asarray(png)[::4, ::4, 1].tolist() == [[0, 80], [160, 255]]
