# SPDX-License-Identifier: Apache-2.0
"""Metrics by name: compute one, report its result, register one's own. Importing this file loads nothing heavy."""

import json
import math
import os
import time
from collections.abc import Callable

from dnnlib.util import EasyDict, UserError, append_line, format_time, get_obj_by_name
from metrics import catalogue


def register_metric(fn: Callable) -> Callable:
    """Decorator: add `fn(opts: MetricOptions) -> dict of numbers` as a metric under its own name.

    A metric whose needs are declared (`catalogue.register`) also works with `--fakes` and `--save-stats`.
    """
    catalogue.register(catalogue.Metric(fn.__name__, fn, opens_dataset=True))
    return fn


def list_valid_metrics() -> list[str]:
    """All metric names, the recommended ones first. `fid<N>k_full`, `kid<N>k_full`, `pr<N>k3_full` are valid too."""
    return list(catalogue.METRICS)


def is_valid_metric(metric: str) -> bool:
    """Whether `calc_metric` knows this name."""
    return catalogue.find(metric) is not None


def calc_metric(metric: str, **kwargs) -> EasyDict:
    """Compute one metric. All processes of a run must call it together, and all get the result.

    `kwargs` are those of `metric_utils.MetricOptions`. Returns `results` (name -> number), `metric`, `total_time`
    (seconds), `total_time_str`, `num_gpus` and `provenance`: everything that two results must share to be comparable.
    With a detector other than the default, all names end in '-<detector>'. Raises UserError for an unknown metric,
    a network that does not suit it, an unusable detector, or one made for other images.
    """
    found = catalogue.find(metric)
    if found is None:
        raise UserError(f"--metrics can only contain the following values: {', '.join(list_valid_metrics())}.")
    from metrics import detectors, inputs, metric_utils, suitability

    opts = metric_utils.MetricOptions(**kwargs)
    inputs.check_sampling(opts.G, [found], opts.trunc, opts.standing_passes)
    detectors.ensure_available([metric], opts.detector)
    suitability.ensure_suitable([metric], opts)
    start = time.time()
    opts.dataset_kwargs.update(found.dataset)
    function = get_obj_by_name(found.function) if isinstance(found.function, str) else found.function
    results = metric_utils.broadcast_results(found.named(function(opts, **found.arguments())), opts)
    total_time = time.time() - start

    suffix = "" if opts.detector is None else f"-{detectors.detector_name(opts.detector)}"
    return EasyDict(
        results=EasyDict({f"{name}{suffix}": value for name, value in results.items()}),
        metric=_result_name(metric, opts.detector),
        total_time=total_time,
        total_time_str=format_time(total_time),
        num_gpus=opts.num_gpus,
        provenance=opts.provenance,
    )


def report_metric(result_dict: dict, run_dir: str | None = None, snapshot_pkl: str | None = None) -> None:
    """Print a result of `calc_metric` as one line of JSON, and append it to `<run_dir>/metric-<name>.jsonl`.

    The line also gets a `timestamp` and the snapshot's path relative to `run_dir`. Raises UserError if the file cannot
    be written; the line is printed first.
    """
    if run_dir is not None and snapshot_pkl is not None:
        snapshot_pkl = os.path.relpath(snapshot_pkl, run_dir)
    line = json.dumps({**result_dict, "snapshot_pkl": snapshot_pkl, "timestamp": time.time()})
    print(line, flush=True)
    if run_dir is not None and os.path.isdir(run_dir):
        path = os.path.join(run_dir, f"metric-{result_dict['metric']}.jsonl")
        try:
            append_line(path, line)
        except OSError as error:
            raise UserError(f"The result above could not be written to {path}: {error.strerror or error}.") from error


def best_snapshot(run_dir: str, metric: str, detector: str | None = None) -> tuple[str, float] | None:
    """File name and value of the best snapshot in `run_dir` by the first value of `metric`; of equals, the newest.

    Only files that are still there count, as measured in training: without truncation or standing statistics. None if
    the metric has no usable result.
    """
    path = os.path.join(run_dir, f"metric-{_result_name(metric, detector)}.jsonl")
    if not os.path.isfile(path):
        return None
    found = []
    with open(path, encoding="utf-8") as file:
        for line in map(json.loads, file):
            name, value = line["snapshot_pkl"], next(iter(line["results"].values()))
            if math.isfinite(value) and as_in_training(line) and os.path.isfile(os.path.join(run_dir, name)):
                found.append((name, value))
    sign = 1 if catalogue.find(metric).higher_is_better else -1
    return max(found, key=lambda item: (sign * item[1], item[0]), default=None)


def as_in_training(line: dict) -> bool:
    """Whether a metric line is about a network as training measures it: no truncation, no standing statistics."""
    sampled = line.get("provenance", {})
    return "trunc" not in sampled and sampled.get("statistics", "running") == "running"


def _result_name(metric: str, detector: str | None) -> str:
    from metrics import detectors

    return metric if detector is None else f"{metric}-{detectors.detector_name(detector)}"
