# SPDX-License-Identifier: Apache-2.0
"""The work of calc_metrics.py: check the inputs, start the processes, compute each metric and report it."""

import os
from typing import Any

from dnnlib import launcher
from dnnlib.util import UserError, is_url
from metrics import catalogue, detectors, inputs, metric_main, metric_utils, suitability
from torch_utils import distributed
from training.files.snapshot import Snapshot, load_snapshot
from training.settings import OPTIONS_FILE


def measure(
    metrics: list[str],
    *,
    network: str | None = None,
    fakes: str | None = None,
    data: str | None = None,
    mirror: bool | None = None,
    save_stats: str | None = None,
    gpus: int | None = None,
    detector: str | None = None,
    trunc: float | None = None,
    standing_stats: int = 0,
    device: str = "auto",
    trust_pickle: bool = False,
    trust_detector: bool = False,
    verbose: bool = True,
) -> None:
    """Compute `metrics` of a network pickle or of images, or save the statistics of the reals that they need.

    Exactly one of `network`, `fakes` and `save_stats` is given; all arguments are the values of the flags of
    calc_metrics.py. Prints one line of JSON per metric and, for a pickle in a run directory, appends it to
    metric-NAME.jsonl there. Raises UserError for unusable inputs, before any long work.
    """
    with distributed.joined(device):
        checked = (metrics, network, fakes, data, mirror, save_stats, gpus, detector, device)
        trusted = {"pickle": trust_pickle, "detector": trust_detector}
        sampling = {"trunc": trunc, "standing_passes": standing_stats}
        gpus, snapshot, options = distributed.decide(_check, *checked, sampling, trusted, verbose)
        distributed.launch(_process, gpus, metrics, network, snapshot, trusted, save_stats, device, options)


def _check(
    metrics: list[str],
    network: str | None,
    fakes: str | None,
    data: str | None,
    mirror: bool | None,
    save_stats: str | None,
    gpus: int | None,
    detector: str | None,
    device: str,
    sampling: dict[str, Any],
    trusted: dict[str, bool],
    verbose: bool,
) -> tuple[int, Snapshot | None, dict[str, Any]]:
    """Number of processes, the open network file if there is one process, and arguments of MetricOptions."""
    place = launcher.place()
    if place is not None and gpus not in (None, place.size):
        raise UserError(f"--gpus={gpus}: the launcher has started {place.size} processes; drop the flag")
    gpus = gpus or (1 if place is None else place.size)
    found = [catalogue.find(name) for name in metrics]
    if None in found or not found:
        valid = ", ".join(metric_main.list_valid_metrics())
        raise UserError(f"--metrics={','.join(metrics) or 'none'} can only contain the following values: {valid}.")
    for rank in range(gpus if place is None else 1):  # of a launcher, every process has already found its device
        distributed.resolve_device(device, rank)
    if trusted["detector"]:
        detectors.trust(detector)
    snapshot = None
    if network is not None:
        snapshot = load_snapshot(network, trust=trusted["pickle"])
        compared = inputs.of_network(snapshot, found, data, mirror, detector, trusted["pickle"])
    elif fakes is not None:
        compared = inputs.of_images(fakes, found, data, mirror, detector)
    else:
        inputs.check_stats_path(save_stats)
        compared = inputs.of_reals(data, found, mirror, detector)
    G = None if snapshot is None else snapshot["G_ema"]
    inputs.check_sampling(G, found, **sampling)
    detectors.ensure_available(metrics, detector)
    suitability.ensure_suitable(metrics, metric_utils.MetricOptions(G=G, detector=detector, **compared))
    options = {"num_gpus": gpus, "detector": detector, "progress": metric_utils.ProgressMonitor(verbose=verbose)}
    options |= sampling
    if gpus > 1:
        snapshot = None  # each process opens the file itself
    return gpus, snapshot, options | compared


def _process(
    rank: int,
    metrics: list[str],
    network: str | None,
    snapshot: Snapshot | None,
    trusted: dict[str, bool],
    save_stats: str | None,
    device_name: str,
    options: dict[str, Any],
) -> None:
    """The work of one process. `snapshot`: `network`, if this process has opened it. `options`: of MetricOptions.

    `trusted`: whether code may run from the 'pickle' and the 'detector'.
    """
    device = distributed.resolve_device(device_name, distributed.local_rank(rank))
    distributed.configure_device(device)
    distributed.init(rank=rank, world_size=options["num_gpus"], device=device)
    options = {**options, "rank": rank, "device": device, "shared": {} if len(metrics) > 1 else None}
    if trusted["detector"]:
        detectors.trust(options["detector"])
    if save_stats is not None:
        found = [catalogue.find(name) for name in metrics]
        inputs.save_reals(metric_utils.MetricOptions(**options), found, save_stats)
        return
    if snapshot is None and network is not None:
        snapshot = load_snapshot(network, trust=trusted["pickle"])
    G = None if snapshot is None else snapshot["G_ema"]
    for metric in metrics:
        result = metric_main.calc_metric(metric, G=G, **options)
        if rank == 0:
            metric_main.report_metric(result, run_dir=_run_dir(network), snapshot_pkl=network)


def _run_dir(network: str | None) -> str | None:
    """The writable run directory that contains the network pickle, or None."""
    if network is None or is_url(network):
        return None
    folder = os.path.dirname(os.path.abspath(network))
    is_run_dir = os.path.isfile(os.path.join(folder, OPTIONS_FILE))
    return folder if is_run_dir and os.access(folder, os.W_OK) else None
