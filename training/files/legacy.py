# SPDX-License-Identifier: Apache-2.0
"""Implementation of legacy.py: convert networks of other formats to the current one, or to rosinality's layout."""

from typing import IO, Any

import torch

from dnnlib.util import UserError
from training import families, transfer
from training.files import rosinality
from training.files.snapshot import (
    KEYS,
    NETWORK_KEYS,
    Snapshot,
    load_snapshot,
    read_snapshot,
    save_snapshot,
    with_arguments,
)


class Refused:
    """An entry of a network file that cannot be rebuilt: using it raises the UserError that says why."""

    def __init__(self, error: UserError):
        self._error = error

    def __repr__(self) -> str:
        return f"Refused({self._error})"

    def __getattr__(self, name: str) -> Any:
        raise self._error

    def __call__(self, *args, **kwargs) -> Any:
        raise self._error

    def __reduce_ex__(self, protocol: int) -> Any:
        raise self._error


def load_network_pkl(f: IO[bytes], force_fp16: bool = False) -> dict[str, Any]:
    """Load the networks of a StyleGAN2-ADA, StyleGAN3 or TensorFlow pickle from an open binary file.

    Returns a dict of `G`, `D`, `G_ema`, `training_set_kwargs` and `augment_pipe`; entries missing in the file are None.
    Networks are in eval mode, on the CPU, with requires_grad off. An entry that cannot be rebuilt, such as G of an
    alias-free StyleGAN3 pickle, is a `Refused`: the other entries can be used, and its use raises the error.
    `force_fp16` rebuilds G, D and G_ema with num_fp16_res 4 and conv_clamp 256 (arXiv 2006.06676, appendix). Runs no
    code from the file. Raises dnnlib.util.UserError, also if no network can be rebuilt.
    """
    snapshot = read_snapshot(f)
    data: dict[str, Any] = {}
    for key in KEYS:
        try:
            data[key] = _entry(snapshot, key, force_fp16)
        except UserError as error:
            data[key] = Refused(error)
    networks = [data[key] for key in NETWORK_KEYS if data[key] is not None]
    if all(isinstance(network, Refused) for network in networks):
        raise networks[0]._error
    return data


def convert(
    source: str,
    dest: str,
    *,
    changes: dict[str, int] | None = None,
    force_fp16: bool = False,
    trust_pickle: bool = False,
) -> None:
    """Write the networks of the pickle `source` (path or URL) to the pickle `dest` in the current format.

    A `dest` that ends in .pt is a checkpoint in rosinality's layout, see `training.files.rosinality`. With
    `changes`, the networks are for other data, see `training.transfer.transferred`; a table says what is new in them,
    and training_set_kwargs are left out. Prints its progress. Raises UserError, naming
    the file or flag, if either file is unusable.
    """
    print(f"Loading {source}", flush=True)
    snapshot = load_snapshot(source, trust=trust_pickle)
    data = {key: _entry(snapshot, key, force_fp16) for key in KEYS} | snapshot.notes
    if changes:
        _transfer(data, snapshot.path, changes)
    print(f"Saving {dest}", flush=True)
    try:
        if dest.endswith(".pt"):
            _save_in_rosinality_layout(dest, data, source)
        else:
            save_snapshot(dest, data)
    except OSError as error:
        raise UserError(f"--dest={dest} cannot be written: {error.strerror or error}") from error


def _transfer(data: dict[str, Any], path: str, changes: dict[str, int]) -> None:
    """Replace the networks in `data`, of the file `path`, by ones for other data."""
    accounts = {}
    for key in ("G", "D", "G_ema"):
        if data[key] is not None:
            data[key], accounts[key] = transfer.transferred(data[key], f"{key} in {path}", changes)
    data["training_set_kwargs"] = None
    if "c_dim" in changes:
        for note in data.keys() - set(KEYS):  # names of the old classes
            del data[note]
    print(transfer.table(accounts), flush=True)


def _save_in_rosinality_layout(dest: str, data: dict[str, Any], source: str) -> None:
    networks = {key: data[key] for key in ("G", "D", "G_ema") if data[key] is not None}
    lost = rosinality.write(dest, networks, source)
    lost += [key for key in ("augment_pipe", "training_set_kwargs") if data[key] is not None]
    if lost:
        print(f"Not recorded in that layout: {', '.join(lost)}", flush=True)


def _entry(snapshot: Snapshot, key: str, force_fp16: bool) -> Any:
    """One entry of a snapshot, or None."""
    entry = snapshot.get(key)
    if force_fp16 and entry is not None and key in ("G", "D", "G_ema"):
        return _in_half_precision(entry, f"{key} in {snapshot.path}")
    return entry


def _in_half_precision(network: torch.nn.Module, name: str) -> torch.nn.Module:
    """A copy of the network with its four highest resolutions in half precision."""
    kwargs = families.of(network).half_precision(type(network).__name__, network.init_kwargs, None)
    return with_arguments(network, name, **kwargs)
