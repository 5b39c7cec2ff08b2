# SPDX-License-Identifier: Apache-2.0
"""The work of export.py: networks as a safetensors file, a generator as an ONNX or TorchScript program.

A program runs without this project. Both kinds come from the graph that torch.export records, which contains no Python
code. The `.pt` file is TorchScript because torch.jit.load and libtorch open it in every PyTorch version; programs
saved by torch.export need the extension `.pt2` and may not open in a later version.

Letters in shape comments: N batch, Z Y widths of z and label, C channels, R resolution.
"""

import contextlib
import copy
import dataclasses
import importlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator

import torch

from dnnlib.util import UserError, open_atomic
from torch_utils import misc
from training import families, sampling
from training.files import safetensors_io
from training.files.snapshot import KEYS, load_snapshot

TOLERANCE = 1e-3  # largest accepted difference to PyTorch, in images of nominal range [-1, 1]
OPSET = 18
_ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_FIRST_TRACED_SEED = 1_000_000  # not the latents of the comparison, which thus finds values recorded as constants


@dataclasses.dataclass(frozen=True)
class Settings:
    """Fixed settings of a program: truncation psi (None is 1), images per call, per-pixel noise 'const' or 'none'."""

    psi: float | None = None
    batch: int = 1
    noise_mode: str = "const"


class _Program(torch.nn.Module):
    """A generator with fixed settings: z [N, Z] and, if it is conditional, c [N, Y] -> img [N, C, R, R]."""

    def __init__(self, G: torch.nn.Module, settings: Settings):
        super().__init__()
        self.G = G
        self.settings = settings

    def forward(self, z, c=None):
        return _images(self.G, z, c, self.settings, **families.of(self.G).export_kwargs)


def _images(G: torch.nn.Module, z: torch.Tensor, c: torch.Tensor | None, settings: Settings, **kwargs) -> torch.Tensor:
    return families.of(G).sample(G, z, c, truncation_psi=settings.psi, noise_mode=settings.noise_mode, **kwargs)


def export_network(network: str, dest: str, settings: Settings | None, trust: bool = False) -> None:
    """Write the networks of a pickle as safetensors (`settings` None), or its G_ema as a program with `settings`.

    Prints one line about the result. Raises UserError if `dest` cannot be written, and as `export` does.
    """
    if not os.path.isdir(os.path.dirname(os.path.abspath(dest))):
        raise UserError(f"--dest={dest} is in a folder that does not exist.")
    snapshot = load_snapshot(network, trust=trust)
    try:
        if settings is None:
            safetensors_io.write(dest, {key: snapshot.get(key) for key in KEYS} | snapshot.notes)
            print(f"{dest}: {', '.join(key for key in snapshot if key in KEYS[:-1])}")
            return
        G = snapshot["G_ema"]
        size = f"{G.img_resolution}x{G.img_resolution}"
        print(f"Exporting G_ema, {size}, {settings.batch} image(s) per call", file=sys.stderr, flush=True)
        print(f"{dest}: max abs difference to PyTorch {export(G, dest, settings):.2g}")
    except OSError as error:
        raise UserError(f"--dest={dest} cannot be written: {error.strerror or error}.") from error


