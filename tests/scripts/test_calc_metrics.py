# SPDX-License-Identifier: Apache-2.0
"""calc_metrics.py: results and where they go, several processes, refusals."""

import hashlib
import json
import os
import shutil
import sys

import numpy as np
import pytest
import torch

import calc_metrics
import dnnlib.cli
from metrics import catalogue, detectors, saved_stats
from metrics.frechet_inception_distance import frechet_distance
from tests.metrics import stand_ins
from training.dataset import ImageFolderDataset
from training.files.snapshot import save_snapshot


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with a conditional network, its training set, a detector and a cache."""
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
    """Run the command in this process: `run_cli(flag=value, ...)` -> (exit status, stdout, stderr)."""

    def run(**flags):
        flags = {"network": work / "net.pkl", "metrics": "fid1k_full", "detector": work / "digits.pt", **flags}
        given = {f"--{name.replace('_', '-')}": value for name, value in flags.items() if value is not None}
        argv = [flag if value is True else f"{flag}={value}" for flag, value in given.items()]
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
    # This is not a run directory.
    assert not list(work.glob("metric-*"))


def test_the_training_set_is_found_from_another_folder(run_cli, work, monkeypatch):
    (work / "runs" / "0").mkdir(parents=True)
    save(work / "runs" / "0", training_set_kwargs=stand_ins.dataset_options("data.zip", use_labels=True))
    monkeypatch.chdir(work / "runs")
    assert run_cli(network="0/net.pkl")[0] == 0


def test_results_are_appended_in_a_run_directory(run_cli, work):
    (work / "training_options.json").write_text("{}")
    _, out, err = run_cli(verbose="no")
    assert (work / "metric-fid1k_full-digits.jsonl").read_text() == out
    assert json.loads(out)["snapshot_pkl"] == "net.pkl" and not err


def test_a_read_only_run_directory_is_not_written(run_cli, work, monkeypatch):
    (work / "training_options.json").write_text("{}")
    monkeypatch.setattr(os, "access", lambda path, mode: (str(path), mode) != (str(work), os.W_OK))
    status, out, _ = run_cli()
    assert status == 0 and json.loads(out)["snapshot_pkl"].endswith("net.pkl") and not list(work.glob("metric-*"))


def test_other_data(run_cli, work):
    other = stand_ins.write_zip(work / "other.zip", stand_ins.make_images(6, seed=1, channels=1), [0, 1] * 3)
    status, out, _ = run_cli(data=other)
    assert status == 0 and json.loads(out)["provenance"]["num_reals"] == 6


@pytest.mark.parametrize(("mirror", "num_reals"), [(None, 20), ("yes", 40), ("no", 20)])
def test_mirror(run_cli, redefine, mirror, num_reals):
    redefine("fid50k", num_fakes=64)
    (line,) = results(run_cli(mirror=mirror, metrics="fid50k"))
    assert line["provenance"]["num_reals"] == num_reals
    redefine("fid50k_full", num_fakes=64)
    (line,) = results(run_cli(mirror=mirror, metrics="fid50k_full"))
    assert line["provenance"]["num_reals"] == 20


def test_no_data_for_an_unconditional_network_and_metrics_without_reals(run_cli, work, redefine):
    save(work, c_dim=0)
    redefine("is50k", num_fakes=100)
    status, out, _ = run_cli(metrics="is50k")
    assert status == 0 and set(json.loads(out)["results"]) == {"is50k_mean-digits", "is50k_std-digits"}
    refused(run_cli(metrics="is50k,fid1k_full"), "net.pkl", "--data")


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(run_cli, work):
    G = stand_ins.tiny_generator(c_dim=2)  # without noise, of which each process draws its own
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
    assert run_cli(metrics="fid1k_full,kid1k_full", gpus=2, trust_detector=True)[0] == 0
    # The output of the processes is not captured here, so compare the files they wrote.
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


def test_a_detector_made_for_other_images_is_refused(run_cli, work, redefine):
    redefine("fid1k_full", num_fakes=20)
    refused(run_cli(detector="mnist"), "'mnist' was made for grey images", "RGB", "--detector")
    colour = work / "data.zip"
    refused(run_cli(network=None, fakes=colour, data=colour, detector="mnist"), "'mnist'", "'data' are RGB")
    refused(run_cli(network=None, save_stats=work / "s.npz", data=colour, detector="mnist"), "'mnist'", "RGB")
    noise = stand_ins.write_zip(work / "noise.zip", stand_ins.make_images(60, 32, 1))
    refused(run_cli(network=None, save_stats=work / "s.npz", data=noise, detector="mnist"), "'noise'", "another kind")
    assert not (work / "s.npz").exists()


def test_images_of_another_size_are_refused(run_cli, work):
    other = stand_ins.write_zip(work / "other.zip", stand_ins.make_images(6, resolution=16), [0, 1] * 3)
    refused(run_cli(data=other), "16x16", "8x8", "--data")


def test_labels_that_do_not_match_are_refused(run_cli, work):
    other = stand_ins.write_zip(work / "other.zip", stand_ins.make_images(6))
    refused(run_cli(data=other), "labels of 2", "--data")


def test_an_unknown_detector_needs_trust(run_cli, work):
    path = stand_ins.save_detector(stand_ins.Inception(seed=7), work / "unknown.pt", trusted=False)
    refused(run_cli(detector=path), "unknown.pt", "--trust-detector")
    status, _, err = run_cli(detector=path, trust_detector=True)
    assert status == 0 and "WARNING: --trust-detector" in err


def test_an_unavailable_detector_is_refused(run_cli, work):
    refused(run_cli(detector=None), "--detector", "inception-2015-12-05.pt", str(work / "cache"))
    refused(run_cli(detector="nonsense"), "--detector", "nonsense")
    refused(run_cli(metrics="ppl2_wend"), "--detector", "ppl2_wend")


def test_a_missing_network_is_refused(run_cli):
    refused(run_cli(network="nowhere.pkl"), "nowhere.pkl")


@pytest.mark.parametrize(
    "changes",
    [
        *({"colour": 1}, {3: 4}, {"path": 3}, {"path": ["a"]}, {"path": None}, {"max_size": "5"}, {"max_size": 0}),
        *({"max_size": -1}, {"random_seed": -1}, {"random_seed": 2**32}, {"xflip": []}, {"class_name": ["a"]}),
        *({"class_name": np.zeros(3)}, {"name": "\x1b[2J"}, {"\x1b[2J": 1}),
    ],
    ids=repr,
)
def test_what_a_pickle_says_of_its_training_set_is_checked(run_cli, work, changes):
    save(work, training_set_kwargs={**stand_ins.dataset_options(str(work / "data.zip"), use_labels=True), **changes})
    result = run_cli()
    refused(result, "net.pkl", "--data")
    assert "\x1b" not in result[2]


def test_a_dataset_class_named_by_the_pickle_is_not_called(run_cli, work):
    save(work, training_set_kwargs={"class_name": "os.makedirs", "name": str(work / "created")})
    refused(run_cli(), "os.makedirs", "--trust-pickle", "--data")
    assert not (work / "created").exists()


@pytest.fixture
def zips(work):
    """Two datasets of 1,000 images each, without labels, that differ in brightness."""
    images = stand_ins.make_images(1000, seed=5)
    return [
        stand_ins.write_zip(work / f"{name}.zip", images // divisor) for name, divisor in (("bright", 1), ("dark", 3))
    ]


def results(outcome):
    status, out, _ = outcome
    assert status == 0
    return [json.loads(line) for line in out.splitlines()]


def features_of(path):
    """float64 [n, d] through the stand-in detector."""
    dataset = ImageFolderDataset(path=path)
    batch = torch.from_numpy(np.stack([dataset[i][0] for i in range(len(dataset))]))
    return stand_ins.Inception()(batch, return_features=True).double().numpy()


def test_images_against_images(run_cli, work, zips):
    bright, dark = zips
    (same,) = results(run_cli(network=None, fakes=bright, data=bright))
    assert abs(same["results"]["fid1k_full-digits"]) < 1e-6
    folder = work / "folder"
    shutil.unpack_archive(dark, folder)
    (other,) = results(run_cli(network=None, fakes=folder, data=bright))
    moments = [stand_ins.mean_and_covariance(features_of(path)) for path in (dark, bright)]
    wanted = frechet_distance(*moments[0], *moments[1])
    assert wanted > 1 and other["results"]["fid1k_full-digits"] == pytest.approx(wanted, rel=1e-5)
    said = other["provenance"]
    assert (said["num_reals"], said["num_fakes"], said["resolution"]) == (1000, 1000, 8)
    assert said["detector"] == "digits" and said["fakes"] == str(folder) and other["snapshot_pkl"] is None


def test_the_first_fakes_are_used_and_too_few_are_refused(run_cli, work, zips):
    images = stand_ins.make_images(1100, seed=5)
    (more,) = results(run_cli(network=None, fakes=stand_ins.write_zip(work / "more.zip", images), data=zips[0]))
    images[1000:] = 0
    (less,) = results(run_cli(network=None, fakes=stand_ins.write_zip(work / "more.zip", images), data=zips[0]))
    assert more["provenance"]["num_fakes"] == 1000 and more["results"] == less["results"]
    refused(run_cli(network=None, fakes=zips[0], data=zips[0], metrics="fid2k_full"), "2000", "1000", "fid1k_full")
    few = stand_ins.write_zip(work / "few.zip", images[:10])
    refused(run_cli(network=None, fakes=few, data=zips[0]), "1000", "10", "--fakes")


def test_metrics_of_images_alone_need_no_reals(run_cli, zips, redefine):
    redefine("is50k", num_fakes=100)
    (line,) = results(run_cli(network=None, fakes=zips[0], metrics="is50k"))
    assert set(line["results"]) == {"is50k_mean-digits", "is50k_std-digits"}


def test_saved_statistics_give_the_same_numbers_as_the_images(run_cli, work, zips, redefine):
    redefine("kid50k_full", num_subsets=2)
    metrics, stats = "fid1k_full,kid1k_full", work / "bright.npz"
    status, out, err = run_cli(network=None, data=zips[0], metrics=metrics, save_stats=stats)
    assert (status, out) == (0, "") and "features of reals 1000/1000" in err
    save(work, c_dim=0)
    for fakes in ({"network": None, "fakes": zips[1]}, {}):
        from_images, from_stats = (results(run_cli(data=data, metrics=metrics, **fakes)) for data in (zips[0], stats))
        for a, b in zip(from_images, from_stats, strict=True):
            assert list(a["results"].values()) == pytest.approx(list(b["results"].values()), rel=1e-9)
            extra = {"real_stats": str(stats), "real_stats_sha256": hashlib.sha256(stats.read_bytes()).hexdigest()}
            assert {**a["provenance"], **extra} == b["provenance"]
    assert "features of reals" not in run_cli(data=stats, metrics="fid1k_full")[2]


def test_saved_statistics_include_the_labels_for_a_conditional_network(run_cli, work):
    stats, metrics = work / "stats.npz", "fid1k_full"
    run_cli(network=None, data=work / "data.zip", metrics=metrics, save_stats=stats)
    from_images, from_stats = (results(run_cli(data=data, metrics=metrics)) for data in (work / "data.zip", stats))
    assert from_images[0]["results"] == from_stats[0]["results"]
    one_class = stand_ins.write_zip(work / "one.zip", stand_ins.make_images(20), [0] * 20)
    run_cli(network=None, data=one_class, metrics=metrics, save_stats=stats)
    refused(run_cli(data=stats, metrics=metrics), "labels of 2", "labels of 1", "--data")


def test_precision_and_recall_from_saved_statistics(run_cli, work, zips, redefine):
    redefine("pr50k3", max_real=100, num_fakes=100)
    stats = work / "bright.npz"
    assert run_cli(network=None, data=zips[0], metrics="fid1k_full,pr50k3", save_stats=stats)[0] == 0
    (line,) = results(run_cli(network=None, fakes=zips[0], data=stats, metrics="pr50k3"))
    assert line["results"] == {"pr50k3_precision-digits": 1, "pr50k3_recall-digits": 1}
    assert line["provenance"]["num_reals"] == 100


def test_statistics_without_features_work_for_fid_only(run_cli, work, zips):
    stats = work / "bright.npz"
    run_cli(network=None, data=zips[0], save_stats=stats)
    assert run_cli(network=None, fakes=zips[1], data=stats)[0] == 0
    refused(run_cli(network=None, fakes=zips[1], data=stats, metrics="kid1k_full"), "features", "--metrics")
    other = stand_ins.save_detector(stand_ins.Inception(seed=1), work / "other.pt")
    refused(run_cli(network=None, fakes=zips[1], data=stats, detector=other), "digits", "--detector")


def test_mirrored_reals_are_saved_for_metrics_that_include_them(run_cli, work, zips):
    stats = work / "bright.npz"
    run_cli(network=None, data=zips[0], metrics="fid50k", mirror="yes", save_stats=stats)
    assert saved_stats.load(str(stats)).about.num_images == 2000
    refused(run_cli(network=None, fakes=zips[0], data=stats), "mirrored", "--mirror")
    flags = {"network": None, "data": zips[0], "save_stats": work / "x.npz", "metrics": "fid50k,fid50k_full"}
    refused(run_cli(mirror="yes", **flags), "fid50k,fid50k_full", "--mirror")
    assert run_cli(**flags)[0] == 0


def test_contradictory_flags_are_refused(run_cli, work, zips):
    stats = work / "bright.npz"
    run_cli(network=None, data=zips[0], save_stats=stats)
    fakes = {"network": None, "fakes": zips[0]}
    saving = {"network": None, "save_stats": work / "new.npz"}
    refused(run_cli(network=None), "--network, --fakes and --save-stats")
    refused(run_cli(fakes=zips[0]), "--network, --fakes and --save-stats")
    refused(run_cli(save_stats=work / "new.npz", data=zips[0]), "--network, --fakes and --save-stats")
    refused(run_cli(**fakes), "--data")
    refused(run_cli(**fakes, data=zips[0], metrics="fid1k_full,ppl2_wend"), "ppl2_wend", "--network")
    refused(run_cli(**fakes, data=stats, mirror="yes"), "--mirror", "bright.npz")
    refused(run_cli(data=stats), "labels of 2", "labels of 0", "--data")
    refused(run_cli(**saving), "--data")
    refused(run_cli(**saving, data=stats), "--data")
    refused(run_cli(**saving, data=zips[0], metrics="fid1k_full,is50k"), "is50k", "--save-stats")
    refused(run_cli(network=None, data=zips[0], save_stats=work / "new.zip"), ".npz", "--save-stats")
    refused(run_cli(network=None, data=zips[0], save_stats=work / "no" / "new.npz"), "folder", "--save-stats")
    (work / "taken.npz").mkdir()
    assert "cannot be written" in run_cli(network=None, data=zips[0], save_stats=work / "taken.npz")[2]
    assert not (work / "new.npz").exists()


def test_a_file_of_statistics_has_one_detector(run_cli, work, zips):
    downloads = work / "cache" / "downloads"
    stand_ins.save_detector(stand_ins.Inception(), downloads / detectors.FILES["inception"])
    stand_ins.save_detector(stand_ins.VGG16(), downloads / detectors.FILES["vgg16"])
    flags = {"network": None, "data": zips[0], "detector": None, "save_stats": work / "x.npz"}
    refused(run_cli(**flags, metrics="fid50k_full,pr50k3_full"), "fid50k_full,pr50k3_full", "one file for each")


def test_messages_about_unusable_images_name_the_flag(run_cli, work, zips):
    larger = stand_ins.write_zip(work / "larger.zip", stand_ins.make_images(6, resolution=16))
    refused(run_cli(network=None, fakes=work / "nowhere.zip", data=zips[0]), "nowhere.zip", "--fakes")
    refused(run_cli(network=None, fakes=zips[0], data=work / "nowhere.zip"), "nowhere.zip", "--data")
    refused(run_cli(network=None, fakes=zips[0], data=work / "nowhere.npz"), "nowhere.npz", "--data")
    refused(run_cli(network=None, fakes=zips[0], data=larger), "16x16", "8x8", "--data")
    run_cli(network=None, data=larger, save_stats=work / "larger.npz")
    refused(run_cli(network=None, fakes=zips[0], data=work / "larger.npz"), "16x16", "8x8", "--data")


SPREAD = """
from metrics import metric_utils

