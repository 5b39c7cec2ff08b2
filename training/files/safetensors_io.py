# SPDX-License-Identifier: Apache-2.0
"""Networks as a safetensors file: their tensors, and beside them in the header what rebuilds our classes around them.

The header's `config` is JSON: `format`, `version`, `networks` {key: {class_name, init_args, init_kwargs}} and
`training_set_kwargs`. Tensor `G_ema.mapping.w_avg` is `mapping.w_avg` of the network `G_ema`. Such a file can hold no
code at all. The package `safetensors` is an extra, needed here alone.
"""

import json
import os
import types
from collections.abc import Mapping
from typing import Any

import torch

from dnnlib.util import UserError, open_atomic
from torch_utils import misc
from torch_utils.ops import layout
from torch_utils.safe_pickle import StoredObject
from training import families

FORMAT = "stylegan2-networks"
FORMAT_VERSION = 1

_LENGTH_BYTES = 8  # the file begins with the length of its header
_LONGEST_HEADER = 100_000_000


def starts_like_safetensors(data: bytes) -> bool:
    """Whether a file with the content `data` is a safetensors file, whole or damaged; no pickle begins like one."""
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    return length < _LONGEST_HEADER and data[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{"


def write(path: str | os.PathLike, data: Mapping[str, Any]) -> None:
    """Write networks atomically. `data` maps names to our own networks (or None) and `training_set_kwargs` to a dict.

    The same networks give the same bytes. Raises UserError for a network of a foreign class or arguments that are not
    plain values, OSError where `path` cannot be written.
    """
    library = _library(os.fspath(path))
    described, tensors = {}, {}
    for key, network in data.items():
        if not isinstance(network, torch.nn.Module):
            continue
        if type(network) is not families.class_of(type(network).__name__):
            raise UserError(
                f"{key} is a {type(network).__name__} of foreign code, which a safetensors file cannot hold: leave out "
                "--trust-pickle to have it rebuilt as this project's own"
            )
        described[key] = {
            "class_name": type(network).__name__,
            "init_args": network.init_args,
            "init_kwargs": network.init_kwargs,
        }
        for name, tensor in misc.named_params_and_buffers(network):
            # A file holds separate tensors in the standard layout, whatever the network shares or lays out otherwise.
            tensors[f"{key}.{name}"] = layout.standard(tensor.detach().cpu().clone())
    config = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "networks": described,
        "training_set_kwargs": data.get("training_set_kwargs"),
    }
    try:
        # One entry only: with more, the library would write them in a different order each time.
        metadata = {"config": json.dumps(config)}
    except TypeError as error:
        raise UserError(f"the networks' recorded arguments are not plain values ({error})") from error
    with open_atomic(path) as file:
        file.write(library.save(tensors, metadata))


def read(data: bytes, path: str) -> dict[str, Any]:
    """What `write` wrote: each network as a StoredObject, yet to be rebuilt, and `training_set_kwargs`.

    `path` is what messages call the file. Raises UserError for damaged data or another kind of safetensors file.
    """
    library = _library(path)
    try:
        tensors = library.load(data)
        length = int.from_bytes(data[:_LENGTH_BYTES], "little")
        metadata = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length]).get("__metadata__", {})
        config = json.loads(metadata.get("config", "{}"))
    except Exception as error:
        # Damaged bytes can make any step fail in any way; to the user all of them are one thing.
        raise UserError(f"{path} is a damaged safetensors file ({type(error).__name__}: {str(error)[:200]})") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise UserError(f"{path} is a safetensors file, but not one of networks that export.py wrote")
    if config.get("version") != FORMAT_VERSION:
        raise UserError(
            f"{path} has version {str(config.get('version'))[:20]} of the safetensors layout, and this project reads "
            f"version {FORMAT_VERSION}: export it anew"
        )
    return _entries(config, tensors, path)


def _entries(config: dict[str, Any], tensors: dict[str, torch.Tensor], path: str) -> dict[str, Any]:
    described = config.get("networks")
    if not isinstance(described, dict):
        raise UserError(f"{path} is a damaged safetensors file: its header does not say which networks it holds")
    by_network: dict[str, dict[str, torch.Tensor]] = {key: {} for key in described}
    for full_name, tensor in tensors.items():
        key, _, name = full_name.partition(".")
        if key not in by_network:
            raise UserError(f"{path} is a damaged safetensors file: {full_name[:100]} belongs to none of its networks")
        by_network[key][name] = tensor
    entries = {"training_set_kwargs": config.get("training_set_kwargs")}
    for key, description in described.items():
        fields = description if isinstance(description, dict) else {}
        class_name, args, kwargs = (fields.get(name) for name in ("class_name", "init_args", "init_kwargs"))
        if not isinstance(class_name, str) or not isinstance(args, list) or not isinstance(kwargs, dict):
            raise UserError(f"{path} is a damaged safetensors file: its header does not say how to build {key[:100]}")
        entries[key] = StoredObject.of(class_name, kwargs, by_network[key], args)
    return entries


def _library(path: str) -> types.ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        raise UserError(f"{path} needs the package safetensors: pip install safetensors") from error
    return safetensors.torch
