# SPDX-License-Identifier: Apache-2.0
"""Results of a benchmark, in JSON and back, and the comparison of two runs."""

import dataclasses
import json
import os
import pathlib
from typing import Any

from benchmarks.cases import REFERENCE
from dnnlib.files import parse_json, write_text
from dnnlib.util import UserError
from torch_utils.timing import Spread, paired_ratio, spread

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Result:
    """Samples of one part of a case, for each variant: seconds, or peak bytes.

    `moved`: bytes transferred per run. `flops`: operations per run in dense layers, in all variants; None: not counted.
    """

    case: str
    part: str
    resolution: int
    batch: int
    unit: str  # 's' or 'bytes'
    samples: dict[str, list[float]]
    moved: dict[str, int] = dataclasses.field(default_factory=dict)
    flops: int | None = None

    @property
    def key(self) -> str:
        """The name of the measurement, the same in every run."""
        return f"{self.case} {self.part}, {self.resolution}x{self.resolution}, batch {self.batch}"

    def of(self, variant: str) -> Spread:
        """Spread of the samples."""
        return spread(self.samples[variant])

    def ratio(self, variant: str) -> Spread:
        """The reference's time, or memory, over the variant's: above 1 is better."""
        return paired_ratio(self.samples[REFERENCE], self.samples[variant])

    @property
    def fast_variants(self) -> list[str]:
        """All variants but the reference, in the order of measurement."""
        return [name for name in self.samples if name != REFERENCE]


@dataclasses.dataclass
class Run:
    """A whole benchmark. `auto`: the precision that users get.

    `machine` is the result of `machine.describe`, `cbase` the width of the networks unless it was that of `--cfg=auto`.
    The limits of the machine, as far as they were measured: `copy_bytes_per_s`, the bandwidth of a copy; `flops_per_s`,
    operations in dense arithmetic by precision.
    """

    command: str
    date: str
    machine: dict[str, Any]
    auto: str
    cbase: float | None = None
    results: list[Result] = dataclasses.field(default_factory=list)
    copy_bytes_per_s: float | None = None
    flops_per_s: dict[str, float] = dataclasses.field(default_factory=dict)

    def save(self, path: str | os.PathLike) -> None:
        """Write as JSON, atomically."""
        write_text(path, json.dumps({"schema": SCHEMA, **dataclasses.asdict(self)}, indent=1))


def load(path: str | os.PathLike) -> Run:
    """Read a file written by `Run.save`. Raises UserError if it is missing or not such a file."""
    try:
        content = parse_json(pathlib.Path(path).read_text(encoding="utf-8"))
        if content.pop("schema") != SCHEMA:
            raise UserError(f"--compare={path} was written by another version of the benchmark: make a new one")
        results = [Result(**result) for result in content.pop("results")]
        for result in results:  # as the comparison will do
            for variant in result.fast_variants:
                result.ratio(variant)
        return Run(**content, results=results)
    except OSError as error:
        raise UserError(f"--compare={path}: cannot be read ({error})") from error
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"--compare={path} is not a benchmark's JSON file ({type(error).__name__}: {error})") from error


def differences(old: Run, new: Run) -> list[str]:
    """Names of conditions that may explain different ratios: machine, versions, settings."""
    kept = [name for name in {**old.machine, **new.machine} if old.machine.get(name) != new.machine.get(name)]
    return [name for name in kept if name != "load"] + ["cbase"] * (old.cbase != new.cbase)


@dataclasses.dataclass(frozen=True)
class Change:
    """A ratio to the reference in an earlier and a new run."""

    key: str
    variant: str
    old: float
    new: float
    regressed: bool

    @property
    def percent(self) -> float:
        """Relative change."""
        return (self.new / self.old - 1) * 100


def compare(old: Run, new: Run, tolerance: float) -> list[Change]:
    """Every ratio that both runs have; a fall by more than `tolerance` percent is a regression."""
    before = {result.key: result for result in old.results}
    changes = []
    for result in new.results:
        earlier = before.get(result.key)
        for variant in result.fast_variants:
            if earlier is not None and variant in earlier.fast_variants:
                then, now = earlier.ratio(variant).median, result.ratio(variant).median
                changes.append(Change(result.key, variant, then, now, now < then * (1 - tolerance / 100)))
    return changes