def spread_ratio(fake, real):
    return float(fake.std() / real.std())

def compute_spread(opts, max_real, num_gen):
    real, fake = metric_utils.compute_feature_stats_of_both(opts, "inception", max_real, num_gen, capture_all=True)
    return spread_ratio(fake.get_all(), real.get_all())
"""


def test_a_new_metric_is_one_file_and_one_row(run_cli, work, zips, monkeypatch):
    (work / "spread.py").write_text(SPREAD)
    monkeypatch.syspath_prepend(work)
    row = catalogue.Metric(
        name="spread64",
        function="spread.compute_spread",
        detector=catalogue.DetectorNeeds("inception", ("return_features",)),
        reals=catalogue.RealNeeds(100, features=True),
        num_fakes=64,
    )
    monkeypatch.setitem(catalogue.METRICS, row.name, row)
    flags = {"metrics": row.name, "network": None}
    bright, dark = zips
    stats = work / "bright.npz"
    assert run_cli(**flags, data=bright, save_stats=stats)[0] == 0
    wanted = features_of(dark)[:64].std() / features_of(bright)[:100].std()
    for data in (bright, stats):
        (line,) = results(run_cli(**flags, fakes=dark, data=data))
        assert line["results"] == {"spread64-digits": pytest.approx(wanted, rel=1e-5)}
        assert (line["provenance"]["num_fakes"], line["provenance"]["num_reals"]) == (64, 100)
    (line,) = results(run_cli(metrics=row.name))
    assert (line["metric"], line["provenance"]["num_fakes"]) == ("spread64-digits", 64)
    few = stand_ins.write_zip(work / "few.zip", stand_ins.make_images(9))
    refused(run_cli(**flags, fakes=few, data=bright), "64 fakes", "has 9", "--fakes")
    refused(run_cli(metrics="spread65"), "--metrics", "spread64")
