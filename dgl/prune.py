# SPDX-License-Identifier: Apache-2.0
"""Start a narrow network from a wide one: rank the channels of each width, keep the best, slice all tensors alike.

A family of networks says which axes share a width (`Family.prune_plan`); everything here works on dicts of tensors by
name and changes none of them. Letters: C channels of the teacher, n channels kept.
"""

import math
from collections.abc import Sequence

import torch

from dgl.diversity import diversity_scores
from dnnlib.util import UserError
from torch_utils import misc
from training import families
from training.families.family import Axis

RANKINGS = ("l1", "random", "diversity")
Tensors = dict[str, torch.Tensor]


def l1_scores(tensors: Tensors, width: Sequence[Axis]) -> torch.Tensor:
    """Importance of each channel [C]: its L1 norm in every weight that writes or reads it, each of mean 1.

    Source: L1 pruning (Li et al., arXiv 1608.08710), over all layers that share the channel.
    """
    total = torch.zeros([_size(tensors, width)])
    for axis in width:
        if axis.ranked:
            norms = axis.sums(tensors[axis.tensor].detach().float().abs())
            total += norms / norms.mean().clamp_min(1e-12)
    return total


def channel_scores(
    network: torch.nn.Module,
    plan: Sequence[Sequence[Axis]],
    ranking: str = "l1",
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> list[torch.Tensor]:
    """Importance [C] of the channels of each width of `plan`.

    `ranking`: 'l1', 'diversity' (`dgl.diversity`, which runs the generator `network` on `device`), or 'random' as a
    control; the last two depend on `seed`. Raises UserError for an unknown one.
    """
    if ranking not in RANKINGS:
        raise UserError(f"--dgl-prune must be one of {', '.join(RANKINGS)}, not {ranking!r}")
    if ranking == "diversity":
        return diversity_scores(network, plan, seed, device)
    tensors = dict(misc.named_params_and_buffers(network))
    random = torch.Generator().manual_seed(seed)
    if ranking == "random":
        return [torch.rand([_size(tensors, width)], generator=random) for width in plan]
    return [l1_scores(tensors, width) for width in plan]


def choose_channels(scores: Sequence[torch.Tensor], sizes: Sequence[int]) -> list[torch.Tensor]:
    """Indices [n], ascending, of the channels with the best `scores` in each width; n is its entry in `sizes`."""
    return [each.argsort(descending=True, stable=True)[:n].sort().values.cpu() for each, n in zip(scores, sizes)]


def slice_channels(tensors: Tensors, plan: Sequence[Sequence[Axis]], kept: Sequence[torch.Tensor]) -> Tensors:
    """The tensors with only the `kept` channels of each width.

    A layer that divides its weight by √C ("equalised learning rate") divides the narrower one by √n: such weights are
    multiplied by √(n/C), so that the kept channels contribute what they did.
    """
    sliced = dict(tensors)
    for width, indices in zip(plan, kept):
        for axis in width:
            wide = sliced[axis.tensor]
            narrow = axis.select(wide, indices)
            gain = math.sqrt(narrow.shape[axis.axis] / wide.shape[axis.axis]) if axis.scaled else 1.0
            sliced[axis.tensor] = narrow * gain
    return sliced


def scale_singular_values(weight: torch.Tensor) -> torch.Tensor:
    """UΣ^½Vᵀ of a weight [O, ...] = UΣVᵀ, seen as a matrix [O, rest]: evens out directions that pruning left uneven.

    Source: singular value scaling for pruned generators ("SVS"); biases follow `scale_bias`.
    """
    U, S, Vh = torch.linalg.svd(weight.flatten(1).double(), full_matrices=False)
    return ((U * S.sqrt()) @ Vh).reshape(weight.shape).to(weight.dtype)


def scale_bias(bias: torch.Tensor) -> torch.Tensor:
    """b / √‖b‖, the counterpart for a bias [O]."""
    return bias * (bias.norm() + 1e-8).rsqrt()


def check_source(
    source: torch.nn.Module | None,
    student: torch.nn.Module,
    name: str,
    parts: str = "teacher",
    ranking: str = "l1",
) -> None:
    """Raises UserError, naming the file `name`, unless `student` can inherit `parts` of `source` (see `inherit`).

    A `source` of None stands for a file without a usable generator.
    """
    flag, letter, way_out = "--dgl-init", "G", "leave --z-dim and --w-dim to the teacher, or use --dgl-init=random"
    if parts == "D":
        flag, letter, way_out = "--dgl-init-d", "D", "use --dgl-init-d=0"
    if source is None:
        raise UserError(f"{flag}: {name} has no generator to start from; use --dgl-init=random")
    family = families.of(student)
    if families.of(source) is not family:
        raise UserError(
            f"{flag}: {letter} of {name} is of the family {families.of(source).name}, not {family.name}; leave --cfg "
            "to the teacher, or use --dgl-recipe=paper, which inherits nothing"
        )
    if ranking == "diversity":
        families.require_w(source, "--dgl-prune=diversity")
    there, here = (dict(misc.named_params_and_buffers(net)) for net in (source, student))
    plan = [] if parts == "mapping" else family.prune_plan(source)
    sizes = [_size(here if width[0].tensor in here else there, width) for width in plan]
    wanted = _shapes(there, plan, sizes)
    if parts == "mapping" and not any(key.startswith(family.mapping_prefix) for key in there):
        raise UserError(f"{flag}={parts}: G of {name} has no mapping network; use {flag}=teacher or {flag}=random")
    for key in sorted(there.keys() | here.keys()):
        if parts == "mapping" and not key.startswith(family.mapping_prefix):
            continue
        if key not in here or wanted.get(key) != list(here[key].shape):
            theirs, ours = (tuple(tensors[key].shape) if key in tensors else "missing" for tensors in (there, here))
            raise UserError(f"{flag}: {key} is {theirs} in {letter} of {name} and {ours} in the student; {way_out}")
    for width, n in zip(plan, sizes):
        layer, C = width[0].tensor, _size(there, width)
        if n > C:
            raise UserError(f"{flag}: the student is wider than {letter} of {name} ({n} channels of {C} in {layer})")


def inherit(
    source: torch.nn.Module,
    student: torch.nn.Module,
    parts: str = "teacher",
    ranking: str = "l1",
    svs: bool = False,
    seed: int = 0,
) -> None:
    """Copy weights of `source` into the narrower `student`, which `check_source` has accepted.

    `parts` of a generator: 'mapping' copies the mapping network and the mean w; 'teacher' also the pruned synthesis
    network, with singular value scaling of its weights and biases where `svs`. 'D' is a discriminator. With equal
    widths and without `svs` the student makes the images, or scores, of the source. `ranking`, `seed`: see
    `channel_scores`, which runs on the student's device. Global random states do not change.
    """
    family = families.of(source)
    there, here = (dict(misc.named_params_and_buffers(net)) for net in (source, student))
    copied = {name: tensor for name, tensor in there.items() if name.startswith(family.mapping_prefix)}
    narrower = False
    if parts != "mapping":
        plan = family.prune_plan(source)
        device = next(iter(here.values())).device
        scores = channel_scores(source, plan, ranking, seed, device)
        sizes = [_size(here, width) for width in plan]
        narrower = sizes != [_size(there, width) for width in plan]
        pruned = slice_channels(there, plan, choose_channels(scores, sizes))
        if svs:
            pruned.update(_scaled({name: pruned[name] for name in pruned.keys() - copied.keys()}))
        copied = pruned
    with torch.no_grad():
        for name, tensor in copied.items():
            here[name].copy_(tensor)
    if narrower and family.settle is not None:
        family.settle(student, seed)


def _scaled(tensors: Tensors) -> Tensors:
    scaled = {}
    for name, tensor in tensors.items():
        if name.endswith(".weight"):
            scaled[name] = scale_singular_values(tensor)
        elif name.endswith(".bias"):
            scaled[name] = scale_bias(tensor)
    return scaled


def _shapes(tensors: Tensors, plan: Sequence[Sequence[Axis]], sizes: Sequence[int]) -> dict[str, list[int]]:
    """Shapes of the tensors with other sizes of the widths."""
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    for width, n in zip(plan, sizes):
        for axis in width:
            shapes[axis.tensor][axis.axis] = n * axis.entries + axis.extra
    return shapes


def _size(tensors: Tensors, width: Sequence[Axis]) -> int:
    return width[0].channels(tensors[width[0].tensor])
