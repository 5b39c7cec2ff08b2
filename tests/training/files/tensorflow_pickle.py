# SPDX-License-Identifier: Apache-2.0
"""Pickles as the TensorFlow codebases write them: the golden networks, and our networks converted back."""

import pathlib
import pickle
import sys
import types
from unittest import mock

import numpy as np
import pytest
import torch

from dnnlib.util import UserError
from tests.support import golden_json, rnd
from torch_utils import misc, safe_pickle
from training import networks
from training.files import snapshot, tf_import


class Network:
    """Stand-in for the class of networks in TensorFlow pickles; `changes` replace parts of its state."""

    def __init__(self, static_kwargs={}, values={}, components={}, **changes):
        state = {
            "version": 4,
            "name": "G",
            "static_kwargs": static_kwargs,
            "components": components,
            "build_module_src": "raise RuntimeError('the source in the pickle was run')",
            "build_func_name": "build",
            "variables": list(values.items()),
        }
        vars(self).update(state, **changes)


Network.__module__ = "dnnlib.tflib.network"


def dumps(networks, protocol: int = 4) -> bytes:
    """Pickle of `networks`, written while the class is importable from its TensorFlow module."""
    module = types.ModuleType("dnnlib.tflib.network")
    module.Network = Network
    with mock.patch.dict(sys.modules, {module.__name__: module}):
        return pickle.dumps(networks, protocol=protocol)


def write(path: pathlib.Path, networks, protocol: int = 4) -> str:
    """Path of a new file with the pickle of `networks`."""
    path.write_bytes(dumps(networks, protocol))
    return str(path)


def golden_value(key: str, shape: list[int]) -> np.ndarray:
    """A value of the golden recipe (tests/golden/README.md); `key` is net/component/name."""
    value = rnd(key, tuple(shape)).numpy()
    if key.endswith(("bias", "noise_strength")):
        return value * np.float32(0.1)
    return value * np.float32(100 if key.startswith("G/mapping/") else 1)


def golden_G(case: dict) -> Network:
    parts = {
        part: {name: golden_value(f"G/{part}/{name}" if part else f"G/{name}", shape) for name, shape in shapes.items()}
        for part, shapes in case["G_variables"].items()
    }
    own = parts.pop("")
    components = {part: Network(values=values, name=part) for part, values in parts.items()}
    return Network(case["G_static_kwargs"], own, components)


def golden_D(case: dict) -> Network:
    variables = {name: golden_value(f"D/{name}", shape) for name, shape in case["D_variables"].items()}
    return Network(case["D_static_kwargs"], variables)


def golden_networks(name: str) -> tuple[Network, Network, Network]:
    """(G, D, Gs) of the golden case 'uncond' or 'cond'. Gs is G."""
    case = golden_json("legacy_tf")[name]
    return golden_G(case), golden_D(case), golden_G(case)


def stored(network: Network) -> safe_pickle.StoredTFNetwork:
    """A network as the loader returns it."""
    return safe_pickle.loads(dumps(network))


def rebuilt(network: Network, class_name: str) -> torch.nn.Module:
    return snapshot.rebuild(tf_import.to_stored_object(stored(network), class_name, "net"), "net")


def refusal(network: Network, class_name: str = "Generator") -> str:
    """The message of the error that refuses a network."""
    with pytest.raises(UserError, match=r"^net .*") as caught:
        rebuilt(network, class_name)
    return str(caught.value)


def tensors(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(misc.named_params_and_buffers(network))


def in_tensorflow(G: networks.Generator, **static_kwargs) -> Network:
    """A generator of ours as TensorFlow would store it; the inverse of the tested code."""
    own, mapping, synthesis = {}, {}, {}
    layers = {"conv0": "Conv0_up", "conv1": "Conv1", "torgb": "ToRGB", "skip": "Skip"}
    for name, tensor in tensors(G).items():
        value = tensor.detach().numpy()
        part, *path = name.split(".")
        if name == "mapping.w_avg":
            own["dlatent_avg"] = value
        elif part == "mapping":
            layer = "LabelEmbed" if path[0] == "embed" else path[0].replace("fc", "Dense")
            mapping[f"{layer}/{path[1]}"] = value.T
        elif path[-1] == "const":
            synthesis["4x4/Const/const"] = value[np.newaxis]
        elif path[-1] == "noise_const":
            res = int(np.log2(value.shape[0]))
            synthesis[f"noise{2 * res - (5 if path[1] == 'conv0' else 4)}"] = value[np.newaxis, np.newaxis]
        elif path[-1] != "resample_filter":
            res = path[0][1:]
            layer = "Conv" if path[:2] == ["b4", "conv1"] else layers[path[1]]
            if value.ndim == 4:
                value = value[:, :, ::-1, ::-1] if layer in ("Conv0_up", "Skip") else value
                value = value.transpose(2, 3, 1, 0)
            variable = "_".join(path[2:]).replace("affine", "mod")
            value = value - np.float32(1) if variable == "mod_bias" else value.T if variable == "mod_weight" else value
            synthesis[f"{res}x{res}/{layer}/{variable}"] = value
    components = {"mapping": Network(values=mapping), "synthesis": Network(values=synthesis)}
    return Network(static_kwargs, own, components)


def discriminator_in_tensorflow(D: networks.Discriminator, **static_kwargs) -> Network:
    """As `in_tensorflow`, for a discriminator."""
    layers = {"fromrgb": "FromRGB", "conv0": "Conv0", "conv1": "Conv1_down", "skip": "Skip"}
    names = {"b4.conv": "4x4/Conv", "b4.fc": "4x4/Dense0", "b4.out": "Output", "mapping.embed": "LabelEmbed"}
    variables = {}
    for name, tensor in tensors(D).items():
        value = tensor.detach().numpy()
        scope, _, variable = name.rpartition(".")
        block, _, layer = scope.partition(".")
        if variable != "resample_filter":
            if scope not in names:
                res = block[1:]
                is_mapping = block == "mapping"
                names[scope] = layer.replace("fc", "Mapping") if is_mapping else f"{res}x{res}/{layers[layer]}"
            variables[f"{names[scope]}/{variable}"] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
    return Network(static_kwargs, variables)


SIZES = {"resolution": 16, "num_channels": 1, "fmap_base": 64, "fmap_max": 12}
OUR_SIZES = {"channel_base": 128, "channel_max": 12}


def randomised(network):
    for name, tensor in tensors(network).items():
        if not name.endswith("resample_filter"):
            tensor.data.copy_(rnd(name, tuple(tensor.shape)))
    return network.eval().requires_grad_(False)


def tiny_G(architecture="skip", **synthesis_kwargs):
    synthesis_kwargs = {"architecture": architecture, **OUR_SIZES, **synthesis_kwargs}
    return randomised(networks.Generator(6, 3, 5, 16, 1, {"num_layers": 2}, synthesis_kwargs))


def tiny_D(architecture="resnet", c_dim=3):
    kwargs = {"mapping_kwargs": {"num_layers": 2}, "epilogue_kwargs": {"mbstd_group_size": None}}
    return randomised(networks.Discriminator(c_dim, 16, 1, architecture, **OUR_SIZES, **kwargs))


G_SIZES = {**SIZES, "latent_size": 6, "label_size": 3, "dlatent_size": 5, "mapping_layers": 2}
D_SIZES = {**SIZES, "label_size": 3, "mapping_layers": 2, "mapping_lrmul": 0.01}
