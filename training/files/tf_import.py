# SPDX-License-Identifier: Apache-2.0
"""Translate networks of the TensorFlow codebases (StyleGAN2, StyleGAN2-ADA) to our stored form.

Their pickles hold constructor arguments and named variables. The tables below translate both to the contents of our own
pickles, and `training.files.snapshot.rebuild` constructs and checks the network.
"""

import numbers
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dnnlib.text import printable
from dnnlib.util import UserError
from torch_utils.safe_pickle import StoredObject, StoredTFNetwork

_OLDEST_VERSION = 4
_MOST_VARIABLES = 2000  # the largest networks have a few hundred
_LONGEST_NAME = 200
_ENTRIES = ("G", "D", "G_ema")

# Our argument, the TensorFlow argument, and its default in TensorFlow.
_BOTH_ARGUMENTS = (
    ("c_dim", "label_size", 0),
    ("img_resolution", "resolution", 1024),
    ("img_channels", "num_channels", 3),
)
_GENERATOR_ARGUMENTS = (
    *_BOTH_ARGUMENTS,
    ("z_dim", "latent_size", 512),
    ("w_dim", "dlatent_size", 512),
    ("mapping_kwargs.num_layers", "mapping_layers", 8),
    ("mapping_kwargs.embed_features", "label_fmaps", None),
    ("mapping_kwargs.layer_features", "mapping_fmaps", None),
    ("mapping_kwargs.activation", "mapping_nonlinearity", "lrelu"),
    ("mapping_kwargs.lr_multiplier", "mapping_lrmul", 0.01),
    ("mapping_kwargs.w_avg_beta", "w_avg_beta", 0.995),
    ("synthesis_kwargs.channel_base", "fmap_base", 16384),
    ("synthesis_kwargs.channel_max", "fmap_max", 512),
    ("synthesis_kwargs.num_fp16_res", "num_fp16_res", 0),
    ("synthesis_kwargs.conv_clamp", "conv_clamp", None),
    ("synthesis_kwargs.architecture", "architecture", "skip"),
    ("synthesis_kwargs.resample_filter", "resample_kernel", [1, 3, 3, 1]),
    ("synthesis_kwargs.use_noise", "use_noise", True),
    ("synthesis_kwargs.activation", "nonlinearity", "lrelu"),
)
_DISCRIMINATOR_ARGUMENTS = (
    *_BOTH_ARGUMENTS,
    ("architecture", "architecture", "resnet"),
    ("channel_base", "fmap_base", 16384),
    ("channel_max", "fmap_max", 512),
    ("num_fp16_res", "num_fp16_res", 0),
    ("conv_clamp", "conv_clamp", None),
    ("cmap_dim", "mapping_fmaps", None),
    ("block_kwargs.activation", "nonlinearity", "lrelu"),
    ("block_kwargs.resample_filter", "resample_kernel", [1, 3, 3, 1]),
    ("block_kwargs.freeze_layers", "freeze_layers", 0),
    ("mapping_kwargs.num_layers", "mapping_layers", 0),
    ("mapping_kwargs.embed_features", "mapping_fmaps", None),
    ("mapping_kwargs.layer_features", "mapping_fmaps", None),
    ("mapping_kwargs.activation", "nonlinearity", "lrelu"),
    ("mapping_kwargs.lr_multiplier", "mapping_lrmul", 0.1),
    ("epilogue_kwargs.mbstd_group_size", "mbstd_group_size", None),
    ("epilogue_kwargs.mbstd_num_channels", "mbstd_num_features", 1),
    ("epilogue_kwargs.activation", "nonlinearity", "lrelu"),
)
_IGNORED_ARGUMENTS = {"truncation_psi", "truncation_cutoff", "style_mixing_prob", "structure"}

