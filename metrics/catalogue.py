# SPDX-License-Identifier: Apache-2.0
"""Which metrics exist and what each one needs. Imports nothing of the project, so every module can ask it.

To add a metric, write a file with a function `compute(opts, ...)` and add one row to `METRICS`: fid50k_full shows how.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class DetectorNeeds:
    """The kind of a metric's default detector ('inception' or 'vgg16') and the arguments its forward must accept."""

    kind: str
    arguments: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class RealNeeds:
    """What a metric uses of the real images.

    Attributes:
        max_items: Largest number of images; None for all.
        features: Whether it needs the features themselves; False: their mean and covariance are enough.
    """

    max_items: int | None
    features: bool


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: Name in results and on the command line.
        function: `function(opts: metric_utils.MetricOptions, **arguments())`, or its dotted name. Returns one number
            for each of `outputs` (a number or a tuple), or a dict of results by full name.
        detector: None if the metric uses no detector or opens its own.
        reals: None if it compares with no real images.
        num_fakes: Number of generated images; None if images are not enough, because it needs the network itself.
        options: Further keyword arguments of `function`.
        dataset: Changes to the keyword arguments of the dataset, for example to include the whole training set.
        outputs: Suffixes of the names in the results.
        higher_is_better: Of the first output.
        opens_dataset: Whether `function` may use the dataset in a way that `reals` does not describe.
        needs_w: Whether it measures the latent space w, which not every network has.
    """

    name: str
    function: str | Callable[..., Any]
    detector: DetectorNeeds | None = None
    reals: RealNeeds | None = None
    num_fakes: int | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dataset: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    outputs: tuple[str, ...] = ("",)
    higher_is_better: bool = False
    opens_dataset: bool = False
    needs_w: bool = False

    @property
    def uses_reals(self) -> bool:
        """Whether the metric may need a dataset of real images."""
        return self.reals is not None or self.opens_dataset

    @property
    def needs_network(self) -> bool:
        """Whether generated images are not enough."""
        return self.num_fakes is None

    @property
    def xflip(self) -> bool | None:
        """False if mirrored copies of the reals are excluded; None if the dataset's own setting applies."""
        return self.dataset.get("xflip")

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `function`."""
        counts = {}
        if self.reals is not None:
            counts["max_real"] = self.reals.max_items
        if self.num_fakes is not None:
            counts["num_gen"] = self.num_fakes
        return {**counts, **self.options}

    def named(self, values: Any) -> dict[str, float]:
        """Results by name, from what `function` returned."""
        if isinstance(values, Mapping):
            return dict(values)
        values = values if isinstance(values, tuple) else (values,)
        return {f"{self.name}{suffix}": value for suffix, value in zip(self.outputs, values, strict=True)}


_WITHOUT_MIRRORING = {"max_size": None, "xflip": False}
_WHOLE = {"max_size": None}
_MOMENTS, _FEATURES = False, True
_INCEPTION = DetectorNeeds("inception", ("return_features",))
_VGG16 = DetectorNeeds("vgg16", ("return_features",))
LPIPS = DetectorNeeds("vgg16", ("resize_images", "return_lpips"))

_FID = Metric(
    name="fid50k_full",
    function="metrics.frechet_inception_distance.compute_fid",
    detector=_INCEPTION,
    reals=RealNeeds(None, _MOMENTS),
    num_fakes=50_000,
    dataset=_WITHOUT_MIRRORING,
)
_KID = Metric(
    name="kid50k_full",
    function="metrics.kernel_inception_distance.compute_kid",
    detector=_INCEPTION,
    reals=RealNeeds(1_000_000, _FEATURES),
    num_fakes=50_000,
    options={"num_subsets": 100, "max_subset_size": 1000},
    dataset=_WITHOUT_MIRRORING,
)
_PR = Metric(
    name="pr50k3_full",
    function="metrics.precision_recall.compute_pr",
    detector=_VGG16,
    reals=RealNeeds(200_000, _FEATURES),
    num_fakes=50_000,
    options={"nhood_size": 3},
    dataset=_WITHOUT_MIRRORING,
    outputs=("_precision", "_recall"),
    higher_is_better=True,
)
_IS = Metric(
    name="is50k",
    function="metrics.inception_score.compute_is",
    detector=DetectorNeeds("inception", ()),
    num_fakes=50_000,
    options={"num_splits": 10},
    dataset=_WITHOUT_MIRRORING,
    outputs=("_mean", "_std"),
    higher_is_better=True,
)


def _ppl(name: str, space: str, sampling: str, crop: bool) -> Metric:
    options = {"num_samples": 50_000, "space": space, "sampling": sampling, "crop": crop}
    function = "metrics.perceptual_path_length.compute_ppl"
    return Metric(name, function, LPIPS, options=options, dataset=_WHOLE, needs_w=True)


def _with_50k_reals(metric: Metric) -> Metric:
    reals = RealNeeds(50_000, metric.reals.features)
    return dataclasses.replace(metric, name=metric.name.removesuffix("_full"), reals=reals, dataset=_WHOLE)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        # Recommended
        _FID,
        _KID,
        _PR,
        _ppl("ppl2_wend", space="w", sampling="end", crop=False),
        _IS,
        # Of earlier papers
        _with_50k_reals(_FID),
        _with_50k_reals(_KID),
        _with_50k_reals(_PR),
        _ppl("ppl_zfull", space="z", sampling="full", crop=True),
        _ppl("ppl_wfull", space="w", sampling="full", crop=True),
        _ppl("ppl_zend", space="z", sampling="end", crop=True),
        _ppl("ppl_wend", space="w", sampling="end", crop=True),
    )
}
_ANY_NUMBER = re.compile(r"(fid|kid|pr)([1-9][0-9]{0,5})(k3?_full)")


def register(metric: Metric) -> None:
    """Add `metric`, or replace the one of the same name, in this process."""
    METRICS[metric.name] = metric


def find(name: str) -> Metric | None:
    """The metric of this name, or None. `fid<N>k_full`, `kid<N>k_full`, `pr<N>k3_full` exist for N thousand fakes."""
    if name in METRICS:
        return METRICS[name]
    match = _ANY_NUMBER.fullmatch(name)
    known = METRICS.get(f"{match[1]}50{match[3]}") if match is not None else None
    return None if known is None else dataclasses.replace(known, name=name, num_fakes=int(match[2]) * 1000)
