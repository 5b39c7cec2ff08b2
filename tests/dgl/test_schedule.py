# SPDX-License-Identifier: Apache-2.0
"""How strongly the teachers push, and when: bound by the gradient ratio, automatic start, decay to the stop."""

import copy
import math

import pytest
import torch

from dgl.schedule import START_SCORE, AutoStart, RatioCap, cosine_decay
from dgl.terms import AdversarialTerm
from tests.dgl.test_terms import SHAPE, Stub, fakes_of
from tests.dgl.tiny import ADAM, BATCH, NoisyPipe, Student, same, save_teacher
from tests.support import rnd
from tests.training.host_reads import watched
from torch_utils import distributed, training_stats


@pytest.fixture
def teacher(tmp_path):
    return save_teacher(tmp_path)


class Constant:
    """A teacher that gives every image the same score; `calls` counts its batches."""

    def __init__(self, score: float):
        self.score, self.calls = score, 0

    def scores(self, img, c):
        self.calls += 1
        return img.sum([1, 2, 3]).unsqueeze(1) * 0 + self.score


def batch(scale: float = 0.1, key: str = "img"):
    return fakes_of((rnd(key, (BATCH, *SHAPE)) * scale).requires_grad_(True))


# The bound by the gradient ratio. The own loss of `fakes_of` has slope 1 in every pixel, a Stub its weight.

OWN = torch.ones([BATCH, *SHAPE]).norm()


def push(stub: Stub) -> float:
    """Image-gradient norm of the hinge form of one Stub, without λ."""
    return float(stub.weight.norm() * math.sqrt(BATCH))


@pytest.mark.parametrize(("weight", "ratio"), [(5.0, 0.3), (0.001, 0.3), (5.0, 2.0)])
def test_the_push_is_at_most_the_ratio(weight, ratio):
    stub, fakes = Stub("a"), batch()
    term = AdversarialTerm([stub], weight, form="hinge", ratio=ratio)
    (gradient,) = torch.autograd.grad(term(fakes).sum(), fakes.img)
    expected = min(weight * push(stub), ratio * float(OWN))
    assert float(gradient.norm()) == pytest.approx(expected, rel=1e-5)


def test_the_ratio_is_an_average_over_every_16th_iteration():
    """The teacher's slope doubles after the first iteration: it counts from the 17th, and a tenth each time."""
    stub, found = Stub("a"), []
    term = AdversarialTerm([stub], weight=100.0, form="hinge", ratio=0.5)
    first = float(OWN) / push(stub)
    for _ in range(33):
        term.begin_iteration(cur_nimg=0, new_tick=False)
        fakes = batch()
        (gradient,) = torch.autograd.grad(term(fakes).sum(), fakes.img)
        found.append(float(gradient.norm()) / push(stub))  # the λ in use
        if len(found) == 1:
            stub.weight = stub.weight * 2
    means = [first]
    for _ in range(2):
        means.append(0.9 * means[-1] + 0.1 * first / 2)
    expected = [means[0]] * 16 + [means[1]] * 16 + [means[2]]
    assert found == pytest.approx([0.5 * mean for mean in expected], rel=1e-5)


def test_all_micro_batches_of_an_iteration_share_one_measurement(monkeypatch):
    measured = []
    monkeypatch.setattr(RatioCap, "measure", lambda self, *norms: (measured.append(norms), setattr(self, "due", False)))
    term = AdversarialTerm([Stub("a")], ratio=1.0)
    for _ in range(3):
        term(batch())
    assert len(measured) == 1


@pytest.mark.parametrize("broken", [0.0, math.inf, math.nan])
def test_an_unusable_measurement_changes_nothing(broken):
    cap = RatioCap(0.5)
    cap.measure(torch.tensor(1.0), torch.tensor(broken))
    assert float(cap.apply(7.0)) == 7.0
    cap.measure(torch.tensor(2.0), torch.tensor(4.0))
    cap.measure(torch.tensor(1.0), torch.tensor(broken))
    assert float(cap.apply(7.0)) == 0.25


def test_the_cap_reads_no_tensor():
    """Neither when it measures, nor when it is applied, nor when λ decays."""
    term = AdversarialTerm([Stub("a")], ratio=0.5, stop=10)
    term(batch())
    found = []
    for _ in range(17):
        term.begin_iteration(cur_nimg=1, new_tick=False)
        fakes = batch()
        with watched() as reads:
            term(fakes)
        found += reads
    assert found == []


