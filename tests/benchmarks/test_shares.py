# SPDX-License-Identifier: Apache-2.0
import contextlib
import time

import pytest
import torch
from click.testing import CliRunner

from benchmarks import shares
from torch_utils.ops import backend, conv2d_gradfix


@pytest.mark.parametrize("path", [backend.reference_path, contextlib.nullcontext])
def test_convolutions_are_dense_and_their_surroundings_are_not(path):
    x, w = torch.randn(2, 32, 32, 32).requires_grad_(), torch.randn(32, 32, 3, 3).requires_grad_()
    with path():
        dense, other = shares.shares_of(lambda: conv2d_gradfix.conv2d(x, w).sum().backward())
    assert dense > 0 and other > 0


def test_filters_and_python_are_not_dense():
    x, f = torch.randn(1, 32, 16, 16), torch.ones(32, 1, 3, 3)
    dense, other = shares.shares_of(lambda: (time.sleep(0.05), torch.nn.functional.conv2d(x, f, groups=32)))
    assert dense == 0 and other > 0.05


def test_products_are_dense():
    a = torch.randn(1500, 1500)  # large enough that no delay of the profiler outweighs the product
    dense, other = shares.shares_of(lambda: a @ a)
    assert dense > other
    assert shares.shares_of(lambda: a + a)[0] == 0


def test_an_iteration_is_the_weighted_sum_of_the_medians():
    phases = {"Gmain": [(1, 2), (3, 5), (2, 9)], "Greg": [(4, 8)], "Dmain": [(1, 1)], "Dreg": [(16, 16)]}
    last = shares.table({"fp32": {**phases, "EMA": [(0, 0)]}}).splitlines()[-1]
    assert last.split() == ["fp32", "iteration", "5.00", "9.00"]  # 2 + 4/4 + 1 + 16/16, 5 + 8/4 + 1 + 16/16


@pytest.mark.slow
def test_every_version_is_measured():
    result = CliRunner().invoke(shares.main, ["--res=8", "--batch=2", "--cbase=64", "--rounds=1"])
    assert result.exit_code == 0, result.output
    rows = [line.split()[:2] for line in result.stdout.splitlines() if line.split()[1:2] == ["iteration"]]
    assert [variant for variant, _ in rows] == ["reference", "fp32", "bf16"]


@pytest.mark.parametrize("argument", ["--res=9", "--rounds=0", "--batch=0", "--cbase=-1", "--precisions=fp8"])
def test_impossible_values_are_refused_before_anything_is_measured(argument, monkeypatch):
    monkeypatch.setattr(shares, "shares_of", lambda work: pytest.fail("measured"))
    result = CliRunner().invoke(shares.main, ["--res=8", "--batch=2", "--cbase=64", argument])
    assert result.exit_code != 0
    assert argument.partition("=")[0] in f"{result.output}{result.exception}"