# Layers: pattern of the TensorFlow scope, and our module.
_GENERATOR_LAYERS = (
    (r"", r"mapping"),
    (r"mapping/LabelEmbed", r"mapping.embed"),
    (r"mapping/Dense(\d+)", r"mapping.fc\1"),
    (r"synthesis/4x4/Const", r"synthesis.b4"),
    (r"synthesis/4x4/Conv", r"synthesis.b4.conv1"),
    (r"synthesis/(\d+)x\1/Conv0_up", r"synthesis.b\1.conv0"),
    (r"synthesis/(\d+)x\1/Conv1", r"synthesis.b\1.conv1"),
    (r"synthesis/(\d+)x\1/ToRGB", r"synthesis.b\1.torgb"),
    (r"synthesis/(\d+)x\1/Skip", r"synthesis.b\1.skip"),
)
_DISCRIMINATOR_LAYERS = (
    (r"LabelEmbed", r"mapping.embed"),
    (r"Mapping(\d+)", r"mapping.fc\1"),
    (r"(\d+)x\1/FromRGB", r"b\1.fromrgb"),
    (r"(\d+)x\1/Conv0", r"b\1.conv0"),
    (r"(\d+)x\1/Conv1_down", r"b\1.conv1"),
    (r"(\d+)x\1/Skip", r"b\1.skip"),
    (r"4x4/Conv", r"b4.conv"),
    (r"4x4/Dense0", r"b4.fc"),
    (r"Output", r"b4.out"),
)


def _as_it_is(value: torch.Tensor) -> torch.Tensor:
    return value


def _outputs_first(value: torch.Tensor) -> torch.Tensor:
    """Dense [in, out] to [out, in]; convolution [H, W, in, out] to [out, in, H, W]."""
    return value.movedim((-1, -2), (0, 1)) if value.ndim >= 2 else value


# TensorFlow variable of a layer -> our tensor and the conversion.
_TENSORS: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "weight": ("weight", _outputs_first),
    "bias": ("bias", _as_it_is),
    "mod_weight": ("affine.weight", _outputs_first),
    "mod_bias": ("affine.bias", lambda value: value + 1),  # TensorFlow adds the 1 when it uses the styles
    "noise_strength": ("noise_strength", _as_it_is),
    "noise": ("noise_const", lambda value: value.squeeze(0).squeeze(0)),  # [1, 1, H, W]
    "const": ("const", lambda value: value.squeeze(0)),  # [1, C, 4, 4]
    "dlatent_avg": ("w_avg", _as_it_is),
}
# TensorFlow's upsampling layers are transposed convolutions, which mirror their kernels.
_MIRRORED = re.compile(r"synthesis/\d+x\d+/(Conv0_up|Skip)/weight")
_NOISE_MAP = re.compile(r"synthesis/noise(\d{1,2})")
_LEVEL_OF_DETAIL = re.compile(r"(.*)(ToRGB|FromRGB)_lod(\d{1,2})(/.*)")


def entries(networks: tuple | list, name: str) -> dict[str, Any]:
    """Snapshot entries from the (G, D, Gs) of a TensorFlow pickle, which messages call `name`.

    Raises UserError for another number of networks.
    """
    if len(networks) != len(_ENTRIES):
        raise UserError(f"{name} holds {len(networks)} TensorFlow networks, not the three of a GAN: G, D and Gs")
    return dict(zip(_ENTRIES, networks))


def to_stored_object(network: StoredTFNetwork, class_name: str, name: str) -> StoredObject:
    """A TensorFlow network in the form of our own pickles, for `training.files.snapshot.rebuild`.

    `class_name` is 'Generator' or 'Discriminator'; messages call the network `name`. Variables without a counterpart in
    our networks keep their TensorFlow names. Raises UserError if the network is too old, damaged, or has arguments
    without a counterpart.
    """
    version = network.state.get("version")
    if not isinstance(version, int) or version < _OLDEST_VERSION:
        raise UserError(
            f"{name} is a TensorFlow network of format version {version if isinstance(version, int) else None}; only "
            f"version {_OLDEST_VERSION} and later (StyleGAN2, StyleGAN2-ADA) can be read"
        )
    is_generator = class_name == "Generator"
    kwargs = _arguments(network, _GENERATOR_ARGUMENTS if is_generator else _DISCRIMINATOR_ARGUMENTS, name)
    layers = _GENERATOR_LAYERS if is_generator else _DISCRIMINATOR_LAYERS
    variables = _variables(network, name)
    if any(_LEVEL_OF_DETAIL.fullmatch(key) for key, _ in variables):
        # Progressively grown networks name image layers by level of detail and have no other architecture.
        (kwargs["synthesis_kwargs"] if is_generator else kwargs)["architecture"] = "orig"
    tensors: dict[str, torch.Tensor] = {}
    for key, value in variables:
        if _is_leftover(key, value, kwargs):
            continue
        our_name, tensor = _translated(_named_by_resolution(key, kwargs["img_resolution"]), value, layers)
        if our_name in tensors:
            raise UserError(f"{name} holds more than one TensorFlow variable for {printable(our_name)}")
        tensors[our_name] = tensor
    return StoredObject.of(class_name, kwargs, tensors)


