# SPDX-License-Identifier: Apache-2.0
"""The measurements of one finished run: FID of its last snapshots, and all else of the last one. Runs in a process of
its own: `python -m dgl.study measure FOLDER`.

Letters in shapes: N images, C channels, H = W resolution, K label dimensions.
"""

import contextlib
import dataclasses
import datetime
import io
import json
import math
import pathlib
import re
import time
from typing import Any

import numpy as np
import scipy
import torch

from dgl.student import count_macs, count_params
from dgl.study.results import GRID, GRID_ROWS, LINE, REQUEST
from dnnlib.files import write_text
from dnnlib.jobs import ROOT
from dnnlib.progress import Progress
from dnnlib.util import UserError, construct_class_by_name
from metrics import catalogue, detectors, inputs, metric_main, metric_utils, small_detector
from torch_utils import distributed, images, machine
from training import families
from training.files.snapshot import load_snapshot
from training.sampling import seed_to_z

COLUMNS = 10  # of the sample grid; with labels there is a column per class, at most this many
PER_CLASS = 200  # images for the distances within a class
CLASSIFIER_EPOCHS, CLASSIFIER_STEPS = 15, 1200  # the steps of 64 images limit the time to half a minute on a slow core
PR = "pr3_full"  # precision and recall with the study's number of fakes


