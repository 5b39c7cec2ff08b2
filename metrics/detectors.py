# SPDX-License-Identifier: Apache-2.0
"""Feature networks of the metrics: TorchScript files, found by kind, name, path or URL.

Interface: uint8 images [N, 1 or 3, H, W] in; `return_features=True` gives features [N, d], otherwise class
probabilities. A file may have a record of the images that it was made for (`metrics.detector_record`). VGG16 also
takes float images in [0, 255] with `resize_images=False, return_lpips=True` and returns features whose squared
differences sum to the LPIPS distance (Zhang et al. 2018).

A TorchScript file is a program, which can write files as soon as it is loaded. So only known files are loaded, and
those that the user trusts (`trust`).
"""

import dataclasses
import functools
import hashlib
import io
import os
import re
import sys
import warnings
import zipfile
from collections.abc import Iterable
from typing import Any

import torch

import dnnlib.util
from dnnlib.text import printable
from dnnlib.util import UserError
from metrics import catalogue, detector_record
from torch_utils import distributed

BASE_URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics"
FILES = {"inception": "inception-2015-12-05.pt", "vgg16": "vgg16.pt"}
_WITHOUT = {  # what else to do, by file
    "inception-2015-12-05.pt": "use another one with --detector (scripts/train_detector.py trains one on labelled "
    "images), or train without measuring by --metrics=none",
    "vgg16.pt": "use another one with --detector, or, in projector.py, --detector=pixels, which needs no file",
}
NAMED_FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "data", "detectors")
# SHA-256 of the files in NAMED_FOLDER that this project has made.
KNOWN = frozenset(
    [
        "8f364b99798448934d1b196dd3d43d526f77339bff091f53d91b48251e397948",  # mnist
        "3ba4c00dfd5bef5f9e47ca6252d2f8167a94070eab31ceb353412db0ae58aef4",  # fashion
        "c62a7e856757b9e247db303b9adaccc9e3b7e262879ab614d194fef906eb1259",  # fashion2
    ]
)
MOST_FEATURES = 1 << 14  # the covariance of so many features takes 2 GiB; Inception has 2,048, VGG16 4,096
_trusted: set[str] = set()  # SHA-256 of files that the user trusts, in this process


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
    try:
        return DetectorSpec(source, detector_name(source), file_sha256(path, os.stat(path).st_mtime_ns), path)
    except OSError as error:
        raise UserError(f"Detector file {path} cannot be read ({error.strerror}): check --detector.") from error


def trust(detector: str | None) -> None:
    """Allow the code of `detector` (the value of --detector) to run in this process, for --trust-detector.

    Prints a warning once, unless this project knows the file. Raises UserError if there is no such file.
    """
    if detector is None:
        return
    spec = locate(_named_file(detector) or detector)
    if not _may_run(spec):
        _trusted.add(spec.sha256)
        if distributed.is_main():
            name = printable(spec.path, 1000)
            print(f"WARNING: --trust-detector: the code inside {name} is being run with your rights.", file=sys.stderr)


def _may_run(spec: DetectorSpec) -> bool:
    """Whether the file is known by its digest, comes from the address of a default, or is trusted."""
    defaults = [f"{BASE_URL}/{name}" for name in FILES.values()]
    return spec.sha256 in KNOWN or spec.sha256 in _trusted or spec.url.split("#")[0] in defaults


def detector_name(detector: str) -> str:
    """The name of `detector` (a name, path or URL) in results: 'data/my digits.pt' -> 'my_digits'."""
    path = re.split("[?#]", detector)[0] if dnnlib.util.is_url(detector) else detector
    stem = os.path.basename(path.rstrip("/"))
    stem = stem[: -len(".pt")] if stem.endswith(".pt") else stem
    return re.sub(r"[^0-9A-Za-z._-]", "_", stem)


def ensure_available(metrics: Iterable[str], detector: str | None) -> None:
    """Check, before any long work, that each of `metrics` (names) has a usable detector.

    Raises UserError if a file is neither cached nor reachable, if `detector` lacks an output that a metric needs, or if
    it is a program that is neither known nor trusted.
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
    """The network itself, in eval mode on `device`. Raises UserError if the file is not TorchScript, or not trusted."""
    spec = locate(source)
    return _load(spec, torch.device(device))[0]


def load_record(source: str | DetectorSpec) -> detector_record.Record | None:
    """What the detector was made for; None if its file does not say. Raises UserError as `load` does."""
    spec = locate(source)
    return _load(spec, torch.device("cpu"))[1]


def accepted_arguments(network: torch.jit.ScriptModule) -> set[str]:
    """Names of the arguments that the network's forward takes."""
    return {argument.name for argument in network.forward.schema.arguments}


