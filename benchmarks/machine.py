# SPDX-License-Identifier: Apache-2.0
"""What the figures were made on, as far as it matters to them; nothing that names the machine."""

import os
import pathlib
import platform

import psutil
import torch

from torch_utils.precision import cpu_has_fast_bf16

# Of what Linux lists, what decides how fast matrices are multiplied.
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "asimd", "bf16")


def describe(device: torch.device) -> dict:
    """Processor, memory, versions and threads, ready for JSON."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    info = {
        "device": device.type,
        "cpu": _cpuinfo().get("model name") or platform.processor() or platform.machine(),
        "cores": cores,
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in _cpuinfo().get("flags", "").split()],
        "fast_bf16": cpu_has_fast_bf16(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load": round(psutil.getloadavg()[0], 2),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.type == "cuda":
        info.update(gpu=torch.cuda.get_device_name(device), cuda=torch.version.cuda)
    return info


def _cpuinfo() -> dict[str, str]:
    """The first entry of /proc/cpuinfo, by its names; empty elsewhere than on Linux."""
    path = pathlib.Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text(errors="replace").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _colon, value in pairs}
