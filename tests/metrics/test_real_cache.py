# SPDX-License-Identifier: Apache-2.0
import os

import pytest

from metrics import detectors, real_cache
from metrics.metric_utils import MetricOptions, ProgressMonitor, compute_feature_stats_for_dataset
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
    (tmp_path / "other.bin").write_bytes(b"neither folder nor zip")
    assert real_cache.cache_path({"path": str(tmp_path / "other.bin")}, "d") is None
    assert real_cache.cache_path({"class_name": "made.up.Noise"}, "d") is None


def test_file_name_says_which_data_and_detector(setup, cache_folder):
    setup.mean()
    (name,) = os.listdir(cache_folder / "gan-metrics")
    assert name.startswith(f"data-{detectors.locate(setup.detector).name}-")
