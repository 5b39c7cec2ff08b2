# SPDX-License-Identifier: Apache-2.0
"""Inputs of calc_metrics.py: a network or images, and images or saved statistics to compare with, checked first.

The functions `of_...` return arguments of `metric_utils.MetricOptions`.
"""

import os
from collections.abc import Sequence
from typing import Any

import torch

from dnnlib.files import find_upwards
from dnnlib.text import printable
from dnnlib.util import UserError, construct_class_by_name
from metrics import detectors, metric_utils, saved_stats
from metrics.catalogue import Metric
from training import families
from training.files.snapshot import Snapshot
from training.sampling import usable_generator

_DATASET_CLASS = "training.dataset.ImageFolderDataset"
# Arguments of the dataset that a network file may name, and the types of their values.
_DATASET_ARGUMENTS = {
    "class_name": str,
    "path": str,
    "max_size": (int, type(None)),
    "random_seed": int,
    "resolution": (int, type(None)),
    "use_labels": bool,
    "xflip": bool,
}


def of_network(
    snapshot: Snapshot,
    metrics: Sequence[Metric],
    data: str | None,
    mirror: bool | None,
    detector: str | None,
    trust: bool,
) -> dict[str, Any]:
    """For a network pickle, and images or saved statistics `data` (None: the network's training set).

    Empty if `metrics` need nothing but the network. Raises UserError for inputs that cannot be opened, contradict each
    other, or are not enough for `metrics`.
    """
    network, G = snapshot.path, usable_generator(snapshot)
    if G.c_dim == 0 and not any(metric.uses_reals for metric in metrics):
        return {}
    if data is not None and data.endswith(saved_stats.ENDING):
        given = _of_saved_stats(data, metrics, mirror, detector, G.img_resolution)
        if G.c_dim > 0:
            _check_labels(network, G.c_dim, data, saved_stats.load(data).labels.label_dim)
        return given
    if data is not None:
        kwargs = {"class_name": _DATASET_CLASS, "path": data}
    elif snapshot.get("training_set_kwargs"):
        kwargs = dict(snapshot["training_set_kwargs"])
        if not trust:
            _check_named_dataset(kwargs, network)
        path = kwargs.get("path")
        if isinstance(path, str) and not os.path.exists(path):  # a relative one, of a run begun in another folder
            kwargs["path"] = find_upwards(path, os.path.dirname(os.path.abspath(network)))
    else:
        raise UserError(f"{network} does not name its training set: provide the images with --data.")
    kwargs |= {"resolution": G.img_resolution, "use_labels": G.c_dim > 0}
    if mirror is not None:
        kwargs["xflip"] = mirror
    _check_labels(network, G.c_dim, kwargs.get("path"), _opened(kwargs, "--data").label_dim)
    return {"dataset_kwargs": kwargs}


def _check_named_dataset(kwargs: dict[str, Any], network: str) -> None:
    """Raises UserError unless these arguments, from an untrusted file, describe a dataset of this project."""
    class_name = kwargs.get("class_name")
    # A class name from a file would be called, so other classes need the user's trust in the file.
    if not isinstance(class_name, str) or class_name != _DATASET_CLASS:
        raise UserError(
            f"{network} names {printable(class_name)} as its dataset class: provide the images with --data, or use "
            f"--trust-pickle if you trust the file."
        )
    for name, value in kwargs.items():
        too_large = isinstance(value, int) and not 0 <= value < 2**32
        if not isinstance(value, _DATASET_ARGUMENTS.get(name, ())) or too_large or (name, value) == ("max_size", 0):
            raise UserError(
                f"{network} describes its training set in an unknown way ({printable(name, 100)} of type "
                f"{type(value).__name__}): provide the images with --data."
            )
    if "path" not in kwargs:
        raise UserError(f"{network} does not say where its training set is: provide the images with --data.")


def check_sampling(
    G: torch.nn.Module | None, metrics: Sequence[Metric], trunc: float | None, standing_passes: int
) -> None:
    """Raises UserError unless `metrics` can be measured on `G`, sampled with these values of --trunc, --standing-stats.

    `G` is None where images are measured.
    """
    if G is None:
        if trunc is not None or standing_passes:
            raise UserError("--trunc and --standing-stats are about sampling a network: use them with --network.")
        return
    family = families.of(G)
    for metric in metrics:
        if metric.needs_w:
            families.require_w(G, metric.name)
            if trunc is not None:
                raise UserError(f"--trunc has no effect on {metric.name}: drop one of the two.")
    if standing_passes and not family.batch_statistics:
        raise UserError(
            f"--standing-stats={standing_passes} needs a network with batch norm, which a {type(G).__name__} "
            f"({family.name}) does not have: drop the flag."
        )
    family.truncation(G, trunc)


def of_images(
    fakes: str, metrics: Sequence[Metric], data: str | None, mirror: bool | None, detector: str | None
) -> dict[str, Any]:
    """For the folder or zip `fakes` of generated images, compared with `data`: images or saved statistics.

    `data` may be None if none of `metrics` compares. Raises UserError as `of_network` does.
    """
    for metric in metrics:
        if metric.needs_network:
            raise UserError(f"{metric.name} needs the generator itself, not images: use --network instead of --fakes.")
    fakes_kwargs = {"class_name": _DATASET_CLASS, "path": fakes, "use_labels": False}
    dataset = _opened(fakes_kwargs, "--fakes")
    metric_utils.require_fakes(dataset, max(metric.num_fakes for metric in metrics))
    fakes_kwargs["resolution"] = dataset.resolution
    given = {"fakes_kwargs": fakes_kwargs}
    if not any(metric.uses_reals for metric in metrics):
        return given
    if data is None:
        raise UserError("--fakes needs reals to compare with: provide them with --data.")
    if data.endswith(saved_stats.ENDING):
        return given | _of_saved_stats(data, metrics, mirror, detector, dataset.resolution)
    kwargs = {"class_name": _DATASET_CLASS, "path": data, "use_labels": False, "resolution": dataset.resolution}
    if mirror is not None:
        kwargs["xflip"] = mirror
    _opened(kwargs, "--data")
    return given | {"dataset_kwargs": kwargs}


