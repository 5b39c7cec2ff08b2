# SPDX-License-Identifier: Apache-2.0
import copy
from typing import NamedTuple

import numpy as np
import pytest
import torch

from dgl.loss import DGLLoss
from dgl.terms import FORMS, WEIGHTINGS
from dnnlib.util import UserError
from tests import tolerances
from tests.dgl.tiny import BATCH, NoisyPipe, Student, make_D, same, save_teacher
from tests.support import rnd
from torch_utils import training_stats
from training.loss import Term

DGL_STATS = "Loss/DGL/.*"


@pytest.fixture
def teacher(tmp_path):
    return save_teacher(tmp_path)


class Calls(NamedTuple):
    """Inputs and outputs of a network, call by call, and the gradients in the outputs, pass by pass."""

    inputs: list[tuple[torch.Tensor, ...]]
    outputs: list[torch.Tensor]
    gradients: list[torch.Tensor]


def spy(network: torch.nn.Module) -> Calls:
    """Records the calls of `network` from now on."""
    calls = Calls([], [], [])

    def record(_network, inputs, output):
        calls.inputs.append(tuple(tensor.detach() for tensor in inputs))
        calls.outputs.append(output.detach())
        if output.requires_grad:
            output.register_hook(calls.gradients.append)

    network.register_forward_hook(record)
    return calls


def spy_on_teachers(student: Student) -> list[Calls]:
    return [spy(teacher.D) for teacher in student.loss.teachers]


def loss_of_teacher(scores: torch.Tensor, form: str = "logistic", weighting: str = "plain") -> torch.Tensor:
    """One teacher's share of the generator's loss, before λ."""
    return WEIGHTINGS[weighting](scores) * FORMS[form](scores)


# λ = 0 and the switch


@pytest.mark.parametrize(
    "pipe, kwargs",
    [(None, {}), (NoisyPipe(), {"dgl_augment": True}), (NoisyPipe(), {"dgl_weighting": "score"})],
    ids=["clean", "augment", "score"],
)
def test_zero_weight_trains_bit_for_bit_as_no_teacher(teacher, pipe, kwargs):
    plain = Student(augment_pipe=pipe).train()
    np.random.seed(0)
    guided = Student([teacher], augment_pipe=pipe, dgl_weight=0, **kwargs).train()
    assert same(guided, plain)
    assert np.random.randint(2**31) == np.random.RandomState(0).randint(2**31)


def test_zero_weight_never_evaluates_the_teacher_and_reports_nothing(teacher):
    student = Student([teacher], dgl_weight=0)
    (calls,) = spy_on_teachers(student)
    stats = training_stats.Collector(DGL_STATS, keep_previous=False)
    student.train()
    stats.update()
    assert not calls.outputs
    assert all(stats.num(name) == 0 for name in stats.names())


def test_a_teacher_changes_the_generator_but_no_random_draw(teacher):
    plain, guided = Student().train(steps=1), Student([teacher]).train(steps=1)
    assert torch.equal(plain["rng"], guided["rng"])
    assert not torch.equal(plain["G.synthesis.b16.conv1.weight"], guided["G.synthesis.b16.conv1.weight"])


@pytest.mark.parametrize("dgl_start, off, on", [(2, 1999, 2000), (0.5, 499, 500), (0, None, 0)])
def test_the_term_starts_exactly_at_its_kimg(teacher, dgl_start, off, on):
    plain, student = Student().gradients("Gmain"), Student([teacher], dgl_start=dgl_start)
    if off is not None:
        student.loss.begin_iteration(cur_nimg=off, new_tick=False)
        assert same(student.gradients("Gmain"), plain)
    student.loss.begin_iteration(cur_nimg=on, new_tick=False)
    assert not same(student.gradients("Gmain"), plain)


def test_a_late_start_does_not_guide_before_the_first_begin_iteration(teacher):
    assert same(Student([teacher], dgl_start=1).gradients("Gmain"), Student().gradients("Gmain"))


# The teacher is frozen


def test_the_teacher_is_bit_identical_after_training_and_has_no_gradients(teacher):
    student = Student([teacher], dgl_weight=5)
    D = student.loss.teachers[0].D
    before = copy.deepcopy(D.state_dict())
    student.train(steps=4)
    assert same(dict(D.state_dict()), dict(before))
    assert all(p.grad is None and not p.requires_grad for p in D.parameters())
    assert not D.training


