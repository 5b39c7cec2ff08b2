# SPDX-License-Identifier: Apache-2.0
"""calc_metrics.py: results and where they go, several processes, refusals."""

import json
import shutil
import sys

import pytest

import calc_metrics
import dnnlib.cli
from metrics import detectors, metric_main
from tests.metrics import stand_ins
from training.snapshot import save_snapshot


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A conditional network, its training set and a detector, in a folder with a cache of its own."""
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(detectors, "BASE_URL", "http://127.0.0.1:9/metrics")
    labels = [i % 2 for i in range(20)]
    data = stand_ins.write_zip(tmp_path / "data.zip", stand_ins.make_images(20), labels)
    stand_ins.save_detector(stand_ins.Inception(), tmp_path / "digits.pt")
    save(tmp_path, training_set_kwargs=stand_ins.dataset_options(data, use_labels=True, max_size=10))
    return tmp_path


def save(folder, c_dim=2, resolution=8, training_set_kwargs=None):
    G = stand_ins.tiny_generator(c_dim=c_dim, resolution=resolution)
    content = {"G": G, "D": None, "G_ema": G, "augment_pipe": None, "training_set_kwargs": training_set_kwargs}
    save_snapshot(folder / "net.pkl", content)


@pytest.fixture
def run_cli(monkeypatch, capsys, work):
    """Runs the command in this process: `run_cli(flag=value, ...)` -> (exit status, stdout, stderr)."""

    def run(**flags):
        flags = {"network": work / "net.pkl", "metrics": "fid1k_full", "detector": work / "digits.pt", **flags}
        argv = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items() if value is not None]
        monkeypatch.setattr(sys, "argv", ["calc_metrics.py", "--device=cpu", *argv])
        with pytest.raises(SystemExit) as exit_info:
            dnnlib.cli.run(calc_metrics.main)
        return (exit_info.value.code, *capsys.readouterr())

    return run


def refused(result, *words):
    status, out, err = result
    message = err[err.index("Error: ") :]
    assert status == 2 and "Traceback" not in err and not out
    for word in words:
        assert word in message


def test_measures_against_the_training_set(run_cli, work):
    status, out, err = run_cli(metrics="fid1k_full,kid1k_full")
    assert status == 0
    fid, kid = (json.loads(line) for line in out.splitlines())
    assert (fid["metric"], kid["metric"]) == ("fid1k_full-digits", "kid1k_full-digits")
    assert fid["results"]["fid1k_full-digits"] > 0 and fid["provenance"]["num_reals"] == 20
    assert fid["snapshot_pkl"].endswith("net.pkl")
    assert "features of reals 20/20" in err and "features of fakes 1000/1000" in err
    # This is no run directory.
    assert not list(work.glob("metric-*"))


def test_results_are_appended_in_a_run_directory(run_cli, work):
    (work / "training_options.json").write_text("{}")
    _, out, err = run_cli(verbose="no")
    assert (work / "metric-fid1k_full-digits.jsonl").read_text() == out
    assert json.loads(out)["snapshot_pkl"] == "net.pkl" and not err


def test_other_data(run_cli, work):
    other = stand_ins.write_zip(work / "other.zip", stand_ins.make_images(6, seed=1, channels=1), [0, 1] * 3)
    status, out, _ = run_cli(data=other)
    assert status == 0 and json.loads(out)["provenance"]["num_reals"] == 6


@pytest.mark.parametrize(("mirror", "xflip"), [(None, False), ("yes", True), ("no", False)])
def test_mirror(run_cli, work, monkeypatch, mirror, xflip):
    seen = []

    def calc_metric(metric, **kwargs):
        seen.append(kwargs["dataset_kwargs"].get("xflip", False))
        raise dnnlib.util.UserError("enough")

    monkeypatch.setattr(metric_main, "calc_metric", calc_metric)
    run_cli(mirror=mirror, metrics="fid50k")
    assert seen == [xflip]


def test_no_data_for_an_unconditional_network_and_metrics_without_reals(run_cli, work, monkeypatch):
    save(work, c_dim=0)
    monkeypatch.setitem(metric_main._METRICS, "is50k", ("is", {}, {"num_gen": 100, "num_splits": 10}))
    metric_main._find.cache_clear()
    status, out, _ = run_cli(metrics="is50k")
    metric_main._find.cache_clear()
    assert status == 0 and set(json.loads(out)["results"]) == {"is50k_mean-digits", "is50k_std-digits"}
    refused(run_cli(metrics="is50k,fid1k_full"), "net.pkl", "--data")


def test_two_processes_find_what_one_finds(run_cli, work):
    # Noise is drawn anew in each process, so the network here has none.
    G = stand_ins.tiny_generator(c_dim=2)
    for name, parameter in G.named_parameters():
        if name.endswith("noise_strength"):
            parameter.zero_()
    kwargs = stand_ins.dataset_options(str(work / "data.zip"), use_labels=True)
    content = {"G": G, "D": None, "G_ema": G, "augment_pipe": None, "training_set_kwargs": kwargs}
    save_snapshot(work / "net.pkl", content)
    _, out, _ = run_cli(metrics="fid1k_full,kid1k_full")
    one = [json.loads(line) for line in out.splitlines()]
    shutil.rmtree(work / "cache")
    (work / "training_options.json").write_text("{}")
    assert run_cli(metrics="fid1k_full,kid1k_full", gpus=2)[0] == 0
    # What the processes print goes past this test, what they write does not.
    two = [json.loads((work / f"metric-{line['metric']}.jsonl").read_text()) for line in one]
    for a, b in zip(one, two):
        assert list(a["results"].values()) == pytest.approx(list(b["results"].values()), rel=1e-5)
        assert (a["provenance"]["num_reals"], a["provenance"]["num_fakes"]) == (20, 1000)
        assert a["provenance"] == b["provenance"] and b["num_gpus"] == 2


def test_unknown_metrics_are_refused(run_cli):
    refused(run_cli(metrics="fid1k_full,fid"), "--metrics", "fid50k_full")
    refused(run_cli(metrics="none"), "--metrics", "fid50k_full")


def test_missing_data_is_refused(run_cli, work):
    refused(run_cli(data=work / "nowhere.zip"), "nowhere.zip", "--data")
    (work / "data.zip").unlink()
    refused(run_cli(), "data.zip", "--data")
    save(work, training_set_kwargs=None)
    refused(run_cli(), "net.pkl", "--data")


def test_images_of_another_size_are_refused(run_cli, work):
    other = stand_ins.write_zip(work / "other.zip", stand_ins.make_images(6, resolution=16), [0, 1] * 3)
    refused(run_cli(data=other), "16x16", "8x8", "--data")


def test_labels_that_do_not_fit_are_refused(run_cli, work):
    other = stand_ins.write_zip(work / "other.zip", stand_ins.make_images(6))
    refused(run_cli(data=other), "labels of 2", "--data")


def test_a_detector_that_cannot_be_had_is_refused(run_cli, work):
    refused(run_cli(detector=None), "--detector", "inception-2015-12-05.pt", str(work / "cache"))
    refused(run_cli(detector="nonsense"), "--detector", "nonsense")
    refused(run_cli(metrics="ppl2_wend"), "--detector", "ppl2_wend")


def test_a_missing_network_is_refused(run_cli):
    refused(run_cli(network="nowhere.pkl"), "nowhere.pkl")


def test_a_dataset_class_named_by_the_pickle_is_not_called(run_cli, work):
    save(work, training_set_kwargs={"class_name": "os.makedirs", "name": str(work / "created")})
    refused(run_cli(), "os.makedirs", "--trust-pickle", "--data")
    assert not (work / "created").exists()
