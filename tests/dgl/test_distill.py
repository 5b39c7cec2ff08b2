# SPDX-License-Identifier: Apache-2.0
"""Distillation: aligned draws, the distances and their weights, what is not evaluated."""

import pytest
import torch

from dgl.distill import DistillationTerm, feature_distance, l1_distance, verdict_distance
from dgl.schedule import cosine_decay
from dgl.teacher import open_teacher
from dnnlib.util import UserError
from tests.dgl.tiny import BATCH, C_DIM, CHANNELS, RESOLUTION, Student, make_D, make_G, same, save_teacher
from tests.support import rnd
from training.files.snapshot import save_snapshot
from training.loss import Fakes

C = torch.eye(C_DIM)[[0, 1, 2, 0]]
SHAPE = (BATCH, CHANNELS, RESOLUTION, RESOLUTION)
TERM = "dgl.distill.DistillationTerm"


def noisy_G(seed, **widths):
    """A generator whose noise shows."""
    G = make_G(seed, **widths)
    for name, parameter in G.named_parameters():
        if name.endswith("noise_strength"):
            parameter.data.fill_(0.5)
    return G


@pytest.fixture
def twin(tmp_path):
    """A teacher whose generator is the student's."""
    G = noisy_G(1)
    save_snapshot(str(tmp_path / "twin.pkl"), {"G": G, "D": make_D(9), "G_ema": G})
    return str(tmp_path / "twin.pkl")


def distilled(teacher, **weights):
    student = Student([teacher], dgl_weight=0, terms=[{"class_name": TERM, **weights}], style_mixing_prob=0.9)
    student.G.load_state_dict(noisy_G(1).state_dict())
    return student


class Targets(DistillationTerm):
    """Keeps fakes and targets."""

    def __call__(self, fakes):
        self.seen = (fakes.img.detach(), self.teacher.matching_images(fakes))
        return super().__call__(fakes)


@pytest.mark.parametrize("seed", range(3))
def test_the_target_of_a_student_equal_to_its_teacher_is_its_own_image(twin, seed):
    student = distilled(twin, output_weight=1.0)
    term = Targets([open_teacher(twin)], output_weight=1.0)
    student.loss.base.terms = [term]
    student.G.requires_grad_(True)
    torch.manual_seed(seed)
    student.loss.accumulate_gradients("Gmain", sync=True, gain=1, **student.inputs(seed))
    img, target = term.seen
    torch.testing.assert_close(img, target, rtol=0, atol=1e-5)
    assert img.std() > 0.01


def test_distillation_draws_no_random_numbers(twin):
    rng = [distilled(twin, output_weight=weight).train(steps=2)["rng"] for weight in (0.0, 2.0)]
    assert torch.equal(*rng)


def test_weights_of_zero_leave_training_as_it_was(twin):
    plain = Student([twin], dgl_weight=0).train()
    assert same(plain, Student([twin], dgl_weight=0, terms=[{"class_name": TERM}]).train())


def test_l1_distance():
    img, target = rnd("a", SHAPE), rnd("b", SHAPE)
    expected = torch.stack([(x - y).abs().mean() for x, y in zip(img, target)]).unsqueeze(1)
    torch.testing.assert_close(l1_distance(img, target), expected)


def test_feature_distance_compares_directions():
    f, g = rnd("f", (2, 5, 4, 4)), rnd("g", (2, 5, 4, 4))
    cosine = torch.nn.functional.cosine_similarity(f, g, dim=1).mean(dim=[1, 2])
    torch.testing.assert_close(feature_distance([f, f], [g, 3 * f]), (2 - 2 * cosine).unsqueeze(1))


def test_verdict_distance_is_relative_to_the_target():
    a, b = torch.tensor([[0.5]]), torch.tensor([[-0.5]])
    sp = torch.nn.functional.softplus
    first = ((sp(-b) - sp(-a)) / sp(-b)) ** 2
    second = ((sp(b) - sp(a)) / sp(b)) ** 2
    torch.testing.assert_close(verdict_distance(a, b), first + 0.5 * second)
    assert verdict_distance(b, b).item() == 0
    assert verdict_distance(torch.tensor([[-5.0]]), torch.tensor([[90.0]])).isfinite().all()


def test_value_and_gradient(tmp_path):
    teacher = open_teacher(save_teacher(tmp_path))
    img = (rnd("img", SHAPE) * 0.3).requires_grad_(True)
    fakes = Fakes(rnd("z", (BATCH, 8)), C, None, img)
    target = teacher.matching_images(fakes)
    term = DistillationTerm([teacher], output_weight=2.0, feature_weight=3.0, verdict_weight=5.0)
    loss = term(fakes)
    (ours, our_features), (theirs, their_features) = map(teacher.scores_and_features, (img, target), (C, C))
    expected = 2 * l1_distance(img, target)
    expected = expected + 3 * feature_distance(our_features, their_features) + 5 * verdict_distance(ours, theirs)
    torch.testing.assert_close(loss, expected)
    (gradient,), (wanted,) = (torch.autograd.grad(x.sum(), img, retain_graph=True) for x in (loss, expected))
    torch.testing.assert_close(gradient, wanted)
    assert gradient.abs().sum() > 0 and loss.shape == (BATCH, 1)


def test_features_are_the_blocks_of_d(tmp_path):
    teacher = open_teacher(save_teacher(tmp_path))
    img = rnd("img", SHAPE)
    scores, features = teacher.scores_and_features(img, C)
    assert torch.equal(scores, teacher.scores(img, C))
    assert [list(feature.shape[2:]) for feature in features] == [[8, 8], [4, 4]]
    assert teacher.scores_and_features(img, C)[1][0] is not features[0], "hooks must not pile up"
    assert len(features) == 2


def test_the_weights_fall_to_nothing(tmp_path):
    term = DistillationTerm([open_teacher(save_teacher(tmp_path))], output_weight=1.0, stop=10)
    scales = []
    for nimg in (0, 5000, 9999, 10000):
        term.begin_iteration(nimg, False)
        scales.append(term.scale if term.active else None)
    assert scales[0] == 1 and scales[1] == pytest.approx(0.5) and 0 < scales[2] < 1e-6 and scales[3] is None


def test_cosine_decay():
    assert [cosine_decay((t - 2) / (6 - 2)) for t in (0, 2, 4, 6, 9)] == pytest.approx([1, 1, 0.5, 0, 0])


def test_a_teacher_without_a_generator_is_refused(tmp_path):
    teacher = open_teacher(save_teacher(tmp_path)).without_G()
    with pytest.raises(UserError, match="has no generator to distil"):
        DistillationTerm([teacher], output_weight=1.0)


def test_training_approaches_the_teacher(tmp_path):
    teacher = save_teacher(tmp_path)
    student = Student([teacher], dgl_weight=0, terms=[{"class_name": TERM, "output_weight": 100.0}])
    opened = open_teacher(teacher)

    def distance():
        z = rnd("judged", (16, 8))
        c = torch.eye(C_DIM).repeat(6, 1)[:16]
        ours, theirs = (G.eval()(z, c, noise_mode="none") for G in (student.G, opened.G))
        student.G.train()
        return (ours - theirs).abs().mean().item()

    before = distance()
    student.train(steps=12)
    assert distance() < 0.9 * before