def test_a_ratio_that_does_not_bind_leaves_the_updates_as_they_are(teacher):
    assert same(Student([teacher]).train(), Student([teacher], dgl_ratio=1e6).train())
    assert not same(Student([teacher]).train(), Student([teacher], dgl_ratio=1e-6).train())


def test_weight_zero_and_a_ratio_train_as_no_teacher(teacher):
    switches = {"dgl_weight": 0, "dgl_ratio": 0.3, "dgl_start": "auto", "dgl_stop": 1}
    assert same(Student().train(), Student([teacher], **switches).train())


# The automatic start


def ticks(term: AdversarialTerm, count: int, iterations: int = 3, nimg: int = 0) -> list[list[bool]]:
    """For each tick whether the term added something, by iteration; each has two micro-batches of 1,000 images."""
    added = []
    for _ in range(count):
        row = []
        for i in range(iterations):
            term.begin_iteration(nimg, new_tick=i == 0)
            values = [term(batch()) for _ in range(2) if term.active]
            row.append(any(bool(value.any()) for value in values))
            nimg += 1000
        added.append(row)
    return added


def test_guidance_starts_after_the_first_tick_above_the_threshold(capsys):
    stub = Constant(START_SCORE - 0.1)
    term = AdversarialTerm([stub], start="auto")
    assert ticks(term, 2) == [[False] * 3] * 2
    assert stub.calls == 2  # one batch a tick
    stub.score = START_SCORE + 0.1
    assert ticks(term, 3, nimg=6000) == [[False] * 3, [True] * 3, [True] * 3]
    stub.score = -50.0  # there is no way back
    assert ticks(term, 1, nimg=15000) == [[True] * 3]
    printed = [line for line in capsys.readouterr().out.splitlines() if "Guidance" in line]
    assert printed == ["Guidance starts at kimg 9.0: the teachers' mean score of the fakes is -2.90."]


def test_waiting_reports_the_scores_and_trains_bit_for_bit_as_no_teacher(teacher):
    stats = training_stats.Collector("Loss/DGL/.*", keep_previous=False)
    plain = Student(augment_pipe=NoisyPipe()).train()
    waiting = Student([teacher], augment_pipe=NoisyPipe(), dgl_augment=True, dgl_start="auto").train()
    stats.update()
    assert same(plain, waiting)
    assert stats.num("Loss/DGL/scores0") == BATCH and stats.num("Loss/DGL/loss0") == 0


def test_scores_that_are_not_finite_do_not_start_guidance():
    assert ticks(AdversarialTerm([Constant(math.nan)], start="auto"), 3) == [[False] * 3] * 3


def test_several_teachers_decide_by_their_mean():
    for other, started in ((-5.0, True), (-7.0, False)):
        term = AdversarialTerm([Constant(0.0), Constant(other)], start="auto")
        assert ticks(term, 2)[1] == [started] * 3


# The decay


def test_cosine():
    assert [cosine_decay(t) for t in (-1, 0, 1, 2)] == [1, 1, 0, 0]
    assert [cosine_decay(t) for t in (1 / 3, 0.5, 2 / 3)] == pytest.approx([0.75, 0.5, 0.25])


@pytest.mark.parametrize("ratio", [None, 0.01])
def test_the_weight_decays_from_start_to_stop(ratio):
    """The bound by the gradient ratio decays as well."""
    term = AdversarialTerm([Stub("a")], weight=2.0, start=4, stop=10, form="hinge", ratio=ratio)
    img = rnd("img", (BATCH, *SHAPE)) * 0.1
    norms = []
    for nimg in (4000, 6000, 7000, 8000, 9999):
        term.begin_iteration(nimg, new_tick=False)
        assert term.active
        fakes = fakes_of(img.clone().requires_grad_(True))
        norms.append(float(torch.autograd.grad(term(fakes).sum(), fakes.img)[0].norm()))
    assert [norm / norms[0] for norm in norms] == pytest.approx([1, 0.75, 0.5, 0.25, 0], abs=1e-4)


@pytest.mark.parametrize(
    ("nimg", "active"), [(3999, False), (4000, True), (9999, True), (10000, False), (20000, False)]
)
def test_the_term_is_active_from_start_to_stop(nimg, active):
    term = AdversarialTerm([Stub("a")], start=4, stop=10)
    term.begin_iteration(nimg, new_tick=True)
    assert term.active is active


