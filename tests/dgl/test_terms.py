# SPDX-License-Identifier: Apache-2.0
"""Terms on the losses of two families: what they see, when they are evaluated, and how some train networks."""

import copy

import pytest
import torch

from dgl.loss import DGLLoss
from dgl.terms import AdversarialTerm
from dnnlib.util import UserError
from tests.dgl.tiny import BATCH, C_DIM, CHANNELS, RESOLUTION, Z_DIM, NoisyPipe, Student, same, save_teacher
from tests.dgl.toy import Head, HingeLoss
from tests.support import make_image_zip, rnd
from tests.training import other_projects
from tests.training.test_training_loop import options, train_in_group
from torch_utils import distributed, training_stats
from training.loss import Fakes, Term
from training.training_loop import Trainer, TrainingOptions

CPU = torch.device("cpu")
SHAPE = (CHANNELS, RESOLUTION, RESOLUTION)


class Stub:
    """A teacher whose score is a fixed linear function of the image, plus the index of the label."""

    def __init__(self, key: str):
        self.weight, self.calls = rnd(key, SHAPE), []

    def scores(self, img, c):
        self.calls.append((img.detach(), c))
        return (img * self.weight).sum([1, 2, 3]).unsqueeze(1) + c.argmax(1, keepdim=True)


class Recorder(Term):
    """Adds `value` to the loss of each sample and records its calls."""

    def __init__(self, value: float = 0.0):
        self.value, self.fakes, self.announced = value, [], []

    def __call__(self, fakes):
        self.fakes.append(fakes)
        return torch.full_like(fakes.loss, self.value)

    def begin_iteration(self, cur_nimg, new_tick):
        self.announced.append((cur_nimg, new_tick))


# What a term sees


def test_a_term_sees_the_fakes_of_the_phase():
    student, term = Student(), Recorder()
    student.loss.terms = [term]
    (img,) = student.images("Gmain")
    (fakes,) = term.fakes
    inputs = student.inputs()
    assert torch.equal(fakes.z, inputs["gen_z"]) and torch.equal(fakes.c, inputs["gen_c"])
    assert torch.equal(fakes.img, img)
    assert fakes.ws.shape == (BATCH, student.G.num_ws, student.G.w_dim)
    assert torch.equal(fakes.logits, student.D(img, fakes.c))
    assert torch.equal(fakes.loss, torch.nn.functional.softplus(-fakes.logits))
    torch.manual_seed(4)  # the images follow from the ws, style mixing included, and from noise drawn after it
    assert torch.equal(student.loss.run_G(fakes.z, fakes.c)[1], fakes.ws)


@pytest.mark.parametrize("phase", ["Greg", "Dmain", "Dreg", "Dboth"])
def test_terms_are_not_evaluated_in_other_phases(phase):
    student, term = Student(), Recorder()
    student.loss.terms = [term]
    student.gradients(phase)
    assert term.fakes == []


def test_terms_add_up_in_the_reported_loss():
    stats = training_stats.Collector("Loss/G/loss", keep_previous=False)
    means = []
    for terms in ([], [Recorder(0.5), Recorder(2.0)]):
        student = Student()
        student.loss.terms = terms
        student.gradients("Gmain")
        stats.update()
        means.append(stats["Loss/G/loss"])
    assert means[1] - means[0] == pytest.approx(2.5, rel=1e-5)


def test_an_inactive_term_is_not_evaluated():
    student, term = Student(), Recorder(1.0)
    student.loss.terms = [term]
    term.active = False
    student.gradients("Gmain")
    assert term.fakes == []


def test_terms_are_told_of_each_iteration():
    student, term = Student(), Recorder()
    student.loss.terms = [term]
    student.train(steps=2)
    assert term.announced == [(0, True), (BATCH, False)]


# The adversarial term


def fakes_of(img: torch.Tensor) -> Fakes:
    """Fakes whose own loss has slope 1 in every pixel."""
    z, c = rnd("z", (BATCH, Z_DIM)), torch.eye(C_DIM)[[0, 1, 2, 0]]
    return Fakes(z, c, None, img, img.sum([1, 2, 3]).unsqueeze(1), img.sum([1, 2, 3]).unsqueeze(1))


