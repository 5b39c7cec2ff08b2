# SPDX-License-Identifier: Apache-2.0
"""Constructor arguments of StyleGAN2's networks in files: other repositories' forms, and what values are possible.

A constructor does not notice every impossible value; some would fail only when the network runs, in the middle of the
work, and some would need any amount of memory, whatever the size of the file.
"""

import math
from collections.abc import Callable
from typing import Any

from dnnlib.text import printable
from dnnlib.util import UserError

CHANNEL_BASE, CHANNEL_MAX = 32768, 512
_FULL_WIDTH = {"channel_base": CHANNEL_BASE, "channel_max": CHANNEL_MAX}
# Resolutions that may run in half precision, and the bound on activations there (arXiv 2006.06676, appendix).
PUBLISHED_PRECISION = {"num_fp16_res": 4, "conv_clamp": 256}

LARGEST_IMAGE = 4096  # pixels per side; four times the largest published network
_LARGEST_LATENT = 8192  # numbers in z and w; projection draws 10,000 of them

_GENERATOR_PARTS = ("mapping_kwargs", "synthesis_kwargs")
_GENERATOR_ARGUMENTS = ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels", *_GENERATOR_PARTS)
_DISCRIMINATOR_PARTS = ("block_kwargs", "mapping_kwargs", "epilogue_kwargs")
_DISCRIMINATOR_ARGUMENTS = (
    *("c_dim", "img_resolution", "img_channels", "architecture", "channel_base", "channel_max", "num_fp16_res"),
    *("conv_clamp", "cmap_dim", *_DISCRIMINATOR_PARTS),
)
# Classes and functions of the file whose text StyleGAN2-ADA's pickles, and StyleGAN3's of these networks, contain
ORIGINAL_NAMES = frozenset(
    {
        *("normalize_2nd_moment", "modulated_conv2d", "FullyConnectedLayer", "Conv2dLayer", "MappingNetwork"),
        *("SynthesisLayer", "ToRGBLayer", "SynthesisBlock", "SynthesisNetwork", "Generator", "DiscriminatorBlock"),
        *("MinibatchStdLayer", "DiscriminatorEpilogue", "Discriminator"),
    }
)

# StyleGAN3's repository stores StyleGAN2 networks under the same class names, with other arguments.
_STYLEGAN3_WORDS = ("fused_modconv_default", "update_emas")
_STYLEGAN3_W_AVG_BETA = 0.998


def stored_arguments(
    class_name: str, module_src: str, args: tuple, kwargs: dict[str, Any], tensor_names: list[str]
) -> tuple[tuple, dict[str, Any]]:
    """Constructor arguments of our classes, by keyword, from those that StyleGAN2-ADA or StyleGAN3 recorded.

    Raises UserError for a network of another kind, ValueError for values with which a network could not run, or for
    images above 4096x4096.
    """
    from_stylegan3 = all(word in module_src for word in _STYLEGAN3_WORDS)
    if class_name == "Generator":
        if any(name.startswith("synthesis.input.") for name in tensor_names):
            raise UserError("is an alias-free StyleGAN3 generator; only D of such a pickle can be used")
        kwargs = _by_keyword(_GENERATOR_ARGUMENTS, args, kwargs)
        flat = {key: kwargs.pop(key) for key in list(kwargs) if key not in _GENERATOR_ARGUMENTS}
        if flat or from_stylegan3:
            # StyleGAN3 passes synthesis arguments directly, among them two switches that have no effect here.
            synthesis = {key: value for key, value in flat.items() if key not in _STYLEGAN3_WORDS}
            kwargs["mapping_kwargs"] = {"w_avg_beta": _STYLEGAN3_W_AVG_BETA, **kwargs.get("mapping_kwargs", {})}
            kwargs["synthesis_kwargs"] = {**PUBLISHED_PRECISION, **synthesis}
        _check_generator(kwargs)
    else:
        kwargs = _by_keyword(_DISCRIMINATOR_ARGUMENTS, args, kwargs)
        if from_stylegan3:
            kwargs = {**PUBLISHED_PRECISION, **kwargs}
        _check_discriminator(kwargs)
    return (), kwargs


