# SPDX-License-Identifier: Apache-2.0
"""How fast networks generate and how much memory that takes, in each of the ways to run them (`RUNTIMES`)."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import importlib.util
import io
import multiprocessing
import os
from collections.abc import Callable, Sequence

import torch

from dnnlib.text import printable
from dnnlib.util import UserError
from metrics.reports.subjects import Subject
from torch_utils import precision, timing
from training import export, families, sampling
from training.files.snapshot import load_snapshot

BATCHES = (1, 16)
ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


Missing = Callable[[Sequence[Subject], torch.device], str | None]


@dataclasses.dataclass(frozen=True)
class Runtime:
    """A way to run a network.

    Attributes:
        name: In the tables.
        build: (subject, batch, device, folder for files) -> a function that generates `batch` images.
        missing: (subjects, device) -> why it cannot be measured here, or None.
    """

    name: str
    build: Callable[[Subject, int, torch.device, str], timing.Work]
    missing: Missing


@dataclasses.dataclass(frozen=True)
class Timing:
    """A network's time, in seconds per call, with which `batch` images are made, and the bytes that this takes.

    `memory` is None where it could not be measured.
    """

    network: str
    runtime: str
    batch: int
    seconds: timing.Spread
    memory: int | None


def _pytorch(
    name: str, dtype: torch.dtype, missing: Callable[[Sequence[Subject], torch.device], str | None]
) -> Runtime:
    def build(subject: Subject, batch: int, device: torch.device, folder: str) -> timing.Work:
        G = subject.placed(device, dtype)
        z, c = (tensor.to(device) for tensor in inputs(G, batch))
        sample = families.of(G).sample

        def work() -> None:
            with torch.no_grad():
                sample(G, z, c, truncation_psi=1, noise_mode="const")

        return work

    return Runtime(f"PyTorch {name}", build, missing)


def inputs(G: torch.nn.Module, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents [batch, Z] and labels [batch, Y] that all runtimes get, on the CPU."""
    z = torch.cat([sampling.seed_to_z(seed, G.z_dim) for seed in range(batch)])
    return z, torch.eye(max(G.c_dim, 1))[torch.arange(batch) % max(G.c_dim, 1)][:, : G.c_dim]


def _no_half(name: str) -> Missing:
    def missing(subjects: Sequence[Subject], device: torch.device) -> str | None:
        try:
            precision.run_dtype(name, device)
        except UserError:
            return "not on this device"
        if name == "bf16" and device.type == "cpu" and not precision.cpu_has_fast_bf16():
            return "this processor has no instructions for it"
        halved = [precision.has_half_blocks(s.G) and precision.is_supported(s.G) for s in subjects]
        return None if all(halved) else "not all of the networks have half-precision resolutions"

    return missing


def onnx_file(subject: Subject, folder: str, dtype: str = "fp32") -> str:
    """Path of the ONNX program in `folder`, made if it is not there."""
    path = os.path.join(folder, f"{subject.snapshot.sha256[:16]}.{dtype}.onnx")
    if not os.path.isfile(path):
        with contextlib.redirect_stderr(io.StringIO()):  # its progress would overwrite the caller's
            export.export(subject.G, path, export.Settings(dtype=dtype))
    return path


def _onnx(subject: Subject, batch: int, device: torch.device, folder: str, dtype: str = "fp32") -> timing.Work:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    path = onnx_file(subject, folder, dtype)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    values = {**dict(zip("zc", inputs(subject.G, batch))), "psi": torch.ones([1])}
    feed = {argument.name: values[argument.name].numpy() for argument in session.get_inputs()}
    return lambda: session.run(None, feed)


def _no_onnx(subjects: Sequence[Subject], device: torch.device) -> str | None:
    absent = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        return f"not installed: pip install {' '.join(absent)}"
    return None if device.type == "cpu" else "measured on a CPU only (--device=cpu)"


# A further precision or runtime is a further row.
RUNTIMES = (
    _pytorch("fp32", torch.float32, lambda subjects, device: None),
    _pytorch("bf16", torch.bfloat16, _no_half("bf16")),
    _pytorch("fp16", torch.float16, _no_half("fp16")),
    Runtime("ONNX Runtime fp32", _onnx, _no_onnx),
    Runtime("ONNX Runtime int8", functools.partial(_onnx, dtype="int8"), _no_onnx),
)


