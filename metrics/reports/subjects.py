# SPDX-License-Identifier: Apache-2.0
"""The networks of a comparison: opened, checked against each other, named."""

import copy
import dataclasses
import os
import pathlib
import re
from collections.abc import Sequence

import torch

from dgl.student import count_params
from dnnlib.util import UserError, is_url
from torch_utils import misc, precision
from torch_utils.ops import layout
from training import families, sampling
from training.files.snapshot import Snapshot, load_snapshot


@dataclasses.dataclass(frozen=True)
class Subject:
    """A network to compare.

    Attributes:
        name: In tables and pictures.
        snapshot: The open file.
        G: Its G_ema, as loaded; use `placed` to run it.
    """

    name: str
    snapshot: Snapshot
    G: torch.nn.Module

    @property
    def path(self) -> str:
        """Path or URL of its file."""
        return self.snapshot.path

    @property
    def file_bytes(self) -> int | None:
        """Size of its file, which may also hold D and G; None for a URL or a folder."""
        return os.path.getsize(self.path) if not is_url(self.path) and os.path.isfile(self.path) else None

    @property
    def weight_bytes(self) -> int:
        """Size of the tensors of G, in the types in which it is stored."""
        return sum(tensor.numel() * tensor.element_size() for tensor in misc.params_and_buffers(self.G))

    @property
    def params(self) -> int:
        """Trained values of G."""
        return count_params(self.G)

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates of G for one image; None for a class of another project, with unknown layers."""
        try:
            return families.of(self.G).macs(self.G)
        except AttributeError:
            return None

    def placed(self, device: torch.device, dtype: torch.dtype | None = None) -> torch.nn.Module:
        """A copy of G on `device`, for sampling only, with its half-precision resolutions in `dtype`; None: default."""
        G = copy.deepcopy(self.G).eval().requires_grad_(False)
        precision.set_half_dtype(G, dtype)
        return sampling.freeze(layout.prepare(G, device))


def open_all(networks: Sequence[str], names: Sequence[str] | None, trust: bool) -> list[Subject]:
    """Open the network files. Raises UserError for unusable ones, too few, or images of different sizes."""
    if len(networks) < 2:
        raise UserError(
            f"--networks={','.join(networks)}: a comparison needs two networks or more, with commas between."
        )
    if names and len(names) != len(networks):
        raise UserError(f"--names has {len(names)} names for the {len(networks)} networks of --networks.")
    names = names or [default_name(path) for path in networks]
    subjects = []
    for path, name in zip(networks, _distinct(names)):
        snapshot = load_snapshot(path, trust=trust)
        subjects.append(Subject(name, snapshot, sampling.usable_generator(snapshot)))
    first = subjects[0].G
    for subject in subjects[1:]:
        ours, theirs = ((G.img_channels, G.img_resolution, G.img_resolution) for G in (first, subject.G))
        if ours != theirs:
            raise UserError(
                f"--networks: images of {networks[0]} are {_shape(ours)} and those of {subject.path} {_shape(theirs)}; "
                "only networks for the same images can be compared."
            )
        if first.c_dim and subject.G.c_dim and first.c_dim != subject.G.c_dim:
            raise UserError(
                f"--networks: {networks[0]} has {first.c_dim} classes and {subject.path} {subject.G.c_dim}; only "
                "networks of the same classes, or of none, can be compared."
            )
    return subjects


def default_name(path: str) -> str:
    """'runs/00003-x/network-snapshot-000020.pkl' -> 'run 3, 20 kimg'; otherwise the name of the file."""
    file = pathlib.PurePath(path.rstrip("/"))
    snapshot, run = re.fullmatch(r"network-snapshot-(\d+)", file.stem), re.match(r"(\d{5})-", file.parent.name)
    if snapshot and run:
        return f"run {int(run[1])}, {int(snapshot[1])} kimg"
    return file.stem or path


def _distinct(names: Sequence[str]) -> list[str]:
    counts: dict[str, int] = {}
    found = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        found.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return found


def _shape(shape: tuple[int, int, int]) -> str:
    return "x".join(map(str, shape))
