# SPDX-License-Identifier: Apache-2.0
"""The bundled detectors accept what they were made for, and parts of it, and refuse other images by a wide margin."""

import numpy as np
import pytest
import torch

from dnnlib.util import UserError
from metrics import detectors, metric_main, suitability
from metrics.metric_utils import MetricOptions
from tests.metrics import stand_ins
from tests.support import ROOT
from training.dataset import ImageFolderDataset

DATA = {
    "digits": ROOT / "data" / "mnist5k-32x32.zip",
    "clothes": ROOT / "data" / "fashion-train-32x32.zip",
    "other clothes": ROOT / "data" / "fashion-test-32x32.zip",  # of no training
}
MADE_FOR = {"mnist": "digits", "fashion": "clothes", "fashion2": "clothes"}


def spread_out(dataset, picks, num: int) -> torch.Tensor:
    chosen = np.asarray(picks)[np.linspace(0, len(picks) - 1, num).astype(int)]
    return torch.from_numpy(np.stack([dataset[i][0] for i in chosen]))


@pytest.fixture(scope="module")
def pictures():
    """Sets of 256 images, uint8 [256, 1, 32, 32], by name."""
    rng = np.random.RandomState(0)
    found = {}
    for name, path in DATA.items():
        dataset = ImageFolderDataset(str(path), use_labels=True)
        picks = range(4500, 5000) if name == "digits" else range(len(dataset))  # digits of no training
        found[name] = spread_out(dataset, picks, 256)
        fives = [i for i in range(len(dataset)) if dataset.get_details(i).raw_label == 5]
        found[f"fives of {name}"] = spread_out(dataset, fives, 200)
    found["noise"] = torch.from_numpy(rng.randint(0, 256, [256, 1, 32, 32], dtype=np.uint8))
    waves = [rng.randn(256, 1, side, side) for side in (2, 4, 8, 16, 32)]  # as in photos, coarse waves are strongest
    waves = [torch.nn.functional.interpolate(torch.from_numpy(x), size=32, mode="bilinear") for x in waves]
    found["photos"] = (sum(x / 2**i for i, x in enumerate(waves)) * 50 + 128).clamp(0, 255).byte()
    found["black"] = torch.zeros(256, 1, 32, 32, dtype=torch.uint8)
    return found


@pytest.mark.parametrize("name", MADE_FOR)
def test_margins(name, pictures):
    spec = detectors.resolve(name, "inception")
    network, record = detectors.load(spec, torch.device("cpu")), detectors.load_record(spec)
    for what, images in pictures.items():
        relative = suitability.distance(network, record, images) / record.bound
        if MADE_FOR[name] in what:
            assert relative < 0.5, what
            assert suitability.distance(network, record, images[::5]) < record.bound, f"50 {what}"
        else:
            assert relative > 2, what


def check(path, detector, metric="fid1k_full", **options):
    opts = {"dataset_kwargs": stand_ins.dataset_options(str(path)), **options}
    suitability.ensure_suitable([metric], MetricOptions(detector=detector, device="cpu", **opts))


@pytest.mark.parametrize("detector", ["mnist", "fashion", "fashion2"])
def test_real_images_of_another_kind_are_refused(detector):
    own, others = ("digits", "clothes") if detector == "mnist" else ("other clothes", "digits")
    check(DATA[own], detector)
    with pytest.raises(UserError, match=rf"'{detector}' was made for images like.*another kind.*--detector"):
        check(DATA[others], detector)
    check(DATA[others], None)
    check(DATA[others], detector, "is50k")  # compares with no real images
    check(DATA[others], detector, dataset_kwargs={})


def test_colour_pictures_are_refused_in_every_place(tmp_path):
    path = stand_ins.write_zip(tmp_path / "photos.zip", stand_ins.make_images(20))
    channels = r"'mnist' was made for grey images.*{}.* are RGB.*--detector"
    with pytest.raises(UserError, match=channels.format("photos")):
        check(path, "mnist")
    with pytest.raises(UserError, match=channels.format("photos")):
        check(DATA["digits"], "mnist", fakes_kwargs=stand_ins.dataset_options(path))
    with pytest.raises(UserError, match=channels.format("the network")):
        check(DATA["digits"], "mnist", G=stand_ins.tiny_generator(resolution=32))
    options = {"dataset_kwargs": stand_ins.dataset_options(path), "detector": "mnist", "device": "cpu"}
    with pytest.raises(UserError, match=channels.format("photos")):
        metric_main.calc_metric("fid1k_full", G=stand_ins.tiny_generator(channels=1), **options)


def test_a_detector_without_a_record_takes_everything(tmp_path):
    path = stand_ins.write_zip(tmp_path / "photos.zip", stand_ins.make_images(60))
    check(path, stand_ins.save_detector(stand_ins.Inception(), tmp_path / "own.pt"))


def test_few_images_are_too_few_to_tell(tmp_path):
    noise = stand_ins.make_images(60, 32, 1)
    check(stand_ins.write_zip(tmp_path / "few.zip", noise[:49]), "mnist")
    with pytest.raises(UserError, match="another kind"):
        check(stand_ins.write_zip(tmp_path / "enough.zip", noise[:50]), "mnist")
