# SPDX-License-Identifier: Apache-2.0
import ctypes
import resource
import subprocess
import sys

import pytest

from tests.support import ROOT
from torch_utils import memory

# Page faults of blocks of 8 and 32 MiB that come and go as tensors do, before and after
CODE = """
import resource
import torch
from torch_utils import memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**21), torch.ones(2**23)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
assert memory.keep_freed()
faults()
print(faults())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library than glibc")
def test_freed_memory_is_used_again():
    run = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True)
    before, after = map(int, run.stdout.split())
    pages = 20 * 2**25 // resource.getpagesize()
    assert after < 0.1 * pages < before


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_other_c_libraries_stay_as_they_are(monkeypatch, error):
    def load(_name):
        raise error

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert memory.keep_freed() is False
