# SPDX-License-Identifier: Apache-2.0
"""Saved statistics of reals: what a file can be used for, and what is refused."""

import json
import pathlib

import numpy as np
import pytest

from dnnlib.util import UserError
from metrics import detectors, saved_stats
from metrics.feature_stats import FeatureStats
from training.dataset import Dataset

SPEC = detectors.DetectorSpec(url="d.pt", name="digits", sha256="ab" * 32, path="/d.pt")
KWARGS = {"return_features": True}


def about(**changes):
    facts = {"dataset": "faces", "num_images": 40, "resolution": 8, "xflip": False, "detector": "digits"}
    return saved_stats.About(**{**facts, "detector_sha256": SPEC.sha256, "detector_kwargs": KWARGS, **changes})


def features(num=40):
    return np.random.RandomState(0).randn(num, 3).astype(np.float32)


class Labelled(Dataset):
    """40 unused images with these labels (None: without)."""

    def __init__(self, labels):
        self._given = labels
        super().__init__("faces", [40, 3, 8, 8], use_labels=labels is not None)

    def _load_raw_labels(self):
        return self._given


CLASSES = np.arange(40) % 3
VECTORS = np.random.RandomState(1).randn(40, 2).astype(np.float32)


@pytest.fixture
def save(tmp_path):
    """Write a file: `save(num=..., capture_all=..., labels=..., **facts)` -> its path."""

    def write(num=40, capture_all=True, labels=None, **facts):
        stats = FeatureStats(capture_all=capture_all, capture_mean_cov=True)
        stats.append(features(num))
        saved_stats.save(str(tmp_path / "x.npz"), stats, about(**facts), Labelled(labels))
        return str(tmp_path / "x.npz")

    return write


def take(path, spec=SPEC, kwargs=KWARGS, max_items=None, xflip=False, **capture):
    return saved_stats.load(path).take(spec, kwargs, max_items, xflip, **capture)


def test_a_saved_file_has_everything(save):
    saved = saved_stats.load(save())
    assert saved.about == about() and len(saved.sha256) == 64
    stats = take(saved.path, capture_all=True, capture_mean_cov=True)
    assert np.array_equal(stats.get_all(), features())
    mean, cov = stats.get_mean_cov()
    assert np.allclose(mean, features().mean(0), atol=1e-6) and np.allclose(cov, np.cov(features().T, bias=True))


@pytest.mark.parametrize("labels", [None, CLASSES, VECTORS])
def test_labels_are_those_of_the_images(save, labels):
    expected, saved = Labelled(labels), saved_stats.load(save(labels=labels)).labels
    assert len(saved) == 40 and saved.label_dim == expected.label_dim and saved.name == "faces"
    assert all(np.array_equal(saved.get_label(i), expected.get_label(i)) for i in range(40))


def test_fewer_images_are_the_first_images(save):
    stats = take(save(), max_items=10, capture_all=True, capture_mean_cov=True)
    assert np.array_equal(stats.get_all(), features()[:10])
    assert np.allclose(stats.get_mean_cov()[0], features()[:10].mean(0), atol=1e-6)
    assert take(save(capture_all=False), max_items=50, capture_mean_cov=True).num_items == 40


def test_mirrored_copies_are_as_saved_if_the_metric_has_no_setting(save):
    assert take(save(xflip=True), xflip=None, capture_mean_cov=True).num_items == 40


OTHER = detectors.DetectorSpec(url="e.pt", name="others", sha256="cd" * 32, path="/e.pt")
REFUSED = {
    "another detector": ({}, {"spec": OTHER}, r"others.*--detector"),
    "another output of it": ({}, {"kwargs": {}}, r"digits.*--detector"),
    "mirrored copies": ({"xflip": True}, {}, r"mirrored.*--mirror"),
    "no features": ({"capture_all": False}, {"capture_all": True}, r"needs the features.*--metrics"),
    "a part without features": ({"capture_all": False}, {"max_items": 10}, r"covers 40 of 40 .*uses 10"),
    "more than there is": ({"num": 30}, {}, r"covers 30 of 40 .*uses 40"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_file_cannot_provide_is_refused(save, case):
    content, question, words = REFUSED[case]
    with pytest.raises(UserError, match=words):
        take(save(**content), **question)


def rewritten(path, **changes):
    """The file with some arrays replaced (None: removed)."""
    with np.load(path) as arrays:
        content = {**arrays, **changes}
    np.savez(path, **{name: value for name, value in content.items() if value is not None})
    return path


def facts(**changes):
    content = {"format": "stylegan2-feature-statistics", "version": 1, **vars(about()), **changes}
    return np.array(json.dumps(content))


@pytest.mark.parametrize(
    "changes",
    [
        {"about": facts(num_images="40")},
        {"about": facts(colour="red")},
        {"about": np.array("{")},
        {"about": np.array("[]")},
        {"features": features(39)},
        {"features": features().astype(np.float64)},
        {"features": None},
        {"scatter": np.zeros([2, 2])},
        {"mean": None},
        {"settings": np.zeros(2)},
        {"mean": np.array([{}], dtype=object)},
        {"labels": None},
        {"labels": CLASSES[:39]},
        {"labels": CLASSES - 1},
        {"labels": CLASSES.astype(np.float32)},
        {"labels": VECTORS * np.float32("nan")},
        {"labels": CLASSES + 2**40},
        {"labels": np.zeros([40, 70_000], np.float32)},
        {"features": features() * np.float32("inf")},
        {"mean": np.full(3, 1j)},
        {"num_items": np.array(0)},
        {"about": np.array("[" * 200_000)},
    ],
)
def test_damaged_files_are_refused(save, changes):
    with pytest.raises(UserError, match=r"x\.npz is a damaged file of statistics.*--save-stats"):
        saved_stats.load(rewritten(save(), **changes))


def test_names_in_the_file_are_printed_short_and_without_control_characters(save):
    path = rewritten(save(), about=facts(detector="\x1b[2J" + "x" * 5000))
    with pytest.raises(UserError, match=r"made with the detector \\x1b\[2Jxxx") as caught:
        take(path, spec=OTHER)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600


def test_truncated_files_are_refused(save):
    path = pathlib.Path(save())
    data = path.read_bytes()
    for size in (0, 10, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(UserError, match=r"x\.npz is a damaged file of statistics"):
            saved_stats.load(str(path))


@pytest.mark.parametrize("changes", [{"about": None}, {"about": facts(format="other")}, {"about": facts(version=2)}])
def test_files_of_other_programs_are_refused(save, changes):
    with pytest.raises(UserError, match=r"x\.npz is not a file that --save-stats wrote"):
        saved_stats.load(rewritten(save(), **changes))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no file of statistics.*--data"):
        saved_stats.load(str(tmp_path / "x.npz"))
