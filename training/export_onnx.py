# SPDX-License-Identifier: Apache-2.0
"""ONNX files of traced programs: standard operators only, in fp32, fp16 or int8, run by ONNX Runtime.

The packages onnx, onnxruntime and onnxscript are optional dependencies, used only here.
"""

import contextlib
import graphlib
import importlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from dnnlib.progress import Stage
from dnnlib.util import UserError

if TYPE_CHECKING:
    import onnx

OPSET = 18
_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_ANY_SIZE = 1 << 40  # bytes of a constant that is computed once, here
_STANDARD = ("", "ai.onnx")
_IMAGE_AXES = 4  # of features and images [N, C, H, W]

Inputs = dict[str, torch.Tensor]


def check_packages() -> None:
    """Raises UserError if a package is missing."""
    for name in _PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"An .onnx file needs the package {name}: pip install {' '.join(_PACKAGES)}") from error


def convert(program: torch.export.ExportedProgram, inputs: Inputs, output: str) -> "onnx.ModelProto":
    """`program`, called with `inputs` whose first axis may have any size, as an fp32 model with one output.

    Raises UserError if it needs operators outside the standard.
    """
    import onnx
    import onnxscript.optimizer

    exported = torch.onnx.export(
        program,
        (),
        kwargs=inputs,
        input_names=list(inputs),
        output_names=[output],
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    # Weights become constants in the form that an operator reads, as quantisation needs them.
    sizes = {"input_size_limit": _ANY_SIZE, "output_size_limit": _ANY_SIZE}
    model = onnxscript.optimizer.optimize(exported.model_proto, **sizes)
    foreign = {node.domain for node in model.graph.node} - {*_STANDARD}
    if foreign:
        raise UserError(
            f"PyTorch {torch.__version__} writes this network with operators outside the ONNX standard "
            f"({', '.join(sorted(foreign))}): export it with a newer version."
        )
    for node in model.graph.node:
        # Stack traces, which contain paths of this machine.
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    _name_batch(model)
    onnx.checker.check_model(model)
    return model


def _name_batch(model: "onnx.ModelProto") -> None:
    """Call the size of the first axis of all inputs 'batch', in place of PyTorch's symbol."""
    shapes = (value.type.tensor_type.shape for value in model.graph.input)
    symbols = {shape.dim[0].dim_param for shape in shapes} - {""}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            for symbol in symbols if dim.dim_param else ():
                dim.dim_param = re.sub(rf"\b{re.escape(symbol)}\b", "batch", dim.dim_param)


def to_fp16(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """`model` with features and images in fp16; inputs, outputs, latents and styles stay in fp32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    values = (*model.graph.value_info, *model.graph.output)
    axes = {value.name: len(value.type.tensor_type.shape.dim) for value in values}
    kept = [node.name for node in model.graph.node if axes.get(node.output[0]) != _IMAGE_AXES]
    half = convert_float_to_float16(model, keep_io_types=True, op_block_list=[], node_block_list=kept)
    del half.graph.value_info[:]  # the converter notes fp16 for values that stay in fp32
    return _sorted(half)


def _sorted(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """`model` with each node after those that it reads, as the standard demands."""
    nodes = {node.output[0]: node for node in model.graph.node}
    made_by = {name: first for first, node in nodes.items() for name in node.output}
    read = {first: {made_by[name] for name in node.input if name in made_by} for first, node in nodes.items()}
    ordered = [nodes[first] for first in graphlib.TopologicalSorter(read).static_order()]
    del model.graph.node[:]
    model.graph.node.extend(ordered)
    return model


def to_int8(model: "onnx.ModelProto", calls: Iterable[Inputs]) -> "onnx.ModelProto":
    """`model` with convolutions in int8 (QDQ), whose ranges are those of its values in `calls`; weights per channel.

    Left in fp32: filters and layers that write images, and transposed convolutions, for which ONNX Runtime has no
    int8 operator on a CPU: there they would be slower and less exact.
    """
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.calls: Iterator[Inputs] = iter(calls)

        def get_next(self):
            inputs = next(self.calls, None)
            if inputs is None:
                stages.enter_context(Stage("Quantising"))
                return None
            return {name: x.numpy() for name, x in inputs.items()}

    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    channels = max((dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim[1:2]), default=0)
    kept = [node.name for node in convolutions if min(shapes.get(node.input[1], [0])[:2]) <= channels]
    if len(kept) == len(convolutions):
        return model
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stages:
        source, dest = (os.path.join(scratch, name) for name in ("fp32.onnx", "int8.onnx"))
        onnx.save(model, source)
        quantization.quantize_static(
            source,
            dest,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=kept,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return onnx.load(dest)


def to_bytes(model: "onnx.ModelProto", metadata: dict[str, str]) -> bytes:
    """The content of an .onnx file, with `metadata` in its metadata_props."""
    import onnx

    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def load(data: bytes | str) -> Callable[[Inputs], torch.Tensor]:
    """A function that runs the .onnx file with the content, or at the path, `data`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def run(inputs: Inputs) -> torch.Tensor:
        (output,) = session.run(None, {name: np.ascontiguousarray(x.numpy()) for name, x in inputs.items()})
        return torch.from_numpy(output)

    return run
