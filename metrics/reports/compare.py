# SPDX-License-Identifier: Apache-2.0
"""The work of compare.py: networks measured side by side, in a report of one page and one picture."""

import math
import os
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import torch

from dnnlib.files import make_folder
from dnnlib.progress import Progress
from dnnlib.util import UserError, construct_class_by_name
from metrics import catalogue, detectors, inputs, metric_main, metric_utils, suitability
from metrics.reports import compare_page, curves, samples, speed
from metrics.reports.found import Found
from metrics.reports.subjects import Subject, open_all
from torch_utils import distributed, machine
from training import families
from training.data import class_names

PROGRESS_INTERVAL = 10.0  # seconds between progress lines where the output is not a terminal
SPEED_BUDGET = 8.0  # seconds of timing
_SPEED_PLAN = 8  # units of progress, about seconds, for each network in each runtime
_PICTURES_PLAN, _OVERHEAD_PLAN = 5, 3  # of a network's pictures; of a metric beside its fakes


def compare(
    networks: list[str],
    out: str,
    *,
    names: list[str] | None = None,
    data: str | None = None,
    metrics: list[str],
    detector: str | None = None,
    trunc: float | None = None,
    device: str = "auto",
    trust_pickle: bool = False,
    trust_detector: bool = False,
) -> None:
    """Compare network files; the first is the reference. Writes index.html, compare.png and compare.json to `out`.

    The arguments are the values of the flags of compare.py. Raises UserError, before any long work, for unusable ones.
    """
    torch_device = distributed.configure_device(distributed.resolve_device(device))
    subjects = open_all(networks, names, trust_pickle)
    for subject in subjects:
        families.of(subject.G).truncation(subject.G, trunc)
    if trust_detector:
        detectors.trust(detector)
    compared = _check_metrics(subjects, metrics, data, detector, trunc, trust_pickle)
    folder = make_folder(out, "--out")
    if not os.access(folder, os.W_OK):
        raise UserError(f"--out={out} cannot be written to: choose another folder.")
    comparison = Comparison(subjects, metrics, detector, trunc, torch_device, compared, trust_pickle)
    found = comparison.run()
    compare_page.write(folder, found)
    print(compare_page.summary_text(found))
    print(f"Report: {folder / compare_page.PAGE}")


def _check_metrics(
    subjects: Sequence[Subject],
    metrics: Sequence[str],
    data: str | None,
    detector: str | None,
    trunc: float | None,
    trust: bool,
) -> list[dict[str, Any]]:
    """Arguments of MetricOptions for each network. Raises UserError for metrics, data or detector that do not fit."""
    found = [catalogue.find(name) for name in metrics]
    if None in found:
        valid = ", ".join(metric_main.list_valid_metrics())
        raise UserError(f"--metrics={','.join(metrics)} can only contain the following values: {valid}.")
    if not found:
        return [{} for _ in subjects]
    compared = []
    for subject in subjects:
        compared.append(inputs.of_network(subject.snapshot, found, data, None, detector, trust))
        inputs.check_sampling(subject.G, found, trunc, 0)
    paths = {str(options.get("dataset_kwargs", {}).get("path")) for options in compared}
    if len(paths) > 1:
        raise UserError(
            f"The networks were trained on different images ({', '.join(sorted(paths))}): choose those to compare with "
            "by --data."
        )
    detectors.ensure_available(metrics, detector)
    for subject, options in zip(subjects, compared):
        suitability.ensure_suitable(metrics, metric_utils.MetricOptions(G=subject.G, detector=detector, **options))
    return compared


def _class_names(subjects: Sequence[Subject], compared: dict[str, Any]) -> list[str] | None:
    """Of the first network whose file has them, else of the dataset."""
    for subject in subjects:
        names = class_names.checked(subject.snapshot.class_names, subject.G.c_dim)
        if names is not None:
            return names
    if not compared.get("dataset_kwargs"):
        return None
    dataset = construct_class_by_name(**compared["dataset_kwargs"])
    names = class_names.of(dataset)
    dataset.close()
    return names


