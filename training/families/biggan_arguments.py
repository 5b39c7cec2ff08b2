# SPDX-License-Identifier: Apache-2.0
"""Constructor arguments of BigGAN's networks in files: what values are possible, and what names and shapes tell.

The public PyTorch implementation stores flat dicts of tensors without arguments; from their names and shapes follows
everything but the floor of spectral norm.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

from dnnlib.text import printable
from dnnlib.util import UserError

GENERATOR, DISCRIMINATOR = "BigGANGenerator", "BigGANDiscriminator"
RESOLUTIONS = (32, 64, 128, 256)
_LARGEST_LATENT, _LARGEST_CH = 8192, 4096
_ARGUMENTS = {
    GENERATOR: ("z_dim", "c_dim", "img_resolution", "img_channels", "ch", "shared_dim", "hierarchical", "attn_res"),
    DISCRIMINATOR: ("c_dim", "img_resolution", "img_channels", "ch", "attn_res"),
}
_LAST_ARGUMENTS = ("sn_eps", "init")
_REQUIRED = ("z_dim", "c_dim", "img_resolution", "img_channels")
# Floor of spectral norm in the recipes for ImageNet (a class vector shared by all blocks) and CIFAR-10 (tables).
SN_EPS, SN_EPS_TABLES = 1e-6, 1e-8

_UNKNOWN = "does not have the tensors of a generator or discriminator of BigGAN (32x32 to 256x256)"

Shapes = Mapping[str, tuple[int, ...]]


def _whole(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value <= most


_POSSIBLE: dict[str, Callable[[Any], bool]] = {
    "z_dim": _whole(1, _LARGEST_LATENT),
    "c_dim": _whole(1, 1 << 20),
    "img_resolution": lambda value: type(value) is int and value in RESOLUTIONS,
    "img_channels": _whole(1, 64),
    "ch": _whole(1, _LARGEST_CH),
    "shared_dim": _whole(0, _LARGEST_LATENT),
    "hierarchical": lambda value: isinstance(value, int) and value in (0, 1),
    "attn_res": lambda value: isinstance(value, (list, tuple)) and all(type(item) is int for item in value),
    "sn_eps": lambda value: type(value) in (int, float) and 0 <= value <= 1e9,  # NaN fails
    "init": lambda value: isinstance(value, str) and value in ("ortho", "N02"),
}


def stored_arguments(
    class_name: str, module_src: str, args: tuple, kwargs: dict[str, Any], tensor_names: list[str]
) -> tuple[tuple, dict[str, Any]]:
    """Constructor arguments of our classes by keyword. Raises ValueError for impossible, unknown or missing ones."""
    names = (*_ARGUMENTS[class_name], *_LAST_ARGUMENTS)
    if len(args) > len(names):
        raise ValueError(f"{len(args)} positional arguments")
    kwargs = {**dict(zip(names, args)), **kwargs}
    for name, value in kwargs.items():
        if name not in names:
            raise ValueError(f"{printable(name, 40)} is unknown")
        if not _POSSIBLE[name](value):
            raise ValueError(f"{name} cannot be {printable(repr(value), 40)}")
    for name in names:
        if name in _REQUIRED and name not in kwargs:
            raise ValueError(f"{name} is missing")
    return (), kwargs


def largest_layer(class_name: str, kwargs: dict[str, Any]) -> int:
    """Values of the largest layer for one image, by checked constructor arguments."""
    from training.networks_biggan import D_POOLED, D_WIDTHS, G_WIDTHS

    resolution, attn_res = kwargs["img_resolution"], kwargs.get("attn_res", (64,))
    if class_name == GENERATOR:
        widths = G_WIDTHS[resolution]
        after = [8 << number for number in range(len(widths) - 1)]
        before = after  # a block doubles its input first
    else:
        widths = (D_WIDTHS[resolution][0], *D_WIDTHS[resolution])
        sides = [resolution >> min(number, D_POOLED[resolution]) for number in range(len(widths))]
        before, after = sides[:-1], sides[1:]
    blocks = [max(pair) * side**2 for pair, side in zip(itertools.pairwise(widths), before)]
    weights = [side**2 * (side // 2) ** 2 for side in after if side in attn_res]
    return max(kwargs["img_channels"] * resolution**2, kwargs.get("ch", 96) * max(blocks), *weights)


def arguments_of_state(shapes: Shapes) -> tuple[str, dict[str, Any]]:
    """Class name and constructor arguments of the network whose tensors have these names and `shapes`.

    Raises UserError, without naming the file, for anything that is not a generator or discriminator of BigGAN.
    """
    if any(".conv3." in name or ".conv4." in name for name in shapes):
        raise UserError("is a BigGAN-deep network, whose blocks have four convolutions; only BigGAN is supported")
    try:
        if "output_layer.2.weight" in shapes:
            return GENERATOR, _generator(shapes)
        if "embed.weight" in shapes:
            return DISCRIMINATOR, _discriminator(shapes)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(_UNKNOWN) from error
    raise UserError(_UNKNOWN)


def _blocks(shapes: Shapes) -> int:
    numbers = {name.split(".")[1] for name in shapes if name.startswith("blocks.")}
    return len(numbers)


def _generator(shapes: Shapes) -> dict[str, Any]:
    from training.networks_biggan import G_WIDTHS

    blocks = _blocks(shapes)
    resolution = 4 << blocks
    shared = "shared.weight" in shapes
    gain = shapes["blocks.0.0.bn1.gain.weight"]
    shared_dim = shapes["shared.weight"][1] if shared else 0
    hierarchical = shared and gain[1] > shared_dim
    ch, rest = divmod(shapes[f"blocks.{blocks - 1}.0.conv2.weight"][0], G_WIDTHS[resolution][-1])
    if rest:
        raise ValueError("not a whole ch")
    return {
        "z_dim": shapes["linear.weight"][1] * (blocks + 1 if hierarchical else 1),
        "c_dim": shapes["shared.weight"][0] if shared else gain[0],
        "img_resolution": resolution,
        "img_channels": shapes["output_layer.2.weight"][0],
        "ch": ch,
        "shared_dim": shared_dim,
        "hierarchical": hierarchical,
        "attn_res": [8 << number for number in range(blocks) if f"blocks.{number}.1.gamma" in shapes],
        "sn_eps": SN_EPS if shared else SN_EPS_TABLES,
        "init": "ortho" if shared else "N02",
    }


def _discriminator(shapes: Shapes) -> dict[str, Any]:
    from training.networks_biggan import D_POOLED, D_WIDTHS

    resolution = 8 << (_blocks(shapes) - 2) if _blocks(shapes) > 4 else 32
    if _blocks(shapes) != len(D_WIDTHS[resolution]):
        raise ValueError("another number of blocks")
    sides = [resolution >> min(number + 1, D_POOLED[resolution]) for number in range(_blocks(shapes))]
    ch, rest = divmod(shapes["blocks.0.0.conv1.weight"][0], D_WIDTHS[resolution][0])
    if rest:
        raise ValueError("not a whole ch")
    with_attention = {side for number, side in enumerate(sides) if f"blocks.{number}.1.gamma" in shapes}
    return {
        "c_dim": shapes["embed.weight"][0],
        "img_resolution": resolution,
        "img_channels": shapes["blocks.0.0.conv1.weight"][1],
        "ch": ch,
        "attn_res": sorted(with_attention),
        "sn_eps": SN_EPS_TABLES if resolution == 32 else SN_EPS,
        "init": "N02" if resolution == 32 else "ortho",
    }
