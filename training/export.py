# SPDX-License-Identifier: Apache-2.0
"""The work of export.py: networks as a safetensors file or a folder, a generator as an ONNX or PyTorch program.

A program runs without this project. Both kinds come from the graph that torch.export records, which contains no Python
code. PyTorch opens `.pt2` files in the version that wrote them and, as a rule, in later ones; ONNX files last.

Letters in shape comments: N batch, Z Y D widths of z, label and w, L number of w vectors, C channels, R resolution.
"""

import contextlib
import copy
import dataclasses
import io
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from dnnlib.progress import Progress, Stage
from dnnlib.text import printable
from dnnlib.util import UserError, open_atomic
from torch_utils import misc
from training import export_onnx, families, sampling
from training.export_onnx import Inputs
from training.files import hf_folder, safetensors_io
from training.files.snapshot import KEYS, Snapshot, load_snapshot

TOLERANCE = 1e-3  # largest accepted difference of an fp32 program to PyTorch, in images of nominal range [-1, 1]
DTYPES = ("fp32", "fp16", "int8")
_PSI = 0.7  # of some of the compared images
# Neither are latents of the comparison, which thus finds values recorded as constants.
_FIRST_TRACED_SEED = 1_000_000
_CALIBRATION_SEEDS = range(2_000_000, 2_000_064)
# Images in each call of the comparison: sizes that the traced call did not have.
_COMPARED = {"fp32": (1, 3), "fp16": (1, 3, 4, 4, 4), "int8": (1, 3, 4, 4, 4)}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Choices for a program: per-pixel noise 'const' or 'none', one of `DTYPES`, two files for mapping and synthesis,
    a licence for its metadata."""

    noise_mode: str = "const"
    dtype: str = "fp32"
    parts: bool = False
    license: str | None = None


class Difference(NamedTuple):
    """Absolute difference between the outputs of a program and of PyTorch: images, or ws of a mapping network."""

    largest: float
    mean: float

    def __str__(self) -> str:
        return f"difference to PyTorch max {self.largest:.2g}, mean {self.mean:.2g}"


class _Program(torch.nn.Module):
    """A generator, or its 'mapping' or 'synthesis' alone, as a function of the tensors that it takes.

    generator: z [N, Z], c [N, Y] if it is conditional, psi [1] if it has a mean w -> img [N, C, R, R]; mapping: the
    same -> ws [N, L, D]; synthesis: ws -> img.
    """

    def __init__(self, G: torch.nn.Module, part: str, noise_mode: str):
        super().__init__()
        self.G = G
        self.part = part
        self.kwargs = {"noise_mode": noise_mode, **families.of(G).export_kwargs}

    def forward(self, z=None, c=None, psi=None, ws=None):
        if self.part == "synthesis":
            return self.G.synthesis(ws, **self.kwargs)
        c = z.new_zeros([z.shape[0], 0]) if c is None else c
        if self.part == "generator" and psi is None:
            return families.of(self.G).sample(self.G, z, c, truncation_psi=1, **self.kwargs)
        ws = self.G.mapping(z, c)
        if psi is not None:
            ws = self.G.mapping.w_avg + (ws - self.G.mapping.w_avg) * psi
        return ws if self.part == "mapping" else self.G.synthesis(ws, **self.kwargs)


def export_folder(network: str, dest: str, license: str | None = None, trust: bool = False) -> None:
    """Write the G_ema of a pickle as a folder of the Hugging Face Hub's layout, and print what it holds.

    Raises UserError if `dest` cannot be written or has files already.
    """
    if license is not None and not re.fullmatch(r"[\w.+-]{1,100}", license):
        raise UserError(f"--license={printable(license)}: a model card takes an identifier, such as mit or cc-by-4.0.")
    G = load_snapshot(network, trust=trust)["G_ema"]
    try:
        hf_folder.write(dest, G, network, license)
    except OSError as error:
        raise UserError(f"--dest={dest} cannot be written: {error.strerror or error}.") from error
    print(f"{dest}: {', '.join(sorted(os.listdir(dest)))}")
    print(f"To publish it: hf upload USER/NAME {dest}")


def export_network(network: str, dest: str, settings: Settings | None, trust: bool = False) -> None:
    """`export_snapshot` of the file `network`, after a check of `dest`."""
    check_dest(dest)
    export_snapshot(load_snapshot(network, trust=trust), dest, settings)


def check_dest(dest: str) -> None:
    """Raises UserError if the folder of `dest` does not exist."""
    if not os.path.isdir(os.path.dirname(os.path.abspath(dest))):
        raise UserError(f"--dest={dest} is in a folder that does not exist.")


def export_snapshot(snapshot: Snapshot, dest: str, settings: Settings | None) -> list[str]:
    """Write networks as safetensors (`settings` None), or G_ema as a program with `settings`; returns the files.

    Prints one line about each file. Raises UserError if `dest` cannot be written, and as `export` does.
    """
    try:
        if settings is None:
            safetensors_io.write(dest, {key: snapshot.get(key) for key in KEYS} | snapshot.notes)
            print(f"{dest}: {', '.join(key for key in snapshot if key in KEYS[:-1])}")
            return [dest]
        G = snapshot["G_ema"]
        size = f"{G.img_resolution}x{G.img_resolution}"
        print(f"Exporting G_ema, {size}, {settings.dtype}", file=sys.stderr, flush=True)
        files = export(G, dest, settings)
    except OSError as error:
        raise UserError(f"--dest={dest} cannot be written: {error.strerror or error}.") from error
    for path, found in files.items():
        print(f"{path}: {os.path.getsize(path) / 1e6:.3g} MB, {found}")
    return list(files)


def export(G: torch.nn.Module, path: str | os.PathLike, settings: Settings) -> dict[str, Difference]:
    """Write `G` as a program, .onnx or .pt2 by the extension of `path`; its parts have names such as x.mapping.onnx.

    Programs are first run and compared with `G`; then all are written. Returns the differences by path. Raises
    UserError if one exceeds `TOLERANCE` in fp32 or is not finite, a package is missing, or the settings do not fit `G`
    or the format; OSError if a file cannot be written.
    """
    stem, ending = os.path.splitext(os.fspath(path))
    is_onnx = ending.lower() == ".onnx"
    if is_onnx:
        export_onnx.check_packages()
    elif settings.dtype != "fp32":
        raise UserError(f"--dtype={settings.dtype} is for .onnx files: name one with --dest.")
    if settings.parts:
        families.require_w(G, "--parts")
    names = {part: f"{stem}.{part}{ending}" for part in ("mapping", "synthesis")}
    files = {}
    with torch.no_grad():
        for part, name in names.items() if settings.parts else [("generator", os.fspath(path))]:
            # Without convolutions, a mapping network is the same in all types.
            own = dataclasses.replace(settings, dtype="fp32") if part == "mapping" else settings
            files[name] = _checked(G, part, own, name, _onnx if is_onnx else _pt2)
    for name, (data, _) in files.items():
        with open_atomic(name) as file:
            file.write(data)
    return {name: difference for name, (_, difference) in files.items()}


Run = Callable[[Inputs], torch.Tensor]
_Make = Callable[[torch.nn.Module, str, Settings], tuple[bytes, Run]]


def _checked(G: torch.nn.Module, part: str, settings: Settings, name: str, make: _Make) -> tuple[bytes, Difference]:
    """The content of the file `name`, after comparison with `G`."""
    with _quiet():
        data, run = make(G, part, settings)
        found = _compare(G, part, settings, run)
    if not found.largest <= (TOLERANCE if settings.dtype == "fp32" else sys.float_info.max):
        limit = f"up to {TOLERANCE:g} is accepted" if settings.dtype == "fp32" else "use --dtype=fp32"
        raise UserError(
            f"{name} is not written, because its values differ from PyTorch's by {found.largest:.2g}; {limit}."
        )
    return data, found


def _compare(G: torch.nn.Module, part: str, settings: Settings, run: Run) -> Difference:
    differences, first = [], 0
    sizes = _COMPARED[settings.dtype]
    with Progress(sum(sizes), "Comparing", "img") as progress:
        for size in sizes:
            psi = 1 if first == 0 else _PSI
            inputs, wanted = _reference(G, part, settings, range(first, first + size), psi)
            differences.append((run(inputs) - wanted).abs().double().flatten())
            first += size
            progress.update(size)
    found = torch.cat(differences)
    return Difference(found.max().item(), found.mean().item())


def _reference(
    G: torch.nn.Module, part: str, settings: Settings, seeds: range, psi: float
) -> tuple[Inputs, torch.Tensor]:
    """Inputs of a program, and what PyTorch makes of them, with the network's own truncation."""
    inputs = _inputs(G, seeds, psi)
    z, c = inputs["z"], inputs.get("c", torch.zeros([len(seeds), 0]))
    psi = psi if "psi" in inputs else 1
    kwargs = {"noise_mode": settings.noise_mode}
    if part == "generator":
        return inputs, families.of(G).sample(G, z, c, truncation_psi=psi, **kwargs)
    ws = G.mapping(z, c, truncation_psi=psi)
    return (inputs, ws) if part == "mapping" else ({"ws": ws}, G.synthesis(ws, **kwargs))


