# SPDX-License-Identifier: Apache-2.0
"""Datasets from folders and zips, and the messages about unusable ones."""

import io
import json
import os
import pickle
import re
import zipfile

import numpy as np
import PIL.Image
import pytest
import torch

from dnnlib.util import UserError
from tests.support import golden_json
from training.data import image_files
from training.dataset import Dataset, DatasetError, ImageFolderDataset


def encode(pixels, kind="png", **options) -> bytes:
    """An image file of `pixels`, an array [H, W] or [H, W, C] or a Pillow image."""
    image = pixels if isinstance(pixels, PIL.Image.Image) else PIL.Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(seed, *shape) -> np.ndarray:
    return np.random.RandomState(seed).randint(256, size=shape, dtype=np.uint8)


def write_files(path, files: dict) -> str:
    """A folder, or a zip if its name ends in .zip, of `files`: contents by relative path."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return str(path)


def labels_file(labels: dict) -> bytes:
    return json.dumps({"labels": [[name, label] for name, label in labels.items()]}).encode()


class Numbered(Dataset):
    """Image i is filled with i; labels as given."""

    def __init__(self, n, labels=None, **kwargs):
        self.given = labels
        super().__init__("numbered", [n, 1, 4, 4], **kwargs)

    def _load_raw_image(self, raw_idx):
        image = np.full([1, 4, 4], raw_idx, dtype=np.uint8)
        image[0, 0, 0] = 255
        return image

    def _load_raw_labels(self):
        return self.given


def raw_indices(dataset):
    return [dataset.get_details(i).raw_idx for i in range(len(dataset))]


@pytest.mark.parametrize("key", golden_json("sampling")["dataset_subset"])
def test_subsets_equal_those_of_the_original_implementation(key):
    n, max_size, seed = map(int, key.split(","))
    dataset = Numbered(n, max_size=max_size, random_seed=seed)
    assert raw_indices(dataset) == golden_json("sampling")["dataset_subset"][key]
    assert [int(dataset[i][0][0, 1, 1]) for i in range(len(dataset))] == raw_indices(dataset)


@pytest.mark.parametrize("max_size", [None, 6, 7])
def test_a_max_size_of_all_images_changes_nothing(max_size):
    assert raw_indices(Numbered(6, max_size=max_size)) == [0, 1, 2, 3, 4, 5]


def test_mirrored_copies_follow_all_originals_of_the_subset():
    plain, mirrored = Numbered(20, max_size=7), Numbered(20, max_size=7, xflip=True)
    assert len(mirrored) == 14
    assert raw_indices(mirrored) == raw_indices(plain) * 2
    assert [mirrored.get_details(i).xflip for i in range(14)] == [False] * 7 + [True] * 7
    for i in range(7):
        assert np.array_equal(mirrored[i][0], plain[i][0])
        assert np.array_equal(mirrored[i + 7][0], plain[i][0][:, :, ::-1])
        assert not np.array_equal(mirrored[i + 7][0], plain[i][0])


def test_class_numbers_become_one_hot_over_the_largest_plus_one():
    dataset = Numbered(3, labels=np.array([4, 0, 2]), use_labels=True, xflip=True)
    assert dataset.label_shape == [5] and dataset.label_dim == 5
    assert dataset.has_labels and dataset.has_onehot_labels
    image, label = dataset[3]
    assert image.dtype == np.uint8 and image.shape == (1, 4, 4)
    assert label.dtype == np.float32 and label.tolist() == [0, 0, 0, 0, 1]
    assert dataset.get_details(2).raw_label == 2


def test_label_vectors_are_kept_and_copied():
    given = np.array([[0.5, -1], [2, 3]], dtype=np.float32)
    dataset = Numbered(2, labels=given, use_labels=True)
    assert dataset.label_shape == [2] and dataset.has_labels and not dataset.has_onehot_labels
    dataset.get_label(0)[:] = 7
    dataset.get_details(0).raw_label[:] = 7
    assert dataset.get_label(0).tolist() == [0.5, -1]


@pytest.mark.parametrize("labels, use_labels", [(np.array([1, 0]), False), (None, True)])
def test_without_labels_label_vectors_are_empty(labels, use_labels):
    dataset = Numbered(2, labels=labels, use_labels=use_labels)
    assert dataset.label_shape == [0] and dataset.label_dim == 0
    assert not dataset.has_labels and not dataset.has_onehot_labels
    assert dataset[1][1].shape == (0,) and dataset[1][1].dtype == np.float32


def test_returned_images_are_copies():
    class Fixed(Numbered):
        stored = np.zeros([1, 4, 4], dtype=np.uint8)

        def _load_raw_image(self, raw_idx):
            return self.stored

    Fixed(1)[0][0][:] = 9
    assert Fixed.stored.max() == 0


@pytest.mark.parametrize("place", ["photos.v2", "photos.zip"])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_come_in_sorted_path_order_with_their_labels(tmp_path, place, channels):
    shape = (8, 8) if channels == 1 else (8, 8, 3)
    images = {name: pixels(i, *shape) for i, name in enumerate(["b/x.png", "a/z.png", "c.PNG", "a/y/q.bmp", "B.png"])}
    files = {name: encode(image, os.path.splitext(name)[1][1:]) for name, image in images.items()}
    files |= {"notes.txt": b"no image", "a/._z.png": b"resource fork"}
    files["dataset.json"] = labels_file({name: i for i, name in enumerate(images)})
    dataset = ImageFolderDataset(write_files(tmp_path / place, files), use_labels=True)
    order = ["B.png", "a/y/q.bmp", "a/z.png", "b/x.png", "c.PNG"]
    assert dataset.name == "photos" and len(dataset) == 5
    assert dataset.image_shape == [channels, 8, 8] and dataset.resolution == 8 and dataset.num_channels == channels
    for i, name in enumerate(order):
        expected = images[name].reshape(8, 8, channels).transpose(2, 0, 1)
        assert np.array_equal(dataset[i][0], expected)
        assert dataset[i][1].argmax() == list(images).index(name)
    dataset.validate()


def test_png_decoders_agree(tmp_path, monkeypatch):
    pytest.importorskip("pyspng")
    files = {"rgb.png": encode(pixels(0, 8, 8, 3), transparency=(1, 2, 3))}
    grey = {"grey.png": encode(pixels(1, 8, 8), transparency=3)}
    for name, content in [("rgb", files), ("grey", grey)]:
        dataset = ImageFolderDataset(write_files(tmp_path / name, content))
        fast = dataset[0][0]
        with monkeypatch.context() as patch:
            patch.setattr(image_files, "pyspng", None)
            assert np.array_equal(dataset[0][0], fast)


def test_label_vectors_are_read_from_dataset_json(tmp_path):
    files = {"a.png": encode(pixels(0, 4, 4)), "b.png": encode(pixels(1, 4, 4))}
    files["dataset.json"] = labels_file({"b.png": [1, 2.5], "a.png": [0.25, 0]})
    dataset = ImageFolderDataset(write_files(tmp_path / "d.zip", files), use_labels=True)
    assert dataset.label_shape == [2] and not dataset.has_onehot_labels
    assert dataset.get_label(1).tolist() == [1, 2.5]


@pytest.mark.parametrize("content", [None, b'{"labels": null}', b"{}"])
def test_a_dataset_without_labels(tmp_path, content):
    files = {"a.png": encode(pixels(0, 4, 4))} | ({} if content is None else {"dataset.json": content})
    dataset = ImageFolderDataset(write_files(tmp_path / "d", files), use_labels=True)
    assert not dataset.has_labels and not dataset.labels_available


def test_labels_available_even_if_unused(tmp_path):
    files = {"a.png": encode(pixels(0, 4, 4)), "dataset.json": labels_file({"a.png": 0})}
    dataset = ImageFolderDataset(write_files(tmp_path / "d", files))
    assert dataset.labels_available and not dataset.has_labels


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_read_a_zip_that_is_open_in_the_parent(tmp_path, context):
    images = [pixels(i, 8, 8) for i in range(12)]
    files = {f"{i:02d}.png": encode(image, compress_level=0) for i, image in enumerate(images)}
    dataset = ImageFolderDataset(write_files(tmp_path / "d.zip", files))
    assert np.array_equal(dataset[0][0][0], images[0])
    loader = torch.utils.data.DataLoader(dataset, batch_size=3, num_workers=2, multiprocessing_context=context)
    seen = torch.cat([batch for batch, _labels in loader])
    assert np.array_equal(seen[:, 0].numpy(), np.stack(images))
    assert np.array_equal(dataset[11][0][0], images[11])


def test_a_dataset_survives_pickling_and_closing(tmp_path):
    files = {"a.png": encode(pixels(0, 4, 4)), "dataset.json": labels_file({"a.png": 2})}
    dataset = ImageFolderDataset(write_files(tmp_path / "d.zip", files), use_labels=True)
    dataset.close()
    copy = pickle.loads(pickle.dumps(dataset))
    for one in (dataset, copy):
        assert np.array_equal(one[0][0][0], pixels(0, 4, 4)) and one.label_dim == 3


def refusal(call) -> str:
    """The message of the UserError, also an IOError, that `call` raises; one line."""
    with pytest.raises(DatasetError) as caught:
        call()
    assert isinstance(caught.value, UserError) and isinstance(caught.value, IOError)
    sentence = str(caught.value)
    assert sentence.endswith(".") and "\n" not in sentence
    return sentence


def test_missing_data_are_refused(tmp_path):
    path = str(tmp_path / "nowhere.zip")
    assert path in refusal(lambda: ImageFolderDataset(path))


def test_folders_without_images_are_refused(tmp_path):
    for name, files in [("empty.zip", {}), ("texts", {"notes.txt": b"hi", "dataset.json": b"{}"})]:
        path = write_files(tmp_path / name, files)
        assert re.search(rf"{name}' contains no images", refusal(lambda path=path: ImageFolderDataset(path)))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not really", encode(pixels(0, 4, 4))])
def test_a_file_that_is_not_a_zip_is_refused(tmp_path, content):
    (tmp_path / "d.zip").write_bytes(content)
    assert "neither a folder nor an intact zip" in refusal(lambda: ImageFolderDataset(str(tmp_path / "d.zip")))


def test_a_truncated_zip_is_refused(tmp_path):
    path = write_files(tmp_path / "d.zip", {f"{i}.png": encode(pixels(i, 8, 8)) for i in range(9)})
    data = (tmp_path / "d.zip").read_bytes()
    (tmp_path / "d.zip").write_bytes(data[: len(data) // 2])
    assert "intact zip" in refusal(lambda: ImageFolderDataset(path))


@pytest.mark.parametrize("height, width, remedy", [(8, 16, "--width=8"), (24, 24, "--width=16"), (2, 2, "--width=4")])
def test_images_that_are_not_square_powers_of_two_are_refused(tmp_path, height, width, remedy):
    path = write_files(tmp_path / "d", {"odd.png": encode(pixels(0, height, width))})
    sentence = refusal(lambda: ImageFolderDataset(path))
    assert "'odd.png'" in sentence and f"{width}x{height}" in sentence and remedy in sentence


def test_another_resolution_is_an_io_error(tmp_path):
    path = write_files(tmp_path / "d", {"a.png": encode(pixels(0, 8, 8))})
    assert ImageFolderDataset(path, resolution=8).resolution == 8
    sentence = refusal(lambda: ImageFolderDataset(path, resolution=16))
    assert "8x8" in sentence and "--width=16" in sentence


UNUSABLE = {
    "grey-alpha": (encode(pixels(0, 8, 8, 2)), "alpha", "--channels=1"),
    "palette": (encode(PIL.Image.fromarray(pixels(0, 8, 8, 3)).quantize(16)), "palette", "--channels=3"),
    "16-bit": (encode(pixels(0, 8, 8).astype(np.uint16) * 257), "16-bit grey", "--channels=1"),
    "1-bit": (encode(PIL.Image.fromarray(pixels(0, 8, 8)).convert("1")), "1, 2 or 4 bits", "--channels=1"),
    "cmyk": (
        encode(PIL.Image.fromarray(pixels(0, 8, 8, 4), mode=None).convert("CMYK"), "jpeg"),
        "CMYK",
        "--channels=3",
    ),
}


@pytest.mark.parametrize("place", ["d", "d.zip"])
@pytest.mark.parametrize("fault", UNUSABLE)
def test_unusable_modes_are_refused_first_or_later(tmp_path, place, fault):
    data, word, remedy = UNUSABLE[fault]
    path = write_files(tmp_path / place, {"first.png": data})
    assert "'first.png'" in refusal(lambda: ImageFolderDataset(path))
    path = write_files(tmp_path / f"later-{place}", {"a.png": encode(pixels(1, 8, 8)), "b/later.png": data})
    dataset = ImageFolderDataset(path)
    for call in (lambda: dataset[1], dataset.validate):
        sentence = refusal(call)
        assert "'b/later.png'" in sentence and word in sentence and remedy in sentence


@pytest.mark.parametrize("channels, kind", [(3, "16-bit RGB "), (4, "16-bit RGBA ")])
def test_16_bit_colour_is_refused(tmp_path, channels, kind):
    data = bytearray(encode(pixels(0, 8, 8, channels)))
    data[24] = 16  # bit depth in the header
    path = write_files(tmp_path / "d", {"deep.png": bytes(data)})
    assert kind in refusal(lambda: ImageFolderDataset(path))


def test_rgba_has_four_channels(tmp_path):
    image = pixels(0, 8, 8, 4)
    dataset = ImageFolderDataset(write_files(tmp_path / "d", {"a.png": encode(image)}))
    dataset.validate()
    assert dataset.num_channels == 4 and np.array_equal(dataset[0][0], image.transpose(2, 0, 1))


def test_names_of_classes(tmp_path):
    files = {name: encode(pixels(0, 8, 8)) for name in ("a.png", "b.png")}

    def names(labels, class_names, **kwargs):
        content = {"labels": [["a.png", labels[0]], ["b.png", labels[1]]], "class_names": class_names}
        path = write_files(tmp_path / "d", {**files, "dataset.json": json.dumps(content).encode()})
        return ImageFolderDataset(path, **{"use_labels": True, **kwargs}).class_names

    assert names([0, 1], ["cat", "dog"]) == ["cat", "dog"]
    assert names([1, 0], ["cat", "dog", "no picture"]) == ["cat", "dog"]
    assert names([0, 1], ["cat", "dog"], use_labels=False) is None
    assert names([[0.0], [1.0]], ["cat", "dog"]) is None
    for unusable in (["cat"], ["cat", "cat"], ["cat", ""], ["cat", 2], ["cat", "x" * 256], {"0": "cat"}, "ab", None):
        assert names([0, 1], unusable) is None


@pytest.mark.parametrize(
    "other, word", [(pixels(1, 16, 16), "16x16"), (pixels(1, 8, 4), "4x8"), (pixels(1, 8, 8, 3), "RGB")]
)
def test_an_image_that_differs_from_the_first_is_named(tmp_path, other, word):
    files = {"a.png": encode(pixels(0, 8, 8)), "b.png": encode(pixels(1, 8, 8)), "other.png": encode(other)}
    dataset = ImageFolderDataset(write_files(tmp_path / "d.zip", files))
    for call in (lambda: dataset[2], dataset.validate):
        sentence = refusal(call)
        assert "'other.png'" in sentence and word in sentence and "dataset_tool.py" in sentence


@pytest.mark.parametrize("place", ["d", "stored.zip", "deflated.zip"])
@pytest.mark.parametrize(
    "kind, cut", [("png", 20), ("png", 30), ("png", 85), ("jpeg", 100), ("bmp", 40), ("png", None)]
)
def test_truncated_images_are_named(tmp_path, place, kind, cut):
    data = encode(pixels(0, 8, 8), kind)
    files = {"a.png": encode(pixels(0, 8, 8)), f"cut.{kind}": b"" if cut is None else data[:-cut]}
    path = write_files(tmp_path / place, files)
    if place == "deflated.zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    dataset = ImageFolderDataset(path)
    sentence = refusal(dataset.validate)
    assert f"'cut.{kind}'" in sentence and "truncated" in sentence
    assert f"'cut.{kind}'" in refusal(lambda: dataset[1])


def test_bytes_after_the_end_of_a_png_are_accepted(tmp_path):
    path = write_files(tmp_path / "d", {"a.png": encode(pixels(0, 8, 8)) + b"trailing notes of some camera"})
    dataset = ImageFolderDataset(path)
    dataset.validate()
    assert np.array_equal(dataset[0][0][0], pixels(0, 8, 8))


def test_damage_inside_a_zip_is_named_when_read(tmp_path):
    files = {"a.png": encode(pixels(0, 8, 8)), "bad.png": encode(pixels(1, 8, 8), compress_level=0)}
    path = write_files(tmp_path / "d.zip", files)
    data = (tmp_path / "d.zip").read_bytes()
    at = data.index(b"bad.png") + 60
    (tmp_path / "d.zip").write_bytes(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])
    assert "'bad.png'" in refusal(lambda: ImageFolderDataset(path)[1])


def test_validation_counts_every_file(tmp_path):
    path = write_files(tmp_path / "d", {f"{i}.png": encode(pixels(i, 4, 4)) for i in range(7)})
    counts = []
    ImageFolderDataset(path, max_size=3).validate(progress=counts.append)
    assert counts == [1] * 7


@pytest.mark.parametrize(
    "content, word",
    [
        (b'{"labels": [["a.png", 0]]}', "no label for image 'b.png'"),
        (b'{"labels": []}', "no label for image 'a.png'"),
        (b"{not json", "not valid JSON"),
        (b"\xff\xfe\xff", "not valid JSON"),
        (b"[]", "must read"),
        (b'{"labels": {"a.png": 0}}', "must read"),
        (b'{"labels": [["a.png"], ["b.png", 1]]}', "must read"),
        (b'{"labels": [["a.png", 0], ["b.png", "cat"]]}', "class numbers"),
        (b'{"labels": [["a.png", -1], ["b.png", 1]]}', "class numbers"),
        (b'{"labels": [["a.png", 0.5], ["b.png", 1]]}', "class numbers"),
        (b'{"labels": [["a.png", [1, 2]], ["b.png", [1]]]}', "class numbers"),
        (b'{"labels": [["a.png", 1], ["b.png", [1]]]}', "class numbers"),
        (b'{"labels": [["a.png", [NaN]], ["b.png", [1]]]}', "class numbers"),
        (b'{"labels": [["a.png", true], ["b.png", false]]}', "class numbers"),
        (b'{"labels": [["a.png", 1e300], ["b.png", 1]]}', "class numbers"),
    ],
)
def test_unusable_labels_are_refused(tmp_path, content, word):
    files = {"a.png": encode(pixels(0, 4, 4)), "b.png": encode(pixels(1, 4, 4)), "dataset.json": content}
    path = write_files(tmp_path / "d.zip", files)
    ImageFolderDataset(path).validate()
    dataset = ImageFolderDataset(path, use_labels=True)
    for call in (lambda: dataset.label_dim, dataset.validate):
        sentence = refusal(call)
        assert word in sentence and "dataset.json" in sentence and path in sentence
