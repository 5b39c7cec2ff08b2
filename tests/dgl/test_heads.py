# SPDX-License-Identifier: Apache-2.0
"""Fresh heads on frozen features: what is trained, what is not, and what is saved."""

import copy

import pytest
import torch

from dgl.heads import HeadsTerm
from dgl.teacher import open_teacher
from tests.dgl.tiny import BATCH, C_DIM, CHANNELS, RESOLUTION, Student, same, save_teacher
from tests.support import rnd
from torch_utils import misc
from training.loss import Fakes, d_logistic_fake, d_logistic_real, g_nonsaturating
from training.phases import run_phase

C = torch.eye(C_DIM)[[0, 1, 2, 0]]
SHAPE = (BATCH, CHANNELS, RESOLUTION, RESOLUTION)
TERM = "dgl.heads.HeadsTerm"


@pytest.fixture
def teacher(tmp_path):
    return save_teacher(tmp_path)


def batch(name, shift=0.0):
    return rnd(name, SHAPE) * 0.3 + shift


def train(term, steps, fake_shift):
    (phase,) = term.phases()
    for step in range(steps):
        fakes = Fakes(rnd(f"z{step}", (BATCH, 8)), C, None, batch(f"fake{step}", fake_shift))

        class Trained:
            def accumulate_gradients(self, phase, sync, gain, real_img, fakes=fakes):
                term.accumulate_gradients(phase, real_img, C, fakes, gain)

        run_phase(phase, Trained(), [{"real_img": batch(f"real{step}")}])


def test_a_weight_of_zero_leaves_training_as_it_was(teacher):
    plain = Student([teacher], dgl_weight=0).train()
    off = Student([teacher], dgl_weight=0, terms=[{"class_name": TERM, "weight": 0}])
    assert same(plain, off.train()) and off.loss.extra_phases() == []


def test_value(teacher):
    opened = open_teacher(teacher)
    term = HeadsTerm([opened], weight=0.5)
    img = batch("img").requires_grad_(True)
    loss = term(Fakes(rnd("z", (BATCH, 8)), C, None, img))
    _scores, features = opened.scores_and_features(img, C)
    each = [g_nonsaturating(head(feature, C)) for head, feature in zip(term.heads.heads, features)]
    torch.testing.assert_close(loss, 0.5 * sum(each) / len(each))
    loss.sum().backward()
    assert img.grad.abs().sum() > 0


def test_only_the_heads_are_trained(teacher):
    opened = open_teacher(teacher)
    before = [tensor.clone() for tensor in misc.params_and_buffers(opened.D)]
    term = HeadsTerm([opened])
    weights = [parameter.clone() for parameter in term.heads.parameters()]
    train(term, 3, fake_shift=0.5)
    assert all(map(torch.equal, before, misc.params_and_buffers(opened.D)))
    assert not any(map(torch.equal, weights, term.heads.parameters()))
    assert not any(parameter.requires_grad for parameter in term.heads.parameters())


def test_heads_learn_to_tell_fakes_from_reals(teacher):
    fast = {"class_name": "torch.optim.Adam", "lr": 0.02, "betas": [0, 0.99]}
    term = HeadsTerm([open_teacher(teacher)], opt_kwargs=fast)

    def separation():
        real, fake = batch("judged"), batch("other", 0.5)
        _s, ours = term.teacher.scores_and_features(real, C)
        _s, theirs = term.teacher.scores_and_features(fake, C)
        term.heads.eval()
        return (term.heads(ours, C, d_logistic_real) + term.heads(theirs, C, d_logistic_fake)).mean().item()

    before = separation()
    train(term, 40, fake_shift=0.5)
    assert separation() < before - 0.02


def test_heads_and_their_optimiser_are_restored(teacher):
    first = HeadsTerm([open_teacher(teacher)])
    train(first, 2, fake_shift=0.5)
    second = HeadsTerm([open_teacher(teacher)])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for term in (first, second):
        train(term, 2, fake_shift=0.2)
    assert same(first.heads.state_dict(), second.heads.state_dict())
