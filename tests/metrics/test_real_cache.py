# SPDX-License-Identifier: Apache-2.0
import io
import os

import numpy as np
import pytest

from metrics import detectors, real_cache
from metrics.metric_utils import MetricOptions, ProgressMonitor, compute_feature_stats_for_dataset
from tests.hostile import Member, bomb, memory_below, write_zip
from tests.metrics import stand_ins

FEATURES = {"return_features": True}


@pytest.fixture
def setup(tmp_path):
    class Setup:
        data = stand_ins.write_zip(tmp_path / "data.zip", stand_ins.make_images(10))
        detector = stand_ins.save_detector(stand_ins.Inception(), tmp_path / "d.pt")

        def mean(self, kwargs=FEATURES, cache=True, max_items=None, during_work=lambda: None, **dataset_kwargs):
            """Mean features, and whether progress was reported, that is, the cache was not used."""
            worked = []

            def progress_fn(position, total):
                worked.append(position)
                during_work()

            options = stand_ins.dataset_options(**{"path": self.data, **dataset_kwargs})
            progress = ProgressMonitor(progress_fn=progress_fn)
            opts = MetricOptions(dataset_kwargs=options, device="cpu", cache=cache, progress=progress)
            stats = compute_feature_stats_for_dataset(
                opts, self.detector, kwargs, max_items=max_items, capture_mean_cov=True
            )
            return stats.get_mean_cov()[0].tolist(), bool(worked)

    return Setup()


def test_the_second_time_the_cache_is_used(setup, cache_folder):
    first, worked = setup.mean()
    assert worked
    assert setup.mean() == (first, False)
    assert len(os.listdir(cache_folder / "gan-metrics")) == 1


def test_cache_off_neither_reads_nor_writes(setup, cache_folder):
    setup.mean(cache=False)
    assert not (cache_folder / "gan-metrics").exists()
    setup.mean()
    assert setup.mean(cache=False)[1]


def test_a_zip_with_other_pixels_of_the_same_size_and_time_is_cached_separately(tmp_path, setup):
    first, _ = setup.mean()
    before = os.stat(setup.data)
    stand_ins.write_zip(tmp_path / "data.zip", stand_ins.make_images(10, seed=1))
    os.utime(setup.data, ns=(before.st_atime_ns, before.st_mtime_ns))
    second, worked = setup.mean()
    assert worked and second != first


def test_a_folder_with_a_changed_file_is_cached_separately(tmp_path, setup):
    folder = tmp_path / "folder"
    folder.mkdir()
    for i, image in enumerate(stand_ins.make_images(4)):
        stand_ins.PIL.Image.fromarray(image).save(folder / f"{i}.png", compress_level=0)
    first, _ = setup.mean(path=str(folder))
    assert setup.mean(path=str(folder)) == (first, False)
    changed = stand_ins.make_images(1, seed=5)[0]
    size = os.path.getsize(folder / "2.png")
    stand_ins.PIL.Image.fromarray(changed).save(folder / "2.png", compress_level=0)
    assert os.path.getsize(folder / "2.png") == size
    second, worked = setup.mean(path=str(folder))
    assert worked and second != first


@pytest.mark.parametrize(
    "change",
    [
        {"max_size": 5},
        {"xflip": True},
        {"max_items": 5},
        {"kwargs": {"return_features": False}},
    ],
)
def test_other_options_are_cached_separately(setup, change):
    first, _ = setup.mean()
    second, worked = setup.mean(**change)
    assert worked and second != first


def test_another_detector_with_the_same_path_is_cached_separately(tmp_path, setup):
    first, _ = setup.mean()
    stand_ins.save_detector(stand_ins.Inception(seed=1), tmp_path / "d.pt")
    second, worked = setup.mean()
    assert worked and second != first


