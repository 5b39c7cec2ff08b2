# SPDX-License-Identifier: Apache-2.0
"""The interface between the project's code and the kinds of networks that it trains.

A family is data and functions for one kind of network; no code outside `training/families` names a network's parts.
Every generator of a family has `z_dim`, `c_dim`, `img_resolution`, `img_channels`; a discriminator is called as
`D(img, c)` and returns logits [N, 1]. Importing this module is cheap: it does not load torch.

Letters in shape comments: N batch, Z width of z, Y width of labels, C image channels, R resolution.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from dnnlib.util import UserError

if TYPE_CHECKING:
    import torch


class Data(NamedTuple):
    """Properties of a dataset that options depend on."""

    name: str
    resolution: int
    channels: int
    num_images: int  # in the file; --subset takes fewer
    has_labels: bool
    c_dim: int  # of the networks: 0 without --cond


class Like(NamedTuple):
    """Recorded constructor arguments of a teacher's networks, by keyword; None where its file does not have one."""

    G: dict[str, Any] | None
    D: dict[str, Any] | None


class Axis(NamedTuple):
    """An axis of a tensor that runs over the channels of one width."""

    tensor: str  # dotted name in the network
    axis: int
    ranked: bool = False  # of a weight: its values tell how much a channel matters
    scaled: bool = False  # the layer divides its weight by the square root of this axis' size
    entries: int = 1  # consecutive entries of one channel: its pixels, where a layer reads a flattened image
    extra: int = 0  # entries after those of the channels, which are always kept

    def channels(self, tensor: torch.Tensor) -> int:
        """Number of channels C of the width in `tensor`."""
        return (tensor.shape[self.axis] - self.extra) // self.entries

    def sums(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum [C] over the values of `tensor`, of two axes or more, that belong to each channel."""
        along = tensor.sum(dim=[dim for dim in range(tensor.ndim) if dim != self.axis])
        return along[: len(along) - self.extra].reshape(-1, self.entries).sum(dim=1)

    def select(self, tensor: torch.Tensor, channels: torch.Tensor) -> torch.Tensor:
        """`tensor` with only these `channels` (indices [n]) along the axis."""
        size = tensor.shape[self.axis]
        kept = [channel * self.entries + entry for channel in channels.tolist() for entry in range(self.entries)]
        indices = channels.new_tensor([*kept, *range(size - self.extra, size)])
        return tensor.index_select(self.axis, indices.to(tensor.device))


@dataclasses.dataclass(frozen=True)
class Family:
    """One kind of network. Functions of networks are called only with networks of the family.

    generators, discriminators: stored class name -> importable name of the class that rebuilds it.
    presets:            value of --cfg -> hyper-parameters, or a function (resolution, gpus) -> hyper-parameters. The
                        first is that of students whose teacher is of the family, where --cfg is not given.
    flags:              flags of train.py, as Python names, that only some families have, and this one reads.
    options:            (flags, hyper-parameters, Data, Like or None) -> options of the training loop: G_kwargs,
                        D_kwargs, their optimizers, loss_kwargs, batch, length, moving average.
    stored_arguments:   (class name, module source, args, kwargs, tensor names) of a stored network -> args, kwargs of
                        our class. Raises UserError if our class cannot represent it, ValueError for values with which
                        it could not run or would need more memory than any real network: the file is not trusted.
    original_names:     names of the classes and functions in the source of another project that stores these networks
                        too; they tell it from its forks. Empty: there is no such project.
    largest_layer:      (class name, kwargs from `stored_arguments`) -> values of the largest layer for one image, which
                        a small file must not make huge. None: not limited.
    half_precision:     (class name, constructor kwargs, kwargs of another network) -> kwargs of the same network with
                        half precision where the other has it; None for the other is the published setting.
    transfers:          constructor arguments that a copy for other data may change, among img_resolution, img_channels
                        and c_dim.
    fit_tensor:         (name, network, new network with other such arguments) -> the value of that tensor in the new
                        one, made from the old network's; None: the old tensor, or a new one if its shape differs.
                        Raises UserError, without naming the network, for a change that is not possible.
    loss_arguments:     (G, D) -> arguments of the loss that name the parts to train.
    phases:             (G, D, TrainingOptions) -> the optimizer steps of an iteration, in order.
    place:              (G, TrainingOptions): prepares G for a run, on its device; None: nothing.
    average:            (G_ema, G, weight of the old average, iterations done, TrainingOptions): moves the average.
                        None: that of the weights, with buffers copied.
    sample:             (G, z [N, Z], c [N, Y], **kwargs) -> images [N, C, R, R] in evaluation; kwargs of every
                        family: truncation_psi, noise_mode.
    freeze:             (G): G in eval mode, on its device, is only sampled from now on, with its present weights: do
                        once what each call would repeat. None: nothing.
    check_truncation:   (G, value of --trunc) raises UserError if truncation is not possible.
    truncates_z:        whether --trunc bounds z as it is drawn (arXiv 1809.11096, section 3.1); else it is the
                        truncation_psi of `sample`.
    prune_plan:         G or D -> its widths, each the list of axes that share it, the first without `extra` entries.
    settle:             (G or D, seed): after its weights were pruned or fitted, recomputes what follows from all of
                        them, such as running statistics; the same in every process. None: nothing does.
    macs:               G or D -> multiply-accumulates per image.
    batch_group:        D -> number of images that share a statistic; divides the batch. None: any batch.
    feature_blocks:     D -> its parts whose outputs [N, C, H, W], or the first of several, are image features.
    augmentation:       --aug where it is not given.
    batch_statistics:   whether G normalises by its batch, so that its weights must change in training mode only.
    adversarial_form:   form of G's adversarial loss, 'logistic' or 'hinge'; also used for guidance.
    differs_by_process: regular expression of '<Class>.<tensor>', buffers of G that follow a process's own images; the
                        loop averages them over processes after each iteration.
    derived_tensors:    endings of tensors that follow from constructor arguments, which files may leave out.
    has_w:              whether G is `G.synthesis(G.mapping(z, c))` with an intermediate latent ws [N, num_ws, w_dim]:
                        style mixing, projection and PPL need one.
    mapping_prefix:     start of the names of G's tensors from z and c to its intermediate latent.
    prepare_fp16:       (G): other weights with the same images, whose sums are in the range of fp16. None: nothing.
    export_kwargs:      further arguments of `sample` in exported programs.
    published:          alias -> URL of a network for --resume and --dgl-teacher.
    """

    name: str
    generators: dict[str, str]
    discriminators: dict[str, str]
    presets: dict[str, Any]
    flags: frozenset[str]
    options: Callable[[Any, Any, Data, Like | None], dict[str, Any]]
    stored_arguments: Callable[[str, str, tuple, dict, list[str]], tuple[tuple, dict]]
    half_precision: Callable[[str, dict, dict | None], dict]
    loss_arguments: Callable[[torch.nn.Module, torch.nn.Module], dict[str, torch.nn.Module]]
    phases: Callable[[torch.nn.Module, torch.nn.Module, Any], list]
    sample: Callable[..., torch.Tensor]
    check_truncation: Callable[[torch.nn.Module, float], None]
    prune_plan: Callable[[torch.nn.Module], list[list[Axis]]]
    macs: Callable[[torch.nn.Module], int]
    batch_group: Callable[[torch.nn.Module], int | None]
    feature_blocks: Callable[[torch.nn.Module], list[torch.nn.Module]]
    original_names: frozenset[str] = frozenset()
    transfers: frozenset[str] = frozenset()
    fit_tensor: Callable[[str, torch.nn.Module, torch.nn.Module], torch.Tensor | None] | None = None
    largest_layer: Callable[[str, dict], int] | None = None
    freeze: Callable[[torch.nn.Module], None] | None = None
    truncates_z: bool = False
    place: Callable[[torch.nn.Module, Any], None] | None = None
    average: Callable[[torch.nn.Module, torch.nn.Module, float, int, Any], None] | None = None
    settle: Callable[[torch.nn.Module, int], None] | None = None
    augmentation: str = "ada"
    batch_statistics: bool = False
    adversarial_form: str = "logistic"
    differs_by_process: str | None = None
    derived_tensors: tuple[str, ...] = ()
    has_w: bool = False
    mapping_prefix: str = "mapping."
    prepare_fp16: Callable[[torch.nn.Module], None] | None = None
    export_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    published: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def classes(self) -> dict[str, str]:
        """Generators and discriminators."""
        return {**self.generators, **self.discriminators}

    def truncation(self, G: torch.nn.Module, trunc: float | None) -> tuple[float | None, float]:
        """What --trunc=`trunc` is for `G`: the bound on z or None, and the truncation_psi of `sample`.

        None is no truncation. Raises UserError as `check_truncation` does.
        """
        if trunc is None:
            return None, 1
        self.check_truncation(G, trunc)
        return (trunc, 1) if self.truncates_z else (None, trunc)


def batch_sizes(flags, batch: int, gpus: int, group: int) -> tuple[int, int]:
    """Images per iteration, and per process and forward pass; the rest is gradient accumulation.

    `batch` images on `gpus` processes is the preset's choice; its discriminator compares images in groups of `group`.
    Raises UserError if --batch, --batch-gpu and --gpus do not divide each other.
    """
    batch_size = batch if flags.batch is None else flags.batch
    if batch_size % flags.gpus:
        raise UserError(f"--batch must be at least 1 and divisible by --gpus={flags.gpus}, not {batch_size}")
    share = batch_size // flags.gpus
    batch_gpu, flag = (share if flags.batch is not None else min(batch // gpus, share)), "--batch"
    if flags.batch_gpu is not None:
        batch_gpu, flag = flags.batch_gpu, "--batch-gpu"
        if share % batch_gpu:
            raise UserError(
                f"--batch-gpu={batch_gpu} must divide the {share} images of each process (--batch / --gpus)"
            )
    group = min(group, batch_gpu)
    if batch_gpu % group:
        raise UserError(
            f"{flag}: {batch_gpu} images per process do not split into the discriminator's minibatch-stddev groups "
            f"of {group}; make it a multiple of {group}"
        )
    return batch_size, batch_gpu


def scale_width(channel_base: int, channel_max: int, x: float, flag: str = "--cbase") -> tuple[int, int]:
    """`(channel_base, channel_max)` of a network after `--cbase=x` (DGL-GAN, arXiv 2112.06502: narrower students).

    0 < x <= 4 multiplies both, rounded down to whole channels; x >= 64 is the channel_base itself, channel_max kept.
    Raises UserError for any other x, which is ambiguous.
    """
    if 0 < x <= 4:
        # Rounded first, because 0.29 * 100 is just below 29 in binary.
        return tuple(math.floor(round(width * x, 6)) for width in (channel_base, channel_max))
    if x >= 64 and x % 1 == 0:
        return int(x), channel_max
    raise UserError(
        f"{flag}={x:g} is ambiguous: give a multiplier above 0 and up to 4 (scales channel_base and "
        "channel_max), or a whole channel_base of 64 or more (channel_max stays)"
    )
