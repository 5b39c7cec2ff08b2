# SPDX-License-Identifier: Apache-2.0
"""The catalogue of metrics: names, needs, and whether each row describes what its function does."""

import dataclasses
import subprocess
import sys

import pytest

from dnnlib.util import get_obj_by_name
from metrics import catalogue, inputs, metric_main, saved_stats
from metrics.metric_utils import MetricOptions
from tests.metrics import stand_ins
from tests.support import ROOT, golden_json


def test_names_are_those_of_the_command_line_in_order():
    (message,) = [case["error"] for case in golden_json("train_options")["cases"] if "nope" in str(case["flags"])]
    assert metric_main.list_valid_metrics() == message.splitlines()[1:]
    assert all(metric_main.is_valid_metric(name) for name in metric_main.list_valid_metrics())


def test_any_number_of_fakes_is_valid():
    assert all(map(metric_main.is_valid_metric, ["fid1k_full", "kid7k_full", "fid123k_full", "pr5k3_full"]))
    wrong = ["fid0k_full", "fid05k_full", "fid5k", "kid5k", "pr5k_full", "fid5k3_full", "fidk_full", "xfid5k_full"]
    wrong += ["fid5k_full2", "", f"fid{'9' * 5000}k_full"]
    assert not any(map(metric_main.is_valid_metric, wrong))


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("catalogue", {"torch", "numpy", "scipy", "dnnlib", "torch_utils", "training", "metrics.metric_main"}),
        ("metric_main", {"torch", "numpy", "scipy"}),
    ],
)
def test_asking_for_metrics_imports_nothing_heavy(module, forbidden):
    code = f"import sys, metrics.{module}; print({forbidden!r} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


def test_needs_of_metrics():
    def needs(name):
        metric = catalogue.find(name)
        return metric.num_fakes, metric.needs_network, metric.uses_reals, metric.xflip, metric.reals

    assert needs("fid5k_full") == (5_000, False, True, False, catalogue.RealNeeds(None, features=False))
    assert needs("kid50k_full") == (50_000, False, True, False, catalogue.RealNeeds(1_000_000, features=True))
    assert needs("pr50k3") == (50_000, False, True, None, catalogue.RealNeeds(50_000, features=True))
    assert needs("is50k") == (50_000, False, False, False, None)
    assert needs("ppl2_wend") == (None, True, False, None, None)
    assert catalogue.find("nonsense") is None


FULL = {"max_size": None, "xflip": False}
PLAIN = {"max_size": None, "xflip": True}
KID = {"num_gen": 50000, "num_subsets": 100, "max_subset_size": 1000}
PR = {"num_gen": 50000, "nhood_size": 3}


@pytest.mark.parametrize(
    ("name", "function", "dataset", "arguments"),
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
def test_calc_metric_calls_the_function_of_the_row(own_metrics, options, tmp_path, name, function, dataset, arguments):
    metric, calls = catalogue.find(name), []
    assert get_obj_by_name(metric.function).__name__ == function

    def record(opts, **kwargs):
        calls.append(({key: opts.dataset_kwargs[key] for key in FULL}, kwargs))
        return (0.5, 0.25) if name.startswith(("pr", "is")) else 0.5

    catalogue.register(dataclasses.replace(metric, function=record))
    options["detector"] = stand_ins.save_detector(stand_ins.VGG16(), tmp_path / "all.pt")
    result = metric_main.calc_metric(name, **options)
    assert calls == [(dataset, arguments)]
    suffixes = {"pr": ["_precision", "_recall"], "is": ["_mean", "_std"]}.get(name[:2], [""])
    assert list(result.results) == [f"{name}{suffix}-all" for suffix in suffixes]


SMALL = {
    "fid50k_full": stand_ins.smaller("fid50k_full", num_fakes=64),
    "kid50k_full": stand_ins.smaller("kid50k_full", num_fakes=64, max_real=25, num_subsets=2),
    "pr50k3_full": stand_ins.smaller("pr50k3_full", num_fakes=64, max_real=25),
    "is50k": stand_ins.smaller("is50k", num_fakes=64),
    "ppl2_wend": stand_ins.smaller("ppl2_wend", num_samples=8),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_detector_with_the_arguments_of_the_row_is_enough(own_metrics, options, tmp_path, name):
    metric = SMALL[name]
    catalogue.register(metric)
    module = stand_ins.VGG16() if name.startswith("ppl") else stand_ins.PlainClassifier()
    path = stand_ins.save_detector(module, tmp_path / "minimal.pt")
    provenance = metric_main.calc_metric(name, **{**options, "detector": path}).provenance
    assert provenance.num_fakes == (metric.num_fakes or metric.options["num_samples"])
    if metric.reals is None:
        assert "num_reals" not in provenance
    else:
        assert provenance.num_reals == min(metric.reals.max_items or 30, 30)


@pytest.mark.parametrize("name", [name for name, metric in SMALL.items() if metric.reals is not None])
def test_statistics_with_what_the_row_needs_are_enough(own_metrics, options, tmp_path, name):
    metric = SMALL[name]
    catalogue.register(metric)
    path = str(tmp_path / "reals.npz")
    whole = {**options["dataset_kwargs"], "max_size": None, "xflip": False}
    inputs.save_reals(MetricOptions(**{**options, "dataset_kwargs": whole}), [metric], path)
    assert saved_stats.load(path).stats.capture_all == metric.reals.features
    from_stats = metric_main.calc_metric(name, **{**options, "dataset_kwargs": {}}, real_stats=path)
    assert from_stats.results == metric_main.calc_metric(name, **options).results
