# SPDX-License-Identifier: Apache-2.0
"""Precision of a run: the floating-point type of the `num_fp16_res` highest resolutions of its networks.

The type is a property of a network, like its device: `set_half_dtype` writes it onto the blocks, which read it in every
forward pass. Weights stay in float32. A block supports this if its class has an attribute `half_dtype`; networks of
other projects have none and run in their own precision.
"""

import functools
import os
import pathlib
import warnings

import torch

from dnnlib.util import UserError

PRECISIONS = ("auto", "fp32", "fp16", "bf16")
FAST_BF16_VARIABLE = "STYLEGAN2_FAST_BF16"

# Linux's names for instructions that multiply bf16 at least twice as fast as fp32.
FAST_BF16_FLAGS = {"amx_bf16", "avx512_bf16"}


def run_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Type of the half-precision resolutions for `--precision` on `device`; float32 if they run in full precision.

    'auto' is the fastest type that trains well: fp16 on CUDA (as in arXiv 2006.06676), bf16 on CPUs with instructions
    for it, else fp32. Raises UserError for an unknown name and for a type that the device does not support.
    """
    if precision not in PRECISIONS:
        raise UserError(f"--precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision == "fp32":
        return torch.float32
    if precision == "fp16" and device.type != "cuda":
        raise UserError(f"--precision=fp16 needs a CUDA device, this run is on {device.type}; use bf16, fp32 or auto")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError("--precision=bf16 is not supported by this GPU; use fp16, fp32 or auto")
    if precision == "bf16" and device.type not in ("cpu", "cuda"):
        raise UserError(f"--precision=bf16 needs a CPU or CUDA device, this run is on {device.type}; use fp32 or auto")
    if precision == "bf16" or (precision == "auto" and device.type == "cpu" and cpu_has_fast_bf16()):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


def _blocks(network: torch.nn.Module) -> list[torch.nn.Module]:
    return [module for module in network.modules() if hasattr(type(module), "half_dtype")]


def is_supported(network: torch.nn.Module) -> bool:
    """Whether `network` has blocks that take the precision of the run."""
    return bool(_blocks(network))


def has_half_blocks(network: torch.nn.Module) -> bool:
    """Whether some resolutions of `network` run in half precision where the device and the run allow it."""
    return any(getattr(module, "use_fp16", False) for module in network.modules())


def set_half_dtype(network: torch.nn.Module, dtype: torch.dtype | None) -> None:
    """Run the half-precision resolutions of `network` in `dtype`. None restores the default: fp16 on CUDA, else fp32.

    A network without support for it is left alone.
    """
    for block in _blocks(network):
        if dtype is None:
            vars(block).pop("half_dtype", None)
        else:
            block.half_dtype = dtype


def get_half_dtype(network: torch.nn.Module) -> torch.dtype | None:
    """The type that `set_half_dtype` gave `network`; None without one."""
    return next((block.half_dtype for block in _blocks(network)), None)


def describe(networks: dict[str, torch.nn.Module], dtype: torch.dtype) -> str:
    """The types that `networks` (by name) train in after `set_half_dtype(dtype)`, in words: 'in ...' or 'with ...'."""
    words = {name: _words(network, dtype) for name, network in networks.items()}
    if len(set(words.values())) > 1:
        return "with " + ", ".join(f"{name} in {text or 'its own precision'}" for name, text in words.items())
    return f"in {next(iter(words.values())) or 'their own precision'}"


def _words(network: torch.nn.Module, dtype: torch.dtype) -> str | None:
    blocks = _blocks(network)
    if not blocks:
        return None
    if dtype == torch.float32:
        return "fp32"
    if not has_half_blocks(network):
        return "fp32 (no half-precision resolutions)"
    return f"{'bf16' if dtype == torch.bfloat16 else 'fp16'} (lower resolutions in fp32)"


def allow_tf32(on: bool) -> None:
    """Whether float32 matrix products and convolutions on CUDA may round their inputs to TF32 (10-bit mantissa).

    PyTorch 2.9 renamed these settings. Code that reads the old names fails where old and new disagree, so both are set;
    the deprecation warning for the old names is suppressed.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        matmul.allow_tf32 = cudnn.allow_tf32 = on
    if hasattr(matmul, "fp32_precision"):
        for part in (matmul, cudnn.conv, cudnn.rnn):
            part.fp32_precision = "tf32" if on else "ieee"


def cpu_has_fast_bf16(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether the CPU multiplies bf16 faster than fp32. False where the system does not say (anything but Linux).

    The environment variable STYLEGAN2_FAST_BF16 overrides the detection: 1 for yes, 0 for no. Child processes inherit
    it. Without such instructions bf16 still works, emulated and slow. Raises UserError for another value of it.
    """
    override = os.environ.get(FAST_BF16_VARIABLE, "")
    if override not in ("", "0", "1"):
        raise UserError(f"the environment variable {FAST_BF16_VARIABLE} must be 0 or 1, not {override!r}")
    return override == "1" if override else _lists_fast_bf16(cpuinfo)


@functools.cache
def _lists_fast_bf16(cpuinfo: str) -> bool:
    try:
        text = pathlib.Path(cpuinfo).read_text(errors="replace")
    except OSError:
        return False
    return any(FAST_BF16_FLAGS & set(line.split()) for line in text.splitlines() if line.startswith("flags"))
