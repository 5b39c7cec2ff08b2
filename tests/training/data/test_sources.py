# SPDX-License-Identifier: Apache-2.0
"""Small MNIST, CIFAR-10 and LSUN files as sources of images; test_dataset_tool covers folders and zips."""

import gzip
import io
import os
import pickle
import struct
import sys
import tarfile

import numpy as np
import PIL.ExifTags
import PIL.Image
import pytest

from dnnlib.util import UserError
from tests.compat.opcodes import Raw, built, call, named, pickled
from tests.hostile import gzip_bomb, memory_below
from training.data.sources import open_source


def pixels(seed, *shape) -> np.ndarray:
    return np.random.RandomState(seed).randint(256, size=shape, dtype=np.uint8)


def read(path, **kwargs) -> tuple[np.ndarray, list]:
    """All pixels, [N, H, W] or [N, H, W, 3], and labels of a source."""
    source = open_source(str(path), **kwargs)
    items = list(source.images)
    assert len(items) == source.count
    return np.stack([np.asarray(item.image) for item in items]), [item.label for item in items]


def write_tar(path, files: dict, *others: tarfile.TarInfo) -> None:
    """A tar of images given as pixels, of bytes, and of members without content."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in files.items():
            member, file = tarfile.TarInfo(name), io.BytesIO(content if isinstance(content, bytes) else b"")
            if not isinstance(content, bytes):
                PIL.Image.fromarray(content).save(file, format="png")
            member.size = len(file.getvalue())
            file.seek(0)
            archive.addfile(member, file)
        for member in others:
            archive.addfile(member)


def test_a_tar_is_read_like_a_folder(tmp_path):
    images = {f"./{name}.png": pixels(seed, 8, 8, 3) for seed, name in enumerate(("b/1", "a/2", "a/1"))}
    link = tarfile.TarInfo("a/0.png")
    link.type, link.linkname = tarfile.SYMTYPE, "1.png"
    write_tar(tmp_path / "x.tar", images, link)
    got, labels = read(tmp_path / "x.tar", labels_from="folders")
    assert labels == [0, 0, 1] and np.array_equal(got, [images[f"./{name}.png"] for name in ("a/1", "a/2", "b/1")])
    write_tar(
        tmp_path / "y.tar", {**images, "dataset.json": b'{"labels": [["a/1.png",3],["a/2.png",4],["b/1.png",5]]}'}
    )
    assert read(tmp_path / "y.tar")[1] == [3, 4, 5]


@pytest.mark.parametrize("fault", ["a damaged header", "a size below 0", "cut", "no tar", "compressed"])
def test_bad_tars_are_named(tmp_path, fault):
    path, backwards = tmp_path / "x.tar", tarfile.TarInfo("c.png")
    backwards.size = -tarfile.BLOCKSIZE
    write_tar(path, {"a.png": pixels(0, 8, 8), "b.png": pixels(1, 8, 8)}, *[backwards] * (fault == "a size below 0"))
    data = path.read_bytes()
    if fault == "a damaged header":
        path.write_bytes(data.replace(b"b.png", b"c.png"))
    elif fault == "cut":
        path.write_bytes(data[: data.index(b"b.png") + tarfile.BLOCKSIZE + 1])
    elif fault == "no tar":
        path.write_bytes(b"no tar")
    elif fault == "compressed":
        path.write_bytes(gzip.compress(data))
    with pytest.raises(UserError, match=r"x\.tar' is not an intact, uncompressed tar"):
        read(path)


def turned(image: np.ndarray, orientation: int, kind: str) -> bytes:
    """An image file that is to be shown as `image`, stored as `orientation` in its EXIF data says."""
    stored = {2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 6: np.rot90, 8: lambda x: np.rot90(x, -1)}
    picture = PIL.Image.fromarray(np.ascontiguousarray(stored[orientation](image)))
    exif = picture.getexif()
    exif[PIL.ExifTags.Base.Orientation] = orientation
    file = io.BytesIO()
    picture.save(file, format=kind, exif=exif, **{"JPEG": {"quality": 100}, "WEBP": {"lossless": True}}.get(kind, {}))
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_images_are_upright(tmp_path, orientation, kind):
    """Those that Pillow turns itself, too, are turned once."""
    image = np.repeat(np.repeat(pixels(0, 2, 3, 1), 8, axis=0), 8, axis=1).repeat(3, axis=2)
    (tmp_path / f"a.{kind.lower()}").write_bytes(turned(image, orientation, kind))
    (item,) = open_source(str(tmp_path)).images
    assert np.abs(np.asarray(item.image).astype(int) - image).max() <= 8
    assert item.turned == (kind != "TIFF") and item.jpeg is None


def test_damaged_exif_data_do_not_spoil_a_picture(tmp_path):
    picture = PIL.Image.fromarray(pixels(0, 8, 8, 3))
    picture.save(tmp_path / "a.png", exif=b"Exif\0\0damaged")
    (item,) = open_source(str(tmp_path)).images
    assert np.array_equal(item.image, picture) and not item.turned


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


BAD_IDX = {
    "no images": gzip.compress(struct.pack(">IIII", 0x803, 0, 28, 28)),
    "images without pixels": gzip.compress(struct.pack(">IIII", 0x803, 12, 0, 28)),
    "sizes that overflow": gzip.compress(struct.pack(">IIII", 0x803, *[2**32 - 1] * 3)),
    "cut header": gzip.compress(b"\0\0\x08\x03\0\0"),
    "bomb": gzip_bomb(struct.pack(">IIII", 0x803, 600 << 10, 32, 32)),
    "more than stated": gzip_bomb(struct.pack(">IIII", 0x803, 12, 28, 28)),
}


@pytest.mark.parametrize("content", BAD_IDX.values(), ids=BAD_IDX)
def test_mnist_files_beyond_belief_are_refused(tmp_path, content):
    source, _images, _labels = write_mnist(tmp_path / "mnist")
    source.write_bytes(content)
    with memory_below(100), pytest.raises(UserError, match=source.name):
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


@pytest.mark.parametrize(("python", "protocol"), [(2, 2), (3, 2), (3, 3), (3, 4), (3, 5)])
def test_cifar10_keeps_colours_and_classes(tmp_path, python, protocol):
    """As published, or pickled again by Python 3, which stores bytes as latin1 text in protocol 2."""
    images, labels = pixels(0, 15, 3, 32, 32), [i % 10 for i in range(15)]
    batches = []
    for i in range(0, 15, 3):
        data = images[i : i + 3].reshape(3, -1)
        content = {b"data": data, b"labels": labels[i : i + 3], b"filenames": [b"a.png", b"b.png", b"c.png"]}
        new = pickle.dumps(content, protocol=protocol)
        batches.append(python2_batch(data, labels[i : i + 3]) if python == 2 else new)
    got, got_labels = read(write_cifar10(tmp_path / "cifar-10-python.tar.gz", batches))
    assert np.array_equal(got, images.transpose(0, 2, 3, 1)) and got_labels == labels


class Harmful:
    def __reduce__(self):
        return print, ("this must not run",)


PIXELS = pixels(0, 4, 3072)
UINT8 = built(call("numpy.dtype", "u1", 0, 1), (3, "|", None, None, None, -1, -1, 0))
POINTER = call("numpy.dtype", "O8", 0, 1)
IN_A_STRUCTURE = (3, "|", None, ("a",), {"a": (POINTER, 0)}, 8, 1, 0)  # a state of a dtype that makes it one of objects
SHARED = Raw(b")" + b"2\x86" * 60)  # a tuple of two tuples of two tuples ..., 2^60 in all


def array(data: bytes, shape: tuple, dtype: Raw = UINT8) -> Raw:
    made = call("numpy.core.multiarray._reconstruct", named("numpy.ndarray"), (0,), b"b")
    return built(made, (1, shape, dtype, False, data))


def batch(data: Raw, labels=(1, 2)) -> bytes:
    return pickled({"data": data, "labels": list(labels)})


# The same text of a megabyte as a thousand different byte strings
MANY_TIMES = b"\x80\x02" + b"X" + struct.pack("<I", 1 << 20) + b"A" * (1 << 20) + b"q\x01c_codecs\nencode\nq\x02]("
MANY_TIMES += b"h\x02h\x01X\x06\x00\x00\x00latin1\x86R" * 1000 + b"e."


BAD_BATCHES = {
    "code": (pickle.dumps(Harmful()), "builtins.print is not allowed"),
    "pointers by constructor": (batch(call("numpy.ndarray", (3072,), POINTER, b"A" * 24576)), ""),
    "pointers by type": (batch(array(b"A" * 24576, (1, 3072), POINTER), [1]), ""),
    "pointers by state": (batch(array(b"A" * 3072, (1, 3072), built(UINT8, IN_A_STRUCTURE)), [1]), ""),
    "pointers in a structure": (
        batch(array(b"A" * 24576, (1, 3072), built(call("numpy.dtype", "V8", 0, 1), IN_A_STRUCTURE)), [1]),
        "",
    ),
    "another encoding": (batch(array(call("_codecs.encode", "A" * 3072, "utf-8"), (1, 3072)), [1]), ""),
    "bytes as text": (batch(array(call("_codecs.encode", b"A" * 3072, "latin1"), (1, 3072)), [1]), ""),
    "text many times": (MANY_TIMES, ""),
    "another codec": (batch(call("_codecs.decode", b"A", "zip")), "_codecs.decode is not allowed"),
    "buffer of pointers": (batch(call("numpy._core.numeric._frombuffer", b"A" * 24576, POINTER, (1, 3072), "C")), ""),
    "buffer of 2^40": (batch(call("numpy._core.numeric._frombuffer", b"A" * 3072, UINT8, (2**40, 3072), "C")), ""),
    "array of 2^40": (batch(call("numpy.ndarray", (2**40,))), ""),
    "shape of 2^40": (batch(array(b"A" * 3072, (2**40, 3072))), ""),
    "bytes of 2^50": (b"\x80\x05\x96" + struct.pack("<Q", 1 << 50) + b".", ""),
    "memo of 2^32": (b"\x80\x02Nr\xff\xff\xff\xff.", ""),
    "key of 2^60": (b"\x80\x02}(" + SHARED + b"Ku.", ""),
    "labels of 2^60": (batch(array(bytes(6144), (2, 3072)), [SHARED, SHARED]), ""),
    "state of a dict": (b"\x80\x02}}b.", ""),
    "no pickle": (b"\x80\x04garbage", ""),
    "no array": (pickle.dumps({"data": 1}), ""),
    "float pixels": (pickle.dumps({"data": PIXELS.astype(float), "labels": [0] * 4}), ""),
    "signed pixels": (pickle.dumps({"data": PIXELS.astype(np.int8), "labels": [0] * 4}), ""),
    "pixels of another size": (pickle.dumps({"data": PIXELS[:, :3000], "labels": [0] * 4}), ""),
    "text as labels": (pickle.dumps({"data": PIXELS, "labels": ["a"] * 4}), ""),
    "vectors as labels": (pickle.dumps({"data": PIXELS, "labels": [[1, 2]] * 4}), ""),
    "negative label": (pickle.dumps({"data": PIXELS, "labels": [0, 0, 0, -1]}), ""),
    "class 10": (pickle.dumps({"data": PIXELS, "labels": [0, 0, 0, 10]}), ""),
    "fewer labels": (pickle.dumps({"data": PIXELS, "labels": [0]}), ""),
    "no images": (pickle.dumps({"data": PIXELS[:0], "labels": []}), "contains no images"),
}


@pytest.mark.parametrize("content, word", BAD_BATCHES.values(), ids=BAD_BATCHES)
def test_cifar10_files_run_no_code_and_faults_are_named(tmp_path, capsys, content, word):
    source = write_cifar10(tmp_path / "cifar-10-python.tar.gz", [content] * 5)
    with memory_below(100), pytest.raises(UserError, match=rf"cifar-10-python\.tar\.gz.*{word}"):
        read(source)
    assert "must not run" not in capsys.readouterr().out


def test_the_hand_made_cifar10_batches_are_read_where_they_are_right(tmp_path):
    good = batch(array(PIXELS.tobytes(), (4, 3072)), [3, 1, 4, 1])
    got, labels = read(write_cifar10(tmp_path / "cifar-10-python.tar.gz", [good] * 5))
    assert got.shape == (20, 32, 32, 3) and labels == [3, 1, 4, 1] * 5


def tar_header(name=b"", kind=tarfile.REGTYPE, size=0, real_size=0, link="") -> bytes:
    info = tarfile.TarInfo(name or "cifar-10-batches-py/data_batch_1")
    info.type, info.size, info.linkname = kind, size, link
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    if kind == tarfile.GNUTYPE_SPARSE:
        header[386:410], header[483:495] = b"%011o\0" % 0 * 2, b"%011o\0" % real_size
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


BAD_ARCHIVES = {
    "empty": gzip.compress(bytes(1024)),
    "large batch": gzip_bomb(tar_header(size=600 << 20)),
    "large note": gzip_bomb(tar_header("x", tarfile.XHDTYPE, 600 << 20)),
    "large other file": gzip_bomb(tar_header("x", size=600 << 20)),
    "sparse file": gzip.compress(tar_header(kind=tarfile.GNUTYPE_SPARSE, real_size=600 << 20) + bytes(1024)),
    "link to itself": gzip.compress(tar_header(kind=tarfile.SYMTYPE, link="data_batch_1") + bytes(1024)),
}


@pytest.mark.parametrize("content", BAD_ARCHIVES.values(), ids=BAD_ARCHIVES)
def test_cifar10_archives_beyond_belief_are_refused(tmp_path, content):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(content)
    with memory_below(400), pytest.raises(UserError, match="not the CIFAR-10 archive"):
        read(tmp_path / "cifar-10-python.tar.gz")


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


def test_lsun_folders_without_images_or_of_pipes_are_refused(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    lmdb.open(str(tmp_path / "empty_lmdb"), map_size=1 << 20).close()
    (tmp_path / "no_lmdb").mkdir()
    (tmp_path / "pipe_lmdb").mkdir()
    os.mkfifo(tmp_path / "pipe_lmdb" / "data.mdb")
    for name, words in {"empty": "contains no images", "no": "not an LMDB", "pipe": "not an LMDB"}.items():
        with pytest.raises(UserError, match=f"{name}_lmdb' {words}|{name}_lmdb' is {words}"):
            read(tmp_path / f"{name}_lmdb")


def test_without_lmdb_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    (tmp_path / "church_lmdb").mkdir()
    with pytest.raises(UserError, match=r"pip install '\.\[lmdb\]'"):
        read(tmp_path / "church_lmdb")


def test_labels_from_folders_needs_a_folder_or_zip(tmp_path):
    source, _images, _labels = write_mnist(tmp_path / "mnist")
    with pytest.raises(UserError, match="--labels-from=folders needs a folder, zip or tar"):
        read(source, labels_from="folders")
