# SPDX-License-Identifier: Apache-2.0
"""The metrics by name: what each computes, running one, and writing its result. Importing this loads nothing heavy."""

import dataclasses
import functools
import json
import os
import re
import time
from collections.abc import Callable

from dnnlib.util import EasyDict, UserError, append_line, call_func_by_name, format_time


@dataclasses.dataclass(frozen=True)
class DetectorNeeds:
    """Which default detector a metric looks through ('inception' or 'vgg16'), and what its forward must accept."""

    kind: str
    arguments: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class RealNeeds:
    """What a metric takes of the real images.

    Fields: at most `max_items` of them (None: all); `xflip` False for none of the mirrored copies, None for as many as
    the dataset has; whether the `features` themselves are needed beside their mean and covariance.
    """

    max_items: int | None
    xflip: bool | None
    features: bool


@dataclasses.dataclass(frozen=True)
class _Family:
    func_name: str  # opts, **options -> one number for each of `outputs`
    detector: DetectorNeeds
    outputs: tuple[str, ...]  # endings of the names in the results
    reals: str = ""  # what it takes of the real images: "" nothing, "moments" (mean and covariance), or "features"


_FEATURES = ("return_features",)
_LPIPS = ("resize_images", "return_lpips")
_FAMILIES = {
    "fid": _Family(
        "metrics.frechet_inception_distance.compute_fid", DetectorNeeds("inception", _FEATURES), ("",), "moments"
    ),
    "kid": _Family(
        "metrics.kernel_inception_distance.compute_kid", DetectorNeeds("inception", _FEATURES), ("",), "features"
    ),
    "pr": _Family(
        "metrics.precision_recall.compute_pr", DetectorNeeds("vgg16", _FEATURES), ("_precision", "_recall"), "features"
    ),
    "ppl": _Family("metrics.perceptual_path_length.compute_ppl", DetectorNeeds("vgg16", _LPIPS), ("",)),
    "is": _Family("metrics.inception_score.compute_is", DetectorNeeds("inception", ()), ("_mean", "_std")),
}

_FULL = {"max_size": None, "xflip": False}
_PLAIN = {"max_size": None}
_KID = {"num_subsets": 100, "max_subset_size": 1000}
_PR = {"num_gen": 50_000, "nhood_size": 3}
_PPL = {"num_samples": 50_000}

# name: family, changes to the dataset's options, options of the computation
_METRICS: dict[str, tuple[str, dict, dict]] = {
    "fid50k_full": ("fid", _FULL, {"max_real": None, "num_gen": 50_000}),
    "kid50k_full": ("kid", _FULL, {"max_real": 1_000_000, "num_gen": 50_000, **_KID}),
    "pr50k3_full": ("pr", _FULL, {"max_real": 200_000, **_PR}),
    "ppl2_wend": ("ppl", _PLAIN, {"space": "w", "sampling": "end", "crop": False, **_PPL}),
    "is50k": ("is", _FULL, {"num_gen": 50_000, "num_splits": 10}),
    "fid50k": ("fid", _PLAIN, {"max_real": 50_000, "num_gen": 50_000}),
    "kid50k": ("kid", _PLAIN, {"max_real": 50_000, "num_gen": 50_000, **_KID}),
    "pr50k3": ("pr", _PLAIN, {"max_real": 50_000, **_PR}),
    "ppl_zfull": ("ppl", _PLAIN, {"space": "z", "sampling": "full", "crop": True, **_PPL}),
    "ppl_wfull": ("ppl", _PLAIN, {"space": "w", "sampling": "full", "crop": True, **_PPL}),
    "ppl_zend": ("ppl", _PLAIN, {"space": "z", "sampling": "end", "crop": True, **_PPL}),
    "ppl_wend": ("ppl", _PLAIN, {"space": "w", "sampling": "end", "crop": True, **_PPL}),
}
_ANY_SIZE = re.compile(r"(fid|kid)([1-9][0-9]*)k_full")
_REGISTERED: dict[str, Callable] = {}


def register_metric(fn: Callable) -> Callable:
    """Decorator: make `fn(opts: MetricOptions) -> dict of numbers` a metric under its own name."""
    _REGISTERED[fn.__name__] = fn
    return fn


