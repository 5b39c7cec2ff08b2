# SPDX-License-Identifier: Apache-2.0
import copy
import random

import numpy as np
import pytest
import torch

from dnnlib.util import UserError
from metrics.metric_utils import (
    LatentSampler,
    MetricOptions,
    ProgressMonitor,
    compute_feature_stats_for_dataset,
    compute_feature_stats_for_generator,
)
from tests.metrics import stand_ins
from torch_utils import images

FEATURES = {"return_features": True}


@pytest.fixture
def detector(tmp_path):
    return stand_ins.save_detector(stand_ins.Inception(), tmp_path / "d.pt")


def _random_states():
    return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()


def test_reals_are_in_order_and_grey_images_become_rgb(tmp_path, detector):
    grey = stand_ins.make_images(10, channels=1)
    data = stand_ins.write_zip(tmp_path / "data.zip", grey)
    opts = MetricOptions(dataset_kwargs=stand_ins.dataset_options(data), device="cpu")
    pixels = torch.from_numpy(grey).permute(0, 3, 1, 2).repeat(1, 3, 1, 1)
    expected = stand_ins.Inception()(pixels, return_features=True)
    for max_items in [None, 7, 99]:
        stats = compute_feature_stats_for_dataset(
            opts, detector, FEATURES, batch_size=4, max_items=max_items, capture_all=True
        )
        torch.testing.assert_close(stats.get_all_torch(), expected[:max_items])


def test_fakes_are_uint8_images_of_the_latents_of_the_seed(detector):
    G = stand_ins.tiny_generator(channels=1)
    opts = MetricOptions(G=G, G_kwargs={"noise_mode": "const"}, device="cpu", seed=3)
    stats = compute_feature_stats_for_generator(opts, detector, FEATURES, max_items=10, capture_all=True)
    z, c = LatentSampler(opts, G).items(10)
    pixels = images.to_uint8(G(z, c, noise_mode="const")).repeat(1, 3, 1, 1)
    torch.testing.assert_close(stats.get_all_torch(), stand_ins.Inception()(pixels, return_features=True))


def test_fakes_depend_on_the_seed_and_not_on_the_state_of_the_process(detector):
    def features(seed):
        opts = MetricOptions(G=stand_ins.tiny_generator(), device="cpu", seed=seed)
        return compute_feature_stats_for_generator(
            opts, detector, FEATURES, max_items=70, capture_all=True
        ).get_all_torch()

    first = features(0)
    torch.randn(5), np.random.rand(3)
    assert torch.equal(features(0), first)
    assert not torch.equal(features(1), first)
    assert len(first.unique(dim=0)) == 70


def test_measuring_does_not_change_a_training_run(tmp_path, detector):
    labels = [i % 2 for i in range(10)]
    data = stand_ins.write_zip(tmp_path / "data.zip", stand_ins.make_images(10), labels)
    G = stand_ins.tiny_generator(c_dim=2).train().requires_grad_(True)
    weights = copy.deepcopy(G.state_dict())
    opts = MetricOptions(
        G=G, dataset_kwargs=stand_ins.dataset_options(data, use_labels=True), device="cpu", cache=False
    )
    before = _random_states()
    compute_feature_stats_for_dataset(opts, detector, FEATURES, capture_mean_cov=True)
    compute_feature_stats_for_generator(opts, detector, FEATURES, max_items=10, capture_mean_cov=True)
    assert _random_states() == before
    assert G.training and all(parameter.requires_grad for parameter in G.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in G.state_dict().items())


def test_random_states_are_restored_after_a_failure(detector):
    def fail(module, args, output):
        raise RuntimeError("after drawing noise")

    G = stand_ins.tiny_generator()
    G.synthesis.register_forward_hook(fail)
    before = _random_states()
    with pytest.raises(RuntimeError, match="after drawing noise"):
        compute_feature_stats_for_generator(MetricOptions(G=G, device="cpu"), detector, FEATURES, max_items=10)
    assert _random_states() == before


def test_latents_do_not_depend_on_batches_or_processes(tmp_path):
    labels = [i % 3 for i in range(9)]
    data = stand_ins.write_zip(tmp_path / "data.zip", stand_ins.make_images(9), labels)
    G = stand_ins.tiny_generator(c_dim=3)
    dataset_kwargs = stand_ins.dataset_options(data, use_labels=True)

    def sampler(rank=0, num_gpus=1):
        return LatentSampler(
            MetricOptions(dataset_kwargs=dataset_kwargs, device="cpu", rank=rank, num_gpus=num_gpus), G
        )

    z, c = sampler().items(12)
    one = sampler()
    parts = [one.items(n) for n in (1, 7, 4)]
    assert torch.equal(torch.cat([part[0] for part in parts]), z)
    assert torch.equal(torch.cat([part[1] for part in parts]), c)
    shares = [sampler(rank, 3).items(4) for rank in range(3)]
    assert torch.equal(torch.stack([share[0] for share in shares], dim=1).flatten(0, 1), z)
    assert torch.equal(torch.stack([share[1] for share in shares], dim=1).flatten(0, 1), c)


def test_labels_are_those_of_the_dataset(tmp_path):
    data = stand_ins.write_zip(tmp_path / "data.zip", stand_ins.make_images(8), [0, 2, 2, 2, 2, 2, 2, 2])
    opts = MetricOptions(dataset_kwargs=stand_ins.dataset_options(data, use_labels=True), device="cpu")
    _z, c = LatentSampler(opts, stand_ins.tiny_generator(c_dim=3)).items(4000)
    share = c.mean(dim=0)
    # Binomial with p = 1/8 and n = 4000: standard deviation 0.005.
    assert share[0].item() == pytest.approx(1 / 8, abs=0.025) and share[1] == 0 and share.sum() == 1


def test_labels_of_another_length_are_refused(tmp_path):
    data = stand_ins.write_zip(tmp_path / "data.zip", stand_ins.make_images(4), [0, 1, 0, 1])
    opts = MetricOptions(dataset_kwargs=stand_ins.dataset_options(data, use_labels=True), device="cpu")
    with pytest.raises(UserError, match=r"labels of 3 numbers.*has 2.*--data"):
        LatentSampler(opts, stand_ins.tiny_generator(c_dim=3))


def test_progress_of_parts_adds_up(capsys):
    positions = []
    monitor = ProgressMonitor(verbose=True, progress_fn=lambda position, total: positions.append((position, total)))
    for part in [monitor.sub("reals", 10, 0, 0.5), monitor.sub("fakes", 4, 0.5, 1)]:
        part.update(2)
        part.update(part.num_items)
    assert positions == [(100, 1000), (500, 1000), (750, 1000), (1000, 1000)]
    shown = capsys.readouterr().err
    assert "reals 10/10" in shown and "fakes 4/4" in shown
