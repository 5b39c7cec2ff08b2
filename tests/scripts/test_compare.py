# SPDX-License-Identifier: Apache-2.0
"""compare.py: the contents of a report, both families, and what is refused before anything is measured."""

import dataclasses
import json
import re
import sys

import pytest
import torch
from PIL import Image

import compare
import dnnlib.cli
from dnnlib import charts
from dnnlib.util import UserError
from metrics.reports import compare as comparison
from metrics.reports import speed, subjects
from tests.metrics import stand_ins
from tests.metrics.reports.test_curves import metric_line, stats_line
from tests.support import make_image_zip
from tests.torch_utils.test_pages import Balance
from training.files.snapshot import save_snapshot

NAMES = ["index.html", "compare.json", "compare.png"]


def save(path, G, **notes) -> str:
    save_snapshot(path, {"G": G, "D": None, "G_ema": G, "augment_pipe": None, "training_set_kwargs": None, **notes})
    return str(path)


@pytest.fixture
def report(tmp_path, monkeypatch, capsys, redefine):
    """Run the command on small metrics: `report(networks, flag=value, ...)` -> (status, stdout, stderr, folder)."""
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(speed, "RUNTIMES", speed.RUNTIMES[:1])
    monkeypatch.setattr("metrics.reports.compare.SPEED_BUDGET", 0)
    monkeypatch.setattr(speed, "peaks_in_subprocess", lambda *args: [2**20, 2**21])
    redefine("fid1k_full", num_fakes=20)
    redefine("pr1k3_full", num_fakes=20)
    data = stand_ins.write_zip(tmp_path / "data.zip", stand_ins.make_images(30), [i % 2 for i in range(30)])
    detector = stand_ins.save_detector(stand_ins.VGG16(), tmp_path / "eyes.pt")

    def run(networks, **flags):
        out = tmp_path / "report"
        given = {"out": out, "data": data, "detector": detector, "metrics": "fid1k_full,pr1k3_full", **flags}
        argv = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None]
        monkeypatch.setattr(sys, "argv", ["compare.py", f"--networks={networks}", "--device=cpu", *argv])
        with pytest.raises(SystemExit) as exit_info:
            dnnlib.cli.run(compare.main)
        return (exit_info.value.code, *capsys.readouterr(), out)

    return run


def test_a_report_has_sizes_quality_speed_pictures_and_curves(tmp_path, report):
    run_dir = tmp_path / "00003-run"
    run_dir.mkdir()
    (run_dir / "training_options.json").write_text("{}")
    (run_dir / "stats.jsonl").write_text(f"{stats_line(0, Loss__G__loss=1)}\n{stats_line(4, Loss__G__loss=2)}\n")
    (run_dir / "metric-fid1k_full.jsonl").write_text(f"{metric_line(4, 30.5)}\n")
    teacher = save(tmp_path / "tea<cher.pkl", stand_ins.tiny_generator(c_dim=2))
    student = save(run_dir / "network-snapshot-000004.pkl", stand_ins.tiny_generator(c_dim=2, seed=1))
    status, out, err, folder = report(f"{teacher},{student}")
    assert status == 0, err
    assert "ETA" not in out and "tea<cher" in out and "run 3, 4 kimg" in out
    assert "comparing" in err and "(100%)" in err
    assert sorted(path.name for path in folder.iterdir()) == sorted(NAMES)
    page = (folder / "index.html").read_text(encoding="utf-8")
    Balance(page)
    assert not re.search(r'(?:src|href)="(?!data:)|<script', page) and "tea<cher" not in page
    for title in ("Samples", "Speed and memory", "Truncation", "Nearest real images: run 3, 4 kimg", "Training"):
        assert f"<h2>{title}</h2>" in page
    assert "20 generated images against 30 real images, detector eyes" in page
    assert 'alt="fid1k_full"' in page and 'alt="Losses"' in page and "1.0 MiB" in page
    with Image.open(folder / "compare.png") as picture:
        assert picture.width > 700 and picture.height > 700


def test_figures_are_those_of_the_metrics_and_the_reference_is_the_first(tmp_path, report):
    G = stand_ins.tiny_generator(c_dim=2)
    paths = [save(tmp_path / f"{name}.pkl", G) for name in ("a", "b")]
    status, _out, err, folder = report(",".join(paths), names="First,Second", trunc=0.5)
    assert status == 0, err
    found = json.loads((folder / "compare.json").read_text())
    first, second = found["networks"]["First"], found["networks"]["Second"]
    assert first["results"] == second["results"] and set(first["results"]) == {
        "fid1k_full-eyes", "pr1k3_full_precision-eyes", "pr1k3_full_recall-eyes",
    }  # fmt: skip
    assert first["classes"] == 2 and first["macs"] > 0
    assert found["provenance"]["fid1k_full-eyes"]["trunc"] == found["trunc"] == 0.5
    assert [(t["network"], t["batch"], t["memory"]) for t in found["timings"]] == [
        ("First", 1, 2**20), ("First", 16, 2**21), ("Second", 1, 2**20), ("Second", 16, 2**21),
    ]  # fmt: skip
    assert all(0 < t["seconds"]["low"] <= t["seconds"]["median"] <= t["seconds"]["high"] for t in found["timings"])
    assert list(found["nearest_reals"]) == ["Second"] and found["machine"]["threads"] > 0


