# SPDX-License-Identifier: Apache-2.0
"""dataset_tool.py: images of every kind, names of classes, broken files, JPEG, and what the summary says of them."""

import re
import shlex
import zipfile

import numpy as np
import PIL.ExifTags
import PIL.Image
import pytest

import dataset_tool
from dnnlib.util import UserError
from tests.scripts.test_dataset_tool import images_of, labels_of, pixels, save, tool
from tests.support import ROOT
from tests.training.data.test_sources import python2_batch, write_cifar10, write_mnist
from training.dataset import ImageFolderDataset


@pytest.fixture
def folders(tmp_path):
    """A folder of five 8x8 RGB images in the folders a and b."""
    for i, name in enumerate(("a/1.png", "a/2.png", "a/9.png", "b/1.png", "b/3.bmp")):
        save(tmp_path / "photos" / name, pixels(i, 8, 8, 3))
    return tmp_path / "photos"


RGBA = np.dstack([pixels(0, 8, 8, 3), np.full([8, 8], 255, dtype=np.uint8)])
ODD_MODES = {
    "rgba.png": PIL.Image.fromarray(RGBA),
    "palette.png": PIL.Image.fromarray(pixels(1, 8, 8, 3)).quantize(16),
    "cmyk.tif": PIL.Image.fromarray(pixels(2, 8, 8, 3)).convert("CMYK"),
    "deep.png": PIL.Image.fromarray(pixels(3, 8, 8).astype(np.uint16) * 256 + 77),
    "bits.png": PIL.Image.fromarray(pixels(4, 8, 8)).convert("1"),
    "grey-alpha.png": PIL.Image.fromarray(pixels(5, 8, 8)).convert("LA"),
    "grey.png": PIL.Image.fromarray(pixels(6, 8, 8)),
    "rgb.png": PIL.Image.fromarray(pixels(7, 8, 8, 3)),
}


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_converts_every_mode(tmp_path, channels):
    for name, image in ODD_MODES.items():
        save(tmp_path / "d" / name, image)
    tool(tmp_path / "d", tmp_path / "d.zip", channels=channels)
    got = dict(zip(sorted(ODD_MODES), images_of(tmp_path / "d.zip")))
    mode = {1: "L", 3: "RGB"}[channels]
    for name, image in got.items():
        plain = PIL.Image.fromarray(pixels(3, 8, 8)) if name == "deep.png" else ODD_MODES[name].convert(mode)
        assert np.array_equal(image, np.asarray(plain.convert(mode)).reshape(8, 8, channels).transpose(2, 0, 1)), name


def test_transparent_images_are_composited_on_white(tmp_path):
    clear = np.dstack([np.zeros([8, 8, 3], dtype=np.uint8), np.zeros([8, 8], dtype=np.uint8)])
    save(tmp_path / "d" / "a.png", PIL.Image.fromarray(clear))
    tool(tmp_path / "d", tmp_path / "d.zip", channels=3)
    assert images_of(tmp_path / "d.zip").min() == 255