def has_psi(G: torch.nn.Module) -> bool:
    """Whether programs of `G` take the truncation psi: they need a mean w."""
    w_avg = getattr(getattr(G, "mapping", None), "w_avg", None)
    return w_avg is not None and bool(w_avg.isfinite().all())


def _inputs(G: torch.nn.Module, seeds: range, psi: float = 1) -> Inputs:
    """z [N, Z] of `seeds`; for a conditional network c [N, Y] with the classes in order; with a mean w psi [1]."""
    c = torch.eye(G.c_dim)[torch.tensor(seeds) % G.c_dim] if G.c_dim else None
    return inputs_of(G, torch.cat([sampling.seed_to_z(seed, G.z_dim) for seed in seeds]), c, psi)


def inputs_of(G: torch.nn.Module, z: torch.Tensor, c: torch.Tensor | None, psi: float = 1) -> Inputs:
    """Inputs of programs of `G`: those that they take among z [N, Z], labels c [N, Y] and psi [1]."""
    inputs = {"z": z}
    if G.c_dim:
        inputs["c"] = c
    if has_psi(G):
        inputs["psi"] = torch.tensor([float(psi)])
    return inputs


def _traced(G: torch.nn.Module, part: str, settings: Settings) -> tuple[torch.export.ExportedProgram, Inputs]:
    """The graph of a program, with a free number of images, and the inputs that it was recorded with."""
    inputs = _inputs(G, range(_FIRST_TRACED_SEED, _FIRST_TRACED_SEED + 2))
    if part == "synthesis":
        inputs = {"ws": G.mapping(inputs["z"], inputs.get("c", torch.zeros([2, 0])))}
    program = _Program(sampling.freeze(G), part, settings.noise_mode)
    try:
        return _record(program, inputs), inputs
    except Exception as error:
        if type(G) is families.class_of(type(G).__name__):
            raise
        # Code from a file can raise any exception; the user gets one message for all of them.
        raise UserError(
            f"PyTorch cannot export the code that came with the network ({type(error).__name__}: {str(error)[:200]}): "
            "omit --trust-pickle to rebuild the network as this project's own class."
        ) from error


