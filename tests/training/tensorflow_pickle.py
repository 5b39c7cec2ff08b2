# SPDX-License-Identifier: Apache-2.0
"""Pickles as the TensorFlow codebases write them: the golden ones, and any of our networks turned back into one."""

import pathlib
import pickle
import sys
import types
from unittest import mock

import numpy as np

from tests.support import golden_json, rnd


class Network:
    """Stand-in for the class whose instances lie in TensorFlow pickles. `changes` replaces parts of its state."""

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
    """Pickle of `networks`, written where the class seems to live in its TensorFlow module."""
    module = types.ModuleType("dnnlib.tflib.network")
    module.Network = Network
    with mock.patch.dict(sys.modules, {module.__name__: module}):
        return pickle.dumps(networks, protocol=protocol)


def write(path: pathlib.Path, networks, protocol: int = 4) -> str:
    """Path of a new file with the pickle of `networks`."""
    path.write_bytes(dumps(networks, protocol))
    return str(path)


def golden_value(key: str, shape: list[int]) -> np.ndarray:
    """What the golden numbers were made with (tests/golden/README.md); `key` is net/component/name."""
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
