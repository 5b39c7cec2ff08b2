# SPDX-License-Identifier: Apache-2.0
"""Shared by all metrics: the features of reals and fakes.

Legend: n items, d feature dimensions. With several processes each works on a share of the items. The features are
gathered, so all processes end with the same statistics, in the order in which one process computes them.
"""

import copy
import sys
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from dnnlib import background
from dnnlib.util import UserError, construct_class_by_name
from metrics import detectors, real_cache, saved_stats
from metrics.feature_stats import FeatureStats
from metrics.options import STANDING_BATCH, MetricOptions
from metrics.progress_monitor import ProgressMonitor
from torch_utils import distributed, images, misc
from torch_utils.ops import layout
from training import families, sampling, standing_stats
from training.dataset import Dataset

__all__ = [
    "FeatureStats",
    "LatentSampler",
    "MetricOptions",
    "ProgressMonitor",
    "add_features",
    "broadcast_results",
    "compute_feature_stats_for_dataset",
    "compute_feature_stats_for_generator",
    "compute_feature_stats_of_both",
    "evaluation_copy",
    "get_feature_detector",
    "require_fakes",
]


def _labelled_dataset(opts: MetricOptions) -> Dataset:
    if opts.real_stats is not None:
        return saved_stats.load(opts.real_stats).labels
    return construct_class_by_name(**opts.dataset_kwargs)


