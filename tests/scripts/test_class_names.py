# SPDX-License-Identifier: Apache-2.0
"""generate.py: classes by name."""

import functools

import pytest

import generate
from tests.scripts.outcome import refused


@pytest.fixture
def run_cli(run_script):
    return functools.partial(run_script, generate.main)


def test_class_by_name(network, run_cli):
    path, _ = network(c_dim=3, notes={"class_names": ["Food & Drink", "Flags", "7"]})
    made = [
        (run_cli(network=path, seeds="5", outdir=str(i), **{"class": which})[-1] / "seed0005.png").read_bytes()
        for i, which in enumerate((1, "Flags", "flags", 2))
    ]
    assert made[0] == made[1] == made[2] != made[3]
    known = "0 Food & Drink, 1 Flags, 2 7"
    refused(run_cli(network=path, seeds="5", outdir="no", **{"class": "Flag"}), "--class=Flag:", known)
    refused(run_cli(network=path, seeds="5", outdir="no", **{"class": 7}), "--class=7 is out of range", known)
    refused(run_cli(network=path, seeds="5", outdir="no"), "choose a class with --class, 0 to 2", known)


@pytest.mark.parametrize(
    "names", [None, ["a", "b"], ["a", "a", "b"], ["a", "b", "x" * 256], [["a"], "b", "c"], 7, {0: "a"}]
)
def test_names_that_cannot_be_used_are_none(network, run_cli, names):
    path, _ = network(c_dim=3, notes={"class_names": names})
    refused(
        run_cli(network=path, seeds="5", outdir="no", **{"class": "a"}), "--class=a: the network has no names", "0 to 2"
    )
    assert run_cli(network=path, seeds="5", **{"class": 1})[0] == 0