def of_reals(data: str | None, metrics: Sequence[Metric], mirror: bool | None, detector: str | None) -> dict[str, Any]:
    """For saving statistics of the images `data` that all of `metrics` can use. Raises UserError."""
    names = ",".join(metric.name for metric in metrics)
    if data is None or data.endswith(saved_stats.ENDING):
        raise UserError("--save-stats needs images: provide them with --data.")
    for metric in metrics:
        if metric.reals is None:
            raise UserError(f"{metric.name} compares with no reals: remove it from --metrics when using --save-stats.")
    if len({_detector(metric, detector).sha256 for metric in metrics}) > 1:
        raise UserError(
            f"A file of statistics belongs to one detector, and --metrics={names} use several: save one file for each."
        )
    flips = {bool(mirror) if metric.xflip is None else False for metric in metrics}
    if len(flips) > 1:
        raise UserError(
            f"Some of --metrics={names} include mirrored images and some exclude them: save one file for each, or omit "
            f"--mirror."
        )
    kwargs = {"class_name": _DATASET_CLASS, "path": data, "use_labels": True}
    dataset = _opened(kwargs, "--data")
    kwargs |= {"use_labels": dataset.has_labels, "resolution": dataset.resolution}
    kwargs |= {"max_size": None, "xflip": flips.pop()}
    return {"dataset_kwargs": kwargs}


def save_reals(opts: metric_utils.MetricOptions, metrics: Sequence[Metric], path: str) -> None:
    """Write the statistics of the reals of `opts` that `metrics` need to the file `path`, in the first process.

    `opts` must come from `of_reals`. Raises UserError if the file cannot be written.
    """
    dataset = construct_class_by_name(**opts.dataset_kwargs)
    needs = [metric.reals for metric in metrics]
    counts = {len(dataset) if need.max_items is None else min(need.max_items, len(dataset)) for need in needs}
    spec = _detector(metrics[0], opts.detector)
    detector_kwargs = {"return_features": True}
    stats = metric_utils.compute_feature_stats_for_dataset(
        opts,
        spec,
        detector_kwargs,
        max_items=max(counts),
        # Statistics of fewer images can be computed from the features only.
        capture_all=any(need.features for need in needs) or len(counts) > 1,
        capture_mean_cov=True,
    )
    if opts.rank != 0:
        return
    about = saved_stats.About(
        dataset=dataset.name,
        num_images=len(dataset),
        resolution=dataset.resolution,
        xflip=bool(opts.dataset_kwargs["xflip"]),
        detector=spec.name,
        detector_sha256=spec.sha256,
        detector_kwargs=detector_kwargs,
    )
    try:
        saved_stats.save(path, stats, about, dataset)
    except OSError as error:
        raise UserError(f"--save-stats={path} cannot be written: {error.strerror or error}.") from error


def check_stats_path(path: str) -> None:
    """Raises UserError, before any work, if statistics cannot be saved at `path`."""
    if not path.endswith(saved_stats.ENDING):
        raise UserError(f"--save-stats={path} must end in {saved_stats.ENDING}.")
    if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise UserError(f"--save-stats={path} is in a folder that does not exist.")


def _of_saved_stats(
    path: str, metrics: Sequence[Metric], mirror: bool | None, detector: str | None, resolution: int
) -> dict[str, Any]:
    if mirror is not None:
        raise UserError(f"--mirror has no effect on {path}, whose images were fixed when it was saved: omit it.")
    saved = saved_stats.load(path)
    if saved.about.resolution != resolution:
        side = saved.about.resolution
        raise UserError(
            f"{path} is about images of {side}x{side}, and the fakes are {resolution}x{resolution}: provide reals of "
            f"that size with --data."
        )
    for metric in metrics:
        if metric.reals is not None:
            need = metric.reals
            spec = _detector(metric, detector)
            saved.take(spec, {"return_features": True}, need.max_items, metric.xflip, need.features)
    return {"real_stats": path}


def _check_labels(network: str, c_dim: int, data: str | None, label_dim: int) -> None:
    if label_dim != c_dim:
        raise UserError(
            f"{network} takes labels of {c_dim} numbers, and {data} has labels of {label_dim}: "
            f"provide images, or statistics of images, with matching labels with --data."
        )


def _detector(metric: Metric, detector: str | None) -> detectors.DetectorSpec:
    return detectors.resolve(detector, metric.detector.kind)


def _opened(kwargs: dict[str, Any], flag: str) -> Any:
    """The dataset with these arguments. Raises UserError, naming the `flag` that chose it, if there is none."""
    try:
        dataset = construct_class_by_name(**kwargs)
    except UserError as error:
        raise UserError(f"{str(error).rstrip('.')} ({flag} says which images to use).") from error
    dataset.close()
    return dataset