class LatentSampler:
    """Latents and labels for fakes. They depend on `opts.seed` only, not on the batch size or number of processes.

    Labels are those of images drawn uniformly from the dataset. `first_stream` is the number of the first of its three
    random streams; another sampler with the same ones draws the same. Raises UserError if labels do not match `G`.
    """

    def __init__(self, opts: MetricOptions, G: torch.nn.Module, first_stream: int = 0):
        self._opts = opts
        self._z_dim = G.z_dim
        self._bound, _psi = families.of(G).truncation(G, opts.trunc)
        self._dataset = _labelled_dataset(opts) if G.c_dim > 0 else None
        if self._dataset is not None and self._dataset.label_dim != G.c_dim:
            raise UserError(
                f"The network takes labels of {G.c_dim} numbers, and the dataset '{self._dataset.name}' has "
                f"{self._dataset.label_dim}: choose a dataset with matching labels with --data."
            )
        # RandomState: its streams do not depend on how many numbers are drawn at once.
        streams = range(first_stream, first_stream + 3)
        self._latents, self._labels, self._times = (np.random.RandomState([opts.seed, stream]) for stream in streams)

    def _share(self, values: np.ndarray) -> torch.Tensor:
        share = values[self._opts.rank :: self._opts.num_gpus]
        return torch.from_numpy(share.astype(np.float32)).to(self._opts.device)

    def _draw_labels(self, n: int) -> torch.Tensor:
        if self._dataset is None:
            return self._share(np.zeros([n, 0]))
        picks = self._labels.randint(len(self._dataset), size=n)
        return self._share(np.stack([self._dataset.get_label(pick) for pick in picks]))

    def items(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """z [n, z_dim] and c [n, c_dim] for the next n items of this process."""
        n *= self._opts.num_gpus
        # One by one: values that are drawn anew follow those of their own item.
        latents = [sampling.truncated_z(self._latents, (self._z_dim,), self._bound) for _ in range(n)]
        return self._share(np.stack(latents)), self._draw_labels(n)

    def paths(self, n: int, full: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """z [2n, z_dim] (starts, then ends), c [n, c_dim] and t [n, 1] for n paths; t uniform if `full`, else 0."""
        n *= self._opts.num_gpus
        ends = self._share(self._latents.randn(n, 2, self._z_dim))
        t = self._times.rand(n, 1) if full else np.zeros([n, 1])
        return ends.transpose(0, 1).flatten(0, 1), self._draw_labels(n), self._share(t)


def get_feature_detector(
    url: str | detectors.DetectorSpec,
    device: torch.device | str = "cpu",
    num_gpus: int = 1,
    rank: int = 0,
    verbose: bool = False,
) -> torch.jit.ScriptModule:
    """The detector at a path or URL on `device`; the first process downloads it for all. Raises UserError."""
    if rank > 0:
        distributed.barrier()
    if verbose and rank == 0:
        print(f"Loading detector {url if isinstance(url, str) else url.url}", file=sys.stderr)
    try:
        return detectors.load(url, torch.device(device))
    finally:
        if rank == 0 and num_gpus > 1:
            distributed.barrier()


def evaluation_copy(opts: MetricOptions) -> torch.nn.Module:
    """A copy of `opts.G` on `opts.device`, for sampling only: in eval mode, with requires_grad off.

    It has the standing statistics that `opts` ask for, equal in all processes.
    """
    G = layout.prepare(copy.deepcopy(opts.G).eval().requires_grad_(False), opts.device)
    if opts.standing_passes:
        whole = copy.copy(opts)
        whole.rank, whole.num_gpus = 0, 1
        sampler = LatentSampler(whole, G, first_stream=3)
        standing_stats.accumulate(G, (sampler.items(STANDING_BATCH) for _ in range(opts.standing_passes)))
    return sampling.freeze(G)


def broadcast_results(results: dict[str, float], opts: MetricOptions) -> dict[str, float]:
    """The results of rank 0, in every process."""
    values = [float(value) for value in results.values()]
    if opts.num_gpus > 1:
        shared = torch.tensor(values, dtype=torch.float64, device=opts.device)
        distributed.broadcast_(shared, src=0)
        values = shared.tolist()
    return dict(zip(results, values))


@torch.inference_mode()
def add_features(
    opts: MetricOptions, stats: FeatureStats, detector: torch.nn.Module, batch: torch.Tensor, detector_kwargs: dict
) -> None:
    """Add to `stats` the features of uint8 images [n, C, h, w]; grey ones are repeated to RGB, RGBA ones get white."""
    batch = images.on_white(batch)
    if batch.shape[1] == 1:
        batch = batch.repeat(1, 3, 1, 1)
    features = detectors.apply(detector, batch, **detector_kwargs)
    if stats.num_features not in (None, features.shape[1]):
        raise UserError(
            f"The detector gives {stats.num_features} features for some images and {features.shape[1]} for others: "
            f"choose another with --detector."
        )
    stats.append_torch(features, opts.num_gpus, opts.rank)


def _dataset_loader(opts: MetricOptions, dataset, num_items: int, batch_size: int, loader_kwargs: dict | None):
    """Batches of this process's share of the first `num_items` items. All processes get the same number of items."""
    rounds = -(-num_items // opts.num_gpus)
    share = [(i * opts.num_gpus + opts.rank) % num_items for i in range(rounds)]
    if loader_kwargs is None:
        loader_kwargs = {"num_workers": 3, "pin_memory": True} if opts.device.type == "cuda" else {}
    # Without a separate generator the loader would draw from the global one.
    generator = torch.Generator()
    return torch.utils.data.DataLoader(
        dataset, sampler=share, batch_size=batch_size, generator=generator, **loader_kwargs
    )


def _stats_of_images(
    opts: MetricOptions,
    spec: detectors.DetectorSpec,
    detector_kwargs: dict,
    batches: Iterable,
    progress: ProgressMonitor,
    **stats_kwargs,
) -> FeatureStats:
    """Statistics of the features of `batches` of (images, labels), gathered from all processes."""
    detector = get_feature_detector(spec, opts.device, opts.num_gpus, opts.rank)
    stats = FeatureStats(**stats_kwargs)
    with background.ahead(batches, opts.device.type == "cpu") as loaded:
        for batch, _labels in loaded:
            add_features(opts, stats, detector, batch.to(opts.device), detector_kwargs)
            progress.update(stats.num_items)
    return stats


def _if_everywhere(opts: MetricOptions, stats: FeatureStats | None) -> FeatureStats | None:
    """`stats` if no process has None, else None."""
    if opts.num_gpus > 1:
        missing = distributed.all_reduce_(torch.tensor([float(stats is None)], device=opts.device))
        return None if missing.item() > 0 else stats
    return stats


@torch.no_grad()
def compute_feature_stats_for_dataset(
    opts: MetricOptions,
    detector_url: str | detectors.DetectorSpec,
    detector_kwargs: dict,
    rel_lo: float = 0,
    rel_hi: float = 1,
    batch_size: int = 64,
    data_loader_kwargs: dict | None = None,
    max_items: int | None = None,
    **stats_kwargs,
) -> FeatureStats:
    """Statistics of the features of the first `max_items` reals (None, or more than there are: all), cached.

    A cache entry is used only for the same dataset options, file contents, detector and arguments. `stats_kwargs` are
    those of `FeatureStats`. Raises DatasetError or UserError for unusable data, saved statistics or detector.
    """
    spec = detectors.locate(detector_url)
    if opts.real_stats is not None:
        saved = saved_stats.load(opts.real_stats)
        stats = saved.take(spec, detector_kwargs, max_items, opts.dataset_kwargs.get("xflip"), **stats_kwargs)
        opts.record(spec, num_reals=stats.num_items, real_stats=saved.path, real_stats_sha256=saved.sha256)
        return stats
    dataset = construct_class_by_name(**opts.dataset_kwargs)
    num_items = len(dataset) if max_items is None else min(len(dataset), max_items)
    identity = {
        "detector": spec.sha256,
        "detector_kwargs": detector_kwargs,
        "num_items": num_items,
        "stats_kwargs": stats_kwargs,
    }
    path = real_cache.cache_path(opts.dataset_kwargs, spec.name, **identity) if opts.cache else None
    stats = _if_everywhere(opts, real_cache.load(path, num_items) if path else None)
    if stats is None:
        progress = opts.progress.sub(f"{spec.name} features of reals", num_items, rel_lo, rel_hi)
        loaded = _dataset_loader(opts, dataset, num_items, batch_size, data_loader_kwargs)
        stats = _stats_of_images(opts, spec, detector_kwargs, loaded, progress, max_items=num_items, **stats_kwargs)
        # If the data changed meanwhile, the statistics match neither the old key nor the new one.
        if path and opts.rank == 0 and path == real_cache.cache_path(opts.dataset_kwargs, spec.name, **identity):
            real_cache.save(path, stats)
    dataset.close()
    opts.record(spec, num_reals=stats.num_items)
    return stats


def require_fakes(dataset, num_items: int) -> None:
    """Raises UserError if a dataset of fakes has fewer than `num_items` images."""
    thousands = len(dataset) // 1000
    if len(dataset) < num_items:
        raise UserError(
            f"The metric needs {num_items} fakes, and '{dataset.name}' has {len(dataset)}: provide more with --fakes"
            + (f", or use a metric that needs fewer, such as fid{thousands}k_full." if thousands else ".")
        )


def _fakes(opts: MetricOptions, count: int, batch_size: int, batch_gen: int | None) -> Iterator[torch.Tensor]:
    """`count` batches of this process's fakes, uint8 [batch_size, C, R, R]; see below for `batch_gen`."""
    G = evaluation_copy(opts)
    batch_gen = batch_gen or sampling.images_at_once(G, batch_size)
    sampler = LatentSampler(opts, G)
    family = families.of(G)
    G_kwargs = {} if opts.trunc is None else {"truncation_psi": family.truncation(G, opts.trunc)[1]}
    G_kwargs |= opts.G_kwargs

    @torch.inference_mode()
    def batch() -> torch.Tensor:
        parts = [sampler.items(min(batch_gen, batch_size - first)) for first in range(0, batch_size, batch_gen)]
        return torch.cat([images.to_uint8(family.sample(G, z, c, **G_kwargs)) for z, c in parts])

    return (batch() for _ in range(count))


@torch.no_grad()
def compute_feature_stats_for_generator(
    opts: MetricOptions,
    detector_url: str | detectors.DetectorSpec,
    detector_kwargs: dict,
    rel_lo: float = 0,
    rel_hi: float = 1,
    batch_size: int = 64,
    batch_gen: int | None = None,
    *,
    max_items: int,
    **stats_kwargs,
) -> FeatureStats:
    """Statistics of the features of `max_items` fakes. They depend on the network and `opts.seed` only.

    Images are rounded to uint8 first. `batch_gen` is the number of images that G generates at once (None: chosen by
    resolution). `stats_kwargs` are those of `FeatureStats`. If `opts` has a dataset of fakes, its first `max_items`
    images are used instead of G. Raises UserError for an unusable detector or labels, or too few fakes in the dataset.
    """
    spec = detectors.locate(detector_url)
    stats_kwargs = {"max_items": max_items, **stats_kwargs}
    if opts.fakes_kwargs:
        progress = opts.progress.sub(f"{spec.name} features of fakes", max_items, rel_lo, rel_hi)
        dataset = construct_class_by_name(**opts.fakes_kwargs)
        require_fakes(dataset, max_items)
        batches = _dataset_loader(opts, dataset, max_items, batch_size, None)
        stats = _stats_of_images(opts, spec, detector_kwargs, batches, progress, **stats_kwargs)
        dataset.close()
        opts.record(spec, num_fakes=stats.num_items, fakes=opts.fakes_kwargs["path"])
        return stats
    detector = get_feature_detector(spec, opts.device, opts.num_gpus, opts.rank)
    stats = FeatureStats(**stats_kwargs)
    progress = opts.progress.sub(f"{spec.name} features of fakes", max_items, rel_lo, rel_hi)
    fakes = _fakes(opts, -(-max_items // (batch_size * opts.num_gpus)), batch_size, batch_gen)
    random = misc.own_random_streams(opts.device, opts.seed + opts.rank)
    # On a GPU no thread is needed: the host is ahead of the device anyway.
    with random, background.ahead(fakes, opts.device.type == "cpu") as batches:
        for batch in batches:
            add_features(opts, stats, detector, batch, detector_kwargs)
            progress.update(stats.num_items)
    opts.record(spec, num_fakes=stats.num_items)
    return stats


def compute_feature_stats_of_both(
    opts: MetricOptions, kind: str, max_real: int | None, num_gen: int, rel_hi: float = 1, **stats_kwargs
) -> tuple[FeatureStats, FeatureStats]:
    """Statistics of the features of at most `max_real` reals (None: all) and of `num_gen` fakes.

    The detector is that of `opts`, or the default of `kind`. Progress runs up to the share `rel_hi` of the metric.
    `stats_kwargs` are those of `FeatureStats`; those of the fakes collect everything if they are shared. Raises
    UserError as the functions for reals and fakes do.
    """
    spec = detectors.resolve(opts.detector, kind)
    kwargs = {"return_features": True}
    real = compute_feature_stats_for_dataset(opts, spec, kwargs, rel_hi=rel_hi / 2, max_items=max_real, **stats_kwargs)
    shared, key = {}, (spec.sha256, num_gen, repr(sorted(opts.dataset_kwargs.items())))  # labels depend on the data
    if opts.shared is not None:
        shared, stats_kwargs = opts.shared, {"capture_all": True, "capture_mean_cov": True}
    if key not in shared:
        shared[key] = compute_feature_stats_for_generator(
            opts, spec, kwargs, rel_lo=rel_hi / 2, rel_hi=rel_hi, max_items=num_gen, **stats_kwargs
        )
    fake, facts = shared[key], {"fakes": opts.fakes_kwargs["path"]} if opts.fakes_kwargs else {}
    opts.record(spec, num_fakes=fake.num_items, **facts)
    return real, fake
