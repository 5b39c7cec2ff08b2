# SPDX-License-Identifier: Apache-2.0
"""Live teachers: the formulas of their phases, what they change, their state, and their fixed point."""

import copy
import hashlib
import pathlib

import pytest
import torch
from torch.nn.functional import relu, softplus

from dgl.live import LiveTerm
from tests.dgl.tabular import DATA, IMAGES, LABELS, Table, TableLoss, TableTeacher, batch_of, distance, play
from tests.dgl.tiny import ADAM, NoisyPipe, Student, same, save_teacher
from torch_utils import training_stats
from training.phases import run_phase

PHASES = ["teacher0main", "teacher0reg"]


@pytest.fixture
def teacher(tmp_path):
    return save_teacher(tmp_path)


def live_student(*teachers, **kwargs) -> Student:
    return Student(list(teachers), **{"dgl_update": ADAM, "r1_gamma": 2.0, **kwargs})


def gradients_of_teacher(student: Student, phase: str, gain: float = 1) -> dict:
    D = student.loss.teachers[0].D.requires_grad_(True)
    D.zero_grad(set_to_none=True)
    torch.manual_seed(4)
    student.loss.accumulate_gradients(phase, sync=True, gain=gain, **student.inputs())
    D.requires_grad_(False)
    return {name: copy.deepcopy(p.grad) for name, p in D.named_parameters()}


def advance(student: Student, steps: range) -> None:
    """The phases of the teachers in iterations `steps`, with G and D as they are."""
    for step in steps:
        torch.manual_seed(step)
        student.loss.begin_iteration(cur_nimg=step, new_tick=False)
        for phase in student.loss.extra_phases():
            if phase.is_due(step):
                run_phase(phase, student.loss, [student.inputs(step)])


# The formulas


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("form", ["logistic", "hinge"])
@pytest.mark.parametrize("augmented", [False, True])
def test_gradients_of_a_teacher(teacher, phase, form, augmented):
    """They are those of the losses written down with autograd; fakes and reals are augmented in that order."""
    pipe = NoisyPipe() if augmented else None
    student = live_student(teacher, augment_pipe=pipe, dgl_augment=True, dgl_form=form)
    found = gradients_of_teacher(student, phase, gain=3)
    inputs, loss = student.inputs(), student.loss
    D = loss.teachers[0].D.requires_grad_(True)
    D.zero_grad(set_to_none=True)

    def score(img, c):
        return D(pipe(img) if augmented else img, c)

    torch.manual_seed(4)
    with torch.no_grad():
        img, _ws = loss.run_G(inputs["gen_z"], inputs["gen_c"])
    if phase == "teacher0main":
        s, r = score(img, inputs["gen_c"]), score(inputs["real_img"], inputs["real_c"])
        expected = softplus(s) + softplus(-r) if form == "logistic" else relu(1 + s) + relu(1 - r)
    else:
        real = inputs["real_img"].clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(score(real, inputs["real_c"]).sum(), real, create_graph=True)
        expected = 2.0 / 2 * slope.square().sum(dim=(1, 2, 3))
    (3 * expected.mean()).backward()
    for name, p in D.named_parameters():
        wanted = torch.zeros_like(p) if p.grad is None else p.grad
        torch.testing.assert_close(found[name], wanted, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in (*student.G.parameters(), *student.D.parameters()))


def test_clean_images_without_dgl_augment(teacher):
    plain, piped = (live_student(teacher, augment_pipe=pipe) for pipe in (None, NoisyPipe()))
    assert same(*(gradients_of_teacher(student, "teacher0main") for student in (plain, piped)))


