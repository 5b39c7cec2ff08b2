# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of BigGAN's public PyTorch implementation: a folder with a file of tensors by name for each network.

`G_ema.pth`, `G.pth` and `D.pth` belong together, and so do files with the same suffix, such as `G_ema_best3.pth` and
`D_best3.pth`. Constructor arguments are not stored; they follow from the names and shapes of the tensors.
"""

import hashlib
import os
import re
from collections.abc import Callable
from typing import Any

import torch

from dnnlib.util import UserError
from torch_utils import torch_files
from torch_utils.safe_pickle import StoredObject
from training.families.biggan_arguments import DISCRIMINATOR, arguments_of_state

_NETWORK = re.compile(r"(G_ema|G|D)((?:_\w+)?)\.pth")
_OTHER = re.compile(r"(state_dict|[GD]_optim)(?:_\w+)?\.pth")  # in the same folder
_KEYS = ("G", "D", "G_ema")  # the order of the files in a checkpoint's digest
# Batch norms that stand for the usual one: their own, or synchronised over processes.
_STATISTIC = re.compile(r"(.+)\.bn\.(running|stored)_(mean|var)")
_COUNTERS = (".bn.accumulation_counter", ".bn.num_batches_tracked")


def file_in(folder: str) -> str | None:
    """The file of a network that stands for the checkpoint in `folder`, one without a suffix if there is one.

    None if there is no such file. Raises UserError if there are several checkpoints, all with a suffix, or if `folder`
    cannot be read.
    """
    try:
        found = sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be read: {error.strerror or error}") from error
    by_suffix: dict[str, list[str]] = {}
    for name in found:
        if (match := _NETWORK.fullmatch(name)) and not _OTHER.fullmatch(name):
            by_suffix.setdefault(match[2], []).append(name)
    if len(by_suffix) > 1 and "" not in by_suffix:
        named = ", ".join(names[-1] for names in by_suffix.values())
        raise UserError(f"{folder} holds several checkpoints: name one of its files, {named}")
    names = by_suffix.get("") or next(iter(by_suffix.values()), None)
    return None if names is None else os.path.join(folder, names[-1])


def refuse_other_files(path: str, local: str | None) -> None:
    """Raises UserError for the name of a file of a checkpoint that is not a network. Arguments as those of `read`."""
    if match := _OTHER.fullmatch(os.path.basename(path if local is None else local)):
        what = "the configuration of a run" if match[1] == "state_dict" else "the state of an optimizer"
        raise UserError(f"{path} is {what}, and nothing in it is needed: name G_ema.pth, or the folder")


def read(
    data: bytes, found: Any, path: str, local: str | None, read_file: Callable[[str], bytes]
) -> tuple[dict[str, StoredObject], str]:
    """Networks by key, not rebuilt yet, of the checkpoint that a file belongs to, and their SHA-256.

    `data` are the bytes of the file, `found` what `torch_files.loads` makes of them, `path` what messages call it,
    `local` where it is if files of the same checkpoint may be beside it, which `read_file` reads. Without
    G_ema, G stands for it. The digest is that of the files' bytes one after the other: G, D, G_ema, as far as they
    exist. Raises UserError, naming the file.
    """
    folder, name = os.path.split(path if local is None else local)
    match = _NETWORK.fullmatch(name)
    if match is None:  # of another name, such as a download: its tensors tell what it is
        stored = _network(found, path)
        key = "D" if stored.class_name == DISCRIMINATOR else "G_ema"
        return {key: stored}, hashlib.sha256(data).hexdigest()
    digest = hashlib.sha256()
    entries = {}
    for key in _KEYS:
        other = os.path.join(folder, f"{key}{match[2]}.pth")
        content, tensors, called = data, found, path
        if key != match[1]:
            if local is None or not os.path.exists(other):
                continue
            content, called = read_file(other), other
            tensors = torch_files.loads(content, called)
        digest.update(content)
        entries[key] = _network(tensors, called)
    if "G" in entries:
        entries.setdefault("G_ema", entries["G"])
    return entries, digest.hexdigest()


def _network(found: Any, path: str) -> StoredObject:
    tensors = torch_files.tensors_by_name(found, path)
    try:
        tensors = _with_plain_norms(tensors)
        class_name, kwargs = arguments_of_state({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    except UserError as error:
        raise UserError(f"{path} {error}") from error
    return StoredObject.of(class_name, kwargs, tensors)


def _with_plain_norms(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`tensors` with the statistics of all batch norms under the usual names.

    A norm whose counter is above 0 holds sums over so many passes instead of means (standing statistics). Raises
    UserError, without naming the file, for a norm with two sets of statistics.
    """
    found = {}
    for name, tensor in tensors.items():
        if name.endswith(_COUNTERS):
            continue
        if match := _STATISTIC.fullmatch(name):
            norm, kind, statistic = match.groups()
            name = f"{norm}.stored_{statistic}"
            count = _count(tensors.get(f"{norm}.bn.accumulation_counter"))
            if kind == "stored" and count > 0:
                tensor = tensor / count
        if name in found:
            raise UserError(f"has two sets of statistics for one batch norm: {name}")
        found[name] = tensor
    return found


def _count(counter: torch.Tensor | None) -> float:
    if counter is None:
        return 0.0
    if counter.numel() != 1 or counter.is_complex():
        raise UserError("has a counter of passes that is not a number")
    return counter.item()
