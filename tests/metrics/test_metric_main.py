# SPDX-License-Identifier: Apache-2.0
import json
import math

import pytest

from dnnlib.util import UserError
from metrics import catalogue, detectors, metric_main, metric_utils
from tests.dnnlib.disk import no_file_above
from tests.metrics import stand_ins


def test_result_of_fid_with_another_detector(options):
    result = metric_main.calc_metric("fid1k_full", **options)
    assert result.metric == "fid1k_full-digits" and list(result.results) == ["fid1k_full-digits"]
    assert 0 < result.results["fid1k_full-digits"] < math.inf
    assert result.num_gpus == 1 and result.total_time > 0 and result.total_time_str
    spec = detectors.resolve(options["detector"], "inception")
    assert result.provenance.detector == "digits" and result.provenance.detector_sha256 == spec.sha256
    # All 30 reals without mirrored copies, although the training set was a mirrored subset.
    assert (result.provenance.num_reals, result.provenance.num_fakes) == (30, 1000)
    assert (result.provenance.resolution, result.provenance.seed) == (8, 0)
    assert set(result.provenance.versions) == {"torch", "numpy"}
    assert options["dataset_kwargs"]["xflip"] is True
    assert metric_main.calc_metric("fid1k_full", **options).results == result.results


def test_the_default_detector_does_not_change_the_name(options, cache_folder):
    stand_ins.save_detector(stand_ins.Inception(), cache_folder / "downloads" / "inception-2015-12-05.pt")
    result = metric_main.calc_metric("kid1k_full", **{**options, "detector": None})
    assert result.metric == "kid1k_full" and list(result.results) == ["kid1k_full"]
    assert result.provenance.detector == "inception-2015-12-05"


@pytest.mark.parametrize("source", ["G", "fakes"])
def test_metrics_share_the_images_of_a_network(options, tmp_path, monkeypatch, source):
    """Those of equal number, detector and data are made once; values and provenance are those of each metric alone."""
    if source == "fakes":
        fakes = stand_ins.write_zip(tmp_path / "fakes.zip", stand_ins.make_images(20, seed=1))
        options = {**options, "G": None, "fakes_kwargs": stand_ins.dataset_options(fakes)}
    counts = {"fid1k_full": 20, "kid1k_full": 20, "pr1k3_full": 20, "fid2k_full": 10, "fid50k": 20}
    for name, count in counts.items():
        monkeypatch.setitem(catalogue.METRICS, name, stand_ins.smaller(name, num_fakes=count))
    alone = [metric_main.calc_metric(name, **options) for name in counts]
    counted, compute = [], metric_utils.compute_feature_stats_for_generator

    def counting(*args, max_items, **kwargs):
        counted.append(max_items)
        return compute(*args, max_items=max_items, **kwargs)

    monkeypatch.setattr(metric_utils, "compute_feature_stats_for_generator", counting)
    shared = {}
    together = [metric_main.calc_metric(name, shared=shared, **options) for name in counts]
    assert counted == [20, 10, 20]
    for one, other in zip(alone, together):
        assert (one.results, one.provenance) == (other.results, other.provenance)


def test_unknown_metric(options):
    with pytest.raises(UserError, match=r"--metrics can only contain.*fid50k_full, kid50k_full"):
        metric_main.calc_metric("fid", **options)


def test_a_registered_function(own_metrics, options):
    @metric_main.register_metric
    def mean_label(opts):
        return {"mean_label": opts.G.c_dim}

    assert metric_main.is_valid_metric("mean_label") and metric_main.list_valid_metrics()[-1] == "mean_label"
    assert metric_main.calc_metric("mean_label", **{**options, "detector": None}).results == {"mean_label": 2}
    (named,) = metric_main.calc_metric("mean_label", **options).results
    assert named == "mean_label-digits"


def test_a_registered_function_gets_the_dataset_unchanged(own_metrics, options):
    @metric_main.register_metric
    def mirrored(opts):
        return {"mirrored": opts.dataset_kwargs.xflip, "images": opts.dataset_kwargs.max_size}

    assert metric_main.calc_metric("mirrored", **{**options, "detector": None}).results == {"mirrored": 1, "images": 20}


def test_a_registered_function_can_replace_a_metric(own_metrics, options):
    def is50k(opts):
        return {"is50k_mean": 1.0}

    before = metric_main.list_valid_metrics()
    metric_main.register_metric(is50k)
    assert metric_main.list_valid_metrics() == before
    assert metric_main.calc_metric("is50k", **{**options, "detector": None}).results == {"is50k_mean": 1}


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


def test_a_report_on_a_full_disk_is_printed_and_leaves_no_partial_line(tmp_path, capsys):
    path = tmp_path / "metric-fid1k_full.jsonl"
    path.write_text("{}\n")
    result = {"metric": "fid1k_full", "results": {"fid1k_full": 1.5}, "note": "x" * 100}
    with no_file_above(50), pytest.raises(UserError, match=r"result above .*metric-fid1k_full\.jsonl: File too large"):
        metric_main.report_metric(result, run_dir=str(tmp_path))
    assert json.loads(capsys.readouterr().out)["results"] == {"fid1k_full": 1.5}
    assert path.read_text() == "{}\n"
