# SPDX-License-Identifier: Apache-2.0
import json
import math
import subprocess
import sys

import pytest

from dnnlib.util import UserError
from metrics import detectors, metric_main
from tests.dnnlib.disk import no_file_above
from tests.metrics import stand_ins
from tests.support import ROOT, golden_json


@pytest.fixture
def options(tmp_path):
    """Arguments of calc_metric for a network that stays in no test's way."""
    data = stand_ins.write_zip(tmp_path / "data.zip", stand_ins.make_images(30), [i % 2 for i in range(30)])
    return {
        "G": stand_ins.tiny_generator(c_dim=2),
        "dataset_kwargs": stand_ins.dataset_options(data, use_labels=True, max_size=20, xflip=True),
        "device": "cpu",
        "detector": stand_ins.save_detector(stand_ins.Inception(), tmp_path / "digits.pt"),
    }


def test_names_are_those_of_the_command_line_in_order():
    (message,) = [case["error"] for case in golden_json("train_options")["cases"] if "nope" in str(case["flags"])]
    assert metric_main.list_valid_metrics() == message.splitlines()[1:]
    assert all(metric_main.is_valid_metric(name) for name in metric_main.list_valid_metrics())


def test_any_number_of_fakes_is_valid():
    assert all(map(metric_main.is_valid_metric, ["fid1k_full", "fid5k_full", "kid7k_full", "fid123k_full"]))
    wrong = ["fid0k_full", "fid05k_full", "fid5k", "kid5k", "pr5k3_full", "fidk_full", "xfid5k_full", "fid5k_full2", ""]
    assert not any(map(metric_main.is_valid_metric, wrong))


def test_importing_the_names_loads_neither_torch_nor_numpy():
    code = "import sys, metrics.metric_main; sys.exit(bool({'torch', 'numpy', 'scipy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


FULL = {"max_size": None, "xflip": False}
PLAIN = {"max_size": None, "xflip": True}
KID = {"num_gen": 50000, "num_subsets": 100, "max_subset_size": 1000}
PR = {"num_gen": 50000, "nhood_size": 3}


@pytest.mark.parametrize(
    ("metric", "function", "dataset", "arguments"),
    [
        ("fid50k_full", "compute_fid", FULL, {"max_real": None, "num_gen": 50000}),
        ("fid5k_full", "compute_fid", FULL, {"max_real": None, "num_gen": 5000}),
        ("fid50k", "compute_fid", PLAIN, {"max_real": 50000, "num_gen": 50000}),
        ("kid50k_full", "compute_kid", FULL, {"max_real": 1000000, **KID}),
        ("kid2k_full", "compute_kid", FULL, {"max_real": 1000000, **KID, "num_gen": 2000}),
        ("kid50k", "compute_kid", PLAIN, {"max_real": 50000, **KID}),
        ("pr50k3_full", "compute_pr", FULL, {"max_real": 200000, **PR}),
        ("pr50k3", "compute_pr", PLAIN, {"max_real": 50000, **PR}),
        ("is50k", "compute_is", FULL, {"num_gen": 50000, "num_splits": 10}),
        ("ppl2_wend", "compute_ppl", PLAIN, {"num_samples": 50000, "space": "w", "sampling": "end", "crop": False}),
        ("ppl_wend", "compute_ppl", PLAIN, {"num_samples": 50000, "space": "w", "sampling": "end", "crop": True}),
        ("ppl_zend", "compute_ppl", PLAIN, {"num_samples": 50000, "space": "z", "sampling": "end", "crop": True}),
        ("ppl_wfull", "compute_ppl", PLAIN, {"num_samples": 50000, "space": "w", "sampling": "full", "crop": True}),
        ("ppl_zfull", "compute_ppl", PLAIN, {"num_samples": 50000, "space": "z", "sampling": "full", "crop": True}),
    ],
)
def test_what_each_name_computes(monkeypatch, tmp_path, options, metric, function, dataset, arguments):
    calls = []

    def record(opts, *, func_name, **kwargs):
        calls.append((func_name.split(".")[-1], {key: opts.dataset_kwargs[key] for key in FULL}, kwargs))
        return (0.5, 0.25) if metric.startswith(("pr", "is")) else 0.5

    monkeypatch.setattr(metric_main, "call_func_by_name", record)
    options["detector"] = stand_ins.save_detector(_Everything(), tmp_path / "all.pt")
    result = metric_main.calc_metric(metric, **options)
    assert calls == [(function, dataset, arguments)]
    ends = {"pr": ["_precision", "_recall"], "is": ["_mean", "_std"]}.get(metric[:2], [""])
    assert list(result.results) == [f"{metric}{end}-all" for end in ends]


