# SPDX-License-Identifier: Apache-2.0
"""The compiled CUDA kernels: built when a CUDA tensor first asks for them; where that fails, plain PyTorch serves."""

import pathlib
import sys
import types

import torch

from torch_utils import custom_ops, distributed
from torch_utils.ops import backend

NAME = "stylegan2_ada_kernels"
CSRC = pathlib.Path(__file__).parent / "csrc"
SOURCES = tuple(CSRC / name for name in ("plugin.cpp", "bias_act.cu", "upfirdn2d.cu"))
CUDA_FLAGS = ["-O3", "-std=c++17"]

# The numbers of `enum class Type` in csrc/scalar.h.
TYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}

_kernels: types.ModuleType | None = None
_attempted = False


def serves(x: torch.Tensor) -> bool:
    """Whether the kernels take `x`: a CUDA tensor of a type they know, outside `reference_path`, and they load."""
    return x.is_cuda and x.dtype in TYPES and not backend.is_reference() and load() is not None


def load() -> types.ModuleType | None:
    """The kernels' module (csrc/plugin.cpp), or None where it cannot be had, which the first call says in a sentence.

    While `torch.compile` traces, a module that no eager call has loaded counts as absent: a build cannot be traced.
    """
    global _kernels, _attempted
    if _attempted or torch.compiler.is_compiling():
        return _kernels
    _attempted = True
    try:
        _check_tools()
        _kernels = custom_ops.get_plugin(NAME, SOURCES, extra_cflags=["-O2"], extra_cuda_cflags=CUDA_FLAGS)
    except Exception as error:  # whatever a compiler, linker or driver may raise: the plain path needs none of them
        if custom_ops.verbosity != "none" and distributed.is_main():
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            print(
                f"bias_act and upfirdn2d run in plain PyTorch, slower and with the same results, because their CUDA "
                f"kernels could not be built: {reason} (torch_utils.custom_ops.verbosity = 'full' shows more).",
                file=sys.stderr,
            )
    return _kernels


def _check_tools() -> None:
    """Say what is missing before a build says it in a page."""
    import torch.utils.cpp_extension  # takes a second, which only CUDA needs to spend

    if torch.version.cuda is None:
        raise RuntimeError("this PyTorch is built for another kind of GPU")
    if torch.utils.cpp_extension.CUDA_HOME is None:
        raise RuntimeError("no CUDA compiler (nvcc) was found; install the CUDA toolkit or set CUDA_HOME")
    if not torch.utils.cpp_extension.is_ninja_available():
        raise RuntimeError("ninja was not found; pip install ninja")
