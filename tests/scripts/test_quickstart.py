# SPDX-License-Identifier: Apache-2.0
"""The examples of docs/quickstart.md work as written, on ordinary pictures and on the files of the repository."""

import importlib
import re
import shlex
import sys

import numpy as np
import PIL.Image
import pytest

from dnnlib import cli
from tests.support import ROOT
from training.dataset import ImageFolderDataset
from training.projection_files import ffmpeg_available

PAGE = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
KINDS = {"a.png": "RGBA", "b.png": "P", "c.jpg": "CMYK", "d.jpeg": "L", "e.png": "LA", "f.webp": "RGB", "g.gif": "P"}


def examples(script: str) -> list[list[str]]:
    """The flags of each example of `script` on the page."""
    return [
        shlex.split(line) for line in re.findall(rf"^    python {script}\.py (.*)$", PAGE.replace("\\\n", ""), re.M)
    ]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run an example in `tmp_path`: `run(script, flags)` -> (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(script: str, flags: list[str]):
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *flags])
        with pytest.raises(SystemExit) as exited:
            cli.run(importlib.import_module(script).main)
        return (exited.value.code, *capsys.readouterr())

    return run


def write_pictures(folder):
    """One picture of each kind, all of different sizes."""
    folder.mkdir(parents=True)
    rng = np.random.RandomState(0)
    for index, (name, mode) in enumerate(KINDS.items()):
        noise = rng.randint(0, 256, [30 + index, 50 - index, 4], dtype=np.uint8)
        PIL.Image.fromarray(noise).convert("RGB" if mode in ("P", "CMYK") else "RGBA").convert(mode).save(folder / name)


def test_datasets_of_ordinary_folders(run, tmp_path):
    (tmp_path / "data").mkdir()
    write_pictures(tmp_path / "photos" / "holiday")
    for flower in ("rose", "tulip"):
        write_pictures(tmp_path / "flowers" / flower)
    photos, flowers, _cifar = examples("dataset_tool")
    assert "--source=photos" in photos and "--source=flowers" in flowers
    for flags in (photos, flowers):
        status, _, err = run("dataset_tool", flags)
        assert status == 0, err
    made = ImageFolderDataset(tmp_path / "data" / "photos256.zip")
    assert len(made) == len(KINDS) and made.image_shape == [3, 256, 256] and not made.has_labels
    made = ImageFolderDataset(tmp_path / "data" / "flowers.zip", use_labels=True)
    assert len(made) == 2 * len(KINDS) and made.num_channels == 3 and made.label_dim == 2


@pytest.mark.parametrize(
    "flags",
    [flags for flags in examples("train") if "--resume" not in str(flags)],
    ids=lambda flags: " ".join(flags)[:60],
)
def test_options_of_the_training_runs(run, tmp_path, flags):
    (tmp_path / "data").symlink_to(ROOT / "data")
    status, out, err = run("train", [*flags, "--dry-run"])
    assert status == 0 and '"run_dir": "runs/00000-' in out, err


def test_projection_of_a_picture_by_pixels(run, tmp_path):
    (tmp_path / "data").symlink_to(ROOT / "data")
    write_pictures(tmp_path / "photos")
    (tmp_path / "photos" / "a.png").rename(tmp_path / "shoe.png")
    (flags,) = examples("projector")
    status, out, err = run("projector", [*flags, "--num-steps=2", "--device=cpu"])
    assert status == 0 and "pixel distance" in out, err
    written = {file.name for file in (tmp_path / "out" / "shoe").iterdir()}
    assert written == {"target.png", "proj.png", "projected_w.npz", "proj.mp4" if ffmpeg_available() else "proj_frames"}