def test_a_damaged_cache_file_is_ignored_and_replaced(setup, cache_folder, capsys):
    first, _ = setup.mean()
    (name,) = os.listdir(cache_folder / "gan-metrics")
    path = cache_folder / "gan-metrics" / name
    path.write_bytes(path.read_bytes()[:100])
    assert setup.mean() == (first, True)
    assert "damaged cache file" in capsys.readouterr().err
    assert setup.mean() == (first, False)


def npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def with_array(name, array):
    """Damage: the file with another array of this name."""

    def damage(path):
        with np.load(path) as arrays:
            content = {**arrays, name: array}
        np.savez(path, **content)

    return damage


HUGE = npy(np.zeros(9)).replace(b"(9,)", b"(1125899906842624,)")
MEMBER = Member(b"settings.npy", b"x" * 50)
DAMAGE = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "deflate": lambda path: write_zip(path, [MEMBER._replace(method=8, size=100)]),
    "encrypted": lambda path: write_zip(path, [MEMBER._replace(flags=1)]),
    "newer version": lambda path: write_zip(path, [MEMBER._replace(version=255)]),
    "unknown method": lambda path: write_zip(path, [MEMBER._replace(method=99)]),
    "bomb": lambda path: write_zip(path, [bomb(b"settings.npy")]),
    "an npy": lambda path: path.write_bytes(npy(np.zeros(3))),
    "empty": lambda path: path.write_bytes(b""),
    "huge": lambda path: write_zip(path, [MEMBER._replace(packed=HUGE)]),
    "text": with_array("mean", np.array(["a"])),
    "not finite": with_array("mean", np.full(8, np.nan)),
    "another number": with_array("num_items", np.array(7)),
    "no images": with_array("num_items", np.array(0)),
    "no number": with_array("num_items", np.array([1, 2])),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_whatever_is_wrong_with_a_cache_file_it_is_replaced(setup, cache_folder, capsys, damage):
    first, _ = setup.mean()
    (name,) = os.listdir(cache_folder / "gan-metrics")
    damage(cache_folder / "gan-metrics" / name)
    with memory_below(200):
        assert setup.mean() == (first, True)
    (notice,) = [line for line in capsys.readouterr().err.splitlines() if "damaged cache file" in line]
    assert notice.isprintable() and len(notice) < 600
    assert setup.mean() == (first, False)


def test_an_unwritable_cache_is_only_a_notice(setup, cache_folder, capsys):
    cache_folder.mkdir()
    (cache_folder / "gan-metrics").write_text("in the way")
    assert setup.mean()[1]
    assert "could not be cached" in capsys.readouterr().err


def test_data_that_change_during_the_work_are_not_cached(tmp_path, setup):
    def change_data():
        stand_ins.write_zip(tmp_path / "data.zip", stand_ins.make_images(10, seed=2))

    setup.mean(during_work=change_data)
    _, worked = setup.mean()
    assert worked
    assert setup.mean()[1] is False


def test_data_without_a_fingerprint_are_not_cached(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    write_zip(tmp_path / "newer.zip", [MEMBER._replace(version=255)])
    for name in ("pipe", "newer.zip"):
        assert real_cache.dataset_fingerprint(str(tmp_path / name)) is None
    (tmp_path / "other.bin").write_bytes(b"neither folder nor zip")
    assert real_cache.cache_path({"path": str(tmp_path / "other.bin")}, "d") is None
    assert real_cache.cache_path({"class_name": "made.up.Noise"}, "d") is None


def test_a_folder_with_a_link_to_nowhere_has_a_fingerprint(tmp_path):
    (tmp_path / "d").mkdir()
    empty = real_cache.dataset_fingerprint(str(tmp_path / "d"))
    (tmp_path / "d" / "link.png").symlink_to("nowhere.png")
    assert real_cache.dataset_fingerprint(str(tmp_path / "d")) not in (empty, None)


def test_file_name_says_which_data_and_detector(setup, cache_folder):
    setup.mean()
    (name,) = os.listdir(cache_folder / "gan-metrics")
    assert name.startswith(f"data-{detectors.locate(setup.detector).name}-")