def apply(
    network: torch.nn.Module, images: torch.Tensor, most: int | None = MOST_FEATURES, **kwargs: Any
) -> torch.Tensor:
    """Outputs of a detector for `images` [n, C, H, W], flattened to [n, d].

    Raises UserError unless they are d numbers per image, from 1 to `most` (None: any number). NaN is noticed only where
    no gradient is computed, because looking makes the host wait for the GPU.
    """
    try:
        found = network(images, **kwargs)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        # The code of a file can raise any exception; the user gets one message for all of them.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise _unsuitable(images, f"fails: {printable(reason)}") from error
    if not isinstance(found, torch.Tensor):
        raise _unsuitable(images, f"gives a {type(found).__name__}")
    if found.ndim < 2 or len(found) != len(images) or not found.is_floating_point() or found.numel() == 0:
        raise _unsuitable(images, f"gives {found.dtype} of shape {list(found.shape)}")
    if most is not None and found[0].numel() > most:
        raise _unsuitable(images, f"gives {found[0].numel()} features, and {most} are supported")
    if not torch.is_grad_enabled() and not torch.isfinite(found).all():
        raise _unsuitable(images, "gives NaN or infinite features")
    return found.flatten(1)


def _unsuitable(images: torch.Tensor, problem: str) -> UserError:
    height, width = images.shape[2:]
    return UserError(f"The detector {problem} (for {width}x{height} images): choose another with --detector.")


@functools.lru_cache(maxsize=4)
def _load(spec: DetectorSpec, device: torch.device) -> tuple[torch.jit.ScriptModule, detector_record.Record | None]:
    path, data = spec.path, _read_checked(spec)
    files = {detector_record.FACTS: "", detector_record.STATISTICS: ""}
    try:
        with warnings.catch_warnings():
            # Published detectors are TorchScript files; newer versions of PyTorch warn that TorchScript is deprecated.
            warnings.filterwarnings("ignore", message=r"`torch\.jit\.load` is", category=DeprecationWarning)
            network = torch.jit.load(io.BytesIO(data), map_location=device, _extra_files=files)
        network.forward.schema  # noqa: B018
    except (RuntimeError, AttributeError, ValueError) as error:
        raise _not_torchscript(spec) from error
    try:
        record = detector_record.from_files(files) if any(files.values()) else None
    except Exception as error:
        # Damaged bytes can raise any exception; the user gets one message for all of them.
        raise UserError(
            f"Detector file {path} has a damaged record of the images that it was made for: make it again with "
            f"scripts/train_detector.py, or choose another --detector."
        ) from error
    return network.eval(), record


def _read_checked(spec: DetectorSpec) -> bytes:
    """The bytes of the file. Raises UserError if they are no TorchScript program, or one that may not run."""
    with open(spec.path, "rb") as file:
        data = file.read()
    # What runs must be what was checked, even if somebody replaces the file meanwhile.
    if hashlib.sha256(data).hexdigest() != spec.sha256:
        raise UserError(f"Detector file {spec.path} changes while it is being used: check --detector.")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            is_program = any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception as error:
        # Damaged bytes can raise any exception; the user gets one message for all of them.
        raise _not_torchscript(spec) from error
    if not is_program:
        raise _not_torchscript(spec)
    if not _may_run(spec):
        raise UserError(
            f"Detector file {spec.path} is a program that this project does not know (SHA-256 {spec.sha256}), and "
            f"loading it runs it with your rights: use --trust-detector if you trust its author, or another --detector."
        )
    return data


def _not_torchscript(spec: DetectorSpec) -> UserError:
    again = f", or remove {spec.path} to download it again" if dnnlib.util.is_url(spec.url) else ""
    return UserError(f"Detector file {spec.path} is not a TorchScript network: check --detector{again}.")


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
    except (dnnlib.util.CacheError, dnnlib.util.DigestError):
        raise  # the cache folder is the problem, such as a full disk; or the content
    except (UserError, OSError) as error:
        raise UserError(
            f"Detector {os.path.basename(placed)} is not in the cache and cannot be downloaded from {url}: place the "
            f"file at {placed}, or {_WITHOUT.get(os.path.basename(placed), 'name another file with --detector')}."
        ) from error