def export(G: torch.nn.Module, path: str | os.PathLike, settings: Settings) -> float:
    """Write `G` as a program, .onnx or .pt by the extension of `path`.

    The program is first run and compared with `G`. Returns the largest absolute difference of their images, both
    float32 [N, C, R, R]. Raises UserError if the difference exceeds `TOLERANCE`, a package is missing, or truncation
    is not possible: without a mean w, or where it bounds z, an input; OSError if `path` cannot be written.
    """
    family = families.of(G)
    if settings.psi is not None and family.truncates_z:
        raise UserError(
            f"--trunc={settings.psi:g}: truncation of a {type(G).__name__} ({family.name}) bounds z, an input of the "
            "program: drop the flag, and redraw values of z beyond the bound."
        )
    settings = dataclasses.replace(settings, psi=family.truncation(G, settings.psi)[1])
    make, load = _make_torchscript, _load_torchscript
    if os.path.splitext(os.fspath(path))[1].lower() == ".onnx":
        _check_packages()
        make, load = _make_onnx, _load_onnx
    with torch.no_grad():
        with _quiet():
            inputs = _inputs(G, settings.batch, _FIRST_TRACED_SEED)
            data = make(_graph(sampling.freeze(copy.deepcopy(G)), settings, inputs), inputs)
            run = load(data)
        inputs = _inputs(G, settings.batch, 0)
        c = inputs[1] if len(inputs) > 1 else torch.zeros([settings.batch, 0])
        wanted = _images(G, inputs[0], c, settings)
        difference = (run(inputs) - wanted).abs().max().item()
    if not difference <= TOLERANCE:
        raise UserError(
            f"{os.fspath(path)} is not written, because its images differ from PyTorch's by {difference:.2g}; "
            f"up to {TOLERANCE:g} is accepted."
        )
    with open_atomic(path) as file:
        file.write(data)
    return difference


def _inputs(G: torch.nn.Module, batch: int, first_seed: int) -> tuple[torch.Tensor, ...]:
    """(z [N, Z],) of consecutive seeds; for a conditional network (z, c [N, Y]) with the classes in order."""
    z = torch.cat([sampling.seed_to_z(first_seed + i, G.z_dim) for i in range(batch)])
    if G.c_dim == 0:
        return (z,)
    return z, torch.eye(G.c_dim)[torch.arange(first_seed, first_seed + batch) % G.c_dim]


def _graph(G: torch.nn.Module, settings: Settings, inputs: tuple[torch.Tensor, ...]) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(_Program(G, settings), inputs, strict=False)
    except Exception as error:
        if type(G) is families.class_of(type(G).__name__):
            raise
        # Code from a file can raise any exception; the user gets one message for all of them.
        raise UserError(
            f"PyTorch cannot export the code that came with the network ({type(error).__name__}: {str(error)[:200]}): "
            "omit --trust-pickle to rebuild the network as this project's own class."
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' own warnings inside the block."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for category in (DeprecationWarning, FutureWarning, torch.jit.TracerWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        logger.setLevel(level)


def _make_torchscript(program: torch.export.ExportedProgram, inputs: tuple[torch.Tensor, ...]) -> bytes:
    # Traced twice: under torch.jit.trace alone, shapes would be tensors, which the networks' code does not support.
    traced = torch.jit.trace(_with_used_tensors(program.module()), inputs, check_trace=False)
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    return buffer.getvalue()


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


def _load_torchscript(data: bytes) -> Callable[[tuple[torch.Tensor, ...]], torch.Tensor]:
    network = torch.jit.load(io.BytesIO(data))
    return lambda inputs: network(*inputs)


def _check_packages() -> None:
    for name in _ONNX_PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(
                f"An .onnx file needs the package {name}: pip install {' '.join(_ONNX_PACKAGES)}"
            ) from error


def _make_onnx(program: torch.export.ExportedProgram, inputs: tuple[torch.Tensor, ...]) -> bytes:
    import onnx
    import onnxscript.optimizer

    exported = torch.onnx.export(
        program,
        inputs,
        input_names=["z", "c"][: len(inputs)],
        output_names=["img"],
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    # Newer versions have done this already; older ones leave unused nodes and functions outside the standard.
    model = onnxscript.optimizer.optimize(exported.model_proto)
    foreign = {node.domain for node in model.graph.node} - {"", "ai.onnx"}
    if foreign:
        raise UserError(
            f"PyTorch {torch.__version__} writes this network with operators outside the ONNX standard "
            f"({', '.join(sorted(foreign))}): export it with a newer version."
        )
    for node in model.graph.node:
        # Stack traces, which contain paths of this machine.
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _load_onnx(data: bytes) -> Callable[[tuple[torch.Tensor, ...]], torch.Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def run(inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        feed = {argument.name: x.numpy() for argument, x in zip(session.get_inputs(), inputs)}
        return torch.from_numpy(session.run(["img"], feed)[0])

    return run