FP32 = tuple(runtime for runtime in RUNTIMES if runtime.name.endswith("fp32"))


def available(
    subjects: Sequence[Subject], device: torch.device, of: Sequence[Runtime] | None = None
) -> tuple[list[Runtime], dict[str, str]]:
    """The runtimes (those `of` a list) that can be measured, and for the others the reason by name."""
    of = RUNTIMES if of is None else of
    reasons = {runtime.name: runtime.missing(subjects, device) for runtime in of}
    runtimes = [runtime for runtime in of if reasons[runtime.name] is None]
    return runtimes, {name: reason for name, reason in reasons.items() if reason is not None}


def measure(
    subjects: Sequence[Subject],
    runtimes: Sequence[Runtime],
    device: torch.device,
    folder: str,
    budget: float,
    on_share: Callable[[float], None],
    trust: bool = False,
) -> tuple[list[Timing], dict[str, str]]:
    """Times and memory of every network in every runtime and batch size; and why some could not be measured, by name.

    All of them take turns (`timing.interleave`), so that noise of the machine affects them alike; `budget` seconds in
    all. `folder` keeps exported programs. `on_share` is called with the completed fraction.
    """
    works: dict[int, dict[tuple[str, str], timing.Work]] = {batch: {} for batch in BATCHES}
    failed: dict[str, str] = {}
    for number, runtime in enumerate(runtimes, 1):
        try:
            built = {(s.name, b): runtime.build(s, b, device, folder) for s in subjects for b in BATCHES}
        except UserError as error:
            failed[runtime.name] = str(error)
        else:
            for (name, batch), work in built.items():
                works[batch][runtime.name, name] = work
        on_share(0.4 * number / len(runtimes))
    samples = timing.interleave(
        {str(batch): {"/".join(key): work for key, work in versions.items()} for batch, versions in works.items()},
        timing.clock_for(device),
        budget,
        on_round=lambda share: on_share(0.4 + 0.3 * share),
    )
    found = []
    keys = [(runtime, subject) for runtime in runtimes for subject in subjects if runtime.name not in failed]
    for number, (runtime, subject) in enumerate(keys, 1):
        peaks: Sequence[int | None] = [None] * len(BATCHES)
        try:
            peaks = peaks_in_subprocess(subject, runtime, device, folder, trust)
        except UserError as error:
            failed[f"The memory of {subject.name} in {runtime.name}"] = str(error)
        for batch, memory in zip(BATCHES, peaks):
            seconds = timing.spread(samples[str(batch)][f"{runtime.name}/{subject.name}"])
            found.append(Timing(subject.name, runtime.name, batch, seconds, memory))
        on_share(0.7 + 0.3 * number / len(keys))
    return found, failed


def peaks_in_subprocess(
    subject: Subject, runtime: Runtime, device: torch.device, folder: str, trust: bool
) -> list[int]:
    """`_peaks` in a new process, whose memory holds nothing from earlier work. Raises UserError if that fails."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        arguments = (subject.path, trust, runtime.name, device, folder, torch.get_num_threads())
        try:
            return pool.submit(_peaks, *arguments).result()
        except Exception as error:
            raise UserError(f"{type(error).__name__}, {printable(str(error))}") from error


def _peaks(path: str, trust: bool, name: str, device: torch.device, folder: str, threads: int) -> list[int]:
    """Bytes that the first call of each batch size, in order, adds at its peak to those of the loaded network."""
    torch.set_num_threads(threads)
    snapshot = load_snapshot(path, trust=trust)
    subject = Subject("", snapshot, snapshot["G_ema"])
    runtime = next(runtime for runtime in RUNTIMES if runtime.name == name)
    works = [runtime.build(subject, batch, device, folder) for batch in BATCHES]
    start, found = timing.allocated(device), []
    for work in works:
        kept = max(timing.allocated(device) - start, 0)
        found.append(kept + timing.peak_growth(work, device))
    return found
