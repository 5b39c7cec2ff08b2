# SPDX-License-Identifier: Apache-2.0
"""A disk that fills up while a script writes: status 2, one sentence, and only complete files."""

import builtins
import errno
import importlib
import io
import json
import os
import pathlib
import sys

import numpy as np
import pytest
import torch

import dnnlib.cli
from tests.metrics import stand_ins
from tests.scripts.outcome import pixels
from torch_utils import images
from training.files.snapshot import save_snapshot


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A folder on a simulated disk: `disk(room)` leaves `room` free bytes there and returns its path."""
    folder = tmp_path / "disk"
    folder.mkdir()
    real_open = builtins.open
    room = 0

    class File(io.FileIO):
        def write(self, data):
            nonlocal room
            if room == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            taken = super().write(memoryview(data)[:room])
            room -= taken
            return taken

    def limited_open(file, mode="r", buffering=-1, encoding=None, *args, **kwargs):
        if mode.strip("bt") == "r" or isinstance(file, int) or folder not in pathlib.Path(file).absolute().parents:
            return real_open(file, mode, buffering, encoding, *args, **kwargs)
        raw = File(file, mode.replace("b", ""))
        stream = raw if buffering == 0 else (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
        return stream if "b" in mode else io.TextIOWrapper(stream, encoding=encoding)

    def leave(num_bytes):
        nonlocal room
        room = num_bytes
        monkeypatch.setattr(builtins, "open", limited_open)
        return folder

    return leave


@pytest.fixture
def files(tmp_path):
    """A folder with inputs of the scripts: a network, a target, a dataset and detectors."""
    folder = tmp_path / "files"
    folder.mkdir()
    G = stand_ins.tiny_generator(channels=1)
    save_snapshot(folder / "net.pkl", {"G": G, "D": None, "G_ema": G})
    save_snapshot(folder / "rgb.pkl", {"G": None, "D": None, "G_ema": stand_ins.tiny_generator()})
    pictures = stand_ins.make_images(200, channels=1)
    images.save_png(pictures[0], folder / "me.png")
    stand_ins.write_zip(folder / "data.zip", pictures)
    stand_ins.save_detector(stand_ins.VGG16(), folder / "vgg16.pt")
    stand_ins.save_detector(stand_ins.Inception(), folder / "inception.pt")
    return folder


RUNS = {
    "generate": "--network=F/net.pkl --seeds=0-99 --outdir=D/out",
    "style_mixing": "--network=F/net.pkl --rows=0-7 --cols=8-15 --styles=0 --outdir=D/out",
    "projector": "--network=F/net.pkl --target=F/me.png --detector=F/vgg16.pt --num-steps=30 --outdir=D/out",
    "legacy": "--source=F/net.pkl --dest=D/new.pkl",
    "legacy ": "--source=F/rgb.pkl --dest=D/new.pt",
    "export": "--network=F/net.pkl --dest=D/net.safetensors",
    "dataset_tool": "--source=F/data.zip --dest=D/new.zip",
    "dataset_tool ": "--source=F/data.zip --dest=D/new",
    "calc_metrics": "--data=F/data.zip --metrics=kid5k_full --detector=F/inception.pt --save-stats=D/new.npz",
    "train": "--outdir=D/runs --data=F/data.zip --kimg=1 --cbase=0.02 --metrics=none --device=cpu",
}
IN_PARTS = ("generate", "style_mixing", "projector", "train")


def is_whole(path: pathlib.Path) -> bool:
    if path.suffix == ".png":
        return pixels(path).shape[0] == 1
    if path.suffix == ".npz":
        return len(np.load(path)) == 1
    if path.suffix == ".html":
        return path.read_text().rstrip().endswith("</html>")
    if path.suffix == ".json":
        return bool(json.loads(path.read_text()))
    if path.suffix == ".pt":
        return bool(torch.load(path, weights_only=True))
    return path.name == "log.txt" or path.name.startswith("events.out.tfevents")


@pytest.mark.parametrize(
    ("script", "room"), [*((script, room) for script in RUNS for room in (0, 500, 5000)), ("train", 500_000)]
)
def test_complete_files_or_none(script, room, files, disk, monkeypatch, capsys):
    folder = disk(room)
    flags = RUNS[script].replace("=F/", f"={files}/").replace("=D/", f"={folder}/").split()
    script = script.strip()
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *flags])
    with pytest.raises(SystemExit) as exited:
        dnnlib.cli.run(importlib.import_module(script).main)
    error = capsys.readouterr().err
    assert exited.value.code == 2 and "Traceback" not in error
    (sentence,) = [line for line in error.splitlines() if "Error: " in line]
    assert "No space left on device" in sentence and "--" in sentence
    left = [path for path in folder.rglob("*") if path.is_file()]
    assert all(map(is_whole, left)) and (script in IN_PARTS or not left)


def test_the_simulated_disk_accepts_what_fits(disk):
    folder = disk(10)
    with open(folder / "a", "wb") as file:
        file.write(b"12345")
    with pytest.raises(OSError, match="No space left"), open(folder / "b", "w", encoding="utf-8") as file:
        file.write("1234567")
    assert (folder / "a").read_bytes() == b"12345" and (folder / "b").read_bytes() == b"12345"
