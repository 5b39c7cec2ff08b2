# SPDX-License-Identifier: Apache-2.0
"""New networks and their initial weights."""

import contextlib
import copy
import math
from collections.abc import Callable
from typing import Any

import torch

from dnnlib.util import UserError, construct_class_by_name
from torch_utils import distributed, misc
from torch_utils.ops import layout
from training.families.family import Family
from training.files.snapshot import Snapshot, Uninitialised
from training.settings import TrainingOptions


def network_shape(dataset) -> dict[str, int]:
    """Constructor arguments of all networks that depend on the dataset."""
    return {"c_dim": dataset.label_dim, "img_resolution": dataset.resolution, "img_channels": dataset.num_channels}


def new_network(kwargs: dict[str, Any], shape: dict[str, int], values: bool = True) -> torch.nn.Module:
    """The network of `G_kwargs` or `D_kwargs`, newly initialised; the global random state does not change.

    `shape`: c_dim, img_resolution and img_channels. Without `values` weights are arbitrary, which is much faster for
    networks that start orthogonal.
    """
    with torch.random.fork_rng(devices=[]), contextlib.nullcontext() if values else Uninitialised(math.inf):
        return construct_class_by_name(**kwargs, **shape)


def check_snapshot(snapshot: Snapshot, networks: dict[str, torch.nn.Module]) -> None:
    """Raises UserError unless weights of a --resume file fit each of `networks` (G, D and G_ema), and are numbers.

    Some names and shapes may differ (transfer learning), but not all: such a run would start from nothing.
    """
    for name, network in networks.items():
        source, file = snapshot[name], f"--resume={snapshot.path}"
        damaged = misc.first_nonfinite(source)
        if damaged is not None:
            raise UserError(f"{file}: {damaged} of its {name} holds NaN or infinite values; use an earlier snapshot")
        weights = {key for net in (source, network) for key, tensor in net.named_parameters() if tensor.ndim > 1}
        if not weights & _fitting(source, network).keys():
            raise UserError(
                f"{file}: none of the weights of its {name} fit this run's {name}; use another file, or the --cfg, "
                "--cond and --cbase it was trained with"
            )


def _fitting(source: torch.nn.Module, network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Tensors of `source` that `network` has too, with the same name and shape."""
    shapes = {name: tensor.shape for name, tensor in misc.named_params_and_buffers(network)}
    return {name: tensor for name, tensor in misc.named_params_and_buffers(source) if tensor.shape == shapes.get(name)}


def from_snapshot(snapshot: Snapshot, networks: dict[str, torch.nn.Module]) -> list[str]:
    """Start `networks` (G, D and G_ema) from those of another run, as far as names and shapes match.

    Returns lines to show, for networks that are not taken over whole or were made for another resolution.
    Raises UserError as `check_snapshot` does.
    """
    check_snapshot(snapshot, networks)
    notices = []
    for name, network in networks.items():
        tensors, fitting = dict(misc.named_params_and_buffers(network)), _fitting(snapshot[name], network)
        with torch.no_grad():
            for key, value in fitting.items():
                tensors[key].copy_(value)
        theirs, ours = (getattr(net, "img_resolution", None) for net in (snapshot[name], network))
        if len(fitting) == len(tensors) and theirs == ours:
            continue
        notice = f"Notice: --resume: {len(fitting)} of {len(tensors)} tensors of {name} taken over"
        if theirs not in (ours, None):
            notice += f" from a {theirs}x{theirs} network"
        there = dict(misc.named_params_and_buffers(snapshot[name]))
        misfits = [key for key in tensors if key in there and key not in fitting]
        if misfits:
            notice += f"; {len(misfits)}, such as {misfits[0]}, have other shapes there: see --cfg, --cond and --cbase"
        notices.append(f"{notice}.")
    return notices


def from_teacher(init_kwargs: dict[str, Any], snapshot: Snapshot, networks: dict[str, torch.nn.Module]) -> None:
    """Start networks of a run from those of the teacher in `snapshot`: G and G_ema (--dgl-init), D (--dgl-init-d).

    `init_kwargs`: the file's path and SHA-256, for G the arguments of `dgl.prune.inherit`, and whether to start D.
    Raises UserError if the file has changed since the options were made, or if a network is missing or does not fit.
    """
    from dgl import prune
    from dgl.teacher import generator_of

    if snapshot.sha256 != init_kwargs["sha256"]:
        raise UserError(f"--dgl-init: {snapshot.path} has changed since this run was set up; restore the original file")
    file = str(snapshot.path)
    if "parts" in init_kwargs:
        arguments = {name: init_kwargs[name] for name in ("parts", "ranking", "svs", "seed")}
        source = generator_of(snapshot)
        prune.check_source(source, networks["G"], file, arguments["parts"], arguments["ranking"])
        prune.inherit(source, networks["G"], **arguments)
        misc.copy_params_and_buffers(networks["G"], networks["G_ema"], require_all=True)
    if init_kwargs.get("D"):
        prune.check_source(snapshot["D"], networks["D"], file, "D")
        prune.inherit(snapshot["D"], networks["D"], "D")


def fit_to_teacher(
    fit_kwargs: dict[str, Any], snapshot: Snapshot, networks: dict[str, torch.nn.Module], draw: Callable
) -> None:
    """Fit G of `networks` to the teacher's generator in `snapshot` (--dgl-fit), and start G_ema from the result.

    Every process calls this. `fit_kwargs`: arguments of `dgl.fit.fit`; `draw`: latents and labels for it.
    """
    from dgl.fit import fit
    from dgl.teacher import generator_of

    G = networks["G"]
    device = misc.params_and_buffers(G)[0].device
    source, D = (layout.prepare(copy.deepcopy(net), device) for net in (generator_of(snapshot), snapshot["D"]))
    distance = fit(G, source, D, draw, **fit_kwargs)
    distributed.print0(f"Fitted G to {snapshot.path} for {fit_kwargs['kimg']:g} kimg: mean |difference| {distance:.3f}")
    misc.copy_params_and_buffers(G, networks["G_ema"], require_all=True)


def check_groups(family: Family, D: torch.nn.Module, options: TrainingOptions) -> None:
    """Raises UserError if the micro-batches of a run that continues with other processes do not suit D."""
    known = hasattr(D, "init_kwargs")  # not a discriminator of another project
    group, size = family.batch_group(D) if known else None, options.batch_gpu
    if group is not None and size > group and size % group:
        raise UserError(
            f"--gpus={options.num_gpus}: micro-batches of {size} images cannot be split into the groups of "
            f"{group} that D compares; continue with another number of processes"
        )
