# SPDX-License-Identifier: Apache-2.0
"""The compiled CUDA kernels. They are built for the first CUDA tensor that could use them (backend.py); where that
fails, plain PyTorch runs instead."""

import pathlib
import sys
import types

import torch

from torch_utils import custom_ops, distributed

NAME = "stylegan2_ada_kernels"
CSRC = pathlib.Path(__file__).parent / "csrc"
SOURCES = tuple(CSRC / name for name in ("plugin.cpp", "bias_act.cu", "upfirdn2d.cu"))
CUDA_FLAGS = ["-O3", "-std=c++17"]

# The numbers of `enum class Type` in csrc/scalar.h.
TYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}

_kernels: types.ModuleType | None = None
_attempted = False


def load() -> types.ModuleType | None:
    """The module of the kernels (csrc/plugin.cpp), or None if they are unavailable; the first call prints the reason.

    While `torch.compile` traces, kernels that no eager call has loaded count as unavailable: a build cannot be traced.
    """
    global _kernels, _attempted
    if _attempted or torch.compiler.is_compiling():
        return _kernels
    _attempted = True
    try:
        _check_tools()
        _kernels = custom_ops.get_plugin(NAME, SOURCES, extra_cflags=["-O2"], extra_cuda_cflags=CUDA_FLAGS)
    except Exception as error:  # whatever a compiler, linker or driver raises: plain PyTorch needs none of them
        if custom_ops.verbosity != "none" and distributed.is_main():
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            print(
                f"bias_act and upfirdn2d run in plain PyTorch, slower but with the same results, because their CUDA "
                f"kernels could not be built: {reason} (torch_utils.custom_ops.verbosity = 'full' shows more).",
                file=sys.stderr,
            )
    return _kernels


def _check_tools() -> None:
    """Raise a short error for a missing tool, before a build raises a long one."""
    import torch.utils.cpp_extension  # takes a second, which only CUDA needs to spend

    if torch.version.cuda is None:
        raise RuntimeError("this PyTorch is built for another kind of GPU")
    if torch.utils.cpp_extension.CUDA_HOME is None:
        raise RuntimeError("no CUDA compiler (nvcc) was found; install the CUDA toolkit or set CUDA_HOME")
    if not torch.utils.cpp_extension.is_ninja_available():
        raise RuntimeError("ninja was not found; pip install ninja")