def measure(folder: pathlib.Path) -> None:
    """Measure the run in `folder` as its REQUEST says; writes LINE and GRID there.

    Raises UserError without snapshots.
    """
    start = time.monotonic()
    request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    paths = last_snapshots(folder, request["snapshots"])
    device = distributed.configure_device(distributed.resolve_device("auto"))
    first, *more = request["detectors"]
    if request.get("trust_detector", False):
        for detector in request["detectors"]:
            detectors.trust(detector)
    names = _metrics(request["num_fakes"])
    with Progress(len(paths) + len(more) + 6, "measuring", "value") as progress:
        fid = []
        for path in paths:
            G, compared = _open(path, request["held_out"])
            fid.append({"kimg": kimg_of(path), "value": _metric(names["fid"], G, compared, device, first)[0]})
            progress.update()
        last: dict[str, Any] = {"kimg": kimg_of(path), "fid_other": []}
        for detector in more:
            last["fid_other"].append(_metric(names["fid"], G, compared, device, detector)[0])
            progress.update()
        (last["kid"],) = _metric(names["kid"], G, compared, device, first)
        progress.update()
        last["precision"], last["recall"] = _metric(PR, G, compared, device, first)
        progress.update()
        last.update(of_images(G, compared, device, request["num_fakes"]))
        progress.update(4)
    images.save_png(sample_grid(G, device), folder / GRID)
    logs = [math.log(entry["value"]) if entry["value"] > 0 else math.nan for entry in fid]
    line = {
        **request["about"],
        "log_fid": sum(logs) / len(logs),
        "fid": fid,
        "last": last,
        "G": {"params": count_params(G), "macs": count_macs(G)},
        "train": training_time(paths[-1].parent),
        "measure": {"seconds": round(time.monotonic() - start, 1)},
        "versions": {"torch": torch.__version__, "numpy": np.__version__, "scipy": scipy.__version__},
        "machine": machine.describe(device),
        "commit": machine.command_output(["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]),
        "finished": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }
    write_text(folder / LINE, json.dumps(_finite(line)))


def _finite(value: Any) -> Any:
    """`value` with None for what JSON has no number for, as after a diverged training."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def kimg_of(path: pathlib.Path) -> int:
    """The number in the name of a network snapshot."""
    return int(re.search(r"(\d+)\.pkl$", path.name)[1])


def last_snapshots(folder: pathlib.Path, count: int) -> list[pathlib.Path]:
    """The last `count` snapshots below `folder`, oldest first, without that of the first iteration.

    Raises UserError if there is none.
    """
    found = sorted(path for path in folder.glob("*/network-snapshot-*.pkl") if kimg_of(path) > 0)[-count:]
    if not found:
        raise UserError(f"there is no network snapshot below {folder}: the training needs at least --kimg=1")
    return found


def training_time(run_dir: pathlib.Path) -> dict[str, float]:
    """`seconds` of the whole training, `kimg`, and `sec_per_kimg`: of ticks, without snapshots, and of the `setup`.

    `setup` are the seconds before the first tick, such as fitting. The first tick, which is short and includes the
    warm-up, is left out of the time of ticks, unless it is the only one.
    """
    ticks = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text(encoding="utf-8").splitlines()]
    kimg = [tick["Progress/kimg"]["mean"] for tick in ticks]
    seconds = sum(tick["Timing/sec_per_tick"]["mean"] for tick in (ticks[1:] or ticks))
    shown = kimg[-1] - kimg[0] if len(ticks) > 1 else kimg[0]
    total = ticks[-1]["Timing/total_sec"]["mean"]
    setup = ticks[0]["Timing/total_sec"]["mean"] - ticks[0]["Timing/sec_per_tick"]["mean"]
    pace = seconds / shown + setup / kimg[-1]
    return {
        "kimg": round(kimg[-1], 3),
        "seconds": round(total, 1),
        "setup": round(setup, 1),
        "sec_per_kimg": round(pace, 4),
    }


def _metrics(num_fakes: int) -> dict[str, str]:
    """Names of the metrics with that many fakes; those of the catalogue but for PR, which is added to it."""
    catalogue.register(dataclasses.replace(catalogue.find("pr50k3_full"), name=PR, num_fakes=num_fakes))
    return {"fid": f"fid{num_fakes // 1000}k_full", "kid": f"kid{num_fakes // 1000}k_full"}


def _open(path: pathlib.Path, held_out: str) -> tuple[torch.nn.Module, dict[str, Any]]:
    """G_ema, and the arguments of a metric that compares it with the reals of `held_out`."""
    snapshot = load_snapshot(path)
    found = [catalogue.find(PR)]
    return snapshot["G_ema"], inputs.of_network(snapshot, found, held_out, mirror=None, detector=None, trust=False)


def _metric(name: str, G: torch.nn.Module, compared: dict, device: torch.device, detector: str) -> list[float]:
    result = metric_main.calc_metric(name, G=G, device=device, detector=detector, **compared)
    return list(result.results.values())


def of_images(G: torch.nn.Module, compared: dict[str, Any], device: torch.device, num_fakes: int) -> dict[str, Any]:
    """Measures that need no detector, of `num_fakes` fakes and all reals: distances within a class, and accuracy.

    `intra_class`: see `intra_class_distance`; `intra_class_reals` the same of the reals. `classifier_accuracy`: of a
    network trained on the fakes alone, on the reals (None without labels).
    """
    dataset = construct_class_by_name(**compared["dataset_kwargs"])
    pairs = [dataset[i] for i in range(len(dataset))]
    dataset.close()
    reals, real_labels = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*pairs))
    fakes, fake_labels = draw(G, metric_utils.MetricOptions(G=G, device=device, **compared), num_fakes)
    found = {
        "intra_class": intra_class_distance(fakes, _classes(fake_labels)),
        "intra_class_reals": intra_class_distance(reals, _classes(real_labels)),
    }
    accuracy = None
    if G.c_dim > 1:
        accuracy = classifier_accuracy(fakes, _classes(fake_labels), reals, _classes(real_labels))
    return {**found, "classifier_accuracy": accuracy}


def _classes(labels: torch.Tensor) -> torch.Tensor:
    """Class numbers [N] of one-hot labels [N, K]; all 0 for K = 0."""
    return labels.argmax(dim=1) if labels.shape[1] else torch.zeros(len(labels), dtype=torch.int64)


@torch.no_grad()
def draw(G: torch.nn.Module, opts: metric_utils.MetricOptions, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`n` fakes, uint8 [n, C, H, W], and their labels [n, K], on the CPU; as the metrics draw them, but for noise."""
    G = metric_utils.evaluation_copy(opts)
    sampler = metric_utils.LatentSampler(opts, G)
    made, labels = [], []
    for first in range(0, n, 64):
        z, c = sampler.items(min(64, n - first))
        made.append(images.to_uint8(families.of(G).sample(G, z, c, noise_mode="const")).cpu())
        labels.append(c.cpu())
    return torch.cat(made), torch.cat(labels)


def intra_class_distance(img: torch.Tensor, classes: torch.Tensor) -> float:
    """Mean distance of two images [N, C, H, W] of the same class: the root mean square of their pixels' difference, as
    a share of the range. Averaged over classes; NaN if no class has two images. It falls if a class collapses.
    """
    distances = []
    for number in classes.unique():
        members = img[classes == number][:PER_CLASS].flatten(1).float() / 255
        if len(members) > 1:
            distances.append(torch.pdist(members).mean().item() / members.shape[1] ** 0.5)
    return sum(distances) / len(distances) if distances else math.nan


def classifier_accuracy(
    fakes: torch.Tensor, fake_classes: torch.Tensor, reals: torch.Tensor, real_classes: torch.Tensor
) -> float:
    """The classification accuracy score (Ravuri, Vinyals 2019): train on fakes, test on reals, uint8 [N, C, H, W]."""
    classes = int(max(fake_classes.max(), real_classes.max())) + 1
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # one thread adds in one order, so that a second measurement gives the same number
        with torch.random.fork_rng(devices=[]):
            epochs = max(min(CLASSIFIER_STEPS * 64 // len(fakes), CLASSIFIER_EPOCHS), 1)
            with contextlib.redirect_stderr(io.StringIO()):  # its progress would be taken for that of the measurement
                net = small_detector.train(fakes, fake_classes, classes, epochs, distortion=0)
        with torch.no_grad():
            guesses = torch.cat([net(batch).argmax(dim=1) for batch in reals.split(500)])
    finally:
        torch.set_num_threads(threads)
    return (guesses == real_classes).float().mean().item()


@torch.no_grad()
def sample_grid(G: torch.nn.Module, device: torch.device) -> np.ndarray:
    """Images of the same latents for every network, uint8 [H, W, C]: a column per class, a row per seed.

    Without labels every image has a latent of its own.
    """
    G = metric_utils.evaluation_copy(metric_utils.MetricOptions(G=G, device=device))
    columns = min(G.c_dim, COLUMNS) or COLUMNS
    seeds = [row if G.c_dim else row * columns + column for row in range(GRID_ROWS) for column in range(columns)]
    z = torch.cat([seed_to_z(seed, G.z_dim) for seed in seeds]).to(device)
    c = torch.eye(columns, G.c_dim, device=device).repeat(GRID_ROWS, 1)
    img = families.of(G).sample(G, z, c, noise_mode="const")
    return images.make_grid(images.to_uint8(img), (columns, GRID_ROWS))
