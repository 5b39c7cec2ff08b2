# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from metrics import detector_record, detectors, small_detector
from tests.support import ROOT


def squares(num: int, channels: int = 1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy images with a bright square on the left (class 0) or right (class 1), and their classes."""
    rng = np.random.RandomState(seed)
    images = rng.randint(0, 80, [num, channels, 32, 32]).astype(np.uint8)
    labels = np.arange(num) % 2
    for image, label in zip(images, labels):
        image[:, 8:24, 18 * label : 18 * label + 12] += 120
    return torch.from_numpy(images), torch.from_numpy(labels)


def record_of(net, images, labels):
    statistics = detector_record.statistics(net(images, return_features=True).numpy(), labels.numpy(), 2)
    return detector_record.Record("squares", [1, 32, 32], len(images), 2, 0.9, 10, **statistics)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_short_training_is_reproducible_and_right(channels):
    images, labels = squares(200, channels)
    nets = [small_detector.train(images, labels, 2, epochs=12, width=16) for _ in range(2)]
    first, second = (net.state_dict().values() for net in nets)
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    other, answers = squares(100, channels, seed=1)
    assert (nets[0](other).argmax(dim=1) == answers).float().mean() > 0.9
    different = small_detector.train(images, labels, 2, epochs=1, width=16, seed=1)
    assert not torch.equal(different.conv0.weight, nets[0].conv0.weight)


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_rgb_of_any_size(channels):
    net = small_detector.SmallNet(channels, classes=5, width=16).eval()
    for shape in ([2, 1, 32, 32], [2, 3, 32, 32], [2, 3, 8, 8], [2, 1, 128, 128]):
        images = torch.randint(0, 256, shape, dtype=torch.uint8)
        assert net(images).shape == (2, 5) and net(images, return_features=True).shape == (2, 16)
    grey = torch.randint(0, 256, [2, 1, 32, 32], dtype=torch.uint8)
    torch.testing.assert_close(net(grey), net(grey.repeat(1, 3, 1, 1)), rtol=1e-4, atol=1e-5)


def test_without_distortion_images_stay_as_they_are():
    images = torch.rand(4, 1, 32, 32)
    assert small_detector.distort(images, torch.Generator(), 0) is images
    mild, strong = (small_detector.distort(images, torch.Generator().manual_seed(0), x) for x in (0.1, 1))
    assert 0 < (mild - images).abs().mean() < (strong - images).abs().mean()


def test_an_exported_detector_computes_the_same_and_has_its_record(tmp_path):
    images, labels = squares(40)
    net = small_detector.SmallNet(1, 2, 16).eval().requires_grad_(False)
    record = record_of(net, images, labels)
    content = small_detector.export(net, record)
    assert content == small_detector.export(net, record)
    assert str(ROOT).encode() not in content and b"debug_pkl" not in content
    (tmp_path / "net.pt").write_bytes(content)
    detectors.trust(str(tmp_path / "net.pt"))
    loaded = detectors.load(str(tmp_path / "net.pt"), torch.device("cpu"))
    torch.testing.assert_close(loaded(images, return_features=True), net(images, return_features=True))
    found = detectors.load_record(str(tmp_path / "net.pt"))
    for name, value in vars(record).items():
        assert np.array_equal(getattr(found, name), value), name


def test_a_file_without_a_record(tmp_path):
    (tmp_path / "net.pt").write_bytes(small_detector.export(small_detector.SmallNet(width=16)))
    detectors.trust(str(tmp_path / "net.pt"))
    assert detectors.load_record(str(tmp_path / "net.pt")) is None