def _record(module: torch.nn.Module, inputs: Inputs) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    shapes = {name: None if name == "psi" else {0: batch} for name in inputs}
    return torch.export.export(module, (), inputs, dynamic_shapes=shapes, strict=False)


def _with_used_tensors(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """`module` without the tensors that its graph does not use, such as weights of which it has a normalised copy."""
    module.graph.eliminate_dead_code()
    module.recompile()
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name, _tensor in misc.named_params_and_buffers(module):
        if name not in used:
            owner, _, attribute = name.rpartition(".")
            delattr(module.get_submodule(owner), attribute)
    return module


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' own warnings inside the block."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for category in (DeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        logging.disable(disabled)


def metadata(G: torch.nn.Module, part: str, settings: Settings) -> dict[str, str]:
    """What the file of a program says about it, apart from names and shapes of its inputs."""
    described = {
        "family": families.of(G).name,
        "part": part,
        "resolution": G.img_resolution,
        "channels": G.img_channels,
        "classes": G.c_dim,
        "range": "-1 1",
        "dtype": settings.dtype,
        "noise_mode": settings.noise_mode,
        "license": settings.license or "unknown",
    }
    if getattr(G, "class_names", None):
        described["class_names"] = json.dumps(G.class_names)
    if settings.dtype == "int8":
        described["calibration_seeds"] = f"{_CALIBRATION_SEEDS[0]}-{_CALIBRATION_SEEDS[-1]}"
    return {name: str(value) for name, value in described.items()}


def _pt2(G: torch.nn.Module, part: str, settings: Settings) -> tuple[bytes, Run]:
    with Stage("Tracing"):
        graph, inputs = _traced(copy.deepcopy(G), part, settings)
        graph = _record(_with_used_tensors(graph.module()), inputs)
    buffer = io.BytesIO()
    with Stage("Packing"):
        described = json.dumps(metadata(G, part, settings), indent=1)
        torch.export.save(graph, buffer, extra_files={"metadata.json": described})
        buffer.seek(0)
        loaded = torch.export.load(buffer).module()
    return buffer.getvalue(), lambda inputs: loaded(**inputs)


def _onnx(G: torch.nn.Module, part: str, settings: Settings) -> tuple[bytes, Run]:
    prepared, family = copy.deepcopy(G), families.of(G)
    if settings.dtype == "fp16" and family.prepare_fp16 is not None:
        family.prepare_fp16(prepared)
    with Stage("Tracing"):
        traced = _traced(prepared, part, settings)
    with Stage("Converting to ONNX"):
        model = export_onnx.convert(*traced, "ws" if part == "mapping" else "img")
    if settings.dtype == "fp16":
        with Stage("Converting to fp16"):
            model = export_onnx.to_fp16(model)
    elif settings.dtype == "int8":
        model = export_onnx.to_int8(model, _calibration(G, part, settings))
    with Stage("Packing"):
        data = export_onnx.to_bytes(model, metadata(G, part, settings))
        return data, export_onnx.load(data)


def load(path: str | os.PathLike) -> Run:
    """A function that runs the program in the file `path` on the CPU."""
    path = os.fspath(path)
    if path.lower().endswith(".onnx"):
        return export_onnx.load(path)
    with _quiet():
        module = torch.export.load(path).module()
    return lambda inputs: module(**inputs)


def _calibration(G: torch.nn.Module, part: str, settings: Settings) -> Iterator[Inputs]:
    """Inputs of one image each, whose activations set the ranges of int8."""
    with Progress(len(_CALIBRATION_SEEDS), "Calibrating", "img") as progress:
        for seed in _CALIBRATION_SEEDS:
            inputs = _inputs(G, range(seed, seed + 1))
            if part == "synthesis":
                inputs = {"ws": G.mapping(inputs["z"], inputs.get("c", torch.zeros([1, 0])))}
            yield inputs
            progress.update()
