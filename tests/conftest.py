# SPDX-License-Identifier: Apache-2.0
"""An option and a fixture that make the suite independent of the CPU it runs on."""

import gc
import os

import pytest


def pytest_addoption(parser):
    parser.addoption(
        "--fast-bf16",
        choices=["on", "off"],
        help="run as on a CPU with fast bf16 instructions (on) or without them (off); default: what this CPU has",
    )


def pytest_configure(config):
    choice = config.getoption("--fast-bf16")
    if choice is not None:
        os.environ["STYLEGAN2_FAST_BF16"] = {"on": "1", "off": "0"}[choice]  # processes that tests start inherit it


def pytest_collection_finish(session):
    """The six thousand tests and what they import stay to the end: the garbage collector need not look at them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=[True, False], ids=["fast-bf16", "slow-bf16"])
def fast_bf16(request, monkeypatch) -> bool:
    """The test runs twice: as on a CPU with fast bf16 instructions, and without."""
    monkeypatch.setenv("STYLEGAN2_FAST_BF16", str(int(request.param)))
    return request.param