def list_valid_metrics() -> list[str]:
    """All metric names, the recommended ones first. `fid<N>k_full` and `kid<N>k_full` are valid for any other N too."""
    return [*_METRICS, *_REGISTERED]


def is_valid_metric(metric: str) -> bool:
    """Whether `calc_metric` knows this name."""
    return metric in _REGISTERED or _find(metric) is not None


def detector_needs(metric: str) -> DetectorNeeds | None:
    """What `metric` asks of its detector; None for a metric that was registered from outside."""
    return None if metric in _REGISTERED else _FAMILIES[_find(metric)[0]].detector


def uses_reals(metric: str) -> bool:
    """Whether `metric` compares with real images."""
    return metric in _REGISTERED or real_needs(metric) is not None


def real_needs(metric: str) -> RealNeeds | None:
    """What `metric` takes of the real images; None if nothing, or if it was registered from outside."""
    if metric in _REGISTERED:
        return None
    family, dataset_changes, options = _find(metric)
    reals = _FAMILIES[family].reals
    return RealNeeds(options["max_real"], dataset_changes.get("xflip"), reals == "features") if reals else None


def num_fakes(metric: str) -> int | None:
    """How many generated images `metric` looks at; None if images alone are not enough, as it needs the network."""
    return None if metric in _REGISTERED else _find(metric)[2].get("num_gen")


def calc_metric(metric: str, **kwargs) -> EasyDict:
    """Compute one metric; all processes of a run must call it together, and all get the result.

    `kwargs` are those of `metric_utils.MetricOptions`. Returns `results` (name -> number), `metric`, `total_time`
    (seconds), `total_time_str`, `num_gpus` and `provenance`: what two results must share to be compared. With a
    detector other than the default, all names end in '-<detector>'. Raises UserError for an unknown metric or an
    unusable detector.
    """
    if not is_valid_metric(metric):
        raise UserError(f"--metrics can only contain the following values: {', '.join(list_valid_metrics())}.")
    from metrics import detectors, metric_utils

    opts = metric_utils.MetricOptions(**kwargs)
    detectors.ensure_available([metric], opts.detector)
    start = time.time()
    if metric in _REGISTERED:
        results = _REGISTERED[metric](opts)
    else:
        results = _compute(metric, opts)
    results = metric_utils.broadcast_results(results, opts)
    total_time = time.time() - start

    suffix = "" if opts.detector is None else f"-{detectors.detector_name(opts.detector)}"
    return EasyDict(
        results=EasyDict({f"{name}{suffix}": value for name, value in results.items()}),
        metric=f"{metric}{suffix}",
        total_time=total_time,
        total_time_str=format_time(total_time),
        num_gpus=opts.num_gpus,
        provenance=opts.provenance,
    )


def report_metric(result_dict: dict, run_dir: str | None = None, snapshot_pkl: str | None = None) -> None:
    """Print a result of `calc_metric` as one line of JSON, and append it to `<run_dir>/metric-<name>.jsonl`.

    The line also gets a `timestamp`, and the snapshot's path relative to `run_dir`. Raises UserError where the file
    cannot be written; the line has been printed then.
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
            raise UserError(f"The result above could not be kept in {path}: {error.strerror or error}.") from error


@functools.lru_cache(maxsize=64)
def _find(metric: str) -> tuple[str, dict, dict] | None:
    if metric in _METRICS:
        return _METRICS[metric]
    match = _ANY_SIZE.fullmatch(metric)
    if match is None:
        return None
    family, dataset_changes, options = _METRICS[f"{match[1]}50k_full"]
    return family, dataset_changes, {**options, "num_gen": int(match[2]) * 1000}


def _compute(metric: str, opts) -> dict[str, float]:
    family_name, dataset_changes, options = _find(metric)
    family = _FAMILIES[family_name]
    opts.dataset_kwargs.update(dataset_changes)
    values = call_func_by_name(opts, func_name=family.func_name, **options)
    values = values if isinstance(values, tuple) else (values,)
    return {f"{metric}{ending}": value for ending, value in zip(family.outputs, values)}
