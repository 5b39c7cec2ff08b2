# SPDX-License-Identifier: Apache-2.0
"""The residual critic: its formula in every phase, what it leaves alone, and its fixed point."""

import copy

import pytest
import torch
from torch.nn.functional import softplus

from dgl.residual import ResidualCritic, saturated
from dgl.terms import AdversarialTerm
from tests.dgl.tabular import DATA, Table, TableTeacher, distance, equilibrium_of_plain_guidance, play
from tests.dgl.tiny import BATCH, NoisyPipe, Student, make_D, same, save_teacher

KAPPA = 0.4


@pytest.fixture
def teacher(tmp_path):
    return save_teacher(tmp_path)


def student_with(teacher, **kwargs) -> Student:
    return Student([teacher], dgl_weight=0, **{"dgl_residual": KAPPA, **kwargs})


# The formula


@pytest.mark.parametrize("score", [-40.0, -1.0, 0.0, 0.01, 3.0, 40.0])
def test_saturation(score):
    x = torch.tensor(score, requires_grad=True)
    (slope,) = torch.autograd.grad(saturated(x), x)
    value = saturated(x.detach())
    assert value.abs() <= 4 and value.abs() <= abs(score)
    assert float(slope) == pytest.approx(1 - float(value / 4) ** 2, abs=1e-6)


def test_scores_of_several_teachers_add_up(tmp_path):
    paths = [save_teacher(tmp_path, seed, f"{seed}.pkl") for seed in (100, 101)]
    student = Student(paths, dgl_weight=0, dgl_residual=KAPPA)
    img, c = student.inputs()["real_img"], student.inputs()["real_c"]
    verdicts = [4 * torch.tanh(teacher.D(img, c) / 4) for teacher in student.loss.teachers]
    torch.testing.assert_close(student.loss.D(img, c), student.D(img, c) + KAPPA * sum(verdicts))


@pytest.mark.parametrize("phase", ["Gmain", "Dmain", "Dreg", "Dboth"])
def test_gradients_of_every_phase_are_those_of_the_sum(teacher, phase):
    """Of the losses written down with autograd: one pair, and R1 through both parts of s."""
    student = student_with(teacher, r1_gamma=2.0)
    found = student.gradients(phase, gain=3)
    G, D, inputs = student.G, student.D, student.inputs()
    for module in (G, D):
        module.zero_grad(set_to_none=True)
    trained = (G if phase[0] == "G" else D).requires_grad_(True)

    def score(img, c):
        return D(img, c) + KAPPA * 4 * torch.tanh(student.loss.teachers[0].D(img, c) / 4)

    torch.manual_seed(4)
    loss, real = 0, inputs["real_img"].clone().requires_grad_(True)
    if phase != "Dreg":
        fakes = score(student.loss.run_G(inputs["gen_z"], inputs["gen_c"])[0], inputs["gen_c"])
        loss = softplus(-fakes) if phase[0] == "G" else softplus(fakes) + softplus(-score(real, inputs["real_c"]))
    if phase in ("Dreg", "Dboth"):
        (slope,) = torch.autograd.grad(score(real, inputs["real_c"]).sum(), real, create_graph=True)
        loss = loss + 2.0 / 2 * slope.square().sum(dim=(1, 2, 3)).unsqueeze(1)
    (3 * loss.mean()).backward()
    for name, p in trained.named_parameters():
        torch.testing.assert_close(found[f"{phase[0]}.{name}"], torch.zeros_like(p) if p.grad is None else p.grad,
                                   rtol=1e-4, atol=1e-6)  # fmt: skip
    assert all(p.grad is None for p in student.loss.teachers[0].D.parameters())


def test_teachers_see_what_d_sees_in_batches_of_one_kind(teacher):
    student = student_with(teacher, augment_pipe=NoisyPipe())
    seen = {network: [] for network in (student.D, student.loss.teachers[0].D)}
    for network, calls in seen.items():
        network.register_forward_hook(lambda _network, inputs, _output, calls=calls: calls.append(inputs))
    for phase in ("Gmain", "Dboth"):
        student.gradients(phase)
    own, teachers = seen.values()
    assert len(own) == 3 and all(len(img) == BATCH for img, _c in own)
    for (img, c), (shown, labels) in zip(own, teachers, strict=True):
        assert torch.equal(img, shown) and torch.equal(c, labels)


@pytest.mark.parametrize("half", [torch.float32, torch.bfloat16])
def test_teachers_run_in_the_precision_of_the_run(tmp_path, half):
    D = {"num_fp16_res": 2, "conv_clamp": 256}
    student = student_with(save_teacher(tmp_path, **D), D_overrides=D, half_dtype=half)
    block = student.loss.teachers[0].D.b16
    types = []
    block.register_forward_hook(lambda _block, _inputs, output: types.append(output[0].dtype))
    gradients = student.gradients("Dboth")
    assert set(types) == {half}
    assert all(g.isfinite().all() for name, g in gradients.items() if name.startswith("D."))


# What stays as it was


def test_kappa_zero_trains_bit_for_bit_as_no_teacher(teacher):
    student = student_with(teacher, dgl_residual=0)
    assert student.loss.D is student.D
    assert same(student.train(), Student().train())


def test_before_its_start_it_is_no_teacher(teacher):
    student, plain = student_with(teacher, dgl_start=2), Student().gradients("Dboth")
    assert same(student.gradients("Dboth"), plain)
    for kimg, equal in ((1.999, True), (2, False)):
        student.loss.begin_iteration(cur_nimg=round(kimg * 1000), new_tick=False)
        assert same(student.gradients("Dboth"), plain) is equal


def test_the_teacher_stays_bit_identical_while_d_learns(teacher):
    student = student_with(teacher)
    frozen = student.loss.teachers[0].D
    before = copy.deepcopy(frozen.state_dict())
    student.train(steps=3)
    assert same(dict(frozen.state_dict()), dict(before)) and not frozen.training
    assert all(p.grad is None and not p.requires_grad for p in frozen.parameters())
    assert not same(dict(student.D.state_dict()), dict(make_D(2).state_dict()))


def test_the_critic_has_the_attributes_of_d(teacher):
    loss = student_with(teacher).loss
    assert isinstance(loss.D, ResidualCritic) and loss.D.img_resolution == 16
    with pytest.raises(AttributeError):
        copy.copy(loss.D).nonsense  # noqa: B018


# The fixed point


@pytest.mark.slow
def test_p_data_is_stationary_and_plain_guidance_leaves_it():
    """With the same wrong teacher: p_G = p_data stays, while in the generator's loss alone it moves p_G to the tilted
    distribution of the formula."""
    D, teachers = Table(torch.zeros(len(DATA))), [TableTeacher()]
    assert distance(play(D, ResidualCritic(D, teachers, kappa=1.0))) < 1e-4
    torch.testing.assert_close(D.table, -4 * torch.tanh(teachers[0].D.table / 4), rtol=0, atol=1e-3)

    weight, plain = 0.3, Table(torch.zeros(len(DATA)))
    tilted = play(plain, plain, AdversarialTerm(teachers, weight))
    wanted = equilibrium_of_plain_guidance(weight)
    assert distance(wanted) > 0.05 and distance(tilted, wanted) < 1e-3
