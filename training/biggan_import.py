# SPDX-License-Identifier: Apache-2.0
"""Weights of BigGAN's public PyTorch implementation: flat dicts of tensors by name, without constructor arguments."""

from collections.abc import Mapping

import torch

from dnnlib.util import UserError
from torch_utils import misc
from torch_utils.safe_pickle import StoredObject
from training.families.biggan_arguments import arguments_of_state
from training.files.snapshot import rebuild


def reference_names(net: torch.nn.Module) -> dict[str, str]:
    """Name in the reference's checkpoints of every parameter and buffer of `net`, by our name: they are the same."""
    return {name: name for name, _tensor in misc.named_params_and_buffers(net)}


@torch.no_grad()
def load_state(net: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Copy all tensors of a reference checkpoint into `net`, in its own type.

    Raises UserError, and changes nothing, unless names and shapes are exactly those of `net`.
    """
    ours = dict(misc.named_params_and_buffers(net))
    faults = [f"{name} is unknown here" for name in state.keys() - ours.keys()]
    faults += [f"{name} is missing there" for name in ours.keys() - state.keys()]
    faults += [
        f"{name} is {list(state[name].shape)} there and {list(ours[name].shape)} here"
        for name in ours.keys() & state.keys()
        if state[name].shape != ours[name].shape
    ]
    if faults:
        raise UserError(f"the weights do not fit {type(net).__name__}: {'; '.join(sorted(faults)[:20])}")
    for name, tensor in ours.items():
        tensor.copy_(state[name])


def network_from_state(state: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """The network that a reference checkpoint holds: float32, in eval mode, requires_grad off.

    The floor of its spectral norm is not stored: 1e-6 with a shared class vector or above 32x32, else 1e-8. Raises
    UserError if it is no BigGAN.
    """
    class_name, kwargs = arguments_of_state({name: tuple(tensor.shape) for name, tensor in state.items()})
    return rebuild(StoredObject.of(class_name, kwargs, dict(state)), "The checkpoint")
