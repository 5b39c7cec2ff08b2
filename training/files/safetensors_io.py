# SPDX-License-Identifier: Apache-2.0
"""Networks in safetensors files: the tensors, and in the header the arguments to rebuild our classes.

The header's `config` is JSON: `format`, `version`, `networks` {key: {class_name, init_args, init_kwargs}},
`training_set_kwargs` and `class_names`. Tensor `G_ema.mapping.w_avg` is `mapping.w_avg` of the network `G_ema`. The
format cannot hold code. The package `safetensors` is an optional dependency, used only here.
"""

import json
import os
import types
from collections.abc import Mapping
from typing import Any

import torch

from dnnlib.text import printable
from dnnlib.util import UserError, open_atomic
from torch_utils import misc
from torch_utils.ops import layout
from torch_utils.safe_pickle import StoredObject
from training import families
from training.data import class_names

FORMAT = "stylegan2-networks"
FORMAT_VERSION = 1

_LENGTH_BYTES = 8  # a file starts with the length of its header
_LONGEST_HEADER = 100_000_000


def starts_like_safetensors(data: bytes) -> bool:
    """Whether a file with the content `data` is a safetensors file, intact or damaged; pickles start differently."""
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    return length < _LONGEST_HEADER and data[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{"


def write(path: str | os.PathLike, data: Mapping[str, Any]) -> None:
    """Write networks atomically. `data` maps names to our own networks (or None) and `training_set_kwargs` to a dict.

    It may have names of classes, too (see `training.files.snapshot.Snapshot.notes`).

    Equal networks give equal bytes. Raises UserError for a network of a foreign class or arguments that are not plain
    values, OSError if `path` cannot be written.
    """
    library = _library(os.fspath(path))
    described, tensors = {}, {}
    for key, network in data.items():
        if not isinstance(network, torch.nn.Module):
            continue
        described[key] = describe(network, key)
        tensors |= {f"{key}.{name}": tensor for name, tensor in _separate(network).items()}
    config = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "networks": described,
        "training_set_kwargs": data.get("training_set_kwargs"),
        class_names.KEY: data.get(class_names.KEY),
    }
    try:
        # A single entry, because the library writes several in varying order.
        metadata = {"config": json.dumps(config)}
    except TypeError as error:
        raise UserError(f"the networks' recorded arguments are not plain values ({error})") from error
    with open_atomic(path) as file:
        file.write(library.save(tensors, metadata))


def describe(network: torch.nn.Module, key: str) -> dict[str, Any]:
    """What rebuilds `network`, plain values. Raises UserError, calling it `key`, for a network of a foreign class."""
    if type(network) is not families.class_of(type(network).__name__):
        raise UserError(
            f"{key} is a {type(network).__name__} defined by foreign code, which a safetensors file cannot hold: "
            "leave out --trust-pickle to rebuild it as this project's class"
        )
    return {
        "class_name": type(network).__name__,
        "init_args": network.init_args,
        "init_kwargs": network.init_kwargs,
    }


def _separate(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Tensors by name, contiguous and with memory of their own, as the format needs; networks may share them."""
    found = misc.named_params_and_buffers(network)
    return {name: layout.standard(tensor.detach().cpu().clone()) for name, tensor in found}


def write_one(path: str | os.PathLike, network: torch.nn.Module) -> None:
    """Write the tensors of `network` alone, under their own names, atomically, as other libraries store a model."""
    library = _library(os.fspath(path))
    with open_atomic(path) as file:
        file.write(library.save(_separate(network), {"format": "pt"}))


def read_one(data: bytes, key: str, description: Any, path: str) -> dict[str, Any]:
    """As `read`, for tensors under their own names and the `description` of their network, called `key`."""
    try:
        tensors = _library(path).load(data)
    except UserError:
        raise
    except Exception as error:  # as in `read`
        raise UserError(
            f"{path} is a damaged safetensors file ({type(error).__name__}: {printable(str(error))})"
        ) from error
    tensors = {f"{key}.{name}": tensor for name, tensor in tensors.items()}
    return _entries({"networks": {key: description}}, tensors, path)


def read(data: bytes, path: str) -> dict[str, Any]:
    """Parse a file that `write` wrote: each network as a StoredObject, not rebuilt yet, and `training_set_kwargs`.

    Messages call the file `path`. Raises UserError for damaged data or another kind of safetensors file.
    """
    library = _library(path)
    try:
        tensors = library.load(data)
        length = int.from_bytes(data[:_LENGTH_BYTES], "little")
        metadata = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length]).get("__metadata__", {})
        config = json.loads(metadata.get("config", "{}"))
    except Exception as error:
        # Damaged bytes can make any step fail in any way; to the user these are all the same error.
        raise UserError(
            f"{path} is a damaged safetensors file ({type(error).__name__}: {printable(str(error))})"
        ) from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise UserError(f"{path} is a safetensors file, but not one written by export.py")
    version = config.get("version")
    if version != FORMAT_VERSION:
        shown = version if type(version) is int and abs(version) < 1e9 else printable(version, 20)
        raise UserError(
            f"{path} has version {shown} of the safetensors layout, and this project reads version {FORMAT_VERSION}: "
            f"export it again"
        )
    return _entries(config, tensors, path)


def _entries(config: dict[str, Any], tensors: dict[str, torch.Tensor], path: str) -> dict[str, Any]:
    described = config.get("networks")
    if not isinstance(described, dict):
        raise UserError(f"{path} is a damaged safetensors file: its header does not list its networks")
    by_network: dict[str, dict[str, torch.Tensor]] = {key: {} for key in described}
    for full_name, tensor in tensors.items():
        key, _, name = full_name.partition(".")
        if key not in by_network:
            raise UserError(
                f"{path} is a damaged safetensors file: {printable(full_name, 100)} belongs to none of its networks"
            )
        by_network[key][name] = tensor
    entries = {key: config.get(key) for key in ("training_set_kwargs", class_names.KEY)}
    for key, description in described.items():
        fields = description if isinstance(description, dict) else {}
        class_name, args, kwargs = (fields.get(name) for name in ("class_name", "init_args", "init_kwargs"))
        if not isinstance(class_name, str) or not isinstance(args, list) or not isinstance(kwargs, dict):
            raise UserError(
                f"{path} is a damaged safetensors file: its header does not say how to build {printable(key, 100)}"
            )
        entries[key] = StoredObject.of(class_name, kwargs, by_network[key], args)
    return entries


def _library(path: str) -> types.ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        raise UserError(f"{path} needs the package safetensors: pip install safetensors") from error
    return safetensors.torch