def _by_keyword(names: tuple[str, ...], args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    if len(args) > len(names):
        raise ValueError(f"{len(args)} positional arguments")
    return {**dict(zip(names, args)), **kwargs}


_Check = Callable[[Any], bool]


def _whole(least: int, most: float = math.inf) -> _Check:
    return lambda value: type(value) is int and least <= value <= most


def _number(least: float, most: float = 1e9) -> _Check:
    return lambda value: type(value) in (int, float) and least <= value <= most  # NaN fails


def _or_none(check: _Check) -> _Check:
    return lambda value: value is None or check(value)


def _activation(value: Any) -> bool:
    from torch_utils.ops.bias_act import activation_funcs

    return isinstance(value, str) and value in activation_funcs


def _odd(value: Any) -> bool:
    return type(value) is int and value > 0 and value % 2 == 1


def _switch(value: Any) -> bool:
    return isinstance(value, int)


_SHAPE: dict[str, _Check] = {
    "c_dim": _whole(0),
    "img_resolution": _whole(4, LARGEST_IMAGE),
    "img_channels": _whole(1),
}
_WIDTHS: dict[str, _Check] = {
    "channel_base": _number(1),
    "channel_max": _number(1),
    "num_fp16_res": _whole(0),
    "conv_clamp": _or_none(_number(0)),
}
_MAPPING: dict[str, _Check] = {
    "num_layers": _whole(0),
    "embed_features": _or_none(_whole(1)),
    "layer_features": _or_none(_whole(1)),
    "activation": _activation,
    "lr_multiplier": _number(1e-9),
    "w_avg_beta": _or_none(_number(0, 1)),
}
_SYNTHESIS: dict[str, _Check] = {
    **_WIDTHS,
    "activation": _activation,
    "kernel_size": _odd,
    "use_noise": _switch,
    "fp16_channels_last": _switch,
}
_BLOCK: dict[str, _Check] = {"activation": _activation, "fp16_channels_last": _switch, "freeze_layers": _whole(0)}
_EPILOGUE: dict[str, _Check] = {
    "mbstd_group_size": _or_none(_whole(1)),
    "mbstd_num_channels": _whole(0),
    "activation": _activation,
}


def _check(kwargs: dict[str, Any], checks: dict[str, _Check], prefix: str = "") -> None:
    """Raises ValueError, naming the argument, for an impossible value; the constructor refuses unknown names."""
    for name, possible in checks.items():
        if name in kwargs and not possible(kwargs[name]):
            value = kwargs[name]
            shown = repr(value) if isinstance(value, (int, float)) else printable(value, 40)
            raise ValueError(f"{prefix}{name} cannot be {shown}")


def _part(kwargs: dict[str, Any], name: str) -> dict[str, Any]:
    part = kwargs.get(name, {})
    if not isinstance(part, dict):
        raise ValueError(f"{name} is not a dict")
    return part


def _check_generator(kwargs: dict[str, Any]) -> None:
    latents = {"z_dim": _whole(1, _LARGEST_LATENT), "w_dim": _whole(1, _LARGEST_LATENT)}
    mapping, synthesis = (_part(kwargs, name) for name in _GENERATOR_PARTS)
    _check(kwargs, {**latents, **_SHAPE})
    _check(mapping, _MAPPING, "mapping_kwargs.")
    _check(synthesis, _SYNTHESIS, "synthesis_kwargs.")
    _check_mapping(mapping, kwargs.get("z_dim", 0), kwargs.get("c_dim", 0), kwargs.get("w_dim", 0))


def _check_discriminator(kwargs: dict[str, Any]) -> None:
    block, mapping, epilogue = (_part(kwargs, name) for name in _DISCRIMINATOR_PARTS)
    # D needs a block above the 4x4 that makes the logits: only blocks read images.
    _check(kwargs, {**_SHAPE, **_WIDTHS, "img_resolution": _whole(8, LARGEST_IMAGE), "cmap_dim": _or_none(_whole(0))})
    _check(block, _BLOCK, "block_kwargs.")
    _check(mapping, _MAPPING, "mapping_kwargs.")
    _check(epilogue, _EPILOGUE, "epilogue_kwargs.")
    lowest = _channels_at(4, kwargs)
    groups = epilogue.get("mbstd_num_channels", 1)
    if groups and lowest % groups:
        raise ValueError(f"epilogue_kwargs.mbstd_num_channels {groups} does not divide {lowest} channels")
    cmap_dim = kwargs.get("cmap_dim")
    _check_mapping(mapping, 0, kwargs.get("c_dim", 0), lowest if cmap_dim is None else cmap_dim)


def _check_mapping(mapping: dict[str, Any], z_dim: int, c_dim: int, w_dim: int) -> None:
    """A mapping network without layers passes on its inputs, which must then be as wide as its output."""
    embedded = mapping.get("embed_features")
    width = z_dim + (0 if c_dim == 0 else w_dim if embedded is None else embedded)
    if mapping.get("num_layers") == 0 and width not in (0, w_dim):
        raise ValueError(f"a mapping network without layers cannot make {w_dim} numbers of {width}")


def _channels_at(resolution: int, widths: dict[str, Any]) -> int:
    base, most = (widths.get(name, default) for name, default in _FULL_WIDTH.items())
    return min(int(base) // resolution, int(most))


def largest_layer(class_name: str, kwargs: dict[str, Any]) -> int:
    """Values of the largest layer for one image, by checked constructor arguments, at all resolutions up to its own."""
    widths = kwargs.get("synthesis_kwargs", {}) if class_name == "Generator" else kwargs
    side = kwargs["img_resolution"]
    layers = [4**log2 * _channels_at(2**log2, widths) for log2 in range(2, side.bit_length())]
    return max(side**2 * kwargs["img_channels"], *layers)