def test_a_teacher_keeps_its_own_minibatch_groups(tmp_path):
    D = make_D(5, epilogue_kwargs={"mbstd_group_size": 2})
    path = save_teacher(tmp_path, 5, channel_base=64, channel_max=8, epilogue_kwargs={"mbstd_group_size": 2})
    student = Student([path], D_overrides={"epilogue_kwargs": {"mbstd_group_size": 4}})
    img, c = rnd("img", (BATCH, 3, 16, 16)), student.inputs()["gen_c"]
    scores = student.loss.teachers[0].scores(img, c)
    assert torch.equal(scores, D(img, c))
    assert not torch.allclose(scores, make_D(5, epilogue_kwargs={"mbstd_group_size": 4})(img, c))


# Gradients: DGL-GAN's objective


@pytest.mark.parametrize(
    "form, weighting, slope",
    [
        ("logistic", "plain", lambda s: -torch.sigmoid(-s)),
        ("logistic", "score", lambda s: -(-s).clamp_min(0) * torch.sigmoid(-s)),
        ("hinge", "plain", lambda s: -torch.ones_like(s)),
        ("hinge", "score", lambda s: -(-s).clamp_min(0)),
    ],
)
def test_slope_of_each_term(form, weighting, slope):
    scores = torch.tensor([[-30.0], [-2.0], [-0.1], [0.0], [0.3], [2.0], [30.0]], dtype=torch.float64)
    scores.requires_grad_(True)
    N, weight = len(scores), 0.7
    (weight * loss_of_teacher(scores, form, weighting)).mean().backward()
    torch.testing.assert_close(scores.grad, weight * slope(scores.detach()) / N, **tolerances.TEACHER_SLOPES)


@pytest.mark.parametrize("weighting", ["plain", "score"])
@pytest.mark.parametrize("weight, gain", [(0.1, 1), (0.5, 4)])
def test_slope_of_the_whole_generator_loss_in_each_teachers_scores(tmp_path, weighting, weight, gain):
    paths = [save_teacher(tmp_path, seed, f"{seed}.pkl") for seed in (100, 101)]
    student = Student(paths, dgl_weight=weight, dgl_weighting=weighting)
    seen = spy_on_teachers(student)
    student.gradients("Gmain", gain=gain)
    for calls in seen:
        (s,) = calls.outputs
        expected = -weight * gain * torch.sigmoid(-s) / BATCH
        if weighting == "score":
            expected = expected * (-s).clamp_min(0)
        torch.testing.assert_close(calls.gradients[-1], expected, rtol=1e-5, atol=1e-9)
    signs = torch.cat([calls.outputs[0].sign() for calls in seen])
    assert signs.unique().numel() == 2, "the case should have scores of both signs"


def test_an_ensemble_adds_up(tmp_path):
    paths = [save_teacher(tmp_path, seed, f"{seed}.pkl") for seed in (100, 101)]
    plain = Student().gradients("Gmain")
    one, two, both = (Student(p, dgl_weight=1).gradients("Gmain") for p in (paths[:1], paths[1:], paths))
    name = "G.synthesis.b8.conv1.weight"
    torch.testing.assert_close(both[name] - plain[name], one[name] + two[name] - 2 * plain[name], rtol=1e-4, atol=1e-6)


def test_a_conditional_teacher_sees_the_labels_of_the_fakes(teacher):
    student = Student([teacher])
    (calls,) = spy_on_teachers(student)
    student.gradients("Gmain")
    ((img, c),) = calls.inputs
    assert torch.equal(c, student.inputs()["gen_c"])
    scores = student.loss.teachers[0].scores
    assert not torch.equal(scores(img, c), scores(img, c.roll(1, 1)))


@pytest.mark.parametrize("dgl_augment", [False, True])
def test_teachers_see_clean_fakes_by_default(teacher, dgl_augment):
    student = Student([teacher], augment_pipe=NoisyPipe(), dgl_augment=dgl_augment)
    made, (calls,) = spy(student.G.synthesis), spy_on_teachers(student)
    student.gradients("Gmain")
    (fakes,), ((shown, _c),) = made.outputs, calls.inputs
    assert torch.equal(shown, fakes) is not dgl_augment
    if dgl_augment:
        torch.testing.assert_close(shown, fakes * 0.5, rtol=0, atol=1)


