# SPDX-License-Identifier: Apache-2.0
"""TensorFlow pickles: every variable is translated; damaged and mismatched networks are refused."""

import os
import pathlib
import re

import numpy as np
import pytest
import torch

from dnnlib.util import UserError
from tests.support import rnd
from tests.training.files import tensorflow_pickle
from tests.training.files.tensorflow_pickle import (
    D_SIZES,
    G_SIZES,
    Network,
    discriminator_in_tensorflow,
    in_tensorflow,
    rebuilt,
    refusal,
    tensors,
    tiny_D,
    tiny_G,
)
from training import networks
from training.files import snapshot


def same_tensors(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.allclose(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("architecture", networks.ARCHITECTURES)
def test_generators_of_every_architecture(architecture):
    G = tiny_G(architecture)
    result = rebuilt(in_tensorflow(G, architecture=architecture, **G_SIZES), "Generator")
    assert same_tensors(tensors(G), tensors(result))
    z, c = rnd("z", (2, 6)), torch.eye(3)[:2]
    assert torch.allclose(G(z, c, noise_mode="const"), result(z, c, noise_mode="const"), atol=1e-4)


@pytest.mark.parametrize("architecture", networks.ARCHITECTURES)
@pytest.mark.parametrize("c_dim", [0, 3])
def test_discriminators_of_every_architecture(architecture, c_dim):
    D = tiny_D(architecture, c_dim)
    sizes = {**D_SIZES, "label_size": c_dim}
    result = rebuilt(discriminator_in_tensorflow(D, architecture=architecture, **sizes), "Discriminator")
    assert same_tensors(tensors(D), tensors(result))


def grown(variables, layer: str, resolution: int) -> list:
    """Variables named as in progressively grown networks, with the leftovers of growth."""
    renamed = [(name.replace(f"{resolution}x{resolution}/{layer}/", f"{layer}_lod0/"), v) for name, v in variables]
    leftovers = [(f"{layer}_lod{level}/bias", rnd("bias", (1,)).numpy()) for level in (1, 2)]
    return [("lod", np.float32(0)), *renamed, *leftovers]


def test_grown_networks_are_of_the_original_architecture():
    G, D = tiny_G("orig"), tiny_D("orig")
    network = in_tensorflow(G, **G_SIZES)
    synthesis = network.components["synthesis"]
    synthesis.variables = grown(synthesis.variables, "ToRGB", 16)
    assert "ToRGB_lod0/mod_weight" in dict(synthesis.variables)
    result = rebuilt(network, "Generator")
    assert result.init_kwargs.synthesis_kwargs["architecture"] == "orig"
    assert same_tensors(tensors(G), tensors(result))

    network = discriminator_in_tensorflow(D, **D_SIZES)
    network.variables = grown(network.variables, "FromRGB", 16)
    result = rebuilt(network, "Discriminator")
    assert result.init_kwargs.architecture == "orig" and same_tensors(tensors(D), tensors(result))


def test_a_network_still_growing_is_refused():
    network = discriminator_in_tensorflow(tiny_D("orig"), **D_SIZES)
    network.variables = grown(network.variables, "FromRGB", 16)[1:] + [("lod", np.float32(0.5))]
    assert "lod [] is unknown here" in refusal(network, "Discriminator")


def test_noise_maps_of_a_network_without_noise_are_ignored():
    G = tiny_G(use_noise=False)
    network = in_tensorflow(G, use_noise=False, **G_SIZES)
    network.components["synthesis"].variables.append(("noise1", np.zeros([1, 1, 8, 8], np.float32)))
    assert same_tensors(tensors(G), tensors(rebuilt(network, "Generator")))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64, np.int64, bool, np.float16])
def test_variables_of_other_number_types_are_converted(dtype):
    network = in_tensorflow(tiny_G(), **G_SIZES)
    variables = dict(network.components["synthesis"].variables)
    variables["8x8/Conv1/mod_bias"] = np.ones(12, dtype)
    network.components["synthesis"].variables = list(variables.items())
    assert rebuilt(network, "Generator").synthesis.b8.conv1.affine.bias.tolist() == [2] * 12


