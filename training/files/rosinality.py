# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in the layout of the other widespread PyTorch StyleGAN2 ("rosinality layout"), read and written.

One is what torch.save wrote: a dict with some of `g`, `d`, `g_ema` (tensors by name) and `latent_avg` [w_dim]. Networks
are unconditional, in RGB, with a skip generator and a residual discriminator, and have no constructor arguments: those
follow from names and shapes.
"""

import functools
import os
import re
import sys
from collections.abc import Iterable, Iterator, Set
from typing import Any, NamedTuple

import torch

from dnnlib.text import printable
from dnnlib.util import UserError, open_atomic
from torch_utils import distributed, misc
from torch_utils.ops import bias_act
from torch_utils.safe_pickle import StoredObject
from training.families.stylegan2_arguments import CHANNEL_BASE
from training.networks import DEFAULT_FILTER, Discriminator, Generator, normalize_2nd_moment

_KEYS = {"G": "g", "D": "d", "G_ema": "g_ema"}
_LR_MULTIPLIER = 0.01  # of mapping networks; the files do not record it
_GROUP = 4  # images that their minibatch-stddev layer compares
_MOST_LAYERS = 16  # of a mapping network; published ones have 8
_MOST_BLOCKS = 10  # above the one of 4x4
_MEAN_OF = 10_000  # z
_SEED = 0
_KERNEL_TOLERANCE = 2e-3  # for kernels in half precision
_LISTED = 10  # names in one message
_WIDTH = re.compile(r"(?:synthesis\.)?b(\d+)\.(conv0|conv1|fromrgb|skip|conv|fc)\.weight")


class _Name(NamedTuple):
    """A tensor in both layouts; theirs has further axes of size 1, so many `before` and `after` the others."""

    ours: str
    theirs: str
    before: int = 0
    after: int = 0

    def from_ours(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.reshape((1,) * self.before + tuple(tensor.shape) + (1,) * self.after)

    def from_theirs(self, tensor: torch.Tensor) -> torch.Tensor:
        end = tensor.ndim - self.after
        if end < self.before or any(size != 1 for size in (*tensor.shape[: self.before], *tensor.shape[end:])):
            raise UserError(f"has {self.theirs} of the shape {list(tensor.shape)}")
        return tensor.reshape(tensor.shape[self.before : end])


def _affine(ours: str, theirs: str) -> list[_Name]:
    return [_Name(f"{ours}.affine.{part}", f"{theirs}.conv.modulation.{part}") for part in ("weight", "bias")]


def _styled(ours: str, theirs: str, noise: int) -> list[_Name]:
    return [
        _Name(f"{ours}.weight", f"{theirs}.conv.weight", 1),
        *_affine(ours, theirs),
        _Name(f"{ours}.noise_strength", f"{theirs}.noise.weight", 1),
        _Name(f"{ours}.bias", f"{theirs}.activate.bias"),
        _Name(f"{ours}.noise_const", f"noises.noise_{noise}", 2),
    ]


def _to_rgb(ours: str, theirs: str) -> list[_Name]:
    weight, bias = _Name(f"{ours}.weight", f"{theirs}.conv.weight", 1), _Name(f"{ours}.bias", f"{theirs}.bias", 1, 2)
    return [weight, *_affine(ours, theirs), bias]


def _generator_names(blocks: int, layers: int) -> Iterator[_Name]:
    """Tensors of a generator of 4x4 and `blocks` more resolutions, with `layers` in its mapping network."""
    for i in range(layers):
        for part in ("weight", "bias"):
            yield _Name(f"mapping.fc{i}.{part}", f"style.{i + 1}.{part}")
    yield _Name("synthesis.b4.const", "input.input", 1)
    yield from _styled("synthesis.b4.conv1", "conv1", 0)
    yield from _to_rgb("synthesis.b4.torgb", "to_rgb1")
    for k in range(blocks):
        block = f"synthesis.b{8 << k}"
        yield from _styled(f"{block}.conv0", f"convs.{2 * k}", 2 * k + 1)
        yield from _styled(f"{block}.conv1", f"convs.{2 * k + 1}", 2 * k + 2)
        yield from _to_rgb(f"{block}.torgb", f"to_rgbs.{k}")


def _discriminator_names(blocks: int) -> Iterator[_Name]:
    """Tensors of a discriminator of 4x4 and `blocks` higher resolutions."""
    resolution = 4 << blocks
    yield _Name(f"b{resolution}.fromrgb.weight", "convs.0.0.weight")
    yield _Name(f"b{resolution}.fromrgb.bias", "convs.0.1.bias")
    for k in range(1, blocks + 1):
        block = f"b{resolution >> (k - 1)}"
        for ours, theirs, bias in (("conv0", "conv1.0", "conv1.1"), ("conv1", "conv2.1", "conv2.2")):
            yield _Name(f"{block}.{ours}.weight", f"convs.{k}.{theirs}.weight")
            yield _Name(f"{block}.{ours}.bias", f"convs.{k}.{bias}.bias")
        yield _Name(f"{block}.skip.weight", f"convs.{k}.skip.1.weight")
    yield _Name("b4.conv.weight", "final_conv.0.weight")
    yield _Name("b4.conv.bias", "final_conv.1.bias")
    for ours, theirs in (("fc", "final_linear.0"), ("out", "final_linear.1")):
        for part in ("weight", "bias"):
            yield _Name(f"b4.{ours}.{part}", f"{theirs}.{part}")


def _generator_kernels(blocks: int) -> dict[str, torch.Tensor]:
    """Their filters by name. Up-sampling inserts three zeros for each value, so these filters sum to 4."""
    names = [f"{name}.kernel" for k in range(blocks) for name in (f"convs.{2 * k}.conv.blur", f"to_rgbs.{k}.upsample")]
    return {name: _kernel(4) for name in names}


def _discriminator_kernels(blocks: int) -> dict[str, torch.Tensor]:
    return {f"convs.{k}.{part}.0.kernel": _kernel(1) for k in range(1, blocks + 1) for part in ("conv2", "skip")}


def _kernel(total: float) -> torch.Tensor:
    taps = torch.tensor(DEFAULT_FILTER, dtype=torch.float32)
    return taps.outer(taps) / taps.sum() ** 2 * total


def recognises(found: Any) -> bool:
    """Whether `found`, from `torch_files.loads`, is a checkpoint in this layout."""
    return isinstance(found, dict) and any(isinstance(found.get(key), dict) for key in _KEYS.values())


def entries(found: dict[Any, Any], path: str) -> dict[str, StoredObject]:
    """Networks by our key, not rebuilt yet, of a checkpoint that messages call `path`; all else in it is ignored.

    Without G_ema, G stands for it. `latent_avg` is the mean w of both; without it, a generator's is estimated from
    10,000 z of a fixed seed when it is rebuilt, and a line on stderr says so. Raises UserError for networks that our
    classes cannot represent.
    """
    stored = {}
    for key, theirs in _KEYS.items():
        if found.get(theirs) is None:
            continue
        try:
            state = _state(found[theirs])
            if key == "D":
                stored[key] = _discriminator(state)
            else:
                stored[key] = _generator(state, found.get("latent_avg"), key, path)
        except UserError as error:
            raise UserError(f"{key} ('{theirs}') in {path} {error}") from error
    if "G" in stored:
        stored.setdefault("G_ema", stored["G"])
    return stored


def _state(state: Any) -> dict[str, torch.Tensor]:
    if not isinstance(state, dict):
        raise UserError("is not tensors by name")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise UserError(f"does not hold tensors only: {printable(name, 100)} is of type {type(value).__name__}")
    return dict(state)


def _count(state: dict[str, torch.Tensor], name: str, first: int, most: int) -> int:
    """How many of `name`, with consecutive numbers in place of {}, are in `state`."""
    count = 0
    while name.format(first + count) in state:
        count += 1
        if count > most:
            raise UserError(f"has more than {most} parts like {name.format(first)}")
    return count


def _discriminator(state: dict[str, torch.Tensor]) -> StoredObject:
    blocks = _count(state, "convs.{}.conv1.0.weight", 1, _MOST_BLOCKS)
    tensors = _translated(state, _discriminator_names(blocks), _discriminator_kernels(blocks))
    resolution = 4 << blocks
    _require_rgb(tensors[f"b{resolution}.fromrgb.weight"], 1)
    kwargs = {"c_dim": 0, "img_resolution": resolution, "img_channels": 3, **_width_arguments(tensors, halving=True)}
    return StoredObject.of("Discriminator", kwargs, tensors)


def _generator(state: dict[str, torch.Tensor], latent_avg: Any, key: str, path: str) -> StoredObject:
    layers = _count(state, "style.{}.weight", 1, _MOST_LAYERS)
    blocks = _count(state, "to_rgbs.{}.bias", 0, _MOST_BLOCKS)
    names = list(_generator_names(blocks, layers))
    noise = {name.ours for name in names if name.ours.endswith(".noise_const")}
    tensors = _translated(state, names, _generator_kernels(blocks), noise)
    _require_rgb(tensors["synthesis.b4.torgb.bias"], 0)
    width = tensors["synthesis.b4.conv1.affine.weight"].shape[-1:].numel()
    for i in range(layers):
        if tensors[f"mapping.fc{i}.weight"].shape != (width, width) or tensors[f"mapping.fc{i}.bias"].shape != (width,):
            raise UserError(f"has style.{i + 1} of another size than w, which has {width} numbers")
        # The mean w takes work in proportion to the weights; a small file must not describe large ones.
        if not tensors[f"mapping.fc{i}.weight"].is_contiguous():
            raise UserError(f"has style.{i + 1}.weight with repeated or transposed elements")
    if isinstance(latent_avg, torch.Tensor) and latent_avg.numel() == width:
        tensors["mapping.w_avg"] = latent_avg.reshape(width)
    elif latent_avg is not None:
        raise UserError(f"has w of {width} numbers, which latent_avg is not")
    resolution = 4 << blocks
    kwargs = {
        "z_dim": width,
        "c_dim": 0,
        "w_dim": width,
        "img_resolution": resolution,
        "img_channels": 3,
        "mapping_kwargs": {"num_layers": layers},
        "synthesis_kwargs": _width_arguments(tensors, halving=False),
    }
    complete = StoredObject.of("Generator", kwargs, tensors)
    if noise <= tensors.keys() and "mapping.w_avg" in tensors:
        return complete
    return _Incomplete(complete, key, path, noise - tensors.keys())


def _translated(
    state: dict[str, torch.Tensor],
    names: Iterable[_Name],
    kernels: dict[str, torch.Tensor],
    optional: Set[str] = frozenset(),
) -> dict[str, torch.Tensor]:
    """Tensors by our names. Raises UserError for unknown or missing tensors and for other filters."""
    names = list(names)
    unknown = state.keys() - {name.theirs for name in names} - kernels.keys()
    missing = [name.theirs for name in names if name.theirs not in state and name.ours not in optional]
    for fault, found in (("lacks tensors of a StyleGAN2", missing), ("has unknown tensors", sorted(unknown))):
        if found:
            listed = ", ".join(printable(name, 60) for name in found[:_LISTED])
            raise UserError(f"{fault}: {listed}{f' and {len(found) - _LISTED} more' if len(found) > _LISTED else ''}")
    for name, expected in kernels.items():
        # A kernel may be missing: it is always the same.
        if name in state and not _equals(state[name], expected):
            raise UserError(f"has a filter {name} that is not made of {DEFAULT_FILTER}, which alone is supported")
    return {name.ours: name.from_theirs(state[name.theirs]) for name in names if name.theirs in state}


def _equals(kernel: torch.Tensor, expected: torch.Tensor) -> bool:
    if kernel.shape != expected.shape or kernel.is_complex():
        return False
    return bool((kernel.float() - expected).abs().max() <= _KERNEL_TOLERANCE * expected.sum())  # NaN fails


def _require_rgb(tensor: torch.Tensor, axis: int) -> None:
    channels = tensor.shape[axis] if tensor.ndim > axis else 0
    if channels != 3:
        raise UserError(f"makes or reads images of {channels} channels, where only RGB is supported")


def _width_arguments(tensors: dict[str, torch.Tensor], halving: bool) -> dict[str, int]:
    """channel_base and channel_max of a network; convolutions of a discriminator's block halve the resolution."""
    widths: dict[int, set[int]] = {}
    for name, tensor in tensors.items():
        if match := _WIDTH.fullmatch(name):
            resolution = int(match[1]) >> (halving and match[2] in ("conv1", "skip"))
            widths.setdefault(resolution, set()).add(tensor.shape[0] if tensor.ndim else 0)
    single = {resolution: max(found) for resolution, found in widths.items()}
    most = max(single.values())
    lowest = max(resolution * width for resolution, width in single.items())
    if all(len(found) == 1 for found in widths.values()):
        # Several bases can make the same widths: a published one if it does, which also widths of other sizes follow.
        for base in (CHANNEL_BASE, CHANNEL_BASE // 2, lowest):
            if all(min(base // resolution, most) == width for resolution, width in single.items()):
                return {"channel_base": base, "channel_max": most}
    shown = ", ".join(f"{'/'.join(map(str, sorted(found)))} at {r}x{r}" for r, found in sorted(widths.items()))
    raise UserError(
        f"has {shown} channels, which no channel_base and channel_max give; networks that were pruned to free widths, "
        "as in papers on compression, cannot be read"
    )


class _Incomplete(StoredObject):
    """A generator whose mean w or noise maps are not in its file; they are made when it is rebuilt."""

    def __init__(self, stored: StoredObject, key: str, path: str, noise: set[str]):
        super().__init__(stored.class_name, stored.module_src, stored.state, stored.version)
        self._key, self._path, self._noise = key, path, noise

    def tensors(self) -> dict[str, torch.Tensor]:
        """As those of the base class, with what is missing."""
        tensors = super().tensors()
        random = torch.Generator().manual_seed(_SEED)
        if "mapping.w_avg" not in tensors:
            layers = self.init_kwargs["mapping_kwargs"]["num_layers"]
            tensors["mapping.w_avg"] = _mean_w(tensors, layers, self.init_kwargs["z_dim"], random)
            self._announce(f"the file has no latent_avg: estimated from {_MEAN_OF:,} z")
        for name in sorted(self._noise):
            side = int(name.split(".")[1].removeprefix("b"))
            tensors[name] = torch.randn([side, side], generator=random)
        if self._noise:
            self._announce("the file lacks noise maps: drawn")
        return tensors

    def _announce(self, what: str) -> None:
        _announce(f"Notice: {self._key} in {printable(self._path, 1000)}: {what} with seed {_SEED}.")


@functools.cache  # once, however often the file is opened
def _announce(line: str) -> None:
    if distributed.is_main():
        print(line, file=sys.stderr)


@torch.no_grad()
def _mean_w(tensors: dict[str, torch.Tensor], layers: int, width: int, random: torch.Generator) -> torch.Tensor:
    w = normalize_2nd_moment(torch.randn([_MEAN_OF, width], generator=random))
    for i in range(layers):
        weight, bias = (tensors[f"mapping.fc{i}.{part}"].detach().float() for part in ("weight", "bias"))
        gain = _LR_MULTIPLIER / width**0.5
        w = bias_act.bias_act(w @ (weight * gain).t(), bias * _LR_MULTIPLIER, act="lrelu")
    return w.mean(dim=0)


def write(path: str | os.PathLike, networks: dict[str, torch.nn.Module], source: str) -> list[str]:
    """Write networks, by our keys, to a checkpoint in this layout, atomically and as nothing but tensors.

    Returns what the layout does not record of them. `latent_avg` is that of G_ema, else of G. Messages call the file of
    the networks `source`. Raises UserError for networks that the layout cannot represent.
    """
    content: dict[str, Any] = {}
    lost: dict[str, None] = {}
    for key in sorted(networks, key=list(_KEYS).index):
        network, name = networks[key], f"{key} in {source}"
        _require(network, name)
        lost |= dict.fromkeys(_unrecorded(network))
        content[_KEYS[key]] = _their_state(network)
        mean = getattr(getattr(network, "mapping", None), "w_avg", None)
        if mean is not None:
            if "latent_avg" in content and not torch.equal(content["latent_avg"], mean.cpu()):
                lost["the mean w of G"] = None
            content["latent_avg"] = _plain(mean)
    with open_atomic(path) as file:
        torch.save(content, file)
    return list(lost)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _their_state(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    tensors = dict(misc.named_params_and_buffers(network))
    blocks = network.img_resolution.bit_length() - 3
    if isinstance(network, Generator):
        names, kernels = _generator_names(blocks, network.mapping.num_layers), _generator_kernels(blocks)
    else:
        names, kernels = _discriminator_names(blocks), _discriminator_kernels(blocks)
    return {name.theirs: _plain(name.from_ours(tensors[name.ours])) for name in names} | kernels


def _require(network: torch.nn.Module, name: str) -> None:
    """Raises UserError, naming the property, for a network that does not fit the layout."""
    if not isinstance(network, (Generator, Discriminator)):
        raise UserError(f"{name} is a {type(network).__name__}, but .pt files are for StyleGAN2: use --dest=FILE.pkl")
    generates = isinstance(network, Generator)
    parts = list(network.synthesis.children() if generates else network.children())
    layers = [layer for part in parts for layer in part.modules() if hasattr(layer, "activation")]
    filters = [value for key, value in network.named_buffers() if key.endswith("resample_filter")]
    plain = {
        "it has labels": network.c_dim == 0,
        "its images are not RGB": network.img_channels == 3,
        "its filters are not [1, 3, 3, 1]": all(_equals(value, _kernel(1)) for value in filters),
        "its architecture is another": all(
            getattr(part, "architecture", "") in ("", "skip" if generates else "resnet") for part in parts
        ),
        "its activations are not lrelu": all(layer.activation in ("lrelu", "linear") for layer in layers),
    }
    if generates:
        dense = [getattr(network.mapping, f"fc{i}") for i in range(network.mapping.num_layers)]
        plain |= {
            "z and w differ in size": network.z_dim == network.w_dim,
            "its mapping network has layers of another kind": all(
                layer.weight.shape == (network.w_dim, network.w_dim)
                and layer.bias_gain == _LR_MULTIPLIER
                and layer.activation == "lrelu"
                for layer in dense
            ),
            "it has no noise": all(getattr(layer, "use_noise", True) for layer in layers),
        }
    else:
        plain["it has no minibatch-stddev channel"] = getattr(network.b4.mbstd, "num_channels", 0) == 1
    for fault, fits in plain.items():
        if not fits:
            raise UserError(f"{name} cannot be written as a .pt file in rosinality's layout: {fault}")


def _unrecorded(network: torch.nn.Module) -> Iterator[str]:
    for layer in network.modules():
        if getattr(layer, "conv_clamp", None) is not None:
            yield f"conv_clamp={layer.conv_clamp}"
        if getattr(layer, "use_fp16", False):
            yield "half precision"
        if getattr(layer, "group_size", _GROUP) != _GROUP:
            yield f"mbstd_group_size={layer.group_size}"
