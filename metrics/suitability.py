# SPDX-License-Identifier: Apache-2.0
"""Refuses a detector for images of another kind than those it was made for, where its file says which (its record).

In the features of a detector for digits all photos are alike, so distances between photos would be small and mean
nothing. Real images are compared with the recorded classes, mixed in the proportions that the detector sees in them:
a part of the recorded images, such as a single class, is suitable too.
"""

import functools
import json
from collections.abc import Iterable

import numpy as np
import torch

from dnnlib.util import UserError, construct_class_by_name
from metrics import catalogue, detectors, real_cache
from metrics.detector_record import Record
from metrics.metric_utils import MetricOptions
from torch_utils.images import on_white
from training.dataset import Dataset

NUM_IMAGES = 256  # compared, at equal distances in the dataset
MIN_IMAGES = 50  # the distance of fewer images is mostly that of a small sample

_COLOURS = {1: "grey", 3: "RGB", 4: "RGBA"}


def ensure_suitable(metrics: Iterable[str], opts: MetricOptions) -> None:
    """Check, before any long work, that the detector of `opts` suits its images, as far as `metrics` use them.

    Raises UserError, naming --detector, for other channels or real images of another kind.
    """
    spec = _spec(metrics, opts.detector)
    if spec is None:
        return
    if opts.fakes_kwargs:
        fakes = construct_class_by_name(**opts.fakes_kwargs)
        fakes.close()
        _check_channels(spec, fakes.num_channels, f"'{fakes.name}'")
    elif opts.G is not None:
        _check_channels(spec, opts.G.img_channels, "the network")
    if opts.dataset_kwargs and any(catalogue.find(metric).reals is not None for metric in metrics):
        path = opts.dataset_kwargs.get("path")
        contents = real_cache.dataset_fingerprint(path) if isinstance(path, str) else None
        _check_contents(spec, json.dumps(opts.dataset_kwargs, sort_keys=True), contents)


def ensure_suitable_for(metrics: Iterable[str], detector: str | None, dataset: Dataset) -> None:
    """The same for a run that trains on `dataset`, which is open."""
    spec = _spec(metrics, detector)
    if spec is not None:
        _check_dataset(spec, dataset)


def distance(network: torch.nn.Module, record: Record, images: torch.Tensor) -> float:
    """Fréchet distance of images, uint8 [N, C, H, W], from the recorded classes, mixed as `network` sees them.

    Raises UserError if the network does not fit its record.
    """
    with torch.no_grad():
        features = detectors.apply(network, images, return_features=True).double().numpy()
        probs = detectors.apply(network, images)
    if (features.shape[1], probs.shape[1]) != (record.means.shape[1], record.classes):
        raise UserError("The detector's record is about another network: choose another --detector.")
    seen = probs.argmax(dim=1)
    shares = torch.bincount(seen, minlength=record.classes).double().numpy() / len(images)
    from metrics.frechet_inception_distance import frechet_distance  # loads scipy, which training may not need

    return frechet_distance(features.mean(0), np.cov(features.T, bias=True), *record.mixture(shares))


def _spec(metrics: Iterable[str], detector: str | None) -> detectors.DetectorSpec | None:
    """The detector, if it has a record and one of `metrics` uses it."""
    needs = [found.detector for found in map(catalogue.find, metrics) if found.detector is not None]
    if detector is None or not needs:
        return None
    spec = detectors.resolve(detector, needs[0].kind)
    return spec if detectors.load_record(spec) is not None else None


@functools.lru_cache(maxsize=16)  # a run measures the same images at each snapshot
def _check_contents(spec: detectors.DetectorSpec, dataset_kwargs: str, contents: str | None) -> None:
    _check_dataset(spec, construct_class_by_name(**json.loads(dataset_kwargs)))


def _check_channels(spec: detectors.DetectorSpec, channels: int, images: str) -> None:
    made_for = detectors.load_record(spec).image_shape[0]
    if channels != made_for and (channels, made_for) != (4, 3):  # RGBA is seen on white
        raise UserError(
            f"Detector '{spec.name}' was made for {_COLOURS[made_for]} images, and those of {images} are "
            f"{_COLOURS[channels]}: choose another --detector, or convert the data with dataset_tool.py "
            f"--channels={made_for}."
        )


def _check_dataset(spec: detectors.DetectorSpec, dataset: Dataset) -> None:
    _check_channels(spec, dataset.num_channels, f"'{dataset.name}'")
    if len(dataset) < MIN_IMAGES:
        return
    record = detectors.load_record(spec)
    picks = np.linspace(0, len(dataset) - 1, min(len(dataset), NUM_IMAGES)).astype(int)
    images = torch.from_numpy(np.stack([dataset[pick][0] for pick in picks]))
    dataset.close()
    found = distance(detectors.load(spec, torch.device("cpu")), record, on_white(images))
    if not found <= record.bound:
        raise UserError(
            f"Detector '{spec.name}' was made for images like those of '{record.dataset}', and those of "
            f"'{dataset.name}' are of another kind (Fréchet distance {found:.0f}, at most {record.bound:.0f}): choose "
            f"another --detector, or train one with scripts/train_detector.py."
        )
