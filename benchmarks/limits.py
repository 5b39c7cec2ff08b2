# SPDX-License-Identifier: Apache-2.0
"""Limits of the machine, measured: bytes per second of a copy, operations per second of dense arithmetic."""

import torch

from torch_utils.timing import Clock, interleave

# Rows of square matrices; number and size of images. GPUs need more to be busy.
SIZES = {"cpu": (2048, 4, 64), "cuda": (8192, 32, 128)}
CHANNELS = 256


def copy_bandwidth(device: torch.device, clock: Clock) -> float:
    """Bytes per second that a copy of a large tensor reads and writes."""
    source = torch.ones(2**28 if device.type == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    samples = interleave({"": {"": lambda: target.copy_(source)}}, clock, budget=1)
    return 2 * source.numel() * source.element_size() / min(samples[""][""])


def dense_arithmetic(device: torch.device, dtype: torch.dtype, clock: Clock) -> float:
    """Operations per second, two for a multiply-add, in the faster of a matrix product and a 3x3 convolution.

    Both are tried, because libraries differ: on AMD processors MKL does not use AVX-512 for products in fp32, and
    convolutions are twice as fast.
    """
    rows, count, size = SIZES[device.type]
    a, b = (torch.randn(rows, rows, device=device, dtype=dtype) for _ in range(2))
    images, kernels = (
        torch.randn(shape, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        for shape in ([count, CHANNELS, size, size], [CHANNELS, CHANNELS, 3, 3])
    )
    works = {
        "product": lambda: torch.mm(a, b),
        "convolution": lambda: torch.nn.functional.conv2d(images, kernels, padding=1),
    }
    flops = {"product": 2 * rows**3, "convolution": 2 * images.numel() * kernels[0].numel()}
    samples = interleave({"": works}, clock, budget=1)[""]
    return max(flops[name] / min(times) for name, times in samples.items())
