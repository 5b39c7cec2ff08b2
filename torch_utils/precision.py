# SPDX-License-Identifier: Apache-2.0
"""In which floating-point type the `num_fp16_res` highest resolutions of a network run.

The choice is made per call, by keyword arguments of the networks' forward methods; networks and snapshots do not
change with it.
"""

import functools
import pathlib
import warnings
from collections.abc import Iterable

import torch

from dnnlib.util import UserError

PRECISIONS = ("auto", "fp32", "fp16", "bf16")

# What Linux calls the instructions that multiply bf16 at several times the pace of fp32, or at least at twice it.
FAST_BF16_FLAGS = {"amx_bf16", "avx512_bf16"}


def forward_kwargs(precision: str, device: torch.device) -> dict:
    """Keyword arguments for `G.synthesis(ws, ...)` and `D(img, c, ...)` that make them run in `precision` on `device`.

    'auto' is the fastest that trains well: fp16 on CUDA (as in arXiv 2006.06676), bf16 on CPUs with instructions for
    it, else fp32. 'fp32', 'fp16' and 'bf16' are what they say. Raises UserError for what the device cannot do.
    """
    if precision not in PRECISIONS:
        raise UserError(f"--precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision == "fp32":
        return {"force_fp32": True}
    if precision == "fp16" and device.type != "cuda":
        raise UserError(f"--precision=fp16 needs a CUDA device, this run is on {device.type}; take bf16, fp32 or auto")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError("--precision=bf16 is more than this GPU knows; take fp16, fp32 or auto")
    if precision == "bf16" and device.type not in ("cpu", "cuda"):
        raise UserError(f"--precision=bf16 needs a CPU or CUDA device, this run is on {device.type}; take fp32 or auto")
    if precision == "bf16" or (precision == "auto" and device.type == "cpu" and cpu_has_fast_bf16()):
        return {"half_dtype": torch.bfloat16}
    return {}  # the networks' own choice: fp16 on CUDA, fp32 elsewhere


def describe(networks: Iterable[torch.nn.Module], kwargs: dict, device: torch.device) -> str:
    """In words, the types that `networks` run in when called with `kwargs`, which came from `forward_kwargs`."""
    half = kwargs.get("half_dtype", torch.float16 if device.type == "cuda" else torch.float32)
    if kwargs.get("force_fp32") or half == torch.float32:
        return "fp32"
    if not any(getattr(module, "use_fp16", False) for net in networks for module in net.modules()):
        return "fp32 (these networks have no half-precision resolutions)"
    return f"{'bf16' if half == torch.bfloat16 else 'fp16'} (lower resolutions in fp32)"


def allow_tf32(on: bool) -> None:
    """Whether float32 matrix products and convolutions on CUDA may round their inputs to TF32 (10 bits).

    PyTorch 2.9 gave this new names. What still reads the old ones fails where the two disagree, so both are set; that
    the old ones are old is no news to a user.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        matmul.allow_tf32 = cudnn.allow_tf32 = on
    if hasattr(matmul, "fp32_precision"):
        for part in (matmul, cudnn.conv, cudnn.rnn):
            part.fp32_precision = "tf32" if on else "ieee"


@functools.cache
def cpu_has_fast_bf16(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether the processor multiplies bf16 faster than fp32. False where the system does not say (not Linux)."""
    try:
        text = pathlib.Path(cpuinfo).read_text(errors="replace")
    except OSError:
        return False
    return any(FAST_BF16_FLAGS & set(line.split()) for line in text.splitlines() if line.startswith("flags"))