def test_every_variable_that_does_not_fit_is_named():
    network = in_tensorflow(tiny_G(), **G_SIZES)
    variables = dict(network.components["synthesis"].variables)
    del variables["8x8/Conv1/mod_bias"], variables["noise3"]
    variables["16x16/Conv1/weight"] = np.zeros([3, 3, 8, 2], np.float32)
    variables["4x4/ToRGB/bias"] = np.zeros([], np.float32)
    variables["4x4/Conv/weight"] = np.zeros([4], np.float32)
    variables["8x8/Conv0_up/weight"] = np.zeros([12], np.float32)
    variables["noise0"] = np.zeros([4, 4, 1], np.float32)
    variables["8x8/Conv2/weight"] = np.zeros([3, 3, 8, 8], np.float32)
    network.components["synthesis"].variables = list(variables.items())
    network.variables = [*network.variables, ("Dense0/kernel", np.zeros([2, 1], np.float32))]
    sentence = refusal(network)
    assert sentence.startswith("net does not fit Generator: ")
    faults = set(sentence.removeprefix("net does not fit Generator: ").split("; "))
    assert faults == {
        "synthesis.b8.conv1.affine.bias [12] is missing there",
        "synthesis.b16.conv0.noise_const [16, 16] is missing there",
        "synthesis.b16.conv1.weight is [2, 8, 3, 3] there and [8, 8, 3, 3] here",
        "synthesis.b4.torgb.bias is [] there and [1] here",
        "synthesis.b4.conv1.weight is [4] there and [12, 12, 3, 3] here",
        "synthesis.b8.conv0.weight is [12] there and [12, 12, 3, 3] here",
        "synthesis.b4.conv1.noise_const is [4, 4, 1] there and [4, 4] here",
        "synthesis/8x8/Conv2/weight [3, 3, 8, 8] is unknown here",
        "Dense0/kernel [2, 1] is unknown here",
    }


def test_two_variables_for_one_tensor_are_refused():
    network = discriminator_in_tensorflow(tiny_D(), **D_SIZES)
    network.variables = network.variables * 2
    assert "more than one TensorFlow variable for b16.fromrgb.weight" in refusal(network, "Discriminator")


# Damaged and malicious networks


def cyclic() -> Network:
    network = Network({"resolution": 8}, components={})
    network.components = {"mapping": network}
    return network


@pytest.mark.parametrize(
    "network",
    [
        Network(static_kwargs=[("resolution", 8)]),
        Network({"fmap_base": None}),
        Network({"fmap_base": "16"}),
        Network({"resolution": 12}),
        Network({"resolution": [8]}),
        Network({"architecture": "unet"}),
        Network({"use_noise": np.zeros(3)}, {"noise0": np.zeros(2)}),
        Network(variables=5),
        Network(variables=[("a", 1.0)]),
        Network(variables=[(1, np.zeros(1))]),
        Network(variables=[(np.zeros(1), np.zeros(1))]),
        Network(variables=[("a", np.zeros(1), 3)]),
        Network({"resolution": 4}, {"4x4/Conv/bias": np.complex64(1), "synthesis/4x4/Conv/bias": np.complex64(1)}),
        Network(components=[1]),
        Network(components={"mapping": 3}),
        Network({"resolution": 4}, {"lod": np.zeros(0)}),
        Network({"resolution": "4"}, {"ToRGB_lod0/weight": np.zeros(3)}),
        cyclic(),
    ],
)
@pytest.mark.parametrize("class_name", ["Generator", "Discriminator"])
def test_damaged_networks_are_refused_in_one_sentence(network, class_name):
    assert "\n" not in refusal(network, class_name)


@pytest.mark.parametrize(
    "static_kwargs",
    [
        {"resolution": 2**18},
        {"resolution": 2**18, "fmap_base": 2**19, "fmap_max": 2**19},
        {"mapping_layers": 10**9},
        {"latent_size": 10**30},
        {"num_channels": 2**20},
        {"resample_kernel": [[[[1]]]]},
    ],
)
def test_invalid_arguments_are_refused(static_kwargs):
    network = in_tensorflow(tiny_G(), **{**G_SIZES, **static_kwargs})
    refusal(network)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_another_number_of_networks_is_refused(tmp_path, count):
    network = tensorflow_pickle.golden_networks("uncond")[0]
    path = tensorflow_pickle.write(tmp_path / "network.pkl", (network,) * count)
    with pytest.raises(UserError, match=rf"network\.pkl holds {count} TensorFlow networks"):
        snapshot.load_snapshot(path)


def test_mutated_pickles_raise_only_user_errors(tmp_path):
    G = in_tensorflow(tiny_G(), **G_SIZES)
    networks = (G, discriminator_in_tensorflow(tiny_D(), **D_SIZES), G)
    path = tensorflow_pickle.write(tmp_path / "network.pkl", networks)
    content = pathlib.Path(path).read_bytes()
    # Outside the data of arrays, where a changed byte only changes a value.
    names = [m.start() for m in re.finditer(rb"[A-Za-z_/0-9]{4,}|numpy|version", content)]
    seed = int.from_bytes(os.urandom(4), "little")
    print("seed", seed)
    rng = np.random.RandomState(seed)
    refused = 0
    for _ in range(100):
        mutant = bytearray(content)
        for start in rng.choice(names, size=rng.randint(1, 4)):
            mutant[min(start + rng.randint(-8, 8), len(mutant) - 1)] = rng.randint(256)
        pathlib.Path(path).write_bytes(mutant)
        try:
            snap = snapshot.load_snapshot(path)
            for key in snap:
                snap[key]
        except UserError:
            refused += 1
    assert refused > 0
