# SPDX-License-Identifier: Apache-2.0
"""Statistics of samples, and the order in which versions take turns."""

import contextlib

import pytest
import torch

from torch_utils.timing import MAX_ROUNDS, MIN_ROUNDS, Clock, clock_for, interleave, paired_ratio, spread


class FakeClock:
    """Calls the work and reports the duration that `seconds` has under the name that the work returns."""

    def __init__(self, seconds: dict[str, float], min_sample: float = 0.0):
        self.seconds = seconds
        self.calls: list[tuple[str, int]] = []
        self.clock = Clock(self.time, min_sample)

    def time(self, work, repeats: int) -> float:
        name = work()
        self.calls.append((name, repeats))
        return self.seconds[name]


def works(*names: str) -> dict:
    return {name: (lambda name=name: name) for name in names}


def test_spread_is_median_quartiles_and_median_deviation():
    assert spread([5.0, 1.0, 2.0, 3.0, 4.0]) == (3.0, 2.0, 4.0, 1.0)
    assert spread([7.0]) == (7.0, 7.0, 7.0, 0.0)


def test_one_outlier_does_not_move_the_figures():
    assert spread([1.0, 1.0, 1.0, 1.0, 100.0])[:3] == (1.0, 1.0, 1.0)


def test_ratios_pair_the_rounds_so_that_drift_cancels():
    drift = [1.0, 2.0, 4.0]
    ratio = paired_ratio([3 * d for d in drift], drift)
    assert ratio == pytest.approx((3.0, 3.0, 3.0, 0.0))


def test_ratios_of_unequal_numbers_of_rounds_are_refused():
    with pytest.raises(ValueError):
        paired_ratio([1.0, 2.0], [1.0])


def test_versions_take_turns_and_the_first_of_a_round_rotates():
    fake = FakeClock({"a": 2.0, "b": 2.0, "c": 2.0})
    samples = interleave({"part": works("a", "b", "c")}, fake.clock, budget=0)
    order = [name for name, _repeats in fake.calls]
    assert order == ["a", "b", "c", "a", "b", "c", "b", "c", "a", "c", "a", "b"]  # the first three warm up
    assert {name: len(times) for name, times in samples["part"].items()} == {"a": 3, "b": 3, "c": 3}


def test_parts_follow_each_other_within_a_round():
    fake = FakeClock({"a": 2.0, "b": 2.0})
    interleave({"first": works("a"), "second": works("b")}, fake.clock, budget=0)
    assert [name for name, _repeats in fake.calls] == ["a", "b"] * (1 + MIN_ROUNDS)


@pytest.mark.parametrize(("budget", "rounds"), [(0, MIN_ROUNDS), (8.0, MIN_ROUNDS), (20.0, 5), (10_000.0, MAX_ROUNDS)])
def test_rounds_fill_the_budget_within_limits(budget, rounds):
    fake = FakeClock({"a": 1.0, "b": 3.0})
    samples = interleave({"part": works("a", "b")}, fake.clock, budget=budget)
    assert len(samples["part"]["a"]) == len(samples["part"]["b"]) == rounds


def test_short_work_is_repeated_within_a_sample_equally_for_all_versions():
    fake = FakeClock({"a": 0.002, "b": 0.004}, min_sample=0.01)
    interleave({"part": works("a", "b")}, fake.clock, budget=0)
    assert {repeats for _name, repeats in fake.calls[4:]} == {5}


def test_a_short_first_call_is_repeated_before_rounds_are_planned():
    seconds = iter([0.9, 0.1])
    clock = Clock(lambda work, repeats: next(seconds, 0.1), 0.0)
    samples = interleave({"part": works("a")}, clock, budget=1.0)
    assert len(samples["part"]["a"]) == 10  # from the second call; the first would allow only the minimum


def test_each_sample_runs_in_the_context_of_its_version():
    held, seen = [], []

    @contextlib.contextmanager
    def hold(name):
        held.append(name)
        yield
        held.remove(name)

    def work(name):
        return lambda: seen.append((name, list(held)))

    interleave({"part": {"a": work("a"), "b": work("b")}}, Clock(lambda w, n: w() or 1.0, 0.0), 0, hold=hold)
    assert len(seen) == 2 * (1 + MIN_ROUNDS)
    assert all(during == [name] for name, during in seen)


def test_progress_ends_at_one_and_only_grows():
    shares = []
    interleave({"part": works("a")}, FakeClock({"a": 2.0}).clock, budget=0, on_round=shares.append)
    assert shares == sorted(shares)
    assert len(shares) == 1 + MIN_ROUNDS
    assert shares[-1] == pytest.approx(1)


@pytest.mark.gpu
def test_the_cuda_clock_measures_the_device_and_not_only_the_launch():
    x = torch.randn([4096, 4096], device="cuda")
    clock = clock_for(x.device)
    clock.time(lambda: x @ x, 3)
    one, four = clock.time(lambda: x @ x, 10), clock.time(lambda: [x @ x for _ in range(4)], 10)
    assert 3 < four / one < 5
    assert one > 2 * 4096**3 / 1e15  # no device is that fast in fp32


def test_the_wall_clock_gives_the_seconds_of_one_call():
    calls = []
    seconds = clock_for(torch.device("cpu")).time(lambda: calls.append(torch.ones(10).sum()), 7)
    assert len(calls) == 7
    assert 0 < seconds < 0.1
