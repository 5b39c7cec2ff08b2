# SPDX-License-Identifier: Apache-2.0
"""Arguments in files: whatever is accepted runs, within limits."""

import copy

import pytest
import torch

from dnnlib.util import UserError
from torch_utils.safe_pickle import StoredObject
from training.files.snapshot import rebuild
from training.networks import Discriminator, Generator

SHAPE = {"c_dim": 2, "img_resolution": 16, "img_channels": 3}
SYNTHESIS = {"channel_base": 64, "channel_max": 4, "num_fp16_res": 1, "conv_clamp": 256}
NETWORKS = {
    Generator: {
        **SHAPE,
        "z_dim": 4,
        "w_dim": 4,
        "mapping_kwargs": {"num_layers": 2},
        "synthesis_kwargs": SYNTHESIS,
    },
    Discriminator: {**SHAPE, **SYNTHESIS, "mapping_kwargs": {"num_layers": 1}},
}
MAPPING = [
    "num_layers",
    "embed_features",
    "layer_features",
    "activation",
    "lr_multiplier",
    "w_avg_beta",
]  # D has no mean w
LAYERS = ["activation", "resample_filter", "fp16_channels_last"]
ARGUMENTS = {
    Generator: {
        "": ["z_dim", "c_dim", "w_dim", "img_resolution", "img_channels", "mapping_kwargs", "synthesis_kwargs"],
        "mapping_kwargs": MAPPING,
        "synthesis_kwargs": [*SYNTHESIS, *LAYERS, "architecture", "use_noise", "kernel_size"],
    },
    Discriminator: {
        "": [*SHAPE, *SYNTHESIS, "architecture", "cmap_dim", "block_kwargs", "epilogue_kwargs", "mapping_kwargs"],
        "block_kwargs": [*LAYERS, "freeze_layers"],
        "mapping_kwargs": MAPPING[:-1],
        "epilogue_kwargs": ["mbstd_group_size", "mbstd_num_channels", "activation"],
    },
}
VALUES = [
    *(0, 1, 2, 3, 4, 5, -1, 64, True, None, 0.0, 0.5, 2.0, -0.5, float("nan"), float("inf"), "relu", "nonsense", ""),
    *([], [1], [1, 2], [1, 3, 3, 1], [float("nan")], ["a"], {}, {"a": 1}, "skip", "resnet", "orig", "linear"),
]


def changed(cls: type, part: str, name: str, value) -> dict:
    kwargs = copy.deepcopy(NETWORKS[cls])
    (kwargs.setdefault(part, {}) if part else kwargs)[name] = value
    return kwargs


def run(network: torch.nn.Module) -> torch.Tensor:
    if isinstance(network, Generator):
        z, c = torch.zeros(4, network.z_dim), torch.zeros(4, network.c_dim)
        return network(z, c, truncation_psi=1 if network.mapping.w_avg_beta is None else 0.5)
    size = [4, network.img_channels, network.img_resolution, network.img_resolution]
    group = network.b4.mbstd.group_size if network.b4.mbstd else 1
    if group is not None and 4 % min(group, 4):  # such groups only need another batch
        size[0] = group
    return network(torch.zeros(size), torch.zeros(size[0], network.c_dim))


@pytest.mark.parametrize(
    ("cls", "part", "name"),
    [(cls, part, name) for cls in ARGUMENTS for part in ARGUMENTS[cls] for name in ARGUMENTS[cls][part]],
)
def test_whatever_is_accepted_runs(cls, part, name):
    seen = {"accepted": 0, "refused": 0}
    for value in VALUES:
        kwargs = changed(cls, part, name, value)
        try:
            tensors = dict(cls(**kwargs).state_dict())
        except Exception:
            tensors = {}  # our constructor fails, and so must the rebuilding
        try:
            network = rebuild(StoredObject.of(cls.__name__, kwargs, tensors), "net")
        except UserError:
            seen["refused"] += 1
            continue
        with torch.no_grad():
            assert len(run(network)) > 0, (name, value)
        seen["accepted"] += 1
    assert all(seen.values()), seen


def test_arguments_by_position_and_by_keyword_are_equal():
    tensors = Discriminator(**NETWORKS[Discriminator]).state_dict()
    args = (*SHAPE.values(), "resnet", *SYNTHESIS.values(), None, {}, {"num_layers": 1})
    by_position = rebuild(StoredObject.of("Discriminator", {}, tensors, args), "D")
    assert by_position.init_args == () and by_position.init_kwargs["num_fp16_res"] == 1
    with pytest.raises(UserError, match="13 positional arguments"):
        rebuild(StoredObject.of("Discriminator", {}, tensors, (*args, {}, 1)), "D")


def large(cls: type, side: int, **widths) -> dict:
    """Arguments of a network for images of `side` pixels, by default without tensors that grow with `side`."""
    kwargs = {"c_dim": 0, "img_resolution": side, "img_channels": 1}
    widths = {"channel_base": 2**20, "channel_max": 1, **widths}
    if cls is Discriminator:
        return {**kwargs, **widths}
    latents = {"z_dim": 1, "w_dim": 1, "mapping_kwargs": {"num_layers": 1}}
    return {**kwargs, **latents, "synthesis_kwargs": {**widths, "use_noise": False}}


@pytest.mark.parametrize("cls", NETWORKS)
def test_small_files_cannot_ask_for_huge_images(cls):
    def built(side):
        kwargs = large(cls, side)
        return rebuild(StoredObject.of(cls.__name__, kwargs, cls(**kwargs).state_dict()), "net")

    assert built(4096).img_resolution == 4096
    for side in (8192, 2**20):
        with pytest.raises(UserError, match=f"img_resolution cannot be {side}"):
            built(side)


@pytest.mark.parametrize("cls", NETWORKS)
def test_layers_are_limited_by_the_size_of_the_file(cls):
    """A network whose weights are few at all resolutions, and the same with many."""

    def refusal(size, side, channel_base, **changes):
        kwargs = {**large(cls, side, channel_base=channel_base, channel_max=512), **changes}
        stored = StoredObject.of(cls.__name__, kwargs, {"x": torch.zeros(size, dtype=torch.uint8)})
        with pytest.raises(UserError) as caught:
            rebuild(stored, "net")  # refused in any case: the tensor is of no network
        return "although the file is small" in str(caught.value)

    assert not refusal(0, 1024, 2 * 32768)  # twice the width of the largest published network
    assert not refusal(0, 4096, 4096, img_channels=3)
    assert refusal(0, 1024, 4 * 32768) and not refusal(1 << 24, 1024, 4 * 32768)
    assert refusal(0, 4096, 4096, img_channels=17) and refusal(0, 4096, 2 * 32768)
