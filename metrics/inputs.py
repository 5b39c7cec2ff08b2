# SPDX-License-Identifier: Apache-2.0
"""What calc_metrics.py compares: a network or images with images or their saved statistics, checked before any work.

The functions named `of_...` give the arguments of `metric_utils.MetricOptions` that say what is compared.
"""

import os
from collections.abc import Sequence
from typing import Any

from dnnlib.util import UserError, construct_class_by_name
from metrics import detectors, metric_main, metric_utils, saved_stats
from training.files.snapshot import load_snapshot

_DATASET_CLASS = "training.dataset.ImageFolderDataset"


def of_network(
    network: str, metrics: Sequence[str], data: str | None, mirror: bool | None, detector: str | None, trust: bool
) -> dict[str, Any]:
    """For the network pickle at `network` and what --data says: images, saved statistics, or None for its training set.

    Empty where `metrics` need nothing beside the network. Raises UserError for what cannot be opened, does not go
    together, or does not suffice for `metrics`.
    """
    snapshot = load_snapshot(network, trust=trust)
    G = snapshot["G_ema"]
    if G.c_dim == 0 and not any(map(metric_main.uses_reals, metrics)):
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
        # A name from a file would be called: only our own is, unless the user vouches for the file.
        if kwargs.get("class_name") != _DATASET_CLASS and not trust:
            raise UserError(
                f"{network} names {kwargs.get('class_name')} as its dataset class: give the images with --data, or "
                f"use --trust-pickle if you trust the file."
            )
    else:
        raise UserError(f"{network} does not say what it was trained on: give the images with --data.")
    kwargs |= {"resolution": G.img_resolution, "use_labels": G.c_dim > 0}
    if mirror is not None:
        kwargs["xflip"] = mirror
    _check_labels(network, G.c_dim, kwargs.get("path"), _opened(kwargs, "--data").label_dim)
    return {"dataset_kwargs": kwargs}


def of_images(
    fakes: str, metrics: Sequence[str], data: str | None, mirror: bool | None, detector: str | None
) -> dict[str, Any]:
    """For the folder or zip `fakes` of generated images, against `data`: images, or saved statistics.

    `data` is needed only for `metrics` that compare. Raises UserError as `of_network` does.
    """
    needy = next((name for name in metrics if metric_main.num_fakes(name) is None), None)
    if needy is not None:
        raise UserError(f"{needy} needs the generator itself, not images: use --network instead of --fakes.")
    fakes_kwargs = {"class_name": _DATASET_CLASS, "path": fakes, "use_labels": False}
    dataset = _opened(fakes_kwargs, "--fakes")
    metric_utils.require_fakes(dataset, max(map(metric_main.num_fakes, metrics)))
    fakes_kwargs["resolution"] = dataset.resolution
    given = {"fakes_kwargs": fakes_kwargs}
    if not any(map(metric_main.uses_reals, metrics)):
        return given
    if data is None:
        raise UserError("--fakes says nothing of the reals to compare with: give them with --data.")
    if data.endswith(saved_stats.ENDING):
        return given | _of_saved_stats(data, metrics, mirror, detector, dataset.resolution)
    kwargs = {"class_name": _DATASET_CLASS, "path": data, "use_labels": False, "resolution": dataset.resolution}
    if mirror is not None:
        kwargs["xflip"] = mirror
    _opened(kwargs, "--data")
    return given | {"dataset_kwargs": kwargs}


def of_reals(data: str | None, metrics: Sequence[str], mirror: bool | None, detector: str | None) -> dict[str, Any]:
    """For saving statistics of the images `data`, such that all of `metrics` can use them. Raises UserError."""
    if data is None or data.endswith(saved_stats.ENDING):
        raise UserError("--save-stats needs the images that it is about: give them with --data.")
    idle = next((name for name in metrics if metric_main.real_needs(name) is None), None)
    if idle is not None:
        raise UserError(f"{idle} compares with no reals: leave it out of --metrics when using --save-stats.")
    if len({_detector(name, detector).sha256 for name in metrics}) > 1:
        raise UserError(
            f"A file of statistics is seen through one detector, and --metrics={','.join(metrics)} look through "
            f"several: save one file for each."
        )
    flips = {bool(mirror) if metric_main.real_needs(name).xflip is None else False for name in metrics}
    if len(flips) > 1:
        raise UserError(
            f"Of --metrics={','.join(metrics)}, some count mirrored images and some do not: save one file for each, or "
            f"leave out --mirror."
        )
    kwargs = {"class_name": _DATASET_CLASS, "path": data, "use_labels": True}
    dataset = _opened(kwargs, "--data")
    kwargs |= {"use_labels": dataset.has_labels, "resolution": dataset.resolution}
    kwargs |= {"max_size": None, "xflip": flips.pop()}
    return {"dataset_kwargs": kwargs}


def save_reals(opts: metric_utils.MetricOptions, metrics: Sequence[str], path: str) -> None:
    """Write the statistics of the reals of `opts` that `metrics` need to the file `path`, in the first process.

    `opts` are made of what `of_reals` gave. Raises UserError where the file cannot be written.
    """
    dataset = construct_class_by_name(**opts.dataset_kwargs)
    needs = [metric_main.real_needs(name) for name in metrics]
    counts = {len(dataset) if need.max_items is None else min(need.max_items, len(dataset)) for need in needs}
    spec = _detector(metrics[0], opts.detector)
    detector_kwargs = {"return_features": True}
    stats = metric_utils.compute_feature_stats_for_dataset(
        opts,
        spec,
        detector_kwargs,
        max_items=max(counts),
        # With features at hand, fewer images than all can be asked for later.
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
    """Raises UserError, before any work, where statistics could not be saved at `path`."""
    if not path.endswith(saved_stats.ENDING):
        raise UserError(f"--save-stats={path} must end in {saved_stats.ENDING}.")
    if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise UserError(f"--save-stats={path} lies in a folder that does not exist.")


def _of_saved_stats(
    path: str, metrics: Sequence[str], mirror: bool | None, detector: str | None, resolution: int
) -> dict[str, Any]:
    if mirror is not None:
        raise UserError(
            f"--mirror has no meaning for {path}, whose images were counted when it was saved: leave it out."
        )
    saved = saved_stats.load(path)
    if saved.about.resolution != resolution:
        side = saved.about.resolution
        raise UserError(
            f"{path} is about images of {side}x{side}, and the fakes measure {resolution}x{resolution}: "
            f"give reals of that size with --data."
        )
    for name in metrics:
        need = metric_main.real_needs(name)
        if need is not None:
            saved.take(_detector(name, detector), {"return_features": True}, need.max_items, need.xflip, need.features)
    return {"real_stats": path}


def _check_labels(network: str, c_dim: int, data: str | None, label_dim: int) -> None:
    if label_dim != c_dim:
        raise UserError(
            f"{network} takes labels of {c_dim} numbers, and {data} has labels of {label_dim}: "
            f"give images, or statistics of images, with matching labels with --data."
        )


def _detector(metric: str, detector: str | None) -> detectors.DetectorSpec:
    return detectors.resolve(detector, metric_main.detector_needs(metric).kind)


def _opened(kwargs: dict[str, Any], flag: str) -> Any:
    """The dataset with these arguments. Raises UserError, naming the `flag` that chose it, where there is none."""
    try:
        dataset = construct_class_by_name(**kwargs)
    except UserError as error:
        raise UserError(f"{str(error).rstrip('.')} ({flag} says which images to use).") from error
    dataset.close()
    return dataset