def test_phases_and_optimisers(tmp_path):
    """One optimiser for each teacher, corrected for lazy regularisation; without R1 one phase and no correction."""
    paths = [save_teacher(tmp_path, seed, f"{seed}.pkl") for seed in (100, 101)]
    phases = live_student(*paths).loss.extra_phases()
    assert [(p.name, p.interval) for p in phases] == [
        ("teacher0main", 1), ("teacher0reg", 16), ("teacher1main", 1), ("teacher1reg", 16)
    ]  # fmt: skip
    assert phases[0].optimizer is phases[1].optimizer and phases[0].optimizer is not phases[2].optimizer
    (group,) = phases[0].optimizer.param_groups
    assert group["lr"] == pytest.approx(0.01 * 16 / 17) and group["betas"] == pytest.approx([0, 0.99 ** (16 / 17)])
    (phase,) = live_student(paths[0], r1_gamma=0).loss.extra_phases()
    assert (phase.interval, phase.optimizer.param_groups[0]["lr"]) == (1, 0.01)


def test_statistics(teacher):
    stats = training_stats.Collector("Loss/.*", keep_previous=False)
    student = live_student(teacher)
    for phase in PHASES:
        gradients_of_teacher(student, phase)
    stats.update()
    reported = {name for name in stats.names() if stats.num(name)}
    assert reported == {"Loss/DGL/real_scores0", "Loss/DGL/D_loss0", "Loss/DGL/r1_penalty0"}


# What they change


def test_the_trained_network_guides_and_the_file_stays(teacher):
    digest = hashlib.sha256(pathlib.Path(teacher).read_bytes()).hexdigest()
    student, frozen = live_student(teacher), Student([teacher], r1_gamma=2.0)
    assert same(student.gradients("Gmain"), frozen.gradients("Gmain"))
    D = student.loss.teachers[0].D
    assert all(p.grad is None and not p.requires_grad for p in D.parameters())
    advance(student, range(3))
    assert all(not p.requires_grad for p in D.parameters()) and D.training
    assert not same(student.gradients("Gmain"), frozen.gradients("Gmain"))
    for phase in ("Dmain", "Dreg", "Greg"):
        assert same(student.gradients(phase), frozen.gradients(phase))
    assert hashlib.sha256(pathlib.Path(teacher).read_bytes()).hexdigest() == digest


def test_teachers_rest_before_the_start_of_guidance(teacher):
    student = live_student(teacher, dgl_start=1)
    before = copy.deepcopy(student.loss.teachers[0].D.state_dict())
    advance(student, range(998, 1000))
    assert same(dict(student.loss.teachers[0].D.state_dict()), dict(before))
    advance(student, range(1000, 1001))
    assert not same(dict(student.loss.teachers[0].D.state_dict()), dict(before))


# State


def test_continues_exactly(tmp_path):
    paths = [save_teacher(tmp_path, seed, f"{seed}.pkl") for seed in (100, 101)]
    student, again = live_student(*paths), live_student(*paths)
    advance(student, range(14, 18))
    state = student.loss.state_dict()
    saved = state["terms"][0]["teachers"][1]
    kept = copy.deepcopy(saved)
    again.loss.load_state_dict(state)
    for one in (student, again):
        advance(one, range(30, 34))
    for ours, theirs in zip(student.loss.teachers, again.loss.teachers):
        assert same(dict(ours.D.state_dict()), dict(theirs.D.state_dict()))
    assert not same(saved["D"], dict(again.loss.teachers[1].D.state_dict()))
    moments = [state["optimizer"]["state"][0] for state in (saved, kept)]
    assert same(saved["D"], kept["D"]) and same(*moments), "a state is a copy"


# The fixed point


@pytest.mark.slow
def test_a_wrong_verdict_is_unlearned_and_p_data_is_stationary():
    live, D = TableTeacher(), Table(torch.zeros(len(DATA)))
    term = LiveTerm([live], opt_kwargs={**ADAM, "lr": 0.1}, weight=0.3)
    (phase,) = term.phases()
    loss, reals = TableLoss([term]), batch_of(DATA)
    labels = LABELS[:1].expand(len(reals), 0)
    moved = []

    def teach(p):
        moved.append(distance(p))
        fakes = {"gen_z": batch_of(p, len(reals)), "gen_c": labels}
        run_phase(phase, loss, [{"real_img": reals, "real_c": labels, **fakes}])

    p = play(D, D, term, teach)
    assert max(moved) > 0.02  # until the teacher has learned
    assert distance(p) < 0.005
    assert live.scores(IMAGES, LABELS).abs().max() < 0.05
