# SPDX-License-Identifier: Apache-2.0
"""New networks and their initial weights."""

import copy
from collections.abc import Callable
from typing import Any

import torch

from dnnlib.util import UserError, construct_class_by_name
from torch_utils import distributed, misc
from torch_utils.ops import layout
from training.files.snapshot import Snapshot


def network_shape(dataset) -> dict[str, int]:
    """Constructor arguments of all networks that depend on the dataset."""
    return {"c_dim": dataset.label_dim, "img_resolution": dataset.resolution, "img_channels": dataset.num_channels}


def new_network(kwargs: dict[str, Any], shape: dict[str, int]) -> torch.nn.Module:
    """The network of `G_kwargs` or `D_kwargs`, newly initialised; the global random state does not change.

    `shape`: c_dim, img_resolution and img_channels.
    """
    with torch.random.fork_rng(devices=[]):
        return construct_class_by_name(**kwargs, **shape)


def check_snapshot(snapshot: Snapshot, networks: dict[str, torch.nn.Module]) -> None:
    """Raises UserError unless the networks of a --resume file fit `networks` (G, D and G_ema), tensor by tensor.

    Names may differ (transfer learning), but not all of them: such a run would start from nothing without a word.
    """
    for name, network in networks.items():
        source, file = snapshot[name], f"--resume={snapshot.path}"
        theirs, ours = (getattr(net, "img_resolution", None) for net in (source, network))
        if None not in (theirs, ours) and theirs != ours:
            raise UserError(f"{file}: its {name} is for {theirs}x{theirs} images, and the dataset has {ours}x{ours}")
        there = dict(misc.named_params_and_buffers(source))
        if not there.keys() & dict(misc.named_params_and_buffers(network)).keys():
            raise UserError(f"{file}: its {name} has none of the tensors of this run's {name}; use another file")
        damaged = misc.first_nonfinite(source)
        if damaged is not None:
            raise UserError(f"{file}: {damaged} of its {name} holds NaN or infinite values; use an earlier snapshot")
        for key, tensor in misc.named_params_and_buffers(network):
            if key in there and there[key].shape != tensor.shape:
                raise UserError(
                    f"{file}: {key} of its {name} has shape {list(there[key].shape)} and this run needs "
                    f"{list(tensor.shape)}; use the --cfg, --cond and --cbase it was trained with"
                )


def from_snapshot(snapshot: Snapshot, networks: dict[str, torch.nn.Module]) -> None:
    """Start `networks` (G, D and G_ema) from those of another run, as far as names match (transfer learning).

    Raises UserError if a tensor has another shape.
    """
    check_snapshot(snapshot, networks)
    for name, network in networks.items():
        misc.copy_params_and_buffers(snapshot[name], network, require_all=False)


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
