# SPDX-License-Identifier: Apache-2.0
import shutil
import sys

import numpy as np
import pytest

from dnnlib import cli
from scripts import make_fashion_dataset
from tests.training.data.test_sources import write_mnist
from training.dataset import ImageFolderDataset


@pytest.fixture
def source(tmp_path):
    """Fifty images in files named as those of the package."""
    folder = tmp_path / "source"
    write_mnist(folder, 50)
    for kind in ("images-idx3", "labels-idx1"):
        shutil.copy(folder / f"train-{kind}-ubyte.gz", folder / f"t10k-{kind}-ubyte.gz")
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    def start(*flags):
        monkeypatch.setattr(sys, "argv", ["make_fashion_dataset.py", *flags])
        with pytest.raises(SystemExit) as exited:
            cli.run(make_fashion_dataset.main)
        return exited.value.code, capsys.readouterr().err

    return start


def test_a_subset_has_the_first_images_of_each_class_and_the_same_bytes_again(source, run, tmp_path, monkeypatch):
    parts = [(*names, 2) for *names, _per_class in make_fashion_dataset.PARTS]
    monkeypatch.setattr(make_fashion_dataset, "PARTS", parts)
    assert run(f"--source={source}", f"--dest={tmp_path}", "--full")[0] == 0
    whole = ImageFolderDataset(str(tmp_path / "fashion60k-train-32x32.zip"), use_labels=True)
    assert len(whole) == 50 and whole.image_shape == [1, 32, 32]
    labels = [int(whole.get_label(i).argmax()) for i in range(50)]
    firsts = [i for i in range(50) if labels[:i].count(labels[i]) < 2]

    for folder in ("one", "two"):
        assert run(f"--source={source}", f"--dest={tmp_path / folder}")[0] == 0
    subset = ImageFolderDataset(str(tmp_path / "one" / "fashion-train-32x32.zip"), use_labels=True)
    assert len(subset) == len(firsts)
    for index, first in enumerate(firsts):
        assert all(np.array_equal(a, b) for a, b in zip(subset[index], whole[first]))
    for name in ("fashion-train-32x32.zip", "fashion-test-32x32.zip"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_without_the_package_one_sentence_says_where_to_get_it(run, tmp_path):
    status, err = run(f"--source={tmp_path}")
    assert status == 2 and "Traceback" not in err
    for words in ("apt-get download dataset-fashion-mnist", "dpkg-deb -x", "--source="):
        assert words in err