@pytest.mark.parametrize("form", ["logistic", "hinge"])
@pytest.mark.parametrize("weighting", ["plain", "score"])
def test_value_and_gradient(form, weighting):
    stubs = [Stub("a"), Stub("b")]
    term = AdversarialTerm(stubs, weight=0.3, form=form, weighting=weighting)
    img = (rnd("img", (BATCH, *SHAPE)) * 0.1).requires_grad_(True)
    fakes = fakes_of(img)
    loss = term(fakes)
    (gradient,) = torch.autograd.grad(loss.sum(), img)
    expected, slope = torch.zeros([BATCH, 1]), torch.zeros_like(img)
    for stub in stubs:
        s = stub.scores(img.detach(), fakes.c)
        w = (-s).clamp_min(0) if weighting == "score" else torch.ones_like(s)
        value = torch.log1p(torch.exp(-s)) if form == "logistic" else -s
        expected = expected + 0.3 * w * value
        ds = -torch.sigmoid(-s) if form == "logistic" else -torch.ones_like(s)
        slope = slope + (0.3 * w * ds).reshape(BATCH, 1, 1, 1) * stub.weight
    torch.testing.assert_close(loss.detach(), expected)
    torch.testing.assert_close(gradient, slope)


def test_teachers_are_called_once_with_the_labels_of_the_fakes():
    stub = Stub("a")
    fakes = fakes_of(rnd("img", (BATCH, *SHAPE)).requires_grad_(True))
    AdversarialTerm([stub])(fakes)
    ((img, c),) = stub.calls
    assert torch.equal(img, fakes.img) and torch.equal(c, fakes.c)


def test_augmentation_comes_before_the_teachers_and_once_for_all():
    stubs = [Stub("a"), Stub("b")]
    fakes = fakes_of(rnd("img", (BATCH, *SHAPE)).requires_grad_(True))
    AdversarialTerm(stubs, augment=NoisyPipe())(fakes)
    seen = [stub.calls[0][0] for stub in stubs]
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], fakes.img)


def test_gradient_ratio():
    stub = Stub("a")
    stats = training_stats.Collector("Loss/DGL/grad_ratio", keep_previous=False)
    AdversarialTerm([stub], weight=0.5, form="hinge")(fakes_of(torch.zeros([BATCH, *SHAPE]).requires_grad_(True)))
    stats.update()
    pixels = torch.ones(SHAPE).norm()
    assert stats["Loss/DGL/grad_ratio"] == pytest.approx(float(0.5 * stub.weight.norm() / pixels), rel=1e-5)


@pytest.mark.parametrize("wrong", [{"form": "wasserstein"}, {"weighting": "random"}])
def test_unknown_names_are_refused(wrong):
    with pytest.raises(UserError, match=f"{next(iter(wrong))} of an adversarial term must be one of"):
        AdversarialTerm([Stub("a")], **wrong)


# Another family


def family() -> tuple[other_projects.Generator, other_projects.Discriminator]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        G = other_projects.Generator(Z_DIM, C_DIM, 8, RESOLUTION, CHANNELS)
        return G.requires_grad_(False), other_projects.Discriminator(C_DIM, RESOLUTION, CHANNELS).requires_grad_(False)


def test_teachers_guide_the_hinge_loss_of_another_family(tmp_path):
    """The whole gradient of G is that of -s - λ s̄, and D's is that without a teacher."""
    G, D = family()
    modules = {"device": CPU, "G_mapping": G.mapping, "G_synthesis": G.synthesis, "D": D}
    teachers = [{"path": save_teacher(tmp_path)}]
    hinge = {"base_class": f"{HingeLoss.__module__}.HingeLoss", "dgl_form": "hinge"}
    guided, plain = DGLLoss(**modules, teachers=teachers, dgl_weight=0.3, **hinge), HingeLoss(**modules)
    inputs = Student().inputs()

    def gradients(loss, phase, network):
        network.zero_grad(set_to_none=True)
        network.requires_grad_(True)
        loss.accumulate_gradients(phase, sync=True, gain=2, **inputs)
        network.requires_grad_(False)
        return {name: p.grad for name, p in network.named_parameters()}

    found = gradients(guided, "Gboth", G)
    G.zero_grad(set_to_none=True)
    G.requires_grad_(True)
    img, c = G(inputs["gen_z"], inputs["gen_c"]), inputs["gen_c"]
    (2 * (-D(img, c) - 0.3 * guided.teachers[0].D(img, c))).mean().backward()
    for name, p in G.named_parameters():
        torch.testing.assert_close(found[name], p.grad)
    assert same(gradients(guided, "Dboth", D), gradients(plain, "Dboth", D))
    assert not same(found, gradients(plain, "Gboth", G))


# Terms that train


