# SPDX-License-Identifier: Apache-2.0
"""The bodies of the CUDA kernels, compiled for the CPU behind the interface of csrc/plugin.cpp."""

import ctypes
import os
import pathlib
import shutil
import subprocess

import pytest

from torch_utils.ops import _plugin

SOURCE = pathlib.Path(__file__).with_name("kernels_on_host.cpp")
KERNELS = ("any, 32-bit", "any, 64-bit", "plane", "channel")


class HostKernels:
    """Replaces the plugin's module; `chosen` collects the kernel of each call."""

    def __init__(self, library: pathlib.Path):
        self.library = ctypes.CDLL(str(library))
        self.chosen = []
        self.wide = False  # True: 64-bit indices even where 32 bits are enough

    def bias_act(self, type_, order, out, x, b, g, dy, count, step, size, act, alpha, gain, clamp, stream):
        pointers = [ctypes.c_void_p(address) for address in (out, x, b, g, dy)]
        numbers = [ctypes.c_int64(value) for value in (count, step, size)]
        factors = [ctypes.c_double(value) for value in (alpha, gain, clamp)]
        self.chosen.append(self.library.bias_act(type_, order, *pointers, *numbers, act, *factors))

    def upfirdn2d(self, type_, x, f, y, x_size, x_stride, y_size, y_stride, taps, up, down, pad, flip, gain, stream):
        pointers = [ctypes.c_void_p(address) for address in (x, f, y)]
        sizes, strides = (ctypes.c_int64 * 8)(*x_size, *y_size), (ctypes.c_int64 * 8)(*x_stride, *y_stride)
        pairs = (ctypes.c_int * 8)(*taps, *up, *down, *pad)
        kernel = self.library.upfirdn2d(
            type_, *pointers, sizes, strides, pairs, int(flip), ctypes.c_double(gain), int(self.wide)
        )
        self.chosen.append(KERNELS[kernel])


def build(folder: pathlib.Path) -> HostKernels:
    """Compile into `folder`, with the additional flags in HOST_KERNEL_FLAGS (for sanitizers)."""
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    library = folder / "kernels_on_host.so"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{_plugin.CSRC}"]
    flags += os.environ.get("HOST_KERNEL_FLAGS", "").split()
    subprocess.run(["g++", *flags, str(SOURCE), "-o", str(library)], check=True)
    return HostKernels(library)