class Comparison:
    """The measurements of a comparison, with one progress line over all of them."""

    def __init__(
        self,
        subjects: Sequence[Subject],
        metrics: Sequence[str],
        detector: str | None,
        trunc: float | None,
        device: torch.device,
        compared: Sequence[dict[str, Any]],
        trust: bool,
    ):
        self.subjects, self.metrics, self.device, self.trust = subjects, metrics, device, trust
        self.compared, self.common = compared, {"detector": detector, "trunc": trunc, "device": device}
        self.runtimes, unmeasured = speed.available(subjects, device)
        classes = samples.classes_shown(subjects)
        self.found = Found(subjects, machine.describe(device), trunc, classes, _class_names(subjects, compared[0]))
        self.found.unmeasured = unmeasured

    def run(self) -> Found:
        """Measure everything, the times first: they tell how long the metrics will take."""
        plan = _SPEED_PLAN * len(self.subjects) * len(self.runtimes)
        interval = None if sys.stderr.isatty() else PROGRESS_INTERVAL
        with Progress(plan, "comparing", "units", min_interval=interval) as self.progress:
            self._speed(plan)
            metric_plans = [plan for subject in self.subjects for plan in self._metric_plans(subject)]
            self.progress.total += sum(metric_plans) + _PICTURES_PLAN * len(self.subjects)
            self._quality(iter(metric_plans))
            self._pictures()
            self._curves()
            self.progress.desc = "comparing"
        return self.found

    def _step(self, what: str, plan: int):
        """A function that takes the completed fraction of a step of `plan` units."""
        start = self.progress.count
        self.progress.desc = f"comparing: {what}"
        return lambda share: self.progress.update(start + int(share * plan) - self.progress.count)

    def _speed(self, plan: int) -> None:
        on_share = self._step("speed and memory", plan)
        with tempfile.TemporaryDirectory() as folder:
            self.found.timings, failed = speed.measure(
                self.subjects, self.runtimes, self.device, folder, SPEED_BUDGET, on_share, self.trust
            )
        self.found.unmeasured |= failed

    def _metric_plans(self, subject: Subject) -> list[int]:
        """Units of progress of each metric: its images take nearly all of the time, and equal ones are made once."""
        pace = min(t.seconds.median / t.batch for t in self.found.timings if t.network == subject.name)
        plans, made = [], set()
        for metric in map(catalogue.find, self.metrics):
            images = (metric.name,)
            if metric.reals is not None and metric.detector is not None:
                images = (detectors.resolve(self.common["detector"], metric.detector.kind).sha256, metric.num_fakes)
            count = 0 if images in made else metric.num_fakes or 50_000
            plans.append(_OVERHEAD_PLAN + math.ceil(count * pace * 1.5))
            made.add(images)
        return plans

    def _quality(self, plans) -> None:
        for subject, options in zip(self.subjects, self.compared):
            results = self.found.results.setdefault(subject.name, {})
            options = {**options, "shared": {} if len(self.metrics) > 1 else None}
            for metric in self.metrics:
                on_share = self._step(f"{metric} of {subject.name}", next(plans))
                progress = metric_utils.ProgressMonitor(progress_fn=lambda at, total, to=on_share: to(at / total))
                line = metric_main.calc_metric(metric, G=subject.G, progress=progress, **self.common, **options)
                results.update(line["results"])
                self.found.provenance.setdefault(line["metric"], dict(line["provenance"]))
                on_share(1)

    def _pictures(self) -> None:
        on_share = self._step("pictures", _PICTURES_PLAN * len(self.subjects))
        placed = {subject.name: subject.placed(self.device) for subject in self.subjects}
        found, classes = self.found, self.found.classes
        found.side_by_side = samples.side_by_side(placed, classes, found.class_names, found.trunc, self.device)
        on_share(0.3)
        found.sweeps, notes = samples.truncation_sweeps(placed, classes, self.device)
        found.notes += notes
        on_share(0.5)
        kinds = [
            metric.detector.kind for metric in map(catalogue.find, self.metrics) if metric.reals and metric.detector
        ]
        if not kinds or not self.compared[0].get("dataset_kwargs"):
            found.notes.append("Nearest real images need real images (--data) and a metric that compares with them.")
        else:
            for subject, options in list(zip(self.subjects, self.compared))[1:]:
                opts = metric_utils.MetricOptions(G=subject.G, **self.common, **options)
                looked = samples.nearest_reals(subject, placed[subject.name], opts, kinds[0], classes, found.trunc)
                found.nearest[subject.name] = looked
        on_share(1)

    def _curves(self) -> None:
        runs = {subject.name: curves.run_dir_of(subject.path) for subject in self.subjects}
        read = {name: curves.read(run_dir) for name, run_dir in runs.items() if run_dir is not None}
        self.found.charts = curves.charts(read)
        if not read:
            self.found.notes.append("Training curves are shown for networks that lie in their run directories.")
