# SPDX-License-Identifier: Apache-2.0
"""What the log says to a human: pace, time remaining, the best snapshot, pictures."""

import json
import pathlib
import re

import pytest
import torch

from metrics import metric_main
from tests.metrics import stand_ins
from tests.support import make_image_zip
from tests.training.test_training_loop import options
from training.training_loop import training_loop


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_image_zip(tmp_path_factory.mktemp("data") / "toy.zip", resolution=16, num_images=12)


def ticks(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith("tick ")]


def test_time_remaining_and_expected_duration(data, tmp_path, capsys):
    training_loop(**options(tmp_path / "run", data, total_kimg=0.176, kimg_per_tick=0.08, network_snapshot_ticks=None))
    out = capsys.readouterr().out
    first, second, *_, last = ticks(out)
    assert "eta" not in first and "eta" not in last  # of one iteration; at the end
    assert re.search(r" eta \d+s$", second)
    (said,) = [line for line in out.splitlines() if line.startswith("Expected")]
    assert re.fullmatch(r"Expected to train for \d+s more \([\d.]+ sec/kimg\), without metrics and snapshots\.", said)
    assert out.index(first) < out.index(said) < out.index(last)


def test_pictures_and_numbers_in_the_event_file(data, tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    training_loop(**options(tmp_path / "run", data, total_kimg=0.04))
    events = reader.EventAccumulator(str(tmp_path / "run"), size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == ["fakes"] and "Loss/G/loss" in events.Tags()["scalars"]
    picture = events.Images("fakes")[0]
    assert (picture.width, picture.height) == (256, 128)


def test_the_last_line_of_progress_is_not_beyond_the_end(data, tmp_path, capsys):
    training_loop(**options(tmp_path / "run", data, total_kimg=0.012, network_snapshot_ticks=None))
    (last,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("training ")]
    assert last.startswith("training 12/12 img (100%), ")  # of 16, in batches of 8


def line(run_dir: pathlib.Path, name: str, value: float, metric: str = "fid50k_full") -> None:
    (run_dir / name).touch()
    with open(run_dir / f"metric-{metric}.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"results": {metric: value}, "snapshot_pkl": name}) + "\n")


def test_the_best_snapshot(tmp_path):
    assert metric_main.best_snapshot(str(tmp_path), "fid50k_full") is None
    for name, value in {"a.pkl": 3.0, "b.pkl": 1.0, "c.pkl": 2.0, "d.pkl": float("nan"), "gone.pkl": 0.5}.items():
        line(tmp_path, name, value)
        line(tmp_path, name, value, "is50k")
    (tmp_path / "gone.pkl").unlink()
    assert metric_main.best_snapshot(str(tmp_path), "fid50k_full") == ("b.pkl", 1.0)
    assert metric_main.best_snapshot(str(tmp_path), "is50k") == ("a.pkl", 3.0)


@pytest.mark.parametrize("at_start", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_metrics_begin_after_tick_0_and_the_best_is_kept(data, tmp_path, capsys, at_start):
    path = tmp_path / "run"
    detector = stand_ins.save_detector(stand_ins.Inception(), tmp_path / "small.pt")
    changes = {"metrics": ["fid1k_full"], "detector": detector, "trust_detector": True, "metrics_at_start": at_start}
    training_loop(**options(path, data, total_kimg=3, kimg_per_tick=1, batch_size=500, batch_gpu=500, **changes,
                            snapshots_keep=1, image_snapshot_ticks=None))  # fmt: skip
    lines = [json.loads(line) for line in (path / "metric-fid1k_full-small.jsonl").read_text().splitlines()]
    measured = {line["snapshot_pkl"]: line["results"]["fid1k_full-small"] for line in lines}
    assert ("network-snapshot-000000.pkl" in measured) == at_start
    best = min(measured, key=measured.get)
    kept = {found.name for found in path.glob("*.pkl")}
    assert kept == {best, "network-snapshot-000003.pkl"}
    assert f"Best so far: {best}" in capsys.readouterr().out


@pytest.mark.slow
def test_memory_and_files_do_not_grow(data, tmp_path, capsys):
    import psutil

    process, seen = psutil.Process(), []

    def note(_kimg, _total):
        seen.append((process.memory_info().rss, process.num_fds()))

    torch.set_num_threads(1)
    loader = {"num_workers": 1}
    training_loop(progress_fn=note, **options(tmp_path / "run", data, total_kimg=8 * 2.6, kimg_per_tick=0.8,
                  network_snapshot_ticks=2, snapshots_keep=2, data_loader_kwargs=loader))  # fmt: skip
    warm, last = seen[len(seen) // 4], seen[-1]  # 2,000 iterations apart
    assert last[0] < warm[0] * 1.03 and last[1] <= warm[1]
