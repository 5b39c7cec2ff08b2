# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in rosinality's layout, with the golden numbers' names, shapes and values (spec 6)."""

import argparse
import io
import pathlib
from typing import Any

import torch

from tests.support import golden_json, rnd

CASES = golden_json("rosinality")
TAPS = torch.tensor([1.0, 3, 3, 1])


def kernel(total: float) -> torch.Tensor:
    return TAPS.outer(TAPS) / 64 * total


def value(name: str, shape: tuple[int, ...], up: bool) -> torch.Tensor:
    """The golden value of a tensor; of a network that samples up, kernels sum to 4."""
    if name.endswith("kernel"):
        return kernel(4 if up else 1)
    found = rnd(name, shape)
    if name.endswith("noise.weight"):
        return found * 0.1
    if name.endswith("modulation.bias"):
        return 1 + 0.1 * found
    if name.endswith("bias"):
        return found * 0.1
    return found * 100 if name.startswith("style.") and name.endswith("weight") else found


def state(case: str, net: str) -> dict[str, torch.Tensor]:
    """The golden state dict of 'G' or 'D'."""
    return {name: value(name, tuple(shape), net == "G") for name, shape in CASES[case][net].items()}


def latent_avg() -> torch.Tensor:
    return rnd("latent_avg", (64,)) * 0.1


def converted(case: str) -> dict[str, Any]:
    """What converters write: networks and the mean w."""
    return {"g": state(case, "G"), "d": state(case, "D"), "g_ema": state(case, "G"), "latent_avg": latent_avg()}


def from_training(case: str) -> dict[str, Any]:
    """What a training script writes: networks, optimizers and its flags."""
    networks = converted(case)
    del networks["latent_avg"]
    moments = {i: {"step": 1, "exp_avg": t, "exp_avg_sq": t} for i, t in enumerate(networks["d"].values())}
    optimizer = {"state": moments, "param_groups": [{"lr": 1e-3, "betas": (0.0, 0.99), "params": [*moments]}]}
    args = argparse.Namespace(size=32, batch=16, ckpt=None, augment=False, lr=0.002, path="data.lmdb", sizes=[1, 2])
    return {**networks, "g_optim": optimizer, "d_optim": {}, "args": args, "ada_aug_p": 0.25}


def dumps(content: Any, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def save(path: pathlib.Path, content: Any, zipped: bool = True) -> pathlib.Path:
    path.write_bytes(dumps(content, zipped))
    return path
