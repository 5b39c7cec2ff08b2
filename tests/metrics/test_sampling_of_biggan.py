# SPDX-License-Identifier: Apache-2.0
"""Metrics of BigGAN: latents with a bound, running and standing statistics, and what the result says of them."""

import copy
import json
import math

import numpy as np
import pytest
import torch

from dnnlib.util import UserError
from metrics import measure, metric_main, metric_utils, perceptual_path_length
from metrics.metric_utils import STANDING_BATCH, LatentSampler, MetricOptions, evaluation_copy
from tests.metrics import stand_ins
from training import standing_stats
from training.files.snapshot import save_snapshot


@pytest.fixture
def opts(tmp_path):
    """Arguments of MetricOptions: a BigGAN of three classes, and a dataset in which most images are of one."""
    labels = [0, 1, 2, 2, 2, 2, 2, 2]
    data = stand_ins.write_zip(tmp_path / "data.zip", stand_ins.make_images(8, resolution=32), labels)
    return {
        "G": stand_ins.tiny_biggan(c_dim=3),
        "dataset_kwargs": stand_ins.dataset_options(data, use_labels=True),
        "device": "cpu",
        "detector": stand_ins.save_detector(stand_ins.Inception(), tmp_path / "digits.pt"),
    }


@pytest.fixture
def run(tmp_path, opts, capsys):
    """`run(metrics, **arguments of measure)` -> the lines of JSON, for a snapshot in a run directory."""
    path = tmp_path / "run" / "network-snapshot-000001.pkl"
    path.parent.mkdir()
    (path.parent / "training_options.json").write_text("{}")
    save_snapshot(path, {"G_ema": opts["G"], "training_set_kwargs": dict(opts["dataset_kwargs"])})

    def call(metrics, **kwargs):
        common = {"network": str(path), "detector": opts["detector"], "device": "cpu", "verbose": False}
        measure.measure(metrics, **{**common, **kwargs})
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return call


@pytest.fixture(autouse=True)
def few_fakes(monkeypatch):
    for name in ("fid50k_full", "is50k", "kid50k_full", "pr50k3_full"):
        monkeypatch.setitem(metric_main.catalogue.METRICS, name, stand_ins.smaller(name, num_fakes=100))


def test_latents_with_a_bound_do_not_depend_on_batches_or_processes(opts):
    def sampler(rank=0, num_gpus=1):
        return LatentSampler(MetricOptions(**opts, trunc=0.5, rank=rank, num_gpus=num_gpus), opts["G"])

    z, c = sampler().items(12)
    assert z.abs().max() <= 0.5 < LatentSampler(MetricOptions(**opts), opts["G"]).items(12)[0].abs().max()
    one = sampler()
    assert torch.equal(torch.cat([one.items(n)[0] for n in (1, 7, 4)]), z)
    shares = [sampler(rank, 3).items(4) for rank in range(3)]
    assert torch.equal(torch.stack([share[0] for share in shares], dim=1).flatten(0, 1), z)
    assert c.shape == (12, 3)


@pytest.mark.parametrize("trunc", [None, 0.5])
def test_standing_statistics_of_a_copy(opts, trunc):
    """Those of K batches of 64 from the metric's own distribution, the same each time and in every process."""
    G = opts["G"]
    before = copy.deepcopy(G.state_dict())
    made = [
        evaluation_copy(MetricOptions(**opts, trunc=trunc, standing_passes=2, rank=rank, num_gpus=num_gpus))
        for rank, num_gpus in ((0, 1), (0, 1), (1, 2))
    ]
    assert all(torch.equal(value, before[name]) for name, value in G.state_dict().items()) and not G.training
    assert not any(copied.training for copied in made)
    for name, value in made[0].state_dict().items():
        assert all(torch.equal(value, other.state_dict()[name]) for other in made[1:]), name
    wanted = copy.deepcopy(G)
    sampler = LatentSampler(MetricOptions(**opts, trunc=trunc), G, first_stream=3)
    standing_stats.accumulate(wanted, [sampler.items(STANDING_BATCH) for _ in range(2)])
    z, c = LatentSampler(MetricOptions(**opts), G).items(5)
    torch.testing.assert_close(made[0](z, c), wanted(z, c), rtol=0, atol=1e-5)
    assert (made[0](z, c) - evaluation_copy(MetricOptions(**opts))(z, c)).abs().max() > 0.01
    # Other latents than those that are measured
    assert not set(sampler.items(64)[0][:, 0].tolist()) & set(z[:, 0].tolist())


def test_all_metrics_of_images_with_labels_of_the_dataset(run, opts):
    lines = run(["is50k", "fid50k_full", "kid50k_full", "pr50k3_full"])
    assert [list(line["results"]) for line in lines] == [
        ["is50k_mean-digits", "is50k_std-digits"],
        ["fid50k_full-digits"],
        ["kid50k_full-digits"],
        ["pr50k3_full_precision-digits", "pr50k3_full_recall-digits"],
    ]
    assert all(math.isfinite(value) for line in lines for value in line["results"].values())
    assert all(line["provenance"]["statistics"] == "running" and "trunc" not in line["provenance"] for line in lines)
    _z, c = LatentSampler(MetricOptions(**opts), opts["G"]).items(800)
    assert c.sum(dim=0)[2] / 800 == pytest.approx(6 / 8, abs=0.05)


