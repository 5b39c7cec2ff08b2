# SPDX-License-Identifier: Apache-2.0
import re
import sys

import numpy as np
import pytest
import torch

from dnnlib import cli
from metrics import detectors
from scripts import train_detector
from tests.metrics import stand_ins
from tests.metrics.test_small_detector import squares


@pytest.fixture
def data(tmp_path):
    """Sorted by class, so that the last images are of one class only."""
    images, labels = squares(120)
    order = np.argsort(labels.numpy(), kind="stable")
    pixels = images.numpy().transpose(0, 2, 3, 1)[order]
    return stand_ins.write_zip(tmp_path / "squares.zip", pixels, [int(label) for label in labels[order]])


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run the script: `run(flag=value, ...)` -> (exit status, stdout, stderr)."""
    for name in ("set_num_threads", "use_deterministic_algorithms"):
        monkeypatch.setattr(torch, name, lambda _: None)  # settings of the whole process

    def start(**flags):
        flags = {"dest": tmp_path / "net.pt", "epochs": 20, "width": 16, "held-out": 20, **flags}
        monkeypatch.setattr(sys, "argv", ["train_detector.py", *(f"--{name}={value}" for name, value in flags.items())])
        with pytest.raises(SystemExit) as exited:
            cli.run(train_detector.main)
        return (exited.value.code, *capsys.readouterr())

    return start


def test_a_detector_is_trained_checked_and_recorded_and_made_again_with_the_same_bytes(run, data, tmp_path):
    status, out, err = run(data=data)
    assert status == 0, err
    assert re.search(r"Wrote .*net.pt: \d+ kB, [\d.]+% of 20 held-out images right", out)
    detectors.trust(str(tmp_path / "net.pt"))
    record = detectors.load_record(str(tmp_path / "net.pt"))
    assert (record.dataset, record.image_shape, record.classes) == ("squares", [1, 32, 32], 2)
    assert (record.num_images, record.held_out) == (120, 20) and record.accuracy > 0.8
    assert run(data=data, dest=tmp_path / "again.pt")[0] == 0
    assert (tmp_path / "again.pt").read_bytes() == (tmp_path / "net.pt").read_bytes()


def test_images_are_shuffled_before_some_are_held_out(data):
    """The file is sorted by class."""
    dataset = train_detector.open_labelled(data, "--data")
    *_, shuffled = train_detector.split(dataset, "40", shuffle=True)
    *_, last = train_detector.split(dataset, "40", shuffle=False)
    assert set(shuffled.tolist()) == {0, 1} and set(last.tolist()) == {1}


def test_rgb_images_of_another_size_with_a_check_on_other_images(run, tmp_path):
    labels = [i % 3 for i in range(30)]
    data = stand_ins.write_zip(tmp_path / "rgb.zip", stand_ins.make_images(30, 16), labels)
    other = stand_ins.write_zip(tmp_path / "other.zip", stand_ins.make_images(12, 64, seed=1), labels[:12])
    status, out, err = run(data=data, **{"held-out": other})
    assert status == 0, err
    assert "of 12 held-out images" in out
    detectors.trust(str(tmp_path / "net.pt"))
    record = detectors.load_record(str(tmp_path / "net.pt"))
    assert record.image_shape == [3, 16, 16] and record.classes == 3 and record.num_images == 30


def test_refusals(run, data, tmp_path):
    plain = stand_ins.write_zip(tmp_path / "plain.zip", stand_ins.make_images(10))
    rgb = stand_ins.write_zip(tmp_path / "rgb.zip", stand_ins.make_images(10), [0] * 10)
    for flags, word in (
        ({"data": plain}, "--data"),
        ({"data": tmp_path / "nowhere.zip"}, "nowhere.zip"),
        ({"data": data, "held-out": 120}, "--held-out=120"),
        ({"data": data, "held-out": rgb}, "--held-out"),
        ({"data": data, "width": 10}, "--width=10"),
        ({"data": data, "dest": tmp_path / "no" / "net.pt"}, "--dest"),
    ):
        status, _, err = run(**flags)
        assert status == 2 and word in err and "Traceback" not in err
    assert not (tmp_path / "net.pt").exists()