def test_classes_have_their_names_from_a_network_or_the_data(tmp_path, monkeypatch, report):
    seen, grid = [], charts.grid

    def recorded(rows, heads, *args, **kwargs):
        seen.append(heads)
        return grid(rows, heads, *args, **kwargs)

    monkeypatch.setattr(charts, "grid", recorded)
    G = stand_ins.tiny_generator(c_dim=2)
    plain, named = save(tmp_path / "a.pkl", G), save(tmp_path / "b.pkl", G, class_names=["cat", "dog & bone"])
    status, _out, err, folder = report(f"{plain},{named}", metrics="none")
    assert status == 0 and ["cat", "dog & bone"] in seen, err
    assert "Classes: 0 cat, 1 dog &amp; bone." in (folder / "index.html").read_text(encoding="utf-8")
    pair = subjects.open_all([plain, plain], None, False)
    data = make_image_zip(tmp_path / "named.zip", 8, 4, 2, class_names=["x", "y"])
    assert comparison._class_names(pair, {"dataset_kwargs": stand_ins.dataset_options(data, use_labels=True)}) == [
        "x",
        "y",
    ]
    assert comparison._class_names(pair, {}) is None


def test_without_metrics_no_reals_are_needed(tmp_path, report):
    teacher = save(tmp_path / "a.pkl", stand_ins.tiny_generator())
    student = save(tmp_path / "b.pkl", stand_ins.tiny_generator(seed=1))
    status, _out, err, folder = report(f"{teacher},{student}", data=None, detector=None, metrics="none")
    assert status == 0, err
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert "No metrics were measured." in page and "Nearest real images need real images" in page
    assert "<h2>Nearest" not in page


def test_families_are_compared_and_truncated_in_their_own_ways(tmp_path, report):
    first = save(tmp_path / "a.pkl", stand_ins.tiny_biggan(c_dim=2))
    second = save(tmp_path / "b.pkl", stand_ins.tiny_generator(c_dim=2, resolution=32))
    data = stand_ins.write_zip(tmp_path / "large.zip", stand_ins.make_images(30, 32), [i % 2 for i in range(30)])
    status, _out, err, folder = report(f"{first},{second}", data=data)
    assert status == 0, err
    assert (folder / "index.html").read_text(encoding="utf-8").count('alt="truncation"') == 2


def refused(result, *words):
    status, out, err, folder = result
    assert status == 2 and not out and not folder.exists()
    message = err[err.index("Error: ") :]
    assert message.count("\n") == 1 and all(word in message for word in words), message


def test_unusable_inputs_are_refused_before_anything_is_written(tmp_path, report):
    a = save(tmp_path / "a.pkl", stand_ins.tiny_generator(c_dim=2))
    large = save(tmp_path / "large.pkl", stand_ins.tiny_generator(c_dim=2, resolution=16))
    classes = save(tmp_path / "classes.pkl", stand_ins.tiny_generator(c_dim=3))
    refused(report(a), "--networks", "two networks")
    refused(report(f"{a},{large}"), "--networks", "3x8x8", "3x16x16")
    refused(report(f"{a},{classes}"), "--networks", "2 classes", "3")
    refused(report(f"{a},{a}", names="one"), "--names", "1 names for the 2 networks")
    refused(report(f"{a},{a}", metrics="fid"), "--metrics=fid")
    refused(report(f"{a},{a}", data=None), "--data")
    refused(report(f"{a},{tmp_path / 'missing.pkl'}"), "missing.pkl")


def test_names_come_from_the_files_and_differ():
    assert subjects.default_name("runs/00012-x-auto/network-snapshot-000020.pkl") == "run 12, 20 kimg"
    assert subjects.default_name("some/teacher.pkl") == "teacher"
    assert subjects.default_name("network-snapshot-000020.pkl") == "network-snapshot-000020"


@pytest.mark.slow
def test_memory_is_that_of_a_call_beside_the_loaded_network(tmp_path):
    path = save(tmp_path / "a.pkl", stand_ins.tiny_generator())
    small, large = speed._peaks(
        path, False, "PyTorch fp32", torch.device("cpu"), str(tmp_path), torch.get_num_threads()
    )
    assert 0 <= small <= large < 2**30


def test_what_fails_is_left_out_and_named(tmp_path, monkeypatch, report):
    def refuse(*args):
        raise UserError("no such luck.")

    broken = dataclasses.replace(speed.RUNTIMES[0], name="Broken", build=refuse)
    monkeypatch.setattr(speed, "RUNTIMES", [speed.RUNTIMES[0], broken])
    monkeypatch.setattr(speed, "peaks_in_subprocess", refuse)
    paths = [save(tmp_path / f"{name}.pkl", stand_ins.tiny_generator()) for name in ("a", "b")]
    status, _out, err, folder = report(",".join(paths), metrics="none")
    assert status == 0, err
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert "Broken was not measured: no such luck." in page
    assert "The memory of a in PyTorch fp32 was not measured: no such luck." in page


def test_what_cannot_be_measured_is_named(tmp_path, monkeypatch):
    path = save(tmp_path / "a.pkl", stand_ins.tiny_generator())
    pair = subjects.open_all([path, path], None, False)
    monkeypatch.setattr(speed, "ONNX_PACKAGES", ("onnxruntime", "no_such_package"))
    runtimes, reasons = speed.available(pair, torch.device("cpu"))
    assert [runtime.name for runtime in runtimes] == ["PyTorch fp32"]
    assert reasons["ONNX Runtime fp32"] == "not installed: pip install no_such_package"
    assert set(reasons) == {"PyTorch bf16", "PyTorch fp16", "ONNX Runtime fp32", "ONNX Runtime int8"}
