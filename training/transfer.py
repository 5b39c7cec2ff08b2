# SPDX-License-Identifier: Apache-2.0
"""Networks for another resolution, number of channels or number of classes, to start transfer learning from."""

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import torch

from dnnlib.text import aligned, printable
from dnnlib.util import UserError
from torch_utils import misc
from training import families

FLAGS = {"img_resolution": "--resolution", "img_channels": "--channels", "c_dim": "--classes"}
_SEED = 0  # of new weights
_MOST_PARTS = 4  # named in a line


class Account(NamedTuple):
    """What became of the tensors of a network: names of its parts."""

    taken: int  # number of tensors taken over as they are
    fitted: tuple[str, ...]  # layers with tensors computed from the old network's
    new: tuple[str, ...]  # newly initialised
    dropped: tuple[str, ...]  # of the old network, not in the new one


def transferred(network: torch.nn.Module, name: str, changes: dict[str, int]) -> tuple[torch.nn.Module, Account]:
    """A copy of `network` for other data, with as many of its weights as possible, and what became of them.

    `changes` replace img_resolution, img_channels or c_dim (keys of `FLAGS`). Tensors of equal name and shape are taken
    over; the others are fitted by the family's `fit_tensor` where it can, or newly initialised from a fixed seed, layer
    by layer, so that G and G_ema start with the same ones. The result is in eval mode, on the CPU, with requires_grad
    off. Messages call the network `name`. Raises UserError, naming the flag, for impossible changes.
    """
    class_name = type(network).__name__
    family = families.find(class_name)
    fixed = [FLAGS[key] for key in changes if family is None or key not in family.transfers]
    if fixed:
        raise UserError(f"{' and '.join(fixed)}: {name} is a {class_name}, for which that cannot be changed")
    made = _constructed(family, network, name, changes)
    old, new = (dict(misc.named_params_and_buffers(net)) for net in (network, made))
    values = {}
    for key, target in new.items():
        try:
            value = None if family.fit_tensor is None else family.fit_tensor(key, network, made)
        except UserError as error:
            raise UserError(f"{_shown(changes)}: {name} {error}") from error
        if value is None and key in old and old[key].shape == target.shape:
            value = old[key]
        if value is not None:
            values[key] = value
    renewed = {key.rpartition(".")[0] for key in new.keys() - values.keys() if key.endswith(".weight")}
    values = {key: value for key, value in values.items() if key.rpartition(".")[0] not in renewed}
    with torch.no_grad():
        for key, value in values.items():
            new[key].copy_(value)
    taken = [key for key, value in values.items() if value is old.get(key)]
    fitted = [key for key in values if key in old and key not in taken]
    account = Account(
        taken=len(taken),
        fitted=tuple(dict.fromkeys(key.rpartition(".")[0] for key in fitted)),
        new=_parts([key for key in new if key not in (*taken, *fitted)], [*taken, *fitted]),
        dropped=_parts([key for key in old if key not in new], new),
    )
    return made.eval().requires_grad_(False), account


def _constructed(
    family: families.Family, network: torch.nn.Module, name: str, changes: dict[str, int]
) -> torch.nn.Module:
    """A network of the same arguments but for `changes`, newly initialised."""
    class_name = type(network).__name__
    tensors = [key for key, _tensor in misc.named_params_and_buffers(network)]
    args, kwargs = tuple(network.init_args), dict(network.init_kwargs)
    _, kwargs = family.stored_arguments(class_name, "", args, kwargs, tensors)
    try:
        _, kwargs = family.stored_arguments(class_name, "", (), {**kwargs, **changes}, tensors)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            return families.class_of(class_name)(**kwargs)
    except UserError as error:
        raise UserError(f"{_shown(changes)}: {name} {error}") from error
    except (ValueError, ArithmeticError, RuntimeError) as error:
        # A constructor can refuse arguments in any of these ways, such as widths that reach zero at high resolutions.
        reason = f"{type(error).__name__}: {printable(str(error))}"
        if isinstance(error, ZeroDivisionError):
            reason = "no channels are left at that resolution"
        shown = f"{_shown(changes)}: {name}"
        raise UserError(f"{shown} cannot have these properties with its other arguments: {reason}") from error


def _shown(changes: dict[str, int]) -> str:
    return ", ".join(f"{FLAGS[key]}={value}" for key, value in changes.items())


def _parts(names: Iterable[str], others: Iterable[str]) -> tuple[str, ...]:
    """The shortest dotted prefixes, in order, that contain all `names` and none of `others`."""
    foreign = {prefix for other in others for prefix in _prefixes(other)}
    return tuple(dict.fromkeys(next(part for part in _prefixes(name) if part not in foreign) for name in names))


def _prefixes(name: str) -> list[str]:
    return list(itertools.accumulate(name.split("."), lambda start, piece: f"{start}.{piece}"))


def table(accounts: dict[str, Account]) -> str:
    """`accounts` by name of the network as lines of text; networks with equal ones share their lines."""
    rows = [("network", "tensors", "parts")]
    for found in dict.fromkeys(accounts.values()):
        names = [name for name, other in accounts.items() if other == found]
        lines = [("taken over", f"{found.taken} tensors")]
        for kind in ("fitted", "new", "dropped"):
            if parts := getattr(found, kind):
                more = f" and {len(parts) - _MOST_PARTS} more" if len(parts) > _MOST_PARTS else ""
                lines.append((kind, ", ".join(parts[:_MOST_PARTS]) + more))
        rows += [(", ".join(names) if not number else "", *line) for number, line in enumerate(lines)]
    return aligned(rows, rules=[1])
