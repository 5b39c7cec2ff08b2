# SPDX-License-Identifier: Apache-2.0
"""The schedule's parts: lazy phases, fresh reals, moving average, adaptive augmentation."""

import math

import numpy as np
import pytest
import torch

from tests.support import make_image_zip
from tests.training.test_training_loop import options
from torch_utils import training_stats
from torch_utils.images import from_uint8
from torch_utils.misc import InfiniteSampler
from training.ada import AdaController
from training.ema import ema_beta, update_ema
from training.phases import Phase, PhaseTimes, build_phases, run_due, run_phase
from training.training_loop import Trainer, TrainingOptions

ADAM = {"class_name": "torch.optim.Adam", "lr": 0.002, "betas": [0, 0.99], "eps": 1e-8}


class Recorder:
    """A loss with the gradient that the test asks for; it records its calls."""

    def __init__(self, module, grad=1.0):
        self.module, self.grad, self.calls = module, grad, []

    def accumulate_gradients(self, **kwargs):
        self.calls.append(kwargs)
        (self.module.weight * self.grad * kwargs["gain"]).sum().backward()


def frozen_linear():
    return torch.nn.Linear(2, 1, bias=False).requires_grad_(False)


def test_lazy_phases_share_a_corrected_optimiser():
    main, reg = build_phases("D", frozen_linear(), ADAM, reg_interval=16)
    assert (main.name, main.interval, reg.name, reg.interval) == ("Dmain", 1, "Dreg", 16)
    assert main.optimizer is reg.optimizer
    group = main.optimizer.param_groups[0]
    assert group["lr"] == pytest.approx(0.002 * 16 / 17)
    assert list(group["betas"]) == pytest.approx([0, 0.99 ** (16 / 17)])


def test_joint_phase_keeps_the_plain_optimiser():
    (both,) = build_phases("G", frozen_linear(), ADAM, reg_interval=None)
    assert (both.name, both.interval, both.optimizer.param_groups[0]["lr"]) == ("Gboth", 1, 0.002)


def test_fused_steps_are_those_of_the_paper():
    """Adam of arXiv 1412.6980, algorithm 1, with the lazily corrected constants."""
    module = frozen_linear()
    expected = module.weight.clone()
    main, _reg = build_phases("G", module, ADAM, reg_interval=4)
    lr, beta2, v = 0.002 * 4 / 5, 0.99 ** (4 / 5), torch.zeros_like(expected)
    for step in range(1, 4):
        grad = torch.tensor([[0.5 * step, -2.0]])
        module.weight.grad = grad
        main.optimizer.step()
        v = beta2 * v + (1 - beta2) * grad**2
        expected -= lr * grad / ((v / (1 - beta2**step)).sqrt() + 1e-8)
    torch.testing.assert_close(module.weight, expected)


def test_accumulation_averages_micro_batches_and_syncs_last():
    module = frozen_linear()
    phase = Phase("Greg", module, torch.optim.SGD(module.parameters(), lr=1.0), interval=4)
    before = module.weight.clone()
    loss = Recorder(module)
    run_phase(phase, loss, [{"gen_z": i} for i in range(3)])
    assert [call["gen_z"] for call in loss.calls] == [0, 1, 2]
    assert [call["sync"] for call in loss.calls] == [False, False, True]
    torch.testing.assert_close(module.weight, before - 4)
    assert not module.weight.requires_grad


def schedule(*rows) -> tuple[list[Phase], Recorder]:
    """Phases from (name, interval, fresh_reals), and a loss that records them."""
    module = frozen_linear()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    return [Phase(name, module, optimizer, interval, fresh) for name, interval, fresh in rows], Recorder(module)


