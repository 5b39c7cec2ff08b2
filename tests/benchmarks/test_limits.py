# SPDX-License-Identifier: Apache-2.0
"""The machine's limits: operations per second are those of the faster kind, and of the type that was asked for."""

import pytest
import torch

from benchmarks import limits
from torch_utils.timing import Clock, clock_for

CPU = torch.device("cpu")
FLOPS = {"product": 2 * 64**3, "convolution": 2 * (2 * 8 * 8 * 256) * (256 * 9)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("faster", FLOPS)
def test_the_faster_of_product_and_convolution_is_the_limit(faster, dtype, monkeypatch):
    monkeypatch.setitem(limits.SIZES, "cpu", (64, 2, 8))

    def seconds(work, repeats):
        y = work()
        assert y.dtype == dtype
        kind = "product" if y.ndim == 2 else "convolution"
        assert kind == "product" or y.is_contiguous(memory_format=torch.channels_last)
        return FLOPS[kind] / (3e9 if kind == faster else 1e9)

    assert limits.dense_arithmetic(CPU, dtype, Clock(seconds, 0)) == pytest.approx(3e9)


@pytest.mark.gpu
def test_a_gpu_multiplies_faster_in_half_precision():
    device = torch.device("cuda")
    full, half = (limits.dense_arithmetic(device, dtype, clock_for(device)) for dtype in (torch.float32, torch.float16))
    assert half > full > 1e11