def test_a_trained_term_sees_fakes_and_reals_in_its_phase():
    student = Student()
    term = Head(SHAPE, 0.1, CPU, joint=False)
    student.loss.terms = [Recorder(), term]
    assert [phase.name for phase in student.loss.extra_phases()] == ["headmain", "headreg"]
    inputs = student.inputs()
    term.head.requires_grad_(True)
    for phase in ("headmain", "headreg"):
        student.loss.accumulate_gradients(phase, sync=True, gain=1, **inputs)
    assert [phase for phase, _reals, _fakes in term.seen] == ["headmain", "headreg"]
    _phase, reals, fakes = term.seen[0]
    assert torch.equal(reals, inputs["real_img"]) and torch.equal(fakes.z, inputs["gen_z"])
    assert fakes.img.shape == (BATCH, *SHAPE) and not fakes.img.requires_grad
    assert fakes.logits is None and fakes.loss is None


def test_a_phase_of_no_term_is_refused():
    student = Student()
    student.loss.terms = [Head(SHAPE, 0.1, CPU)]
    with pytest.raises(ValueError, match="unknown phase 'headmain'"):  # it has headboth
        student.loss.accumulate_gradients("headmain", sync=True, gain=1, **student.inputs())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_image_zip(tmp_path_factory.mktemp("data") / "toy.zip", resolution=16, num_images=12, num_labels=3)


def head_options(folder, data, **changes) -> dict:
    made = options(folder, data, total_kimg=0.024, network_snapshot_ticks=None, **changes)
    made["loss_kwargs"]["class_name"] = "tests.dgl.toy.LossWithHead"
    return made


def test_the_loop_trains_a_term_in_its_own_phase(tmp_path, data):
    trainer = Trainer(TrainingOptions(**head_options(tmp_path / "run", data)))
    (term,) = trainer.loss.terms
    assert [phase.name for phase in trainer.phases] == ["Gmain", "Greg", "Dmain", "Dreg", "headboth"]
    before = copy.deepcopy(term.head.state_dict())
    trainer.step(new_tick=True)
    once = copy.deepcopy(term.head.state_dict())
    trainer.step(new_tick=False)
    assert not same(before, once) and not same(once, term.head.state_dict())
    assert not any(p.requires_grad for p in term.head.parameters())
    assert len(term.seen) == 4  # two iterations of two micro-batches
    scores = [term.head(real).mean() - term.head(fakes.img).mean() for _phase, real, fakes in term.seen]
    assert min(scores) > 0  # it has learned to tell them apart
    handled = {id(p) for phase in trainer.phases[:4] for group in phase.optimizer.param_groups for p in group["params"]}
    assert not handled & {id(p) for p in term.head.parameters()}


def test_a_trained_term_pushes_g_and_leaves_d_alone():
    results = []
    for weight in (0.0, 1.0):
        student = Student()
        torch.manual_seed(6)
        student.loss.terms = [Head(SHAPE, weight, CPU)]
        results.append([student.gradients(phase) for phase in ("Gmain", "Dboth", "Greg")])
        assert all(p.grad is None for p in student.loss.terms[0].head.parameters())
    (plain_main, *plain), (main, *others) = results
    assert not same(plain_main, main)
    assert all(same(a, b) for a, b in zip(plain, others))


@pytest.mark.slow
def test_terms_are_the_same_in_all_processes(tmp_path, data):
    """The loss compares the processes' heads before each iteration."""
    made = head_options(tmp_path / "run", data, num_gpus=2, batch_gpu=4)
    distributed.launch(train_in_group, 2, made)
    assert (tmp_path / "run" / "stats.jsonl").exists()


def test_state_of_a_trained_term_is_restored(tmp_path, data):
    trainers = [Trainer(TrainingOptions(**head_options(tmp_path / f"run{i}", data, random_seed=i))) for i in range(2)]
    trainers[0].step(new_tick=True)
    first, second = (trainer.loss.terms[0] for trainer in trainers)
    assert not same(first.head.state_dict(), second.head.state_dict())
    trainers[1].loss.load_state_dict(copy.deepcopy(trainers[0].loss.state_dict()))
    assert same(first.head.state_dict(), second.head.state_dict())
    saved, restored = (term.phases()[0].optimizer.state_dict()["state"] for term in (first, second))
    assert len(saved) == 2 and all(same(saved[key], restored[key]) for key in saved)


def test_state_of_other_terms_is_refused():
    student, other = Student(), Student()
    student.loss.terms = [Recorder()]
    with pytest.raises(ValueError):
        other.loss.load_state_dict(student.loss.state_dict())
