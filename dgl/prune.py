# SPDX-License-Identifier: Apache-2.0
"""Start a narrow generator from a wide one: rank the channels of each width, keep the best, slice all tensors alike.

A family of networks says which axes share a width (`Family.prune_plan`); everything here works on dicts of tensors by
name and changes none of them. Letters: C channels of the teacher, n channels kept.
"""

import math
from collections.abc import Sequence

import torch

from dnnlib.util import UserError
from torch_utils import misc
from training import families
from training.families.family import Axis

RANKINGS = ("l1", "random")
Tensors = dict[str, torch.Tensor]


def l1_scores(tensors: Tensors, width: Sequence[Axis]) -> torch.Tensor:
    """Importance of each channel [C]: its L1 norm in every convolution that writes or reads it, each of mean 1.

    Source: L1 pruning (Li et al., arXiv 1608.08710), over all layers that share the channel.
    """
    total = torch.zeros([_size(tensors, width)])
    for axis in width:
        if axis.ranked:
            weight = tensors[axis.tensor].detach().float()
            norms = weight.abs().sum(dim=[dim for dim in range(weight.ndim) if dim != axis.axis])
            total += norms / norms.mean().clamp_min(1e-12)
    return total


def choose_channels(
    tensors: Tensors, plan: Sequence[Sequence[Axis]], sizes: Sequence[int], ranking: str = "l1", seed: int = 0
) -> list[torch.Tensor]:
    """Indices [n], ascending, of the channels to keep in each width of `plan`; n is its entry in `sizes`.

    `ranking`: 'l1', or 'random' as a control, which depends on `seed`. Raises UserError for an unknown one.
    """
    if ranking not in RANKINGS:
        raise UserError(f"--dgl-prune must be one of {', '.join(RANKINGS)}, not {ranking!r}")
    random = torch.Generator().manual_seed(seed)
    kept = []
    for width, n in zip(plan, sizes):
        C = _size(tensors, width)
        scores = l1_scores(tensors, width) if ranking == "l1" else torch.rand([C], generator=random)
        kept.append(scores.argsort(descending=True, stable=True)[:n].sort().values)
    return kept


def slice_channels(tensors: Tensors, plan: Sequence[Sequence[Axis]], kept: Sequence[torch.Tensor]) -> Tensors:
    """The tensors with only the `kept` channels of each width.

    A layer that divides its weight by √C ("equalised learning rate") divides the narrower one by √n: such weights are
    multiplied by √(n/C), so that the kept channels contribute what they did.
    """
    sliced = dict(tensors)
    for width, indices in zip(plan, kept):
        for axis in width:
            tensor = sliced[axis.tensor]
            gain = math.sqrt(len(indices) / tensor.shape[axis.axis]) if axis.scaled else 1.0
            sliced[axis.tensor] = tensor.index_select(axis.axis, indices.to(tensor.device)) * gain
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


def check_source(source: torch.nn.Module | None, student: torch.nn.Module, name: str, parts: str = "teacher") -> None:
    """Raises UserError, naming the file `name`, unless the generator `student` can inherit `parts` of `source`.

    A `source` of None stands for a file without a usable generator.
    """
    if source is None:
        raise UserError(f"--dgl-init: {name} has no generator to start from; use --dgl-init=random")
    family = families.of(student)
    if families.of(source) is not family:
        raise UserError(f"--dgl-init: G of {name} is of the family {families.of(source).name}, not {family.name}")
    there, here = (dict(misc.named_params_and_buffers(net)) for net in (source, student))
    plan = family.prune_plan(source) if parts == "teacher" else []
    pruned = {(axis.tensor, axis.axis) for width in plan for axis in width}
    for key in sorted(there.keys() | here.keys()):
        if parts == "mapping" and not key.startswith(family.mapping_prefix):
            continue
        theirs, ours = (tuple(tensors[key].shape) if key in tensors else None for tensors in (there, here))
        fixed = [t == o for dim, (t, o) in enumerate(zip(theirs or (), ours or ())) if (key, dim) not in pruned]
        if None in (theirs, ours) or len(theirs) != len(ours) or not all(fixed):
            raise UserError(
                f"--dgl-init: {key} is {theirs or 'missing'} in G of {name} and {ours or 'missing'} in the student; "
                "leave --z-dim and --w-dim to the teacher, or use --dgl-init=random"
            )
    for width in plan:
        C, n = _size(there, width), _size(here, width)
        if n > C:
            layer = width[0].tensor
            raise UserError(f"--dgl-init: the student is wider than G of {name} ({n} channels of {C} in {layer})")


def inherit(
    source: torch.nn.Module,
    student: torch.nn.Module,
    parts: str = "teacher",
    ranking: str = "l1",
    svs: bool = False,
    seed: int = 0,
) -> None:
    """Copy weights of the generator `source` into the narrower `student`, which `check_source` has accepted.

    `parts`: 'mapping' copies the mapping network and the mean w; 'teacher' also the pruned synthesis network, with
    singular value scaling of its weights and biases where `svs`. With equal widths and without `svs` the student makes
    the images of the source.
    """
    family = families.of(source)
    there, here = (dict(misc.named_params_and_buffers(net)) for net in (source, student))
    plan = family.prune_plan(source)
    copied = {name: tensor for name, tensor in there.items() if name.startswith(family.mapping_prefix)}
    if parts == "teacher":
        sizes = [_size(here, width) for width in plan]
        pruned = slice_channels(there, plan, choose_channels(there, plan, sizes, ranking, seed))
        if svs:
            pruned.update(_scaled({name: pruned[name] for name in pruned.keys() - copied.keys()}))
        copied = pruned
    with torch.no_grad():
        for name, tensor in copied.items():
            here[name].copy_(tensor)


def _scaled(tensors: Tensors) -> Tensors:
    scaled = {}
    for name, tensor in tensors.items():
        if name.endswith(".weight"):
            scaled[name] = scale_singular_values(tensor)
        elif name.endswith(".bias"):
            scaled[name] = scale_bias(tensor)
    return scaled


def _size(tensors: Tensors, width: Sequence[Axis]) -> int:
    return tensors[width[0].tensor].shape[width[0].axis]
