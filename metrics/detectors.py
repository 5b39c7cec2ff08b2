# SPDX-License-Identifier: Apache-2.0
"""Feature networks that the metrics look through: TorchScript files, found by kind, name, path or URL.

Interface: uint8 images [N, 1 or 3, H, W] in; `return_features=True` gives features [N, d], otherwise class
probabilities. VGG16 also takes float images in [0, 255] with `resize_images=False, return_lpips=True` and gives
features whose squared differences sum to the LPIPS distance (Zhang et al. 2018).
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
from metrics import metric_main

BASE_URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics"
FILES = {"inception": "inception-2015-12-05.pt", "vgg16": "vgg16.pt"}
NAMED_FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "data", "detectors")


@dataclasses.dataclass(frozen=True)
class DetectorSpec:
    """A detector whose file lies on this machine.

    Fields: `url` where it comes from (URL or path), `name` as results state it, `sha256` of the file, its local `path`.
    """

    url: str
    name: str
    sha256: str
    path: str


def resolve(detector: str | None, kind: str) -> DetectorSpec:
    """The detector that `--detector` names (a name, path or URL), or the default of `kind` ('inception' or 'vgg16').

    A default is taken from the cache or downloaded. Raises UserError, naming --detector, where there is no such file.
    """
    if detector is not None:
        return locate(_named_file(detector) or detector)
    return locate(f"{BASE_URL}/{FILES[kind]}")


def locate(source: "str | DetectorSpec") -> DetectorSpec:
    """The detector at a local path or URL, downloaded where necessary. A spec comes back as it is. Raises UserError."""
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
    """The name by which results state `detector`, a name, path or URL: 'data/my digits.pt' -> 'my_digits'."""
    stem = os.path.basename(detector.split("?")[0].rstrip("/"))
    stem = stem[: -len(".pt")] if stem.endswith(".pt") else stem
    return re.sub(r"[^0-9A-Za-z._-]", "_", stem)


def ensure_available(metrics: Iterable[str], detector: str | None) -> None:
    """Check, before any long work, that each of `metrics` will find a detector that can serve it.

    Raises UserError where a file is neither cached nor reachable, or a `detector` lacks an output that a metric needs.
    """
    for metric in metrics:
        needs = metric_main.detector_needs(metric)
        if needs is None:
            continue
        spec = resolve(detector, needs.kind)
        if detector is None:
            continue
        missing = sorted(set(needs.arguments) - accepted_arguments(load(spec, torch.device("cpu"))))
        if missing:
            raise UserError(
                f"Detector '{spec.name}' cannot serve {metric}, as its network takes no {' or '.join(missing)}: "
                f"leave {metric} out of --metrics, or choose another --detector."
            )


def load(source: str | DetectorSpec, device: torch.device) -> torch.jit.ScriptModule:
    """The network itself, in eval mode on `device`. Raises UserError where the file is not TorchScript."""
    spec = locate(source)
    return _load(spec.path, spec.sha256, torch.device(device))


def accepted_arguments(network: torch.jit.ScriptModule) -> set[str]:
    """Names of the arguments that the network's forward takes."""
    return {argument.name for argument in network.forward.schema.arguments}


@functools.lru_cache(maxsize=4)
def _load(path: str, sha256: str, device: torch.device) -> torch.jit.ScriptModule:
    try:
        with warnings.catch_warnings():
            # TorchScript is what published detectors come in; newer torch only says that it would rather not.
            warnings.filterwarnings("ignore", message=r"`torch\.jit\.load` is", category=DeprecationWarning)
            network = torch.jit.load(path, map_location=device)
        network.forward.schema  # noqa: B018
    except (RuntimeError, AttributeError, ValueError) as error:
        raise UserError(f"Detector file {path} is not a TorchScript network: check --detector.") from error
    return network.eval()


@functools.lru_cache(maxsize=16)
def file_sha256(path: str, mtime_ns: int) -> str:
    """Hexadecimal SHA-256 of the file; `mtime_ns`, its time of change, lets a known one be answered at once."""
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
    """Path of the local copy of `url`: one placed in the cache folder by hand under its own name, or a download."""
    folder = dnnlib.util.make_cache_dir_path("downloads")
    by_hand = os.path.join(folder, url.rsplit("/", 1)[-1])
    if os.path.isfile(by_hand):
        return by_hand
    try:
        return dnnlib.util.open_url(url, return_filename=True)
    except dnnlib.util.CacheError:
        raise  # a full disk, say, leaves no place for the file
    except (UserError, OSError) as error:
        raise UserError(
            f"Detector {os.path.basename(by_hand)} is not in the cache and cannot be downloaded from {url}: place the "
            f"file at {by_hand}, or name another TorchScript file with --detector."
        ) from error
