# SPDX-License-Identifier: Apache-2.0
"""Folders as BigGAN's public PyTorch implementation leaves them, with the names of spec 5."""

import pathlib
from collections.abc import Mapping

import torch

from tests.support import rnd
from training.networks_biggan import Discriminator, Generator

SHAPE = {"c_dim": 3, "img_resolution": 32, "img_channels": 3}
IMAGENET = {"z_dim": 8, "ch": 2, "shared_dim": 4, "attn_res": [16]}  # as for ImageNet, but small
CIFAR = {"z_dim": 6, "ch": 1, "shared_dim": 0, "hierarchical": False, "attn_res": []}


def filled(network: torch.nn.Module, prefix: str = "") -> torch.nn.Module:
    """`network` with values that differ from its initial ones, also in its buffers."""
    for name, tensor in network.state_dict().items():
        value = 0.3 * rnd(prefix + name, tuple(tensor.shape))
        tensor.copy_(value.abs() + 0.5 if name.endswith("_var") else value)
    return network.eval().requires_grad_(False)


def networks(**G_kwargs) -> dict[str, torch.nn.Module]:
    """G, D and G_ema of a checkpoint; `G_kwargs` are by default `IMAGENET`."""
    G_kwargs = G_kwargs or IMAGENET
    D_kwargs = {name: G_kwargs[name] for name in ("ch", "attn_res")}
    made = {"G": Generator(**SHAPE, **G_kwargs), "D": Discriminator(**SHAPE, **D_kwargs)}
    made["G_ema"] = Generator(**SHAPE, **G_kwargs)
    return {name: filled(network, name) for name, network in made.items()}


def save(path: pathlib.Path, content, zipped: bool = False) -> pathlib.Path:
    """A file of torch.save, as PyTorch 1.0 wrote it or, if `zipped`, as PyTorch does today."""
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def write(folder: pathlib.Path, networks: Mapping[str, torch.nn.Module], suffix: str = "", **how) -> pathlib.Path:
    """The files of a checkpoint, with those of optimizers and the configuration of its run."""
    folder.mkdir(exist_ok=True)
    for name, network in networks.items():
        save(folder / f"{name}{suffix}.pth", network.state_dict(), **how)
    for name in ("G", "D"):
        moments = {"step": 1, "exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)}
        optimizer = {"state": {0: moments}, "param_groups": [{"lr": 1e-4, "betas": (0.0, 0.999), "params": [0]}]}
        save(folder / f"{name}_optim{suffix}.pth", optimizer, **how)
    config = {"G_ch": 96, "G_activation": torch.nn.ReLU(), "D_activation": torch.nn.ReLU()}
    save(folder / f"state_dict{suffix}.pth", {"itr": 138000, "config": config}, **how)
    return folder
