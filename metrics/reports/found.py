# SPDX-License-Identifier: Apache-2.0
"""What a comparison has found: the contents of its report."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from PIL import Image

from metrics.reports.samples import Nearest
from metrics.reports.speed import Timing
from metrics.reports.subjects import Subject


@dataclasses.dataclass
class Found:
    """All that a report shows.

    Attributes:
        subjects: The networks, the reference first.
        results: Values of each network by its name, by name of the result.
        provenance: What the values of a metric were measured with, by metric, from the reference.
        timings: Times and memory.
        unmeasured: Runtimes without times, and why.
        machine: What it was measured on.
        trunc: Truncation of samples and metrics; None for none.
        classes: Numbers of the classes in the columns of the samples; empty without classes.
        class_names: Names of all classes, if a network or the dataset has them.
        side_by_side, sweeps, nearest: Pictures; of the nearest reals by network.
        charts: Of the training runs, by title.
        notes: Sentences about what is missing.
    """

    subjects: Sequence[Subject]
    machine: dict[str, Any]
    trunc: float | None
    classes: list[int]
    class_names: list[str] | None
    results: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    provenance: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    timings: list[Timing] = dataclasses.field(default_factory=list)
    unmeasured: dict[str, str] = dataclasses.field(default_factory=dict)
    side_by_side: Image.Image | None = None
    sweeps: list[Image.Image] = dataclasses.field(default_factory=list)
    nearest: dict[str, Nearest] = dataclasses.field(default_factory=dict)
    charts: dict[str, Image.Image] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
