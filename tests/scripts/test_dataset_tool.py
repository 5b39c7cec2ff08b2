# SPDX-License-Identifier: Apache-2.0
"""dataset_tool.py: sources, output, and messages about images that do not fit."""

import json
import subprocess
import sys
import zipfile

import click
import numpy as np
import PIL.Image
import pytest

import dataset_tool
from dnnlib.util import UserError
from tests.support import ROOT
from tests.training.data.test_sources import write_mnist
from training.data import convert
from training.data.sources import Source, SourceImage
from training.dataset import ImageFolderDataset


def pixels(seed, *shape) -> np.ndarray:
    return np.random.RandomState(seed).randint(256, size=shape, dtype=np.uint8)


def save(path, image, **options) -> None:
    """Write an image file from pixels or a Pillow image, and create its parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, PIL.Image.Image) else PIL.Image.fromarray(image)).save(path, **options)


def tool(source, dest, **flags) -> None:
    """Run the command in this process; errors are raised as exceptions."""
    args = [f"--source={source}", f"--dest={dest}"]
    for key, value in flags.items():
        args.append(f"--{key.replace('_', '-')}" + ("" if value is True else f"={value}"))
    dataset_tool.main.main(args, standalone_mode=False)


def run_tool(*args) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "dataset_tool.py", *map(str, args)], cwd=ROOT, capture_output=True, text=True
    )


def images_of(path, **kwargs) -> np.ndarray:
    """All images of a dataset, uint8 [N, C, H, W]."""
    dataset = ImageFolderDataset(str(path), **kwargs)
    dataset.validate()
    return np.stack([dataset[i][0] for i in range(len(dataset))])


def labels_of(path) -> list:
    dataset = ImageFolderDataset(str(path), use_labels=True)
    return [dataset.get_details(i).raw_label.tolist() for i in range(len(dataset))]


@pytest.fixture
def photos(tmp_path):
    """A folder of five 8x8 RGB images in two folders, with vector labels."""
    names = ["b/1.png", "a/2.png", "a/1.png", "b/3.bmp", "a/9.png"]
    for i, name in enumerate(names):
        save(tmp_path / "photos" / name, pixels(i, 8, 8, 3))
    labels = [[name, [i, i / 7]] for i, name in enumerate(names)]
    (tmp_path / "photos" / "dataset.json").write_text(json.dumps({"labels": labels}))
    return tmp_path / "photos"


def test_folder_to_zip_to_folder_keeps_images_and_labels(photos, tmp_path):
    tool(photos, tmp_path / "new" / "one.zip")
    tool(tmp_path / "new" / "one.zip", tmp_path / "two")
    expected = [pixels(i, 8, 8, 3).transpose(2, 0, 1) for i in (2, 1, 4, 0, 3)]
    for path in (photos, tmp_path / "new" / "one.zip", tmp_path / "two"):
        assert np.array_equal(images_of(path, resolution=8), expected)
        assert np.allclose(labels_of(path), [[i, i / 7] for i in (2, 1, 4, 0, 3)])
    stored = json.loads((tmp_path / "two" / "dataset.json").read_text())["labels"]
    assert stored[1] == ["00000/img00000001.png", [1, 1 / 7]]


def test_zips_contain_uncompressed_pngs_with_the_standard_names(photos, tmp_path):
    tool(photos, tmp_path / "d.zip")
    with zipfile.ZipFile(tmp_path / "d.zip") as archive:
        infos = archive.infolist()
        assert [info.filename for info in infos] == [f"00000/img{i:08d}.png" for i in range(5)] + ["dataset.json"]
        assert all(info.compress_type == zipfile.ZIP_STORED for info in infos)
        assert len(archive.read(infos[0])) > 8 * 8 * 3


def test_compress_level_makes_smaller_files_of_equal_images(tmp_path):
    save(tmp_path / "d" / "flat.png", np.zeros([64, 64], dtype=np.uint8))
    for level in (0, 9):
        tool(tmp_path / "d", tmp_path / f"{level}.zip", compress_level=level)
    assert np.array_equal(images_of(tmp_path / "0.zip"), images_of(tmp_path / "9.zip"))
    assert (tmp_path / "9.zip").stat().st_size < (tmp_path / "0.zip").stat().st_size / 4


def test_folders_have_a_thousand_images_each(tmp_path):
    (tmp_path / "d").mkdir()
    for i in range(1001):
        PIL.Image.new("L", (4, 4), i % 256).save(tmp_path / "d" / f"{i:04d}.bmp")
    tool(tmp_path / "d", tmp_path / "d.zip")
    with zipfile.ZipFile(tmp_path / "d.zip") as archive:
        assert archive.namelist()[999:1001] == ["00000/img00000999.png", "00001/img00001000.png"]


def test_equal_input_gives_equal_bytes(photos, tmp_path):
    for name in ("one.zip", "two.zip"):
        tool(photos, tmp_path / name)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_max_images_keeps_the_first_in_path_order(photos, tmp_path):
    tool(photos, tmp_path / "two.zip", max_images=2)
    assert np.array_equal(images_of(tmp_path / "two.zip"), images_of(photos)[:2])
    assert len(labels_of(tmp_path / "two.zip")) == 2
    tool(photos, tmp_path / "all.zip", max_images=99)
    assert len(images_of(tmp_path / "all.zip")) == 5


def test_images_without_labels_get_none(tmp_path):
    save(tmp_path / "d" / "a.png", pixels(0, 4, 4))
    tool(tmp_path / "d", tmp_path / "d.zip")
    with zipfile.ZipFile(tmp_path / "d.zip") as archive:
        assert json.loads(archive.read("dataset.json")) == {"labels": None}


def test_pictures_in_other_formats_are_left_out_with_a_notice(photos, tmp_path, capsys):
    (photos / "c.jp2").write_bytes(b"")
    (photos / "d.eps").write_bytes(b"")
    tool(photos, tmp_path / "d.zip")
    assert "2 files such as 'c.jp2' are left out" in capsys.readouterr().err
    assert len(images_of(tmp_path / "d.zip")) == 5


def test_pictures_of_phones_are_left_out_with_what_to_do(photos, tmp_path, capsys):
    (photos / "c.HEIC").write_bytes(b"")
    tool(photos, tmp_path / "d.zip")
    message = capsys.readouterr().err
    assert "1 files such as 'c.HEIC' are left out" in message and "magick mogrify -format png" in message


@pytest.mark.parametrize(("name", "fix"), [("a.heic", "folder"), ("a.png", "folder"), ("a.tar.gz", "gunzip")])
def test_files_of_other_kinds_are_refused_with_what_to_do(tmp_path, name, fix):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=f"{name}.*{fix}"):
        tool(tmp_path / name, tmp_path / "d.zip")


def test_a_tar_is_no_destination(photos, tmp_path):
    with pytest.raises(UserError, match=r"--dest=.*d\.tar.* \.zip"):
        tool(photos, tmp_path / "d.tar")
    assert not (tmp_path / "d.tar").exists()


def test_labels_from_folders_numbers_sorted_folders(photos, tmp_path):
    save(photos / "c" / "deep" / "4.png", pixels(5, 8, 8, 3))
    tool(photos, tmp_path / "d.zip", labels_from="folders")
    assert labels_of(tmp_path / "d.zip") == [0, 0, 0, 1, 1, 2]


@pytest.mark.parametrize("loose", [True, False])
def test_labels_from_folders_needs_class_folders(tmp_path, loose):
    save(tmp_path / "d" / ("a.png" if loose else "one/a.png"), pixels(0, 8, 8))
    with pytest.raises(UserError, match="is in no subfolder" if loose else "in one folder only"):
        tool(tmp_path / "d", tmp_path / "d.zip", labels_from="folders")


def test_a_missing_label_is_named(photos, tmp_path):
    save(photos / "new.png", pixels(0, 8, 8, 3))
    with pytest.raises(UserError, match=r"no label for image 'new\.png'"):
        tool(photos, tmp_path / "d.zip")


def test_without_transform_images_are_stretched(tmp_path):
    image = pixels(0, 8, 16)
    save(tmp_path / "d" / "a.png", image)
    tool(tmp_path / "d", tmp_path / "d.zip", width=4, height=4, resize_filter="box")
    expected = image.reshape(4, 2, 4, 4).mean(axis=(1, 3))
    assert np.abs(images_of(tmp_path / "d.zip")[0, 0] - expected).max() <= 1


def test_lanczos_is_the_default_and_differs_from_box(tmp_path):
    save(tmp_path / "d" / "a.png", pixels(0, 32, 32))
    for name, flags in {
        "default": {},
        "lanczos": {"resize_filter": "lanczos"},
        "box": {"resize_filter": "box"},
    }.items():
        tool(tmp_path / "d", tmp_path / f"{name}.zip", width=8, height=8, **flags)
    default, lanczos, box = (images_of(tmp_path / f"{name}.zip") for name in ("default", "lanczos", "box"))
    assert np.array_equal(default, lanczos) and not np.array_equal(default, box)


@pytest.mark.parametrize("height, width", [(8, 13), (14, 8)])
def test_center_crop_keeps_the_central_square(tmp_path, height, width):
    image = pixels(0, height, width, 3)
    save(tmp_path / "d" / "a.png", image)
    tool(tmp_path / "d", tmp_path / "d.zip", transform="center-crop", width=8, height=8)
    top, left = (height - 8) // 2, (width - 8) // 2
    expected = image[top : top + 8, left : left + 8].transpose(2, 0, 1)
    assert np.array_equal(images_of(tmp_path / "d.zip")[0], expected)


@pytest.mark.parametrize("size", [(8, 16), (8, 40), (30, 16)])
def test_fit_wide_crops_to_the_aspect_and_puts_black_bars_above_and_below(tmp_path, size):
    image = pixels(0, *size, 3) | 1
    save(tmp_path / "d" / "a.png", image)
    tool(tmp_path / "d", tmp_path / "d.zip", transform="fit-wide", width=16, height=8)
    top, left = (size[0] - 8) // 2, (size[1] - 16) // 2
    expected = np.zeros([3, 16, 16], dtype=np.uint8)
    expected[:, 4:12] = image[top : top + 8, left : left + 16].transpose(2, 0, 1)
    assert np.array_equal(images_of(tmp_path / "d.zip")[0], expected)


@pytest.mark.parametrize(("height", "width", "rows"), [(8, 16, 8), (24, 32, 12), (17, 32, 8), (25, 20, 20)])
def test_center_crop_wide_takes_central_rows_of_the_full_width(tmp_path, height, width, rows):
    """As StyleGAN2-ADA: round(--width * height / width) of them, whatever the aspect wanted, then black bars."""
    image = pixels(0, height, width, 3) | 1
    save(tmp_path / "d" / "a.png", image)
    tool(tmp_path / "d", tmp_path / "d.zip", transform="center-crop-wide", width=16, height=8)
    top = (height - rows) // 2
    part = PIL.Image.fromarray(image[top : top + rows]).resize((16, 8), PIL.Image.Resampling.LANCZOS)
    expected = np.zeros([3, 16, 16], dtype=np.uint8)
    expected[:, 4:12] = np.asarray(part).transpose(2, 0, 1)
    assert np.array_equal(images_of(tmp_path / "d.zip")[0], expected)


def test_center_crop_wide_leaves_out_small_images(tmp_path, capsys):
    """Less than --width wide, or less than --height high at that width; labels and --max-images follow the source."""
    sizes = {"a": (8, 16), "b": (32, 15), "c": (14, 32), "d": (9, 16), "e": (8, 16)}
    for name, size in sizes.items():
        save(tmp_path / "d" / f"{name}.png", pixels(ord(name), *size))
    labels = {"labels": [[f"{name}.png", number] for number, name in enumerate(sizes)]}
    (tmp_path / "d" / "dataset.json").write_text(json.dumps(labels))
    flags = {"transform": "center-crop-wide", "width": 16, "height": 8, "max_images": 4}
    tool(tmp_path / "d", tmp_path / "wide.zip", **flags)
    assert labels_of(tmp_path / "wide.zip") == [0, 3]
    with zipfile.ZipFile(tmp_path / "wide.zip") as archive:
        assert archive.namelist() == ["00000/img00000000.png", "00000/img00000001.png", "dataset.json"]
    out = capsys.readouterr().out
    assert out.startswith("Wrote 2 images to") and "\nLeft out 2 images that are less than --width=16 pixels" in out
    tool(tmp_path / "d", tmp_path / "fit.zip", **{**flags, "transform": "fit-wide"})
    assert labels_of(tmp_path / "fit.zip") == [0, 1, 2, 3] and "Left out" not in capsys.readouterr().out
    with pytest.raises(UserError, match="All images are smaller than --width"):
        tool(tmp_path / "d", tmp_path / "none.zip", **{**flags, "width": 64})
    assert not (tmp_path / "none.zip").exists()


def test_archives_are_converted_too(tmp_path):
    write_mnist(tmp_path / "mnist", 12)
    source = tmp_path / "mnist" / "train-images-idx3-ubyte.gz"
    tool(source, tmp_path / "d.zip")
    assert images_of(tmp_path / "d.zip", resolution=32).shape == (12, 1, 32, 32)
    assert labels_of(tmp_path / "d.zip") == [i % 10 for i in range(12)]
    tool(source, tmp_path / "rgb.zip", channels=3, max_images=4)
    assert np.array_equal(images_of(tmp_path / "rgb.zip"), images_of(tmp_path / "d.zip")[:4].repeat(3, axis=1))


def fault(tmp_path, name) -> tuple[dict, str]:
    """Create the folder `photos` with a fault; returns the flags and a pattern of the expected message."""
    folder = tmp_path / "photos"
    save(folder / "a.png", pixels(0, 8, 8))
    bad = folder / "bad.png"
    if name == "truncated":
        save(bad, pixels(1, 8, 8))
        bad.write_bytes(bad.read_bytes()[:-40])
        return {}, "bad.png' in .* truncated"
    if name == "empty file":
        bad.write_bytes(b"")
        return {}, "bad.png' in .* empty"
    if name == "mixed size":
        save(bad, pixels(1, 16, 16))
        return {}, "bad.png' in .*16x16.*--width=8"
    if name in ("non-square", "not a power of two"):
        (folder / "a.png").unlink()
        save(bad, pixels(1, 8, 16) if name == "non-square" else pixels(1, 12, 12))
        return {}, "bad.png' in .*--transform=center-crop --width=8"
    return {
        "crop without size": ({"transform": "center-crop"}, "--width and --height"),
        "width alone": ({"width": 8}, "give both"),
        "odd width": ({"width": 12, "height": 12}, "--width must be a power of two"),
        "huge width": ({"width": 131072, "height": 131072}, "--width must be a power of two from 4 to 8192"),
        "unequal": ({"width": 8, "height": 4}, "--height=4 must equal --width=8"),
        "too high": ({"transform": "center-crop-wide", "width": 8, "height": 16}, "--height=16 must not exceed"),
    }[name]


FAULTS = [
    "truncated", "empty file", "mixed size", "non-square", "not a power of two",
    "crop without size", "width alone", "odd width", "huge width", "unequal", "too high",
]  # fmt: skip


@pytest.mark.parametrize("dest", ["out.zip", "out"])
@pytest.mark.parametrize("name", FAULTS)
def test_bad_images_are_named_and_leave_nothing_behind(tmp_path, name, dest):
    flags, sentence = fault(tmp_path, name)
    with pytest.raises(UserError, match=sentence) as caught:
        tool(tmp_path / "photos", tmp_path / dest, **flags)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_a_failing_run_keeps_the_old_zip(photos, tmp_path):
    tool(photos, tmp_path / "d.zip")
    before = (tmp_path / "d.zip").read_bytes()
    save(photos / "c.png", pixels(0, 4, 4, 3))
    with pytest.raises(UserError):
        tool(photos, tmp_path / "d.zip", labels_from="folders", overwrite=True)
    assert (tmp_path / "d.zip").read_bytes() == before


@pytest.mark.parametrize("dest", ["out.zip", "out"])
def test_an_interrupted_run_leaves_nothing_behind(photos, tmp_path, monkeypatch, dest):
    def stop(self, n=1):
        raise KeyboardInterrupt

    monkeypatch.setattr(convert.Progress, "update", stop)
    with pytest.raises((KeyboardInterrupt, click.Abort)):
        tool(photos, tmp_path / dest)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_an_empty_folder_is_filled_and_a_full_one_refused(photos, tmp_path):
    (tmp_path / "out").mkdir()
    tool(photos, tmp_path / "out")
    assert len(images_of(tmp_path / "out")) == 5
    with pytest.raises(UserError, match="not an empty folder"):
        tool(photos, tmp_path / "out")


def test_an_empty_folder_behind_a_link_is_filled(photos, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    tool(photos, tmp_path / "out")
    assert (tmp_path / "out").is_symlink() and len(images_of(tmp_path / "disk")) == 5


@pytest.mark.parametrize("label", [-1, "cat", 1e39, [1e39, 0], 10**9])
def test_labels_that_training_would_refuse_are_refused(photos, tmp_path, label):
    labels = [[name, label] for name in ("a/1.png", "a/2.png", "a/9.png", "b/1.png", "b/3.bmp")]
    (photos / "dataset.json").write_text(json.dumps({"labels": labels}))
    with pytest.raises(UserError, match=r"Labels in 'dataset\.json'"):
        tool(photos, tmp_path / "d.zip")


def test_a_source_with_fewer_images_than_it_states_is_refused(tmp_path):
    image = SourceImage("Image 0", PIL.Image.new("L", (8, 8)), None)
    with pytest.raises(UserError, match="1 instead of 3 images"):
        convert.convert(Source(3, iter([image])), str(tmp_path / "d.zip"), lambda image: image)
    assert not list(tmp_path.iterdir())


def test_an_unwritable_destination_is_named(photos, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for dest in ("file/d.zip", "file/d"):
        with pytest.raises(UserError, match=r"Cannot write --dest='.*file/d"):
            tool(photos, tmp_path / dest)


@pytest.mark.parametrize("source", ["nowhere", "empty", "no.zip", "mnist-images-idx3-ubyte.gz"])
def test_missing_sources_are_named(tmp_path, source):
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.zip").write_bytes(b"not a zip")
    with pytest.raises(UserError, match=source):
        tool(tmp_path / source, tmp_path / "out.zip")
    assert not (tmp_path / "out.zip").exists()


def test_the_script_succeeds_with_status_0(photos, tmp_path):
    done = run_tool(f"--source={photos}", f"--dest={tmp_path / 'd.zip'}")
    assert done.returncode == 0 and "Wrote 5 images" in done.stdout and "ETA" not in done.stdout
    assert len(images_of(tmp_path / "d.zip")) == 5


def test_the_script_fails_with_status_2_and_one_sentence(tmp_path):
    save(tmp_path / "photos" / "a.png", pixels(0, 12, 12))
    done = run_tool(f"--source={tmp_path / 'photos'}", f"--dest={tmp_path / 'd.zip'}")
    assert done.returncode == 2
    assert "Error: Image 'a.png' in" in done.stderr and "Traceback" not in done.stderr


def test_converting_needs_no_torch():
    check = "import sys, training.data.convert; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT).returncode == 0