class _Everything(stand_ins.VGG16):
    """A detector with all outputs."""


def test_result_of_fid_with_another_detector(options):
    result = metric_main.calc_metric("fid1k_full", **options)
    assert result.metric == "fid1k_full-digits" and list(result.results) == ["fid1k_full-digits"]
    assert 0 < result.results["fid1k_full-digits"] < math.inf
    assert result.num_gpus == 1 and result.total_time > 0 and result.total_time_str
    spec = detectors.resolve(options["detector"], "inception")
    assert result.provenance.detector == "digits" and result.provenance.detector_sha256 == spec.sha256
    # All 30 reals without mirrored copies, though the training set was a mirrored part of them.
    assert (result.provenance.num_reals, result.provenance.num_fakes) == (30, 1000)
    assert (result.provenance.resolution, result.provenance.seed) == (8, 0)
    assert set(result.provenance.versions) == {"torch", "numpy"}
    assert options["dataset_kwargs"]["xflip"] is True
    assert metric_main.calc_metric("fid1k_full", **options).results == result.results


def test_the_default_detector_leaves_the_name_as_it_is(options, cache_folder):
    stand_ins.save_detector(stand_ins.Inception(), cache_folder / "downloads" / "inception-2015-12-05.pt")
    result = metric_main.calc_metric("kid1k_full", **{**options, "detector": None})
    assert result.metric == "kid1k_full" and list(result.results) == ["kid1k_full"]
    assert result.provenance.detector == "inception-2015-12-05"


def test_unknown_metric(options):
    with pytest.raises(UserError, match=r"--metrics can only contain.*fid50k_full, kid50k_full"):
        metric_main.calc_metric("fid", **options)


def test_a_metric_from_outside(monkeypatch, options):
    monkeypatch.setattr(metric_main, "_REGISTERED", {})

    @metric_main.register_metric
    def mean_label(opts):
        return {"mean_label": opts.G.c_dim}

    assert metric_main.is_valid_metric("mean_label") and metric_main.list_valid_metrics()[-1] == "mean_label"
    assert metric_main.calc_metric("mean_label", **{**options, "detector": None}).results == {"mean_label": 2}


def test_reports_are_printed_and_appended(tmp_path, capsys, options):
    result = metric_main.calc_metric("fid1k_full", **options)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    for _ in range(2):
        metric_main.report_metric(result, run_dir=str(run_dir), snapshot_pkl=str(run_dir / "sub" / "x.pkl"))
    printed = capsys.readouterr().out.splitlines()
    written = (run_dir / "metric-fid1k_full-digits.jsonl").read_text().splitlines()
    assert written == printed and len(written) == 2
    line = json.loads(written[0])
    assert list(line) == [
        "results",
        "metric",
        "total_time",
        "total_time_str",
        "num_gpus",
        "provenance",
        "snapshot_pkl",
        "timestamp",
    ]
    assert line["snapshot_pkl"] == "sub/x.pkl" and line["results"] == result.results


def test_a_report_without_a_run_directory_is_only_printed(tmp_path, capsys, options, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    metric_main.report_metric(metric_main.calc_metric("fid1k_full", **options), snapshot_pkl="net.pkl")
    assert json.loads(capsys.readouterr().out)["snapshot_pkl"] == "net.pkl"
    assert {path.name for path in set(tmp_path.iterdir()) - set(before)} <= {"cache"}


def test_a_report_that_finds_no_room_is_printed_and_leaves_no_half_line(tmp_path, capsys):
    path = tmp_path / "metric-fid1k_full.jsonl"
    path.write_text("{}\n")
    result = {"metric": "fid1k_full", "results": {"fid1k_full": 1.5}, "note": "x" * 100}
    with no_file_above(50), pytest.raises(UserError, match=r"result above .*metric-fid1k_full\.jsonl: File too large"):
        metric_main.report_metric(result, run_dir=str(tmp_path))
    assert json.loads(capsys.readouterr().out)["results"] == {"fid1k_full": 1.5}
    assert path.read_text() == "{}\n"


def test_what_metrics_take_of_reals_and_fakes():
    needs = metric_main.real_needs
    assert needs("fid5k_full") == metric_main.RealNeeds(None, xflip=False, features=False)
    assert needs("kid50k_full") == metric_main.RealNeeds(1_000_000, xflip=False, features=True)
    assert needs("pr50k3") == metric_main.RealNeeds(50_000, xflip=None, features=True)
    assert needs("is50k") is None and needs("ppl2_wend") is None
    names = ["fid5k_full", "pr50k3", "is50k", "ppl2_wend"]
    assert [metric_main.num_fakes(name) for name in names] == [5_000, 50_000, 50_000, None]
