# SPDX-License-Identifier: Apache-2.0
import hashlib
import shutil

import pytest
import torch

from dnnlib.util import UserError
from metrics import detectors
from tests.metrics import stand_ins

# Nothing listens on this port: downloads fail immediately and without network access.
UNREACHABLE = "http://127.0.0.1:9/metrics"


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(detectors, "BASE_URL", UNREACHABLE)


@pytest.fixture
def inception(tmp_path):
    return stand_ins.save_detector(stand_ins.Inception(), tmp_path / "my digits.pt")


def test_a_local_file(inception):
    spec = detectors.resolve(inception, "inception")
    with open(inception, "rb") as file:
        assert spec.sha256 == hashlib.sha256(file.read()).hexdigest()
    assert spec.name == "my_digits" and spec.path == spec.url == inception


def test_names_of_the_detectors_in_the_data_folder(tmp_path, monkeypatch, inception):
    monkeypatch.setattr(detectors, "NAMED_FOLDER", str(tmp_path / "named"))
    (tmp_path / "named").mkdir()
    shutil.copy(inception, tmp_path / "named" / "digits.pt")
    spec = detectors.resolve("digits", "inception")
    assert spec.name == "digits" and spec.path == str(tmp_path / "named" / "digits.pt")
    with pytest.raises(UserError, match=r"'letters' is neither.*\(digits\).*--detector"):
        detectors.resolve("letters", "inception")


@pytest.mark.parametrize(
    ("metric", "file", "ways"),
    [
        ("fid5k_full", "inception-2015-12-05.pt", ["--metrics=none", "scripts/train_detector.py"]),
        ("ppl2_wend", "vgg16.pt", ["--detector=pixels"]),
    ],
)
def test_an_unreachable_detector_says_where_to_place_the_file_and_what_else_to_do(cache_folder, metric, file, ways):
    with pytest.raises(UserError) as info:
        detectors.ensure_available([metric], None)
    sentence = str(info.value)
    assert str(cache_folder / "downloads" / file) in sentence and "--detector" in sentence
    assert f"{UNREACHABLE}/{file}" in sentence and all(way in sentence for way in ways)


def test_an_unwritable_cache_folder_is_named(cache_folder):
    cache_folder.write_text("in the way")
    with pytest.raises(UserError, match=r"cache folder .*set DNNLIB_CACHE_DIR to a writable folder"):
        detectors.ensure_available(["fid50k_full"], None)


def test_a_default_detector_placed_in_the_cache_is_found(cache_folder):
    placed = stand_ins.save_detector(stand_ins.Inception(), cache_folder / "downloads" / "inception-2015-12-05.pt")
    detectors.ensure_available(["fid50k_full", "is50k"], None)
    spec = detectors.resolve(None, "inception")
    assert spec.path == placed and spec.name == "inception-2015-12-05" and spec.url.startswith(UNREACHABLE)


def test_a_default_in_the_download_cache_is_found(cache_folder):
    key = hashlib.md5(f"{UNREACHABLE}/vgg16.pt".encode()).hexdigest()
    cached = stand_ins.save_detector(stand_ins.VGG16(), cache_folder / "downloads" / f"{key}_vgg16.pt")
    assert detectors.resolve(None, "vgg16").path == cached


def test_a_detector_is_accepted_for_the_metrics_whose_arguments_it_takes(tmp_path, inception):
    detectors.ensure_available(["fid50k_full", "kid5k_full", "pr50k3", "is50k"], inception)
    with pytest.raises(
        UserError, match=r"'my_digits' cannot be used for ppl2_wend.*resize_images or return_lpips.*--detector"
    ):
        detectors.ensure_available(["fid50k_full", "ppl2_wend"], inception)
    vgg16 = stand_ins.save_detector(stand_ins.VGG16(), tmp_path / "vgg.pt")
    detectors.ensure_available(["ppl2_wend"], vgg16)


def test_no_metrics_need_no_detector():
    detectors.ensure_available([], None)


def test_a_file_that_is_not_torchscript(tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"not a network")
    with pytest.raises(UserError, match=r"weights.pt is not a TorchScript network.*--detector"):
        detectors.ensure_available(["fid50k_full"], str(path))


def test_a_pickled_module_is_not_torchscript(tmp_path):
    torch.save({"weight": torch.ones(3)}, tmp_path / "state.pt")
    with pytest.raises(UserError, match=r"is not a TorchScript network"):
        detectors.load(str(tmp_path / "state.pt"), torch.device("cpu"))


def test_a_replaced_file_is_loaded_again(tmp_path, inception):
    device = torch.device("cpu")
    first = detectors.load(inception, device)
    assert detectors.load(inception, device) is first
    stand_ins.save_detector(stand_ins.Inception(d=3), tmp_path / "my digits.pt")
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    assert detectors.load(inception, device)(images, return_features=True).shape == (1, 3)


def test_loading_gives_eval_mode_and_no_warnings(inception, recwarn):
    assert not detectors.load(inception, torch.device("cpu")).training
    assert not recwarn.list