# Phases without a teacher term


@pytest.mark.parametrize("phase", ["Dmain", "Dboth", "Dreg", "Greg"])
def test_discriminator_and_lazy_phases_are_those_without_a_teacher(teacher, phase):
    plain, guided = Student(), Student([teacher], dgl_weight=3)
    (calls,) = spy_on_teachers(guided)
    stats = training_stats.Collector("Loss/(D|G|r1|pl).*", keep_previous=False)
    results = []
    for student in (plain, guided):
        gradients = student.gradients(phase)
        stats.update()
        results.append((gradients, stats.as_dict()))
    assert same(results[0][0], results[1][0])
    assert repr(results[0][1]) == repr(results[1][1])
    assert any(gradient is not None and gradient.any() for gradient in results[0][0].values())
    assert not calls.outputs


def test_the_main_part_of_a_joint_phase_is_guided_once(teacher):
    student = Student([teacher])
    (calls,) = spy_on_teachers(student)
    student.gradients("Gboth")
    assert len(calls.outputs) == 1


# Statistics


def test_statistics_of_scores_and_terms(tmp_path):
    paths = [save_teacher(tmp_path, seed, f"{seed}.pkl") for seed in (100, 101)]
    student = Student(paths, dgl_weighting="score")
    seen = spy_on_teachers(student)
    stats = training_stats.Collector(DGL_STATS, keep_previous=False)
    student.gradients("Gmain")
    stats.update()
    assert {f"Loss/DGL/{n}{i}" for n in ("scores", "loss") for i in (0, 1)} <= set(stats.names())
    for i, calls in enumerate(seen):
        (s,) = calls.outputs
        assert stats.num(f"Loss/DGL/scores{i}") == BATCH
        assert stats[f"Loss/DGL/scores{i}"] == pytest.approx(float(s.mean()), rel=1e-5)
        assert stats[f"Loss/DGL/loss{i}"] == pytest.approx(
            float(loss_of_teacher(s, weighting="score").mean()), rel=1e-5
        )


def test_gradient_ratio_is_measured_once_a_tick_and_right(teacher):
    weight = 0.3
    student = Student([teacher], dgl_weight=weight)
    stats = training_stats.Collector(DGL_STATS, keep_previous=False)

    def measured(new_tick):
        student.loss.begin_iteration(0, new_tick)
        student.gradients("Gmain")
        student.gradients("Gmain")
        stats.update()
        return stats.num("Loss/DGL/grad_ratio")

    assert [measured(new_tick) for new_tick in (True, False, True)] == [1, 0, 1]

    (fakes,), c = student.images("Gmain"), student.inputs()["gen_c"]
    norms = []
    for D in (student.loss.teachers[0].D, student.D):
        img = fakes.requires_grad_(True)
        img.grad = None
        torch.nn.functional.softplus(-D(img, c)).sum().backward()
        norms.append(img.grad.norm())
    assert stats["Loss/DGL/grad_ratio"] == pytest.approx(float(weight * norms[0] / norms[1]), rel=1e-4)


def test_measuring_the_gradient_ratio_changes_nothing(teacher):
    stats = training_stats.Collector(DGL_STATS, keep_previous=False)
    states = []
    for measured in (True, False):
        student = Student([teacher])
        student.loss.load_state_dict({**student.loss.state_dict(), "terms": [{"ratio_due": measured}]})
        states.append(student.train(new_tick=measured))
        stats.update()
        assert stats.num("Loss/DGL/grad_ratio") == measured
    assert same(*states)


def test_no_gradient_ratio_where_d_has_no_gradient(teacher):
    student = Student([teacher])
    for tensor in student.D.parameters():
        tensor.zero_()
    stats = training_stats.Collector(DGL_STATS, keep_previous=False)
    student.gradients("Gmain")
    stats.update()
    assert stats.num("Loss/DGL/grad_ratio") == 0 and "Loss/DGL/grad_ratio" in stats.names()


# State of a run