def test_examples_of_the_quickstart_work_on_ordinary_folders(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for index, (name, image) in enumerate(ODD_MODES.items()):
        larger = image.resize((40 + 3 * index, 50))
        save(tmp_path / "photos" / "holiday" / name, larger)
        save(tmp_path / "flowers" / ("daisy" if index % 2 else "Sun rose") / name, larger)
    write_cifar10(tmp_path / "cifar-10-python.tar.gz", [python2_batch(pixels(0, 10, 3072), range(10))] * 5)
    text = (ROOT / "docs" / "quickstart.md").read_text()
    commands = re.findall(r"^    python dataset_tool\.py (.*)$", text, flags=re.MULTILINE)
    for command in commands:
        dataset_tool.main.main(shlex.split(command), standalone_mode=False)
    out = capsys.readouterr().out
    assert "Wrote 8 images to data/photos256.zip: 256x256 RGB\nConverted to RGB: " in out
    assert "flowers.zip: 128x128 RGB, 2 classes\n  0 Sun rose (4)\n  1 daisy (4)\n" in out
    assert "Wrote 50 images to data/cifar10.zip: 32x32 RGB, 10 classes\n  0 airplane (5)\n" in out
    assert len(commands) == 3 and out.count("Cropped or resized: 8") == 2


def test_the_summary_counts_images_turned_upright(tmp_path, capsys):
    """And --keep-jpeg does not keep these."""
    exif = PIL.Image.Exif()
    exif[PIL.ExifTags.Base.Orientation] = 3
    save(tmp_path / "d" / "a.jpg", pixels(0, 8, 8, 3), exif=exif)
    save(tmp_path / "d" / "b.jpg", pixels(1, 8, 8, 3))
    tool(tmp_path / "d", tmp_path / "d.zip", keep_jpeg=True)
    out = capsys.readouterr().out
    assert "EXIF orientation says: 1\n" in out and "byte for byte: 1\n" in out


def test_the_background_can_be_black(tmp_path):
    save(tmp_path / "d" / "a.png", PIL.Image.new("RGBA", (8, 8), (255, 0, 0, 0)))
    tool(tmp_path / "d", tmp_path / "d.zip", background="black")
    assert images_of(tmp_path / "d.zip").shape == (1, 3, 8, 8) and images_of(tmp_path / "d.zip").max() == 0


def test_colour_of_any_image_makes_all_rgb(tmp_path, capsys):
    """Whatever the order; without colour images become grey."""
    for name, image in ODD_MODES.items():
        save(tmp_path / "d" / name, image)
    tool(tmp_path / "d", tmp_path / "d.zip")
    expected = capsys.readouterr().out
    tool(tmp_path / "d", tmp_path / "three.zip", channels=3)
    assert np.array_equal(images_of(tmp_path / "d.zip"), images_of(tmp_path / "three.zip"))
    for words in ("8x8 RGB", "Converted to RGB: ", "1 RGBA", "1 palette", "1 CMYK", "1 16-bit grey", "1 grey + alpha"):
        assert words in expected
    assert "transparent parts on white" in expected and "Cropped" not in expected
    for name in ("rgba.png", "palette.png", "cmyk.tif", "rgb.png"):
        (tmp_path / "d" / name).unlink()
    tool(tmp_path / "d", tmp_path / "grey.zip")
    assert images_of(tmp_path / "grey.zip").shape[1] == 1 and "8x8 grey" in capsys.readouterr().out


def test_max_images_bounds_what_the_choice_of_channels_looks_at(tmp_path):
    for index in range(3):
        save(tmp_path / "d" / f"{index}.png", pixels(index, 8, 8, 3) if index == 2 else pixels(index, 8, 8))
    for count, channels in ((2, 1), (3, 3)):
        tool(tmp_path / "d", tmp_path / f"{count}.zip", max_images=count)
        assert images_of(tmp_path / f"{count}.zip").shape[1] == channels


def test_rgba_is_kept_on_request_without_hidden_colours(tmp_path):
    image = pixels(0, 8, 8, 4)
    image[0, 0] = 1, 2, 3, 0
    save(tmp_path / "d" / "a.png", image)
    save(tmp_path / "d" / "b.jpg", pixels(1, 8, 8, 3))
    tool(tmp_path / "d", tmp_path / "d.zip", channels=4)
    got = images_of(tmp_path / "d.zip").transpose(0, 2, 3, 1)
    assert got[0, 0, 0].tolist() == [255, 255, 255, 0] and np.array_equal(got[0, 1:], image[1:])
    assert got[1, ..., 3].min() == 255


def test_names_of_classes_are_stored_and_listed(folders, tmp_path, capsys):
    save(folders / "Zebras" / "4.png", pixels(5, 8, 8, 3))
    tool(folders, tmp_path / "d.zip", labels_from="folders")
    assert "3 classes\n  0 Zebras (1)\n  1 a (3)\n  2 b (2)\n" in capsys.readouterr().out
    tool(tmp_path / "d.zip", tmp_path / "again.zip")
    tool(tmp_path / "d.zip", tmp_path / "first.zip", max_images=2)
    assert "2 classes\n  0 Zebras (1)\n  1 a (1)\n" in capsys.readouterr().out
    for name, known in (("d", ["Zebras", "a", "b"]), ("again", ["Zebras", "a", "b"]), ("first", ["Zebras", "a"])):
        assert ImageFolderDataset(str(tmp_path / f"{name}.zip"), use_labels=True).class_names == known


def test_a_list_of_many_classes_is_short(tmp_path, capsys):
    for index in range(30):
        save(tmp_path / "d" / f"{index:02d}" / "a.png", pixels(index, 4, 4))
    tool(tmp_path / "d", tmp_path / "d.zip", labels_from="folders")
    out = capsys.readouterr().out
    assert "30 classes" in out and "  19 19 (1)\n  ... and 10 more" in out


def test_classes_of_fashion_have_names_and_digits_need_none(tmp_path):
    for folder, first in (("fashion-mnist", "T-shirt/top"), ("mnist", None)):
        write_mnist(tmp_path / folder, 12)
        tool(tmp_path / folder / "train-images-idx3-ubyte.gz", tmp_path / f"{folder}.zip")
        names = ImageFolderDataset(str(tmp_path / f"{folder}.zip"), use_labels=True).class_names
        assert (names and names[0]) == first and (names is None or len(names) == 10)


def test_broken_files_are_skipped_on_request(folders, tmp_path, capsys):
    (folders / "a" / "0.png").write_bytes(b"")
    (folders / "b" / "2.png").write_bytes((folders / "b" / "1.png").read_bytes()[:-40])
    for dest in ("d.zip", "d"):
        with pytest.raises(UserError, match=r"a/0\.png.*--skip-broken\.$"):
            tool(folders, tmp_path / dest, labels_from="folders")
        tool(folders, tmp_path / dest, labels_from="folders", skip_broken=True)
        out = capsys.readouterr().out
        assert labels_of(tmp_path / dest) == [0, 0, 0, 1, 1] and "Wrote 5 images" in out
        assert "Skipped 2 broken files:\n  Image 'a/0.png'" in out and "\n  Image 'b/2.png'" in out
    with pytest.raises(UserError, match=r"None of the images can be used; Image 'a/0\.png'"):
        tool(folders, tmp_path / "none.zip", max_images=1, labels_from="folders", skip_broken=True)
    assert not (tmp_path / "none.zip").exists()


def test_jpeg_files_that_fit_stay_as_they_are_on_request(tmp_path, capsys):
    save(tmp_path / "d" / "a.jpg", pixels(0, 8, 8, 3))
    save(tmp_path / "d" / "b.jpg", pixels(1, 8, 8))
    save(tmp_path / "d" / "c.jpg", pixels(2, 8, 16, 3))
    save(tmp_path / "d" / "d.png", pixels(3, 8, 8, 3))
    flags = {"transform": "center-crop", "width": 8, "height": 8}
    tool(tmp_path / "d", tmp_path / "png.zip", **flags)
    assert "JPEG" not in capsys.readouterr().out
    tool(tmp_path / "d", tmp_path / "jpg.zip", keep_jpeg=True, **flags)
    assert "Kept as JPEG, byte for byte: 1" in capsys.readouterr().out
    assert np.array_equal(images_of(tmp_path / "jpg.zip"), images_of(tmp_path / "png.zip"))
    with zipfile.ZipFile(tmp_path / "jpg.zip") as archive:
        endings = [name[-3:] for name in archive.namelist()]
        assert archive.read("00000/img00000000.jpg") == (tmp_path / "d" / "a.jpg").read_bytes()
    assert endings == ["jpg", "png", "png", "png", "son"]
    tool(tmp_path / "d", tmp_path / "wide.zip", keep_jpeg=True, transform="fit-wide", width=8, height=4)
    with zipfile.ZipFile(tmp_path / "wide.zip") as archive:
        assert "00000/img00000000.png" in archive.namelist()


def test_a_zip_is_replaced_only_on_request(folders, tmp_path):
    tool(folders, tmp_path / "d.zip")
    before = (tmp_path / "d.zip").read_bytes()
    with pytest.raises(UserError, match=r"d\.zip' exists: .* --overwrite"):
        tool(folders, tmp_path / "d.zip", labels_from="folders")
    assert (tmp_path / "d.zip").read_bytes() == before
    tool(folders, tmp_path / "d.zip", labels_from="folders", overwrite=True)
    assert labels_of(tmp_path / "d.zip") == [0, 0, 0, 1, 1]
    tool(folders, tmp_path / "out")
    with pytest.raises(UserError, match="not an empty folder"):
        tool(folders, tmp_path / "out", overwrite=True)