def test_the_decay_counts_from_an_automatic_start():
    term = AdversarialTerm([Constant(0.0)], weight=1.0, start="auto", stop=10)
    weights = training_stats.Collector("Loss/DGL/weight", keep_previous=False)
    ticks(term, 1, iterations=2)
    term.begin_iteration(2000, new_tick=True)  # starts
    found = []
    for nimg in (2000, 6000):
        term.begin_iteration(nimg, new_tick=False)
        term(batch())
        weights.update()
        found.append(weights["Loss/DGL/weight"])
    assert found == pytest.approx([1.0, 0.5])


def test_after_the_stop_the_updates_are_those_without_a_teacher(teacher):
    """From the same weights, with the teacher's forward made impossible."""
    plain, stopped = Student(), Student([teacher], dgl_stop=0.001, dgl_ratio=0.5)
    stopped.loss.begin_iteration(cur_nimg=1, new_tick=True)
    stopped.loss.teachers[0].D = None
    assert same(stopped.gradients("Gmain"), plain.gradients("Gmain"))


def test_an_automatic_start_that_comes_too_late_never_comes():
    stub = Constant(-10.0)
    term = AdversarialTerm([stub], start="auto", stop=5)
    ticks(term, 3)
    assert stub.calls == 2  # in the ticks at 0 and 3 kimg, not at 6
    stub.score = 0.0
    term.begin_iteration(9000, new_tick=True)
    assert not term.active


# State of a run


@pytest.mark.parametrize("saved_after", [1, 2, 3, 5, 17])
def test_a_restored_term_continues_exactly(saved_after):
    """Saved while it waits, with a decision due, guided, with a measurement due; later steps agree bit for bit."""
    kwargs = {"weight": 3.0, "start": "auto", "stop": 100, "ratio": 0.3}

    def run(term, steps):
        found = []
        for step in steps:
            term.begin_iteration(step * 1000, new_tick=step % 2 == 0)
            fakes = batch(key=str(step))
            found.append(term(fakes).detach() if term.active else None)
        return found

    whole, first, second = (AdversarialTerm([Stub("a")], **kwargs) for _ in range(3))
    expected = run(whole, range(24))
    run(first, range(saved_after))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    found = run(second, range(saved_after, 24))
    assert any(value is not None and bool(value.any()) for value in found)
    for a, b in zip(found, expected[saved_after:]):
        assert (a is None and b is None) or torch.equal(a, b)


def test_parts_without_a_saved_state_start_anew(teacher):
    """A run that continues an older one with a further flag."""
    old, new = Student([teacher]), Student([teacher], dgl_ratio=0.5, dgl_start="auto")
    new.loss.load_state_dict(old.loss.state_dict())
    assert "cap" not in old.loss.state_dict()["terms"][0] and new.loss.state_dict()["terms"][0]["start"]["nimg"] is None


# Several processes


def two_processes(rank: int, folder: str) -> None:
    """Each process has other gradients and scores; writes what each of them decides."""
    distributed.init(rank, 2)
    cap = RatioCap(1.0)
    own, teachers = ((3.0, 1.0), (4.0, 2.0))[rank]
    cap.measure(torch.tensor(own), torch.tensor(teachers))
    starts = []
    for scores in ((START_SCORE + 1, START_SCORE - 2), (START_SCORE + 2, START_SCORE - 1)):
        auto = AutoStart()
        auto.observe(torch.full([4, 1], scores[rank]))
        auto.begin_tick(1000)
        starts.append(auto.nimg)
    torch.save((cap.apply(100.0), starts), f"{folder}/{rank}.pt")


@pytest.mark.slow
def test_all_processes_agree(tmp_path):
    distributed.launch(two_processes, 2, str(tmp_path))
    for rank in range(2):
        bound, starts = torch.load(tmp_path / f"{rank}.pt")
        assert float(bound) == pytest.approx(math.sqrt((3**2 + 4**2) / (1**2 + 2**2)))
        assert starts == [None, 1000]


# With teachers that are trained


def test_live_teachers_do_not_train_while_they_wait(teacher):
    """The schedule decides for the term of live teachers as well: no update of G and none of the teachers."""
    student = Student([teacher], dgl_start="auto", dgl_update=ADAM, dgl_ratio=0.5)
    student.loss.begin_iteration(cur_nimg=0, new_tick=True)
    assert same(student.gradients("Gmain"), Student().gradients("Gmain"))
    (term,) = student.loss.terms
    assert term.state_dict()["start"]["mean"] is not None and not term.active  # it was watched, and sits out the rest
