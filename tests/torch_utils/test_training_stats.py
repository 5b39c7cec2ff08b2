# SPDX-License-Identifier: Apache-2.0
import math
import weakref

import numpy as np
import pytest
import torch

from torch_utils import training_stats


@pytest.fixture(autouse=True)
def fresh_statistics(monkeypatch):
    monkeypatch.setattr(training_stats, "_pending", {})
    monkeypatch.setattr(training_stats, "_known", {})
    monkeypatch.setattr(training_stats, "_collectors", weakref.WeakSet())
    monkeypatch.setattr(training_stats, "_tallies", weakref.WeakSet())


def test_report_returns_its_value_and_takes_tensors_numbers_and_lists():
    x = torch.arange(4.0, requires_grad=True)
    collector = training_stats.Collector()
    assert training_stats.report("a", x) is x
    assert training_stats.report("a", 4) == 4
    training_stats.report("a", [5.0, np.float32(6)])
    training_stats.report("a", torch.tensor([7], dtype=torch.int64))
    training_stats.report("a", [])
    training_stats.report0("a", np.array([[8.0]]))
    collector.update()
    assert collector.num("a") == 9
    assert collector.mean("a") == collector["a"] == 4
    assert collector.std("a") == pytest.approx(np.std(np.arange(9)))
    assert collector.as_dict() == {"a": {"num": 9, "mean": 4.0, "std": collector.std("a")}}


def test_update_takes_what_was_reported_since_the_last_one():
    training_stats.report("a", 100)
    collector = training_stats.Collector()
    training_stats.report("a", 1)
    assert collector.num("a") == 0
    collector.update()
    assert (collector.num("a"), collector["a"]) == (1, 1)
    training_stats.report("a", [2, 4])
    collector.update()
    assert (collector.num("a"), collector["a"]) == (2, 3)


@pytest.mark.parametrize("keep_previous", [True, False])
def test_keep_previous(keep_previous):
    collector = training_stats.Collector(keep_previous=keep_previous)
    training_stats.report("a", 1)
    collector.update()
    training_stats.report("a", [])
    collector.update()
    assert collector.names() == ["a"]
    assert collector.num("a") == int(keep_previous)
    assert collector.mean("a") == 1 if keep_previous else math.isnan(collector.mean("a"))


def test_collectors_do_not_disturb_one_another():
    one, other = training_stats.Collector(regex="Loss/.*"), training_stats.Collector()
    training_stats.report("Loss/G", 1)
    training_stats.report("Progress", 2)
    one.update()
    assert one.names() == ["Loss/G"] and one["Loss/G"] == 1
    with pytest.raises(KeyError, match="Progress"):
        one.mean("Progress")
    training_stats.report("Loss/G", 3)
    other.update()
    one.update()
    assert (other["Loss/G"], other["Progress"], one["Loss/G"]) == (2, 2, 3)


def test_missing_and_infinite_numbers():
    collector = training_stats.Collector()
    assert collector.num("none") == 0 and math.isnan(collector.mean("none")) and math.isnan(collector.std("none"))
    training_stats.report("one", 3)
    training_stats.report("bad", [1.0, math.nan])
    collector.update()
    assert collector.std("one") == 0
    assert math.isnan(collector.mean("bad")) and math.isnan(collector.std("bad"))


def test_sums_are_exact_enough_for_long_runs_of_large_numbers():
    collector = training_stats.Collector()
    for _ in range(500):
        training_stats.report("a", torch.full([1000], 1000.0) + torch.tensor([0.01, -0.01]).repeat(500))
    collector.update()
    assert collector.num("a") == 500_000
    assert collector.mean("a") == pytest.approx(1000, rel=1e-9)
    assert collector.std("a") == pytest.approx(0.01, rel=0.02)


def test_half_precision_and_booleans():
    collector = training_stats.Collector()
    training_stats.report("half", torch.full([4000], 300.0, dtype=torch.float16))
    training_stats.report("bool", torch.tensor([True, False]))
    collector.update()
    assert collector.mean("half") == 300 and collector.std("half") == 0
    assert collector.mean("bool") == 0.5


def test_a_nan_does_not_affect_later_periods():
    collector, other = training_stats.Collector(), training_stats.Collector()
    training_stats.report("x", math.nan)
    collector.update()
    assert math.isnan(collector["x"])
    training_stats.report("x", 1)
    collector.update()
    assert collector["x"] == 1
    other.update()
    assert other.num("x") == 2 and math.isnan(other["x"])


def test_tally_is_a_mean_since_it_was_last_taken():
    training_stats.report("a", 100)
    tally, collector = training_stats.Tally("a", "cpu"), training_stats.Collector()
    assert tally.take_mean().isnan()
    training_stats.report("a", [1.0, 2.0])
    training_stats.report("b", 50)
    training_stats.report("a", torch.tensor(6.0))
    mean = tally.take_mean()
    assert mean.shape == () and float(mean) == 3
    assert tally.take_mean().isnan()
    collector.update()
    assert (collector.num("a"), collector["a"]) == (3, 3)  # a tally takes nothing away from it


def test_tally_counts_what_other_processes_reported(monkeypatch):
    tally = training_stats.Tally("a", "cpu")
    monkeypatch.setattr(training_stats, "_sync_device", torch.device("cpu"))
    elsewhere = torch.tensor([2.0, 10.0, 50.0])  # count, sum and squares of 5 and 5
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.add_(elsewhere))
    training_stats.report("a", [1.0, 1.0])
    assert float(tally.take_mean()) == 3
