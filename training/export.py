# SPDX-License-Identifier: Apache-2.0
"""A generator as one program that runs without this project: an ONNX model, or a TorchScript file.

Both come from the graph that torch.export records, in which no Python of ours is left. TorchScript serves as the `.pt`
because torch.jit.load and libtorch open it by that name in every PyTorch version; programs that torch.export itself
saves want the name `.pt2`, warn about any other, and are not promised to open in a later version.

Letters in shape comments: N batch, Z Y widths of z and label, C channels, R resolution.
"""

import contextlib
import dataclasses
import importlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator

import torch

from dnnlib.util import UserError, open_atomic
from training import networks, sampling

TOLERANCE = 1e-3  # largest difference to PyTorch, in images of nominal range [-1, 1], with which a file is written
OPSET = 18
_ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_FIRST_TRACED_SEED = 1_000_000  # other latents than those compared, so that a value baked in by mistake shows


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is fixed in a program: truncation psi, images per call, and 'const' or 'none' as per-pixel noise."""

    psi: float = 1
    batch: int = 1
    noise_mode: str = "const"


class _Program(torch.nn.Module):
    """A generator with its settings fixed: z [N, Z] and, where it is conditional, c [N, Y] -> img [N, C, R, R]."""

    def __init__(self, G: torch.nn.Module, settings: Settings):
        super().__init__()
        self.G = G
        self.settings = settings

    def forward(self, z, c=None):
        # One shared kernel a layer instead of one a sample: many runtimes take convolutions with constant kernels only.
        return self.G(z, c, truncation_psi=self.settings.psi, noise_mode=self.settings.noise_mode, fused_modconv=False)


def export(G: torch.nn.Module, path: str | os.PathLike, settings: Settings) -> float:
    """Write `G` as the kind of program that the ending of `path` names, .onnx or .pt.

    Before it is written, the program is loaded by itself and run beside `G`; returns the largest absolute difference
    of their images, float32 [N, C, R, R] both. Raises UserError where that exceeds `TOLERANCE`, where a package is
    missing, or where `settings` ask for truncation of a network without w_avg; OSError where `path` cannot be written.
    """
    if settings.psi != 1 and G.mapping.w_avg_beta is None:
        raise UserError(f"--trunc={settings.psi:g} needs a mean w, which this network does not hold: use --trunc=1.")
    make, load = _make_torchscript, _load_torchscript
    if ending(path) == ".onnx":
        _check_packages()
        make, load = _make_onnx, _load_onnx
    with torch.no_grad():
        with _quiet():
            inputs = _inputs(G, settings.batch, _FIRST_TRACED_SEED)
            data = make(_graph(G, settings, inputs), inputs)
            run = load(data)
        inputs = _inputs(G, settings.batch, 0)
        c = inputs[1] if len(inputs) > 1 else torch.zeros([settings.batch, 0])
        wanted = G(inputs[0], c, truncation_psi=settings.psi, noise_mode=settings.noise_mode)
        difference = (run(inputs) - wanted).abs().max().item()
    if not difference <= TOLERANCE:
        raise UserError(
            f"{os.fspath(path)} is not written, as its images would differ from PyTorch's by {difference:.2g}; "
            f"up to {TOLERANCE:g} is accepted."
        )
    with open_atomic(path) as file:
        file.write(data)
    return difference


def ending(path: str | os.PathLike) -> str:
    """'.onnx' of 'runs/x.ONNX'."""
    return os.path.splitext(os.fspath(path))[1].lower()


def _inputs(G: torch.nn.Module, batch: int, first_seed: int) -> tuple[torch.Tensor, ...]:
    """(z [N, Z],) of consecutive seeds, or (z, c [N, Y]) with the classes in turn for a conditional network."""
    z = torch.cat([sampling.seed_to_z(first_seed + i, G.z_dim) for i in range(batch)])
    if G.c_dim == 0:
        return (z,)
    return z, torch.eye(G.c_dim)[torch.arange(first_seed, first_seed + batch) % G.c_dim]


def _graph(G: torch.nn.Module, settings: Settings, inputs: tuple[torch.Tensor, ...]) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(_Program(G, settings), inputs, strict=False)
    except Exception as error:
        if isinstance(G, networks.Generator):
            raise
        # Code out of a file can fail in any way; to the user that is one thing.
        raise UserError(
            f"PyTorch cannot export the code that came with the network ({type(error).__name__}: {str(error)[:200]}): "
            "leave out --trust-pickle to have it rebuilt as this project's own."
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Inside it, torch's exporters keep to themselves what they have to say about each other and their own insides."""
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
    # Traced twice: under torch.jit.trace alone, shapes are tensors, which the networks' own code does not expect.
    traced = torch.jit.trace(program.module(), inputs, check_trace=False)
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    return buffer.getvalue()


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
    # Newer versions have done this already; older ones leave much unused, and functions that are not in the standard.
    model = onnxscript.optimizer.optimize(exported.model_proto)
    foreign = {node.domain for node in model.graph.node} - {"", "ai.onnx"}
    if foreign:
        raise UserError(
            f"PyTorch {torch.__version__} writes this network with operators outside the ONNX standard "
            f"({', '.join(sorted(foreign))}): export it with a newer version."
        )
    for node in model.graph.node:
        # Traces of the calls that led to the node, with the folders of this machine.
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
