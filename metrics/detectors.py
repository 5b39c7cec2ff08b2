# SPDX-License-Identifier: Apache-2.0
"""Feature networks of the metrics: TorchScript files, found by kind, name, path or URL.

Interface: uint8 images [N, 1 or 3, H, W] in; `return_features=True` gives features [N, d], otherwise class
probabilities. A file may have a record of the images that it was made for (`metrics.detector_record`). VGG16 also
takes float images in [0, 255] with `resize_images=False, return_lpips=True` and returns features whose squared
differences sum to the LPIPS distance (Zhang et al. 2018).
"""

import dataclasses
import functools
import hashlib
import os
import re
import warnings
from collections.abc import Iterable

import torch

import dnnlib.util
from dnnlib.util import UserError
from metrics import catalogue, detector_record

BASE_URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics"
FILES = {"inception": "inception-2015-12-05.pt", "vgg16": "vgg16.pt"}
NAMED_FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "data", "detectors")


@dataclasses.dataclass(frozen=True)
class DetectorSpec:
    """A detector whose file is on this machine.

    Attributes:
        url: Where it comes from (URL or path).
        name: Its name in results.
        sha256: Hexadecimal digest of the file.
        path: Local file.
    """

    url: str
    name: str
    sha256: str
    path: str


def resolve(detector: str | None, kind: str) -> DetectorSpec:
    """The detector that `--detector` names (a name, path or URL), or the default of `kind` ('inception' or 'vgg16').

    A default comes from the cache or is downloaded. Raises UserError, naming --detector, if there is no such file.
    """
    if detector is not None:
        return locate(_named_file(detector) or detector)
    return locate(f"{BASE_URL}/{FILES[kind]}")


def locate(source: "str | DetectorSpec") -> DetectorSpec:
    """The detector at a local path or URL, downloaded if necessary. A spec is returned unchanged. Raises UserError."""
    if isinstance(source, DetectorSpec):
        return source
    path = _downloaded(source) if dnnlib.util.is_url(source) else os.path.abspath(source)
    if not os.path.isfile(path):
        names = ", ".join(_names()) or "none"
        raise UserError(
            f"Detector '{source}' is neither a file nor one of the names in {NAMED_FOLDER} ({names}): check --detector."
        )
    return DetectorSpec(source, detector_name(source), file_sha256(path, os.stat(path).st_mtime_ns), path)


def detector_name(detector: str) -> str:
    """The name of `detector` (a name, path or URL) in results: 'data/my digits.pt' -> 'my_digits'."""
    stem = os.path.basename(detector.split("?")[0].rstrip("/"))
    stem = stem[: -len(".pt")] if stem.endswith(".pt") else stem
    return re.sub(r"[^0-9A-Za-z._-]", "_", stem)


def ensure_available(metrics: Iterable[str], detector: str | None) -> None:
    """Check, before any long work, that each of `metrics` (names) has a usable detector.

    Raises UserError if a file is neither cached nor reachable, or if `detector` lacks an output that a metric needs.
    """
    for metric in metrics:
        needs = catalogue.find(metric).detector
        if needs is None:
            continue
        spec = resolve(detector, needs.kind)
        if detector is None:
            continue
        missing = sorted(set(needs.arguments) - accepted_arguments(load(spec, torch.device("cpu"))))
        if missing:
            raise UserError(
                f"Detector '{spec.name}' cannot be used for {metric}, because its network takes no "
                f"{' or '.join(missing)}: remove {metric} from --metrics, or choose another --detector."
            )


def load(source: str | DetectorSpec, device: torch.device) -> torch.jit.ScriptModule:
    """The network itself, in eval mode on `device`. Raises UserError if the file is not TorchScript."""
    spec = locate(source)
    return _load(spec.path, spec.sha256, torch.device(device))[0]


def load_record(source: str | DetectorSpec) -> detector_record.Record | None:
    """What the detector was made for; None if its file does not say. Raises UserError for a damaged file."""
    spec = locate(source)
    return _load(spec.path, spec.sha256, torch.device("cpu"))[1]


def accepted_arguments(network: torch.jit.ScriptModule) -> set[str]:
    """Names of the arguments that the network's forward takes."""
    return {argument.name for argument in network.forward.schema.arguments}


@functools.lru_cache(maxsize=4)
def _load(path: str, sha256: str, device: torch.device) -> tuple[torch.jit.ScriptModule, detector_record.Record | None]:
    files = {detector_record.FACTS: "", detector_record.STATISTICS: ""}
    try:
        with warnings.catch_warnings():
            # Published detectors are TorchScript files; newer versions of PyTorch warn that TorchScript is deprecated.
            warnings.filterwarnings("ignore", message=r"`torch\.jit\.load` is", category=DeprecationWarning)
            network = torch.jit.load(path, map_location=device, _extra_files=files)
        network.forward.schema  # noqa: B018
    except (RuntimeError, AttributeError, ValueError) as error:
        raise UserError(f"Detector file {path} is not a TorchScript network: check --detector.") from error
    try:
        record = detector_record.from_files(files) if any(files.values()) else None
    except Exception as error:
        # Damaged bytes can raise any exception; the user gets one message for all of them.
        raise UserError(
            f"Detector file {path} has a damaged record of the images that it was made for: make it again with "
            f"scripts/train_detector.py, or choose another --detector."
        ) from error
    return network.eval(), record


@functools.lru_cache(maxsize=16)
def file_sha256(path: str, mtime_ns: int) -> str:
    """Hexadecimal SHA-256 of the file, cached by path and `mtime_ns`, its modification time."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _names() -> list[str]:
    if not os.path.isdir(NAMED_FOLDER):
        return []
    return sorted(name[: -len(".pt")] for name in os.listdir(NAMED_FOLDER) if name.endswith(".pt"))


def _named_file(detector: str) -> str | None:
    return os.path.join(NAMED_FOLDER, f"{detector}.pt") if detector in _names() else None


def _downloaded(url: str) -> str:
    """Path of the local copy of `url`: a file that the user placed in the cache folder, or a download."""
    folder = dnnlib.util.make_cache_dir_path("downloads")
    placed = os.path.join(folder, url.rsplit("/", 1)[-1])
    if os.path.isfile(placed):
        return placed
    try:
        return dnnlib.util.open_url(url, return_filename=True)
    except dnnlib.util.CacheError:
        raise  # the cache folder is the problem, such as a full disk
    except (UserError, OSError) as error:
        raise UserError(
            f"Detector {os.path.basename(placed)} is not in the cache and cannot be downloaded from {url}: place the "
            f"file at {placed}, or name another TorchScript file with --detector."
        ) from error
