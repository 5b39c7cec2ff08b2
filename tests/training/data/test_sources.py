# SPDX-License-Identifier: Apache-2.0
"""Small MNIST, CIFAR-10 and LSUN files as sources of images; test_dataset_tool covers folders and zips."""

import gzip
import io
import pickle
import struct
import sys
import tarfile

import numpy as np
import PIL.Image
import pytest

from dnnlib.util import UserError
from training.data.sources import open_source


def pixels(seed, *shape) -> np.ndarray:
    return np.random.RandomState(seed).randint(256, size=shape, dtype=np.uint8)


def read(path, **kwargs) -> tuple[np.ndarray, list]:
    """All pixels, [N, H, W] or [N, H, W, 3], and labels of a source."""
    source = open_source(str(path), **kwargs)
    items = list(source.images)
    assert len(items) == source.count
    return np.stack([np.asarray(item.image) for item in items]), [item.label for item in items]


def write_mnist(folder, n=12, size=28):
    """A small pair of MNIST files; returns the image file, images and labels."""
    images, labels = pixels(0, n, size, size), np.arange(n, dtype=np.uint8) % 10
    folder.mkdir(exist_ok=True)
    for name, array in [("images-idx3", images), ("labels-idx1", labels)]:
        header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        with gzip.open(folder / f"train-{name}-ubyte.gz", "wb") as file:
            file.write(header + array.tobytes())
    return folder / "train-images-idx3-ubyte.gz", images, labels


def test_mnist_is_padded_to_32_with_labels(tmp_path):
    source, images, labels = write_mnist(tmp_path / "mnist")
    got, got_labels = read(source)
    assert got.shape == (12, 32, 32) and got_labels == labels.tolist()
    assert np.array_equal(got[:, 2:30, 2:30], images) and got.sum() == images.sum()
    assert np.array_equal(read(source, channels=3)[0], got[..., np.newaxis].repeat(3, axis=3))


@pytest.mark.parametrize("fault", ["no labels", "cut", "not gzip", "other idx", "fewer labels", "missing"])
def test_bad_mnist_files_are_named(tmp_path, fault):
    source, _images, _labels = write_mnist(tmp_path / "mnist")
    labels = tmp_path / "mnist" / "train-labels-idx1-ubyte.gz"
    named = source.name
    if fault == "no labels":
        labels.unlink()
        named = labels.name
    elif fault == "cut":
        source.write_bytes(source.read_bytes()[:-50])
    elif fault == "not gzip":
        source.write_bytes(b"plain")
    elif fault == "other idx":
        source.write_bytes(labels.read_bytes())
    elif fault == "fewer labels":
        labels.write_bytes(gzip.compress(struct.pack(">BBBBI", 0, 0, 8, 1, 2) + bytes(2)))
        named = labels.name
    else:
        source.unlink()
    with pytest.raises(UserError, match=named):
        read(source)


def python2_batch(data: np.ndarray, labels: list[int]) -> bytes:
    """A pickle as Python 2 wrote CIFAR-10's: byte strings as text, numpy by its old module name."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    dtype = b"cnumpy\ndtype\n(" + text(b"u1") + number(0) + number(1) + b"tR("
    dtype += number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + number(0) + b"t" + text(b"b") + b"tR("
    array += number(1) + b"(" + number(len(data)) + number(data.shape[1]) + b"t" + dtype
    array += b"\x89" + text(data.tobytes()) + b"tb"
    values = b"](" + b"".join(number(label) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + values + b"u."


def write_cifar10(path, batches: list[bytes]):
    with tarfile.open(path, "w:gz") as archive:
        for i, data in enumerate(batches):
            info = tarfile.TarInfo(f"cifar-10-batches-py/data_batch_{i + 1}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("python", [2, 3])
def test_cifar10_keeps_colours_and_classes(tmp_path, python):
    images, labels = pixels(0, 15, 3, 32, 32), [i % 10 for i in range(15)]
    batches = []
    for i in range(0, 15, 3):
        data = images[i : i + 3].reshape(3, -1)
        new = pickle.dumps({"data": data, "labels": labels[i : i + 3]})
        batches.append(python2_batch(data, labels[i : i + 3]) if python == 2 else new)
    got, got_labels = read(write_cifar10(tmp_path / "cifar-10-python.tar.gz", batches))
    assert np.array_equal(got, images.transpose(0, 2, 3, 1)) and got_labels == labels


class Harmful:
    def __reduce__(self):
        return print, ("this must not run",)


@pytest.mark.parametrize(
    "batches, word",
    [
        ([pickle.dumps(Harmful())] * 5, "builtins.print is not allowed"),
        ([b"\x80\x04garbage"] * 5, "cifar-10-python"),
        ([pickle.dumps({"data": 1})] * 5, "not the CIFAR-10 archive"),
        ([], "not the CIFAR-10 archive"),
    ],
)
def test_cifar10_files_run_no_code_and_faults_are_named(tmp_path, capsys, batches, word):
    source = write_cifar10(tmp_path / "cifar-10-python.tar.gz", batches)
    with pytest.raises(UserError, match=word):
        read(source)
    assert "must not run" not in capsys.readouterr().out


def test_a_truncated_cifar10_archive_is_named(tmp_path):
    batch = pickle.dumps({"data": pixels(0, 3, 3072), "labels": [0, 1, 2]})
    source = write_cifar10(tmp_path / "cifar-10-python.tar.gz", [batch] * 5)
    source.write_bytes(source.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz' is (truncated|damaged)"):
        read(source)


def test_lsun_images_come_in_key_order(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(tmp_path / "church_lmdb"), map_size=1 << 20) as database, database.begin(write=True) as changes:
        for i in range(3):
            file = io.BytesIO()
            PIL.Image.fromarray(pixels(i, 8, 12, 3)).save(file, "webp", lossless=True)
            changes.put(f"key{i}".encode(), file.getvalue())
    got, labels = read(tmp_path / "church_lmdb")
    assert np.array_equal(got, [pixels(i, 8, 12, 3) for i in range(3)]) and labels == [None] * 3
    assert read(tmp_path / "church_lmdb", channels=1)[0].shape == (3, 8, 12)


def test_without_lmdb_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    (tmp_path / "church_lmdb").mkdir()
    with pytest.raises(UserError, match=r"pip install '\.\[lmdb\]'"):
        read(tmp_path / "church_lmdb")


def test_labels_from_folders_needs_a_folder_or_zip(tmp_path):
    source, _images, _labels = write_mnist(tmp_path / "mnist")
    with pytest.raises(UserError, match="--labels-from=folders needs a folder or zip"):
        read(source, labels_from="folders")
