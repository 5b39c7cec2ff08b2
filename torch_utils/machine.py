# SPDX-License-Identifier: Apache-2.0
"""The machine that figures were measured on, as far as it matters to them. Nothing identifies the machine."""

import os
import pathlib
import platform
import subprocess
from typing import Any

import psutil
import torch

from torch_utils.precision import cpu_has_fast_bf16

# The flags listed by Linux that decide how fast matrices are multiplied.
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "asimd", "bf16")


def describe(device: torch.device) -> dict[str, Any]:
    """Processor, memory, versions, threads and, for a CUDA `device`, the GPU; ready for JSON."""
    info = {
        "device": device.type,
        "cpu": _cpuinfo().get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in _cpuinfo().get("flags", "").split()],
        "fast_bf16": cpu_has_fast_bf16(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load": round(psutil.getloadavg()[0], 2),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    return {**info, **_describe_gpu(device)} if device.type == "cuda" else info


def _describe_gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "gpus": torch.cuda.device_count(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": command_output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]),
    }


def command_output(command: list[str]) -> str | None:
    """The output of a command, or None if it does not exist or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def short_name(device: torch.device) -> str:
    """The name of the GPU, or the number of CPU cores."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} CPU cores"


def _cpuinfo() -> dict[str, str]:
    """The first entry of /proc/cpuinfo; empty on systems other than Linux."""
    path = pathlib.Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text(errors="replace").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _colon, value in pairs}
