# SPDX-License-Identifier: Apache-2.0
"""Fitting a student to its teacher: the distance falls, nothing but G changes, equal seeds give equal weights."""

import copy

import pytest
import torch

from dgl.fit import LAST_RATE, WARMUP, FitLoss, fit, rate, settings
from dgl.prune import inherit
from dgl.teacher import scores_and_features
from tests.dgl import tiny_biggan
from tests.dgl.tiny import C_DIM, Z_DIM, make_D, make_G, same

TEACHER = {"channel_base": 128, "channel_max": 16}


def draw(count):
    return torch.randn([count, Z_DIM]), torch.eye(C_DIM)[torch.randint(C_DIM, [count])]


def pruned(source, **widths):
    student = make_G(1, **widths)
    inherit(source, student)
    return student


def distance(student, source):
    z, c = torch.linspace(-2, 2, 16 * Z_DIM).reshape(16, Z_DIM).sin(), torch.eye(C_DIM).repeat(6, 1)[:16]
    ours, theirs = (G.eval()(z, c, noise_mode="none") for G in (student, source))
    return (ours - theirs).abs().mean().item()


def fitted(seed=0, kimg=1.0, batch_gpu=8):
    source = make_G(7, **TEACHER)
    student = pruned(source)
    torch.manual_seed(seed)
    last = fit(student, source, make_D(9), draw, kimg=kimg, lr=0.03, batch=8, batch_gpu=batch_gpu)
    return student, source, last


@pytest.mark.slow
def test_the_student_approaches_its_teacher():
    source = make_G(7, **TEACHER)
    before = distance(pruned(source), source)
    student, source, last = fitted()
    assert distance(student, source) < 0.7 * before
    assert 0 < last < before


def test_only_the_student_changes():
    student, source, _last = fitted(kimg=0.05)
    assert same(source.state_dict(), make_G(7, **TEACHER).state_dict())
    start = pruned(source)
    assert not torch.equal(student.synthesis.b4.conv1.weight, start.synthesis.b4.conv1.weight)
    for name, buffer in student.named_buffers():
        assert torch.equal(buffer, dict(start.named_buffers())[name]), name
    assert not any(parameter.requires_grad for parameter in student.parameters())


def test_equal_seeds_give_equal_weights():
    first, again, other = (fitted(seed, kimg=0.05)[0].state_dict() for seed in (3, 3, 4))
    assert same(first, again) and not same(first, other)


def test_pieces_give_the_gradients_of_the_batch():
    whole, pieces = (fitted(kimg=0.016, batch_gpu=size)[0] for size in (8, 4))
    for a, b in zip(whole.parameters(), pieces.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_batches_fit_the_groups_of_d():
    source = make_G(7, **TEACHER)
    seen = []
    D = make_D(9, epilogue_kwargs={"mbstd_group_size": 3})
    D.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
    fit(pruned(source), source, D, draw, kimg=0.014, lr=0.03, batch=7, batch_gpu=4)
    assert seen and all(count % 3 == 0 for count in seen)


def test_a_student_equal_to_its_teacher_stays():
    source = make_G(7, **TEACHER)
    loss = FitLoss(copy.deepcopy(source).eval().requires_grad_(True), source.eval(), make_D(9))
    loss.accumulate_gradients("fit", *draw(8), sync=True, gain=1)
    assert loss.distance == 0
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in loss.G.parameters())


def test_rate():
    assert rate(0, 1000) == pytest.approx(1 / WARMUP, rel=1e-4)
    assert rate(1000, 1000) == pytest.approx(LAST_RATE)
    assert max(rate(step, 1000) for step in range(1000)) > 0.95


def test_settings_follow_the_run():
    options = {"num_gpus": 4, "batch_size": 64, "batch_gpu": 2, "G_opt_kwargs": {"lr": 0.002}}
    assert settings(20, options) == {"kimg": 20, "lr": pytest.approx(0.024), "batch": 4, "batch_gpu": 2}
    assert settings(20, {**options, "num_gpus": 64})["batch"] == 1
    assert settings(20, {**options, "num_gpus": 64}, least=2)["batch"] == 2


@pytest.mark.slow
def test_a_biggan_approaches_its_teacher_in_evaluation():
    """It is fitted with the statistics of its batches, and its running ones are made for what it has become."""
    source, D = tiny_biggan.make_G(7, ch=4), tiny_biggan.make_D(9, ch=4)
    before = [copy.deepcopy(net.state_dict()) for net in (source, D)]
    student = tiny_biggan.make_G(1, ch=2)
    inherit(source, student)
    target = tiny_biggan.images(source, 64)

    def away(G):
        return (tiny_biggan.images(G, 64) - target).abs().mean().item()

    def some(count):
        return torch.randn([count, tiny_biggan.Z_DIM]), tiny_biggan.labels(count)

    start, weight = away(student), student.linear.weight.clone()
    torch.manual_seed(0)
    last = fit(student, source, D, some, kimg=0.8, lr=0.005, batch=16, batch_gpu=16)
    assert away(student) < 0.7 * start and 0 < last < 0.7 * start
    assert student.training and not torch.equal(student.linear.weight, weight)
    assert not any(parameter.requires_grad for parameter in student.parameters())
    assert all(same(net.state_dict(), state) for net, state in zip((source, D), before))
    (made, of_batch) = (G(*some(200)) for G in (copy.deepcopy(student).eval(), copy.deepcopy(student)))
    torch.testing.assert_close(made.std(), of_batch.std(), rtol=0.1, atol=0)


def test_features_of_a_biggan_are_those_of_every_stage():
    D = tiny_biggan.make_D(9, resolution=64, ch=8, attn_res=(16,)).eval()
    scores, features = scores_and_features(D, torch.zeros([2, 3, 64, 64]), tiny_biggan.labels(2))
    assert [tuple(x.shape[1:]) for x in features] == [(8, 32, 32), (16, 16, 16), (32, 8, 8), (64, 4, 4), (128, 4, 4)]
    x = D.blocks.get_submodule("0.0")(torch.zeros([2, 3, 64, 64]))
    x = D.blocks.get_submodule("1.1")(D.blocks.get_submodule("1.0")(x))
    assert torch.equal(features[1], x) and scores.shape == (2, 1)
