# SPDX-License-Identifier: Apache-2.0
"""The options of a metric."""

import numpy as np
import torch

from dnnlib.util import EasyDict
from metrics import detectors
from metrics.progress_monitor import ProgressMonitor
from training import families

STANDING_BATCH = 64  # latents of a pass for standing statistics, which depend on it


class MetricOptions:
    """What to measure and how.

    Args:
        G: Generator to be measured. It is copied and never changed.
        G_kwargs: Extra arguments of its forward call.
        dataset_kwargs: Class name and arguments of the dataset of reals (and labels).
        num_gpus: Number of processes.
        rank: Index of this process.
        device: Device to compute on; by default the CUDA device of this rank, or the CPU without CUDA.
        progress: A `ProgressMonitor`; silent by default.
        cache: Whether to cache the statistics of the reals.
        detector: Value of `--detector`: a name, path or URL; None for the metric's own detector. See `detectors.trust`.
        seed: Seed of latents, labels, noise and subsets. The global random generators are not used.
        fakes_kwargs: Class name and arguments of a dataset of fakes, used instead of `G`.
        real_stats: File of saved statistics, used instead of the dataset of reals (and labels).
        trunc: Truncation of the fakes, the value of `--trunc`; None for none.
        standing_passes: Batches of `STANDING_BATCH` latents whose statistics a `G` with batch norm is measured with; 0
            for its running ones.
        shared: Statistics of the features of fakes, kept for other metrics with the same options; None keeps none.
    """

    def __init__(
        self,
        G: torch.nn.Module | None = None,
        G_kwargs: dict = {},
        dataset_kwargs: dict = {},
        num_gpus: int = 1,
        rank: int = 0,
        device: torch.device | None = None,
        progress: ProgressMonitor | None = None,
        cache: bool = True,
        detector: str | None = None,
        seed: int = 0,
        fakes_kwargs: dict = {},
        real_stats: str | None = None,
        trunc: float | None = None,
        standing_passes: int = 0,
        shared: dict | None = None,
    ):
        assert 0 <= rank < num_gpus
        if device is None:
            device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
        self.G = G
        self.G_kwargs = EasyDict(G_kwargs)
        self.dataset_kwargs = EasyDict(dataset_kwargs)
        self.num_gpus = num_gpus
        self.rank = rank
        self.device = torch.device(device)
        self.progress = progress.sub() if progress is not None and rank == 0 else ProgressMonitor()
        self.cache = cache
        self.detector = detector
        self.seed = seed
        self.fakes_kwargs = EasyDict(fakes_kwargs)
        self.real_stats = real_stats
        self.trunc = trunc
        self.standing_passes = standing_passes
        self.shared = shared
        self.provenance = EasyDict(
            resolution=getattr(G, "img_resolution", self.fakes_kwargs.get("resolution")),
            seed=seed,
            versions={"torch": torch.__version__, "numpy": np.__version__},
            **self._of_sampling(),
        )

    def _of_sampling(self) -> dict[str, float | str]:
        """What `provenance` says of how `G` is sampled; nothing where there is no choice."""
        facts = {} if self.trunc is None else {"trunc": self.trunc}
        if self.G is not None and families.of(self.G).batch_statistics:
            standing = f"standing ({self.standing_passes} passes of {STANDING_BATCH})"
            facts["statistics"] = standing if self.standing_passes else "running"
        return facts

    def record(self, spec: detectors.DetectorSpec, **facts: int | str) -> None:
        """Add to `provenance` the detector and `facts`: the numbers and files of the images used."""
        self.provenance.update(detector=spec.name, detector_sha256=spec.sha256, **facts)
