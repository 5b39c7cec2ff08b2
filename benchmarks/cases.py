# SPDX-License-Identifier: Apache-2.0
"""What a case is, and the setting it is built in: networks, data and options as those of `train.py --cfg=auto`."""

import contextlib
import dataclasses
import functools
import io
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.variants import Variant
from dnnlib.util import UserError, construct_class_by_name
from torch_utils.images import save_png
from torch_utils.ops.layout import prepare
from training import options as config
from training.training_loop import Trainer, TrainingOptions

NUM_IMAGES = 32  # noise, so that a file is as slow to read as any


@dataclasses.dataclass(frozen=True)
class Part:
    """One thing to time. It reads and writes `moved` bytes at least; None where arithmetic is the limit, not memory."""

    run: Callable[[], Any]
    moved: int | None = None


@dataclasses.dataclass(frozen=True)
class Case:
    """Something to measure: `build(setting, variant)` makes its parts, by name.

    `total` names a further figure, the sum of the parts by `weights`. `batch` None is the setting's. `plan` says
    roughly how many seconds measuring takes at 128x128 on two cores. `half` is False where only fp32 makes sense.
    `kind` is 'time' or 'memory'.
    """

    name: str
    build: Callable[["Setting", Variant], dict[str, Part]]
    plan: float
    batch: int | None = None
    total: str | None = None
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    half: bool = True
    kind: str = "time"


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where cases are built: on `device`, for images of `resolution`, `batch` of them (None: what `auto` chooses).

    `cbase` is that of train.py. `folder` is for files that live as long as the benchmark.
    """

    device: torch.device
    resolution: int
    batch: int | None
    cbase: float | None
    folder: pathlib.Path

    @functools.cached_property
    def data(self) -> pathlib.Path:
        """A dataset of noise."""
        folder = self.folder / f"noise{self.resolution}"
        if not folder.exists():
            folder.mkdir()
            rng = np.random.RandomState(0)
            for i in range(NUM_IMAGES):
                save_png(rng.randint(0, 256, [3, self.resolution, self.resolution], np.uint8), folder / f"{i:02d}.png")
        return folder

    def options(self, variant: Variant) -> dict[str, Any]:
        """Options of the training loop; the reference has an optimiser that steps tensor by tensor.

        Raises UserError where batch or width do not fit.
        """
        _desc, options = config.build(
            data=str(self.data), metrics=(), batch=self.batch, cbase=self.cbase, device=self.device.type,
            precision=variant.precision,
        )  # fmt: skip
        if variant.plain:
            for name in ("G_opt_kwargs", "D_opt_kwargs"):
                options[name] = dict(options[name], fused=False)
        return options

    @functools.cached_property
    def batch_size(self) -> int:
        """Images of an iteration. Raises UserError as `options` does."""
        return self.options(Variant("fp32", "fp32"))["batch_size"]

    def network(self, name: str, variant: Variant) -> torch.nn.Module:
        """A new 'G' or 'D' in training mode, every weight with gradient."""
        shape = {"c_dim": 0, "img_resolution": self.resolution, "img_channels": 3}
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            network = construct_class_by_name(**self.options(variant)[f"{name}_kwargs"], **shape)
            return prepare(network, self.device)

    def trainer(self, variant: Variant, reads_data: bool) -> Trainer:
        """A training run before its first iteration; prints nothing. `reads_data`: its data workers are started."""
        options = self.options(variant)
        if not reads_data:
            options["data_loader_kwargs"] = {}
        options["run_dir"] = tempfile.mkdtemp(dir=self.folder)
        with contextlib.redirect_stdout(io.StringIO()):
            return Trainer(TrainingOptions(**options))


def check_resolution(resolution: int) -> None:
    """Raises UserError for what cannot be the side of networks' images."""
    if resolution < 8 or resolution & (resolution - 1):
        raise UserError(f"--res: networks exist for powers of two from 8 up, not for {resolution}")


def build_all(case: Case, setting: Setting, variants: list[Variant]) -> dict[str, dict[str, Part]]:
    """`parts[part][variant]`; each is to be run while the path of its variant is held."""
    parts: dict[str, dict[str, Part]] = {}
    for variant in variants:
        with variant.path():
            for name, part in case.build(setting, variant).items():
                parts.setdefault(name, {})[variant.name] = part
    return parts
