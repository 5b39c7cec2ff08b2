# SPDX-License-Identifier: Apache-2.0
"""FID of an exported program beside that of its network, from the same latents: what the export costs in quality."""

import dataclasses
from collections.abc import Callable, Sequence

import torch

from dnnlib.progress import Progress
from metrics import catalogue, detectors, inputs, metric_utils, suitability
from metrics.feature_stats import FeatureStats
from metrics.frechet_inception_distance import frechet_distance
from torch_utils import distributed, images
from training import export, families, sampling
from training.files.snapshot import Snapshot, load_snapshot

_METRIC = catalogue.find("fid50k_full")


@dataclasses.dataclass(frozen=True)
class Check:
    """What to measure an exported program with, the values of flags of export.py.

    Attributes:
        count: Number of images of each.
        data, detector, trust_detector: As in calc_metrics.py.
    """

    count: int
    data: str | None = None
    detector: str | None = None
    trust_detector: bool = False


def export_and_measure(network: str, dest: str, settings: export.Settings, check: Check, trust: bool = False) -> None:
    """Write the G_ema of a pickle as a program, as `export.export_network` does, and print its FID and PyTorch's.

    Raises UserError, before any long work, for data or a detector that do not fit, and as `export_network` does.
    """
    export.check_dest(dest)
    snapshot = load_snapshot(network, trust=trust)
    opts = _options(snapshot, check, trust)
    paths = export.export_snapshot(snapshot, dest, settings)
    program, pytorch = fids(opts, _generator(opts.G, paths), settings.noise_mode, check.count)
    facts = opts.provenance
    print(
        f"{dest}: FID {program:.4g}, PyTorch {pytorch:.4g}, change {program - pytorch:+.2g} ({check.count:,} images of "
        f"the same seeds against {facts.num_reals:,} reals, detector {facts.detector})"
    )


def _options(snapshot: Snapshot, check: Check, trust: bool) -> metric_utils.MetricOptions:
    if check.trust_detector:
        detectors.trust(check.detector)
    metric = dataclasses.replace(_METRIC, num_fakes=check.count)
    compared = inputs.of_network(snapshot, [metric], check.data, None, check.detector, trust)
    detectors.ensure_available([metric.name], check.detector)
    device = distributed.configure_device(distributed.resolve_device("auto"))
    progress = metric_utils.ProgressMonitor(verbose=True)
    G = snapshot["G_ema"]
    opts = metric_utils.MetricOptions(G=G, detector=check.detector, device=device, progress=progress, **compared)
    suitability.ensure_suitable([metric.name], opts)
    opts.dataset_kwargs.update(metric.dataset)
    return opts


Sample = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _generator(G: torch.nn.Module, paths: Sequence[str]) -> Sample:
    """The images of z and c by the program in one file, or by mapping and synthesis in two."""
    runs = [export.load(path) for path in paths]

    def sample(z: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        given = export.inputs_of(G, z.cpu(), c.cpu())
        for run in runs[:-1]:
            given = {"ws": run(given)}
        return runs[-1](given)

    return sample


@torch.no_grad()
def fids(opts: metric_utils.MetricOptions, program: Sample, noise_mode: str, count: int) -> tuple[float, float]:
    """FID of `program` and of `opts.G`, of `count` images each from the latents and labels of `opts.seed`."""
    G = metric_utils.evaluation_copy(opts)
    sample = families.of(G).sample
    samples = [program, lambda z, c: sample(G, z, c, truncation_psi=1, noise_mode=noise_mode)]
    spec, kwargs = detectors.resolve(opts.detector, _METRIC.detector.kind), {"return_features": True}
    real = metric_utils.compute_feature_stats_for_dataset(opts, spec, kwargs, capture_mean_cov=True).get_mean_cov()
    detector = metric_utils.get_feature_detector(spec, opts.device)
    latents = metric_utils.LatentSampler(opts, G)
    stats = [FeatureStats(capture_mean_cov=True, max_items=count) for _ in samples]
    batch = sampling.images_at_once(G)
    with Progress(count, "Images of the program and of PyTorch", "img") as progress:
        for first in range(0, count, batch):
            z, c = latents.items(min(batch, count - first))
            for found, draw in zip(stats, samples):
                img = images.to_uint8(draw(z, c)).to(opts.device)
                metric_utils.add_features(opts, found, detector, img, kwargs)
            progress.update(len(z))
    program_fid, pytorch_fid = (frechet_distance(*found.get_mean_cov(), *real) for found in stats)
    return program_fid, pytorch_fid