def calls_of(phases, loss, iteration, batches, size=2, batch_gpu=2) -> list[tuple[str, list[float]]]:
    """(phase, reals of the micro-batch) of each call in one iteration; batch i of the reals has values of i."""
    reals = ((torch.full([size, 1], float(i)), torch.zeros(size, 0)) for i in range(batches))
    seeds = []

    def draw(phase):
        return torch.full([size, 1], float(phase)), torch.zeros(size, 0)

    loss.calls.clear()
    run_due(phases, iteration, loss, reals, draw, batch_gpu, lambda *place: seeds.append(place))
    assert seeds == [(phases.index(p), i) for p in phases if p.is_due(iteration) for i in range(-(-size // batch_gpu))]
    assert next(reals, None) is None
    assert all(float(call["gen_z"][0]) == [p.name for p in phases].index(call["phase"]) for call in loss.calls)
    return [(call["phase"], call["real_img"].flatten().tolist()) for call in loss.calls]


def test_phases_run_at_their_intervals_on_the_same_reals():
    phases, loss = schedule(("Gmain", 1, True), ("Greg", 4, False), ("Dmain", 1, False), ("Dreg", 2, False))
    due = {0: ["Gmain", "Greg", "Dmain", "Dreg"], 1: ["Gmain", "Dmain"], 2: ["Gmain", "Dmain", "Dreg"]}
    for iteration, names in due.items():
        assert calls_of(phases, loss, iteration, batches=1) == [(name, [0.0, 0.0]) for name in names]


def test_a_phase_may_take_fresh_reals():
    """As BigGAN's: two steps of D on a batch each, then G."""
    phases, loss = schedule(("Dmain", 1, True), ("Dagain", 1, True), ("Dreg", 2, False), ("Gmain", 1, False))
    expected = [("Dmain", [0.0, 0.0]), ("Dagain", [1.0, 1.0]), ("Dreg", [1.0, 1.0]), ("Gmain", [1.0, 1.0])]
    assert calls_of(phases, loss, iteration=0, batches=2) == expected


def test_each_phase_is_split_into_micro_batches():
    phases, loss = schedule(("Gmain", 1, True))
    assert calls_of(phases, loss, 0, batches=1, size=5, batch_gpu=2) == [("Gmain", [0.0] * n) for n in (2, 2, 1)]
    assert [call["sync"] for call in loss.calls] == [False, False, True]


@pytest.mark.parametrize("reg_interval", [None, 4])
def test_the_first_of_the_built_phases_takes_fresh_reals(reg_interval):
    for fresh in (False, True):
        first, *others = build_phases("D", frozen_linear(), ADAM, reg_interval, fresh_reals=fresh)
        assert first.fresh_reals is fresh and not any(phase.fresh_reals for phase in others)


@pytest.mark.parametrize(("bad", "used"), [(math.nan, 0.0), (math.inf, 1e5), (-math.inf, -1e5)])
def test_unusable_gradients_are_replaced(bad, used):
    module = frozen_linear()
    before = module.weight.clone()
    phase = Phase("Gmain", module, torch.optim.SGD(module.parameters(), lr=1.0), interval=1)
    run_phase(phase, Recorder(module, grad=bad), [{}])
    torch.testing.assert_close(module.weight, before - used)


def test_ema_half_life_and_rampup():
    assert ema_beta(32, 10, cur_nimg=10**6) ** (10_000 / 32) == pytest.approx(0.5)
    assert ema_beta(32, 10, cur_nimg=1000, ema_rampup=0.05) ** (50 / 32) == pytest.approx(0.5)
    assert ema_beta(32, 10, cur_nimg=0, ema_rampup=0.05) == 0


def test_ema_averages_parameters_and_copies_buffers():
    ema, net = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    with torch.no_grad():
        net.weight.fill_(5)
    net.running_mean.fill_(7)
    update_ema(ema, net, beta=0.75)
    assert ema.weight.tolist() == [2.0, 2.0]
    assert ema.running_mean.tolist() == [7.0, 7.0]
    update_ema(ema, net, beta=0.0)
    assert torch.equal(ema.weight, net.weight)


class Pipe(torch.nn.Module):
    def __init__(self, p):
        super().__init__()
        self.register_buffer("p", torch.tensor(float(p)))


@pytest.mark.parametrize(
    ("sign", "start", "expected"), [(1, 0.2, 0.2 + 0.000256), (-1, 0.2, 0.2 - 0.000256), (-1, 0, 0)]
)
def test_ada_steps_towards_the_target(sign, start, expected):
    ada = AdaController(Pipe(start), target=0.6, batch_size=32, interval=4, kimg=500)
    training_stats.report("Loss/signs/real", torch.full([8, 1], float(sign)))
    ada.update(iteration=3)
    assert float(ada.augment_pipe.p) == pytest.approx(start)  # not due
    ada.update(iteration=4)
    assert float(ada.augment_pipe.p) == pytest.approx(expected, abs=1e-6)


def test_ada_waits_without_data():
    ada = AdaController(Pipe(0.3), target=0.6, batch_size=32)
    ada.update(iteration=4)
    assert float(ada.augment_pipe.p) == pytest.approx(0.3)
    training_stats.report("Loss/signs/real", torch.ones(4))
    ada.update(iteration=8)
    moved = float(ada.augment_pipe.p)
    ada.update(iteration=12)  # nothing new
    assert float(ada.augment_pipe.p) == moved > 0.3


def test_ada_ignores_nan_logits():
    ada = AdaController(Pipe(0.3), target=0.6, batch_size=32)
    training_stats.report("Loss/signs/real", torch.tensor([1.0, math.nan]))
    ada.update(iteration=4)
    assert float(ada.augment_pipe.p) == pytest.approx(0.3)


class RealsOnly:
    """A loss that records the reals of each phase and trains nothing."""

    def __init__(self, **modules):
        self.reals = {}

    def accumulate_gradients(self, phase, real_img, real_c, gen_z, gen_c, sync, gain):
        self.reals.setdefault(phase, []).append(real_img)


@pytest.mark.parametrize("fresh", [False, True])
def test_the_loop_draws_reals_in_the_order_of_the_sampler(tmp_path, fresh):
    data = make_image_zip(tmp_path / "toy.zip", resolution=16, num_images=12)
    made = options(tmp_path / "run", data, loss_kwargs={"class_name": f"{__name__}.RealsOnly"})
    trainer = Trainer(TrainingOptions(**made))
    trainer.phases[2].fresh_reals = fresh  # Dmain
    for _ in range(2):
        trainer.step(new_tick=False)
    order = iter(InfiniteSampler(trainer.training_set))
    batches = [[trainer.training_set[next(order)][0] for _ in range(8)] for _ in range(4)]
    expected = [from_uint8(torch.as_tensor(np.stack(batch))) for batch in batches]
    seen = {phase: torch.cat(reals).split(8) for phase, reals in trainer.loss.reals.items()}
    for phase, indices in {"Gmain": (0, 2), "Greg": (0,), "Dmain": (1, 3), "Dreg": (1,)}.items():
        indices = indices if fresh else (0, 1)[: len(indices)]
        assert len(seen[phase]) == len(indices)
        assert all(torch.equal(reals, expected[i]) for reals, i in zip(seen[phase], indices))


def test_times_of_phases_wait_for_a_gpu_only_when_they_are_reported(monkeypatch):
    """Events of the current stream mark the ends of each phase; the last one is waited for."""
    clock, waited = iter([0.0, 2.0, 10.0, 14.0, 20.0, 21.0]), []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            self.time = next(clock)

        def synchronize(self):
            waited.append(self.time)

        def elapsed_time(self, end):
            return end.time - self.time

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    collector = training_stats.Collector(regex="Timing/.*")
    times = PhaseTimes(torch.device("cuda"))
    for name in ("Gmain", "Gmain", "Dmain"):
        with times.of(name):
            assert waited == []
    times.report()
    collector.update()
    assert waited == [14, 21]
    assert (collector.mean("Timing/Gmain"), collector.num("Timing/Gmain"), collector["Timing/Dmain"]) == (3, 2, 1)
    times.report()  # nothing new
    collector.update()
    assert collector.num("Timing/Gmain") == 2


def test_where_times_cannot_be_measured_there_are_none():
    collector = training_stats.Collector(regex="Timing/nothing")
    times = PhaseTimes(torch.device("meta"))
    with times.of("nothing"):
        pass
    times.report()
    collector.update()
    assert collector.num("Timing/nothing") == 0