def test_the_inception_score_is_of_ten_parts(run, opts):
    (line,) = run(["is50k"])
    G = copy.deepcopy(opts["G"])
    z, c = LatentSampler(MetricOptions(**opts), G).items(100)
    fakes = metric_utils.images.to_uint8(G(z, c))
    probs = stand_ins.Inception()(fakes, no_output_bias=True).double().numpy()
    scores = []
    for part in probs.reshape(10, 10, 5):
        marginal = part.mean(axis=0, keepdims=True)
        scores.append(np.exp((part * np.log(part / marginal)).sum(axis=1).mean()))
    mean, std = line["results"].values()
    assert mean == pytest.approx(np.mean(scores), rel=1e-5) and std == pytest.approx(np.std(scores), rel=1e-3)


def test_the_result_says_how_images_were_sampled(run, tmp_path):
    (running,), (standing,) = run(["fid50k_full"]), run(["fid50k_full"], standing_stats=2)
    (truncated,) = run(["fid50k_full"], standing_stats=2, trunc=0.5)
    assert standing["provenance"]["statistics"] == truncated["provenance"]["statistics"] == "standing (2 passes of 64)"
    assert truncated["provenance"]["trunc"] == 0.5 and "trunc" not in standing["provenance"]
    values = {line["results"]["fid50k_full-digits"] for line in (running, standing, truncated)}
    assert len(values) == 3
    assert run(["fid50k_full"], standing_stats=2)[0]["results"] == standing["results"]


def test_the_best_snapshot_is_chosen_by_results_of_training(run, tmp_path, opts):
    (line,) = run(["is50k"])
    run(["is50k"], standing_stats=1)
    run(["is50k"], trunc=0.5)
    folder = tmp_path / "run"
    (folder / "network-snapshot-000002.pkl").touch()
    log = folder / "metric-is50k-digits.jsonl"
    lines = [json.loads(text) for text in log.read_text().splitlines()]
    assert len(lines) == 3
    for other in lines[1:]:
        other["snapshot_pkl"], other["results"] = "network-snapshot-000002.pkl", {"is50k_mean-digits": 1e9}
    log.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    best = metric_main.best_snapshot(str(folder), "is50k", opts["detector"])
    assert best == ("network-snapshot-000001.pkl", line["results"]["is50k_mean-digits"])


@pytest.mark.parametrize("name", ["ppl_zfull", "ppl_wfull", "ppl_zend", "ppl_wend", "ppl2_wend"])
def test_path_lengths_are_refused_before_any_work(run, monkeypatch, name):
    monkeypatch.setattr(metric_utils, "compute_feature_stats_of_both", lambda *_: pytest.fail("work before a check"))
    with pytest.raises(UserError, match=rf"^{name} needs a latent space w, which a BigGANGenerator"):
        run(["fid50k_full", name])


def test_the_function_of_path_lengths_refuses_too(opts):
    with pytest.raises(UserError, match="Perceptual path length needs a latent space w"):
        perceptual_path_length.compute_ppl(MetricOptions(**opts), 10, "z", "end", crop=False)


@pytest.mark.parametrize("trunc", [0.0, -1.0])
def test_a_bound_that_no_latent_meets_is_refused(run, trunc):
    with pytest.raises(UserError, match=f"--trunc={trunc:g}"):
        run(["fid50k_full"], trunc=trunc)


def test_flags_of_sampling_need_a_network(run, tmp_path):
    for flags in ({"trunc": 0.5}, {"standing_stats": 3}):
        with pytest.raises(UserError, match=r"--trunc and --standing-stats.*--network"):
            data = str(tmp_path / "data.zip")
            run(["fid50k_full"], network=None, save_stats=str(tmp_path / "x.npz"), data=data, **flags)


def test_psi_of_stylegan2(opts):
    """Truncation moves w; no statistics are named."""
    opts["G"] = stand_ins.tiny_generator(resolution=32, c_dim=3)
    opts["G"].mapping.w_avg.fill_(0.5)
    plain, truncated = (metric_main.calc_metric("fid50k_full", **opts, trunc=trunc) for trunc in (None, 0.3))
    explicit = metric_main.calc_metric("fid50k_full", **opts, G_kwargs={"truncation_psi": 0.3})
    assert truncated.results == explicit.results != plain.results
    assert truncated.provenance.trunc == 0.3 and not {"trunc", "statistics"} & plain.provenance.keys()


def test_stylegan2_has_no_statistics_of_batches(opts):
    opts["G"] = stand_ins.tiny_generator(resolution=32, c_dim=3)
    with pytest.raises(UserError, match=r"--standing-stats=2 needs a network with batch norm.*Generator \(stylegan2\)"):
        metric_main.calc_metric("fid50k_full", **opts, standing_passes=2)
    with pytest.raises(UserError, match="--trunc has no effect on ppl2_wend"):
        metric_main.calc_metric("ppl2_wend", **opts, trunc=0.5)