def _arguments(network: StoredTFNetwork, table: tuple, name: str) -> dict[str, Any]:
    """Our constructor arguments. Raises UserError for TensorFlow arguments that are not in the table."""
    given = network.state.get("static_kwargs")
    if not isinstance(given, dict):
        raise UserError(f"{name} is damaged: its TensorFlow arguments (static_kwargs) are not a dict")
    unknown = given.keys() - {theirs for _, theirs, _ in table} - _IGNORED_ARGUMENTS
    if unknown:
        listed = printable(", ".join(sorted(printable(key, 100) for key in unknown)), 1000)
        raise UserError(f"{name} has TensorFlow arguments that have no counterpart in this project: {listed}")
    kwargs: dict[str, Any] = {}
    for ours, theirs, default in table:
        *group, key = ours.split(".")
        value = given.get(theirs, default)
        if theirs == "fmap_base":
            if not isinstance(value, numbers.Real):
                raise UserError(f"{name} has a TensorFlow argument fmap_base that is not a number")
            value *= 2  # TensorFlow counts feature maps from half the resolution
        elif theirs == "w_avg_beta" and value is None:
            value = 1  # None: the average does not move
        (kwargs.setdefault(group[0], {}) if group else kwargs)[key] = value
    return kwargs


def _variables(network: StoredTFNetwork, name: str) -> list[tuple[str, torch.Tensor]]:
    """(TensorFlow name, value) of a network and its components. Raises UserError if a value is not an array."""
    found = []
    try:
        parts = {"": network, **{f"{key}/": part for key, part in network.state.get("components", {}).items()}}
        for prefix, part in parts.items():
            for key, value in part.state["variables"]:
                # Scalars may be arrays without dimensions or numpy scalars.
                if not isinstance(value, (np.ndarray, np.generic)):
                    raise TypeError(f"one holds a {type(value).__name__}")
                if len(prefix) + len(key) > _LONGEST_NAME or len(found) == _MOST_VARIABLES:
                    raise ValueError("too many variables, or too long a name")
                if value.dtype.kind not in "fc":
                    value = value.astype(np.float32)  # PyTorch cannot add unsigned integers
                found.append((prefix + key, torch.from_numpy(np.asarray(value))))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{name} is damaged: its TensorFlow variables are not pairs of name and array ({printable(str(error))})"
        ) from error
    return found


def _is_leftover(key: str, value: torch.Tensor, kwargs: dict[str, Any]) -> bool:
    """Whether a variable was used only in training and has no effect on the trained network."""
    if key in ("lod", "synthesis/lod"):  # remaining growth
        return value.numel() == 1 and value.item() == 0
    if _NOISE_MAP.fullmatch(key):
        return kwargs.get("synthesis_kwargs", {}).get("use_noise") is False
    level = _LEVEL_OF_DETAIL.fullmatch(key)
    return level is not None and int(level[3]) > 0  # an image layer of a smaller resolution, used during growth


def _named_by_resolution(key: str, img_resolution: Any) -> str:
    """The name of a variable with the resolution of its layer in place of a TensorFlow layer index."""
    if match := _NOISE_MAP.fullmatch(key):
        index = int(match[1])
        resolution = 2 ** ((index + 5) // 2)
        layer = "Conv" if index == 0 else "Conv1" if index % 2 == 0 else "Conv0_up"
        return f"synthesis/{resolution}x{resolution}/{layer}/noise"
    match = _LEVEL_OF_DETAIL.fullmatch(key)
    if match and isinstance(img_resolution, int):  # level 0; the others are leftovers
        return f"{match[1]}{img_resolution}x{img_resolution}/{match[2]}{match[4]}"
    return key


def _translated(key: str, value: torch.Tensor, layers: tuple) -> tuple[str, torch.Tensor]:
    """Our name and tensor for a TensorFlow variable; unchanged if it has no counterpart."""
    scope, _, variable = key.rpartition("/")
    for pattern, module in layers:
        match = re.fullmatch(pattern, scope)
        if match and variable in _TENSORS:
            our_name, convert = _TENSORS[variable]
            value = convert(value)
            if _MIRRORED.fullmatch(key) and value.ndim == 4:
                value = value.flip(-1, -2)
            return f"{match.expand(module)}.{our_name}", value
    return key, value