def test_state_names_the_teachers_and_is_restored(teacher):
    student, again = Student([teacher], dgl_weight=0.2), Student([teacher], dgl_weight=0.2)
    student.train()
    state = student.loss.state_dict()
    record = student.loss.teachers[0]
    assert state["dgl"] == {"teachers": [{"path": teacher, "sha256": record.sha256}], "weight": 0.2}
    again.loss.load_state_dict(state)
    restored = again.loss.state_dict()
    assert restored["dgl"] == state["dgl"] and restored["terms"] == state["terms"]
    assert torch.equal(restored["pl_mean"], state["pl_mean"]) and state["pl_mean"] != 0


def test_state_of_other_teachers_is_refused(tmp_path, teacher):
    other = save_teacher(tmp_path, 101, "other.pkl")
    with pytest.raises(UserError, match=r"--dgl-teacher.*teacher\.pkl"):
        Student([other]).loss.load_state_dict(Student([teacher]).loss.state_dict())


def test_a_ratio_that_was_due_is_due_after_a_restart(teacher):
    stats = training_stats.Collector(DGL_STATS, keep_previous=False)
    for measured in (False, True):
        student, again = Student([teacher]), Student([teacher])
        if measured:
            student.gradients("Gmain")
        again.loss.load_state_dict(student.loss.state_dict())
        stats.update()
        again.gradients("Gmain")
        stats.update()
        assert stats.num("Loss/DGL/grad_ratio") == (0 if measured else 1)


# The base loss


class NotOurs:
    """A loss without terms."""

    def __init__(self, device, **modules):
        self.device = device


def test_a_base_loss_that_takes_no_terms_is_refused(teacher):
    with pytest.raises(UserError, match=r"--dgl-teacher.*NotOurs") as error:
        DGLLoss(device=torch.device("cpu"), teachers=[{"path": teacher}], base_class=f"{__name__}.NotOurs")
    assert "\n" not in str(error.value)


def test_the_base_loss_gets_the_other_arguments(teacher):
    stats = training_stats.Collector("Loss/D/reg", keep_previous=False)
    for r1_gamma, reported in ((0, 0), (3, BATCH)):
        Student([teacher], r1_gamma=r1_gamma).gradients("Dreg")
        stats.update()
        assert stats.num("Loss/D/reg") == reported


# Further terms, and what the loss shares with its base


class Matching(Term):
    """Mean squared difference to the matching images of the first teacher."""

    needs_teacher_G = True

    def __init__(self, teachers, weight):
        self.teacher, self.weight = teachers[0], weight

    def __call__(self, fakes):
        difference = fakes.img - self.teacher.matching_images(fakes)
        return self.weight * difference.square().mean(dim=(1, 2, 3)).unsqueeze(1)


def test_a_term_named_in_the_options_draws_images_of_the_teacher(tmp_path):
    teacher = save_teacher(tmp_path)
    gradients = []
    for weight in (0, 1):
        terms = [{"class_name": f"{__name__}.Matching", "weight": weight}]
        student = Student([teacher], dgl_weight=0, terms=terms)
        assert student.loss.teachers[0].G is not None
        gradients.append(student.gradients("Gmain")["G.synthesis.b16.torgb.weight"])
    assert not torch.equal(*gradients)


def test_generators_of_teachers_are_freed_where_no_term_needs_them(tmp_path):
    assert Student([save_teacher(tmp_path)]).loss.teachers[0].G is None


def test_what_is_not_guidance_is_asked_of_the_base(tmp_path):
    pipe = NoisyPipe()
    student = Student([save_teacher(tmp_path)], augment_pipe=pipe)
    loss = student.loss
    assert len(loss.terms) == 1 and loss.terms is loss.base.terms
    assert loss.augment_pipe is pipe and loss.D is student.D and loss.pl_mean is loss.base.pl_mean
    with pytest.raises(AttributeError):
        loss.nonsense  # noqa: B018


class Deaf:
    """A loss of another project, which takes no terms."""

    def __init__(self, device, **parts):
        self.device = device


def test_a_base_that_takes_no_terms_is_refused():
    with pytest.raises(UserError, match=r"--dgl-teacher: .*Deaf, which takes no terms"):
        DGLLoss(torch.device("cpu"), teachers=[], base_class=f"{__name__}.Deaf")
