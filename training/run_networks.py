# SPDX-License-Identifier: Apache-2.0
"""The networks of a run: built from its options, with their initial weights, the same in all processes."""

import copy
import re
from collections.abc import Callable

import torch

from dnnlib.util import construct_class_by_name
from torch_utils import distributed, misc
from torch_utils.ops import layout
from training import families, initial
from training.families.family import Family
from training.settings import TrainingOptions


def build(
    options: TrainingOptions, dataset, device: torch.device, rank: int, load: Callable | None
) -> dict[str, torch.nn.Module]:
    """G, D and G_ema on `device`. Process 0 prints their tables.

    `load(path, trust)` opens the network files from which a new run starts; None: the run continues, and its state will
    set the weights. Raises UserError if such a file, or the number of processes, does not fit.
    """
    shape = initial.network_shape(dataset)
    G = construct_class_by_name(**options.G_kwargs, **shape).train().requires_grad_(False)
    D = construct_class_by_name(**options.D_kwargs, **shape).train().requires_grad_(False)
    family = families.of(G)
    if load is None:
        initial.check_groups(family, D, options)
    layout.prepare(G, device)
    layout.prepare(D, device)
    networks = {"G": G, "D": D, "G_ema": copy.deepcopy(G).eval()}
    if load is not None:
        _start(options, networks, rank, load)
    if rank == 0:
        print_tables(networks)
    if family.place is not None:
        family.place(G, options)
    return networks


def _start(options: TrainingOptions, networks: dict[str, torch.nn.Module], rank: int, load: Callable) -> None:
    """Weights from the files that the options name, equal in all processes."""
    if options.resume_pkl is not None and rank == 0:
        distributed.print0(f"Resuming from {options.resume_pkl}")
        for line in initial.from_snapshot(load(options.resume_pkl, options.trust_pickle), networks):
            distributed.print0(line)
    if options.init_kwargs is not None and rank == 0:
        path = options.init_kwargs["path"]
        distributed.print0(f"Starting from the weights of {path}")
        initial.from_teacher(options.init_kwargs, load(path, options.trust_pickle), networks)
    for module in networks.values():  # every process starts from the weights of the first
        for tensor in misc.params_and_buffers(module):
            distributed.broadcast_(tensor)


def print_tables(networks: dict[str, torch.nn.Module]) -> None:
    """Print the layers of G_ema and D. Changes nothing in them."""
    G, D = networks["G_ema"], networks["D"]
    device = misc.params_and_buffers(G)[0].device
    z, c = torch.zeros([1, G.z_dim], device=device), torch.zeros([1, G.c_dim], device=device)
    with torch.no_grad():
        img = misc.print_module_summary(G, [z, c])
        misc.print_module_summary(D.eval(), [img, c])  # in training mode it might change, in this process
    D.train()


def own_statistics(G: torch.nn.Module, family: Family) -> list[torch.Tensor]:
    """Buffers of G that follow a process's own images, so that they have to be averaged over processes."""
    own = re.compile(family.differs_by_process or "")
    return [tensor for name, tensor in G.named_buffers() if own.fullmatch(f"{type(G).__name__}.{name}")]
