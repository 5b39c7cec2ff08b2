# SPDX-License-Identifier: Apache-2.0
"""The digits, the fashion images and the detectors that are part of the project."""

import hashlib
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from metrics import detectors, small_detector
from tests.support import ROOT
from training.dataset import ImageFolderDataset

DIGITS = ROOT / "data" / "mnist5k-32x32.zip"
FASHION = [ROOT / "data" / f"fashion-{part}-32x32.zip" for part in ("train", "test")]
DETECTORS = [ROOT / "data" / "detectors" / f"{name}.pt" for name in ("mnist", "fashion", "fashion2")]
DETECTOR = DETECTORS[0]
HELD_OUT = 500  # images at the end that the detector was not trained on


@pytest.fixture(scope="module")
def digits():
    """The held-out images, uint8 [500, 1, 32, 32], and their class numbers [500]."""
    dataset = ImageFolderDataset(str(DIGITS), resolution=32, use_labels=True)
    items = [dataset[i] for i in range(len(dataset) - HELD_OUT, len(dataset))]
    images, labels = zip(*items)
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels)).argmax(dim=1)


@pytest.fixture(scope="module")
def detector():
    return detectors.load(str(DETECTOR), torch.device("cpu"))


def spread(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean [d] and covariance [d, d] of features [N, d], float64."""
    features = features.double()
    return features.mean(dim=0), torch.cov(features.T, correction=0)


def frechet(a: torch.Tensor, b: torch.Tensor) -> float:
    """Fréchet distance of two feature sets, independent of the metrics' implementation."""
    (mean_a, cov_a), (mean_b, cov_b) = spread(a), spread(b)
    roots = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0).sqrt().sum()
    return float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * roots)


def test_the_digits_are_complete_and_small():
    dataset = ImageFolderDataset(str(DIGITS), resolution=32, use_labels=True)
    dataset.validate()
    labels = [int(dataset.get_details(i).raw_label) for i in range(len(dataset))]
    assert len(dataset) == 5000 and dataset.image_shape == [1, 32, 32] and dataset.label_shape == [10]
    assert np.bincount(labels).tolist() == [500] * 10
    assert np.bincount(labels[:1000]).min() > 50, "the first images must be a fair sample"
    assert DIGITS.stat().st_size < 2.5e6


@pytest.mark.parametrize(("path", "count"), [*zip(FASHION, [10_000, 2_000])], ids=["train", "test"])
def test_the_fashion_images_are_complete_and_balanced(path, count):
    dataset = ImageFolderDataset(str(path), resolution=32, use_labels=True)
    dataset.validate()
    labels = [int(dataset.get_details(i).raw_label) for i in range(len(dataset))]
    assert dataset.image_shape == [1, 32, 32] and np.bincount(labels).tolist() == [count // 10] * 10
    assert np.bincount(labels[:1000]).min() > 50, "the first images must be a fair sample"
    assert sum(path.stat().st_size for path in FASHION) <= 8e6


def test_files_have_the_hashes_in_the_readme():
    text = (ROOT / "data" / "README.md").read_text()
    for path in (DIGITS, *FASHION, *DETECTORS):
        stated = re.search(rf"`{path.relative_to(ROOT / 'data')}`.*`([0-9a-f]{{64}})`", text)
        assert stated and stated[1] == hashlib.sha256(path.read_bytes()).hexdigest(), path.name


def test_the_detector_distinguishes_unseen_digits(digits, detector):
    images, labels = digits
    probs = detector(images)
    assert probs.shape == (HELD_OUT, 10) and probs.dtype == torch.float32
    assert torch.allclose(probs.sum(dim=1), torch.ones(HELD_OUT))
    assert (probs.argmax(dim=1) == labels).float().mean() > 0.98


def test_the_detector_takes_grey_and_rgb_of_any_size(digits, detector):
    images, labels = digits[0][:200], digits[1][:200]
    features = detector(images, return_features=True)
    assert features.shape == (200, 64) and features.dtype == torch.float32
    assert torch.allclose(detector(images.repeat(1, 3, 1, 1), return_features=True), features, atol=1e-4)
    assert detector(images[:, :, ::2, ::2]).shape == (200, 10)
    for size in (48, 64, 100):
        resized = F.interpolate(images.float(), size=size, mode="bilinear", antialias=True).round().to(torch.uint8)
        assert (detector(resized).argmax(dim=1) == labels).float().mean() > 0.9, size


def test_class_biases_can_be_left_out(digits, detector):
    images = digits[0][:8]
    ratio = detector(images).log() - detector(images, no_output_bias=True).log()
    bias = detector.classes.bias
    assert torch.allclose(ratio - ratio.mean(dim=1, keepdim=True), (bias - bias.mean()).expand(8, 10), atol=1e-3)


def test_features_distinguish_good_images_from_bad(digits, detector):
    images, labels = digits
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(images.shape, generator=rng) * 50
    bad = {
        "blurred": F.avg_pool2d(images.float(), 3, stride=1, padding=1),
        "noisy": (images + noise).clamp(0, 255),
        "overlaid": (images.float() + images.flip(0)) / 2,
    }

    def features(x):
        return detector(x.to(torch.uint8), return_features=True)

    halves = frechet(features(images[::2]), features(images[1::2]))
    for name, changed in bad.items():
        assert frechet(features(images), features(changed)) > 3 * halves, name
    assert frechet(features(images), features(images[labels != 3])) > halves, "a missing class"


def test_the_detector_file_is_the_network_of_the_training_code(digits, detector):
    images = digits[0][:20]
    net = small_detector.SmallNet().eval()
    net.load_state_dict(detector.state_dict())
    for kwargs in ({}, {"return_features": True}, {"no_output_bias": True}):
        torch.testing.assert_close(net(images, **kwargs), detector(images, **kwargs))


@pytest.mark.parametrize("path", DETECTORS, ids=lambda path: path.stem)
def test_a_detector_says_what_it_was_made_for_and_contains_no_path(path):
    record = detectors.load_record(str(path))
    assert record.dataset in ("mnist5k-32x32", "fashion60k-train-32x32") and record.image_shape == [1, 32, 32]
    assert record.classes == 10 and record.accuracy > 0.9 and path.stat().st_size < 0.7e6
    assert not any(word in path.read_bytes() for word in (b"site-packages", b"debug_pkl"))


@pytest.mark.parametrize("name", ["fashion", "fashion2"])
def test_fashion_detectors_classify_the_test_images(name):
    dataset = ImageFolderDataset(str(FASHION[1]), use_labels=True)
    images, labels = map(np.stack, zip(*(dataset[i] for i in range(0, 2000, 4))))
    network = detectors.load(detectors.resolve(name, "inception"), torch.device("cpu"))
    assert (network(torch.from_numpy(images)).argmax(dim=1).numpy() == labels.argmax(axis=1)).mean() > 0.88
