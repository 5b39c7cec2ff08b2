# SPDX-License-Identifier: Apache-2.0
"""Network pickles as NVIDIA's repositories write them with old PyTorch, made without them (spec 1.4)."""

import pickle
from typing import Any

import numpy as np

from tests.compat.opcodes import Raw, call, filled, named, new, op
from training.families.stylegan2_arguments import ORIGINAL_NAMES

RAISES = "raise RuntimeError('the stored source was executed')\n"
RAISES += "".join(f"def {name}(): pass\n" for name in sorted(ORIGINAL_NAMES))
STYLEGAN3 = RAISES.replace("Generator()", "Generator(fused_modconv_default='inference_only', update_emas=False)")
_STORAGES = {"f4": "FloatStorage", "f2": "HalfStorage", "f8": "DoubleStorage", "i8": "LongStorage"}
_HOOKS = ["_backward_hooks", "_forward_hooks", "_forward_pre_hooks"]
_HOOKS += ["_state_dict_hooks", "_load_state_dict_pre_hooks"]
_CLASSES = {
    "mapping": "MappingNetwork",
    "synthesis": "SynthesisNetwork",
    "torgb": "ToRGBLayer",
    "mbstd": "MinibatchStdLayer",
    "conv": "Conv2dLayer",
    "fromrgb": "Conv2dLayer",
    "skip": "Conv2dLayer",
}


def storage_bytes(array: np.ndarray, location: str = "cpu", module: str = "torch") -> bytes:
    """The elements of a storage as `torch.save` wrote them before it made zip files."""
    array = np.ascontiguousarray(array)
    storage_type = named(f"{module}.{_STORAGES[array.dtype.str[1:]]}")
    sizes = {"short": 2, "int": 4, "long": 4}
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes}
    reference = op(("storage", storage_type, "94023", location, array.size, None)) + b"Q"
    parts = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, system)]
    parts += [b"\x80\x02" + reference + b".", pickle.dumps(["94023"], 2)]
    return b"".join(parts) + array.size.to_bytes(8, "little") + array.tobytes()


def storage(array: np.ndarray, **where: str) -> Raw:
    """A storage, nested as bytes."""
    return call("torch.storage._load_from_bytes", storage_bytes(array, **where))


def tensor(array: np.ndarray, **where: str) -> Raw:
    """A tensor with a separate storage."""
    array = np.asarray(array)
    stride = tuple(step // array.itemsize for step in np.ascontiguousarray(array).strides)[: array.ndim]
    hooks = call("collections.OrderedDict")
    return call("torch._utils._rebuild_tensor_v2", storage(array, **where), 0, array.shape, stride, False, hooks)


def parameter(data: Raw) -> Raw:
    """A parameter that holds a tensor."""
    return call("torch._utils._rebuild_parameter", data, False, call("collections.OrderedDict"))


def scalar(value: float, core: str = "numpy.core") -> Raw:
    """A float64 scalar by the names of numpy 1 (`numpy.core`) or 2 (`numpy._core`)."""
    dtype = Raw(call("numpy.dtype", "f8", False, True) + op((3, "<", None, None, None, -1, -1, 0)) + b"b")
    return call(f"{core}.multiarray.scalar", dtype, np.float64(value).tobytes())


def easy_dict(items: dict, name: str = "dnnlib.util.EasyDict") -> Raw:
    """An EasyDict by one of its two names."""
    return filled(new(name), items)


def stored(class_name: str, state: dict, source: str = RAISES, **changes: Any) -> Raw:
    """A persistent object: the five keys of version 6."""
    meta = {"type": "class", "version": 6, "module_src": source, "class_name": class_name, "state": state}
    return call("torch_utils.persistence._reconstruct_persistent_obj", {**meta, **changes})


def module(
    class_name: str, tensors: dict[str, Raw], source: str = RAISES, init_args: tuple = (), init_kwargs: dict = {}
) -> Raw:
    """A stored module tree with tensors by dotted name, in the form of PyTorch 1.7's `nn.Module.__dict__`."""
    own = {name: value for name, value in tensors.items() if "." not in name}
    children: dict[str, dict[str, Raw]] = {}
    for name, value in tensors.items():
        if "." in name:
            child, _, rest = name.partition(".")
            children.setdefault(child, {})[rest] = value
    buffers = {name: value for name, value in own.items() if name in ("resample_filter", "noise_const", "w_avg", "p")}
    buffers |= {name: value for name, value in own.items() if name.startswith("Hz_")}
    parameters = {name: parameter(value) for name, value in own.items() if name not in buffers}
    modules = {name: module(_class_of(name), inner, source) for name, inner in children.items()}
    ordered = {
        "_parameters": parameters,
        "_buffers": buffers,
        "_modules": modules,
        **{hooks: {} for hooks in _HOOKS},
    }
    state = {key: filled(call("collections.OrderedDict"), items) for key, items in ordered.items()}
    state |= {"training": False, "_non_persistent_buffers_set": call("__builtin__.set", []), "weight_gain": scalar(0.5)}
    return stored(class_name, {**state, "_init_args": init_args, "_init_kwargs": init_kwargs}, source)


def _class_of(name: str) -> str:
    if name.startswith("fc") or name in ("affine", "embed", "out"):
        return "FullyConnectedLayer"
    if name[:1] == "b" and name[1:].isdigit():
        return "SynthesisBlock"
    return _CLASSES.get(name, "SynthesisLayer")
