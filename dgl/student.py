# SPDX-License-Identifier: Apache-2.0
"""How large a student is: parameters, multiply-accumulates, and the table printed at start-up.

Only shapes are read, so networks built under `torch.device('meta')`, which takes no memory, can be counted as well.
"""

import torch

from dnnlib.util import UserError
from training import families


def count_params(net: torch.nn.Module) -> int:
    """Number of trained values of `net`: its parameters, each once, without buffers (noise images, w average)."""
    return sum(parameter.numel() for parameter in net.parameters())


def count_macs(net: torch.nn.Module) -> int:
    """Multiply-accumulates of the generator or discriminator `net` for one image, as its family counts them."""
    return families.of(net).macs(net)


def check_smaller(teacher_G: torch.nn.Module | None, student_G: torch.nn.Module, wanted: bool) -> None:
    """Raises UserError if the student's generator is not smaller than the teacher's, unless that is `wanted`.

    A teacher without a generator (None) is not compared.
    """
    if wanted or teacher_G is None:
        return
    theirs, ours = count_params(teacher_G), count_params(student_G)
    if ours >= theirs:
        raise UserError(
            f"--cbase: the student's G would have {ours:,} parameters and the teacher's has {theirs:,}; --cbase=0.5 "
            "gives half the teacher's width, --cbase=1 trains a student as wide as the teacher"
        )


def size_table(teacher_G: torch.nn.Module | None, student_G: torch.nn.Module) -> str:
    """Lines to print at start-up: parameters and MACs of the teacher's and the student's generator, and the ratio.

    Without a teacher's generator (None) the student stands alone; one whose layers are unknown has no MACs.
    """
    nets = {"teacher G": teacher_G, "student G": student_G}
    sizes = {name: (count_params(G), _macs_or_none(G)) for name, G in nets.items() if G is not None}
    rows = [("", "parameters", "MACs per image")]
    rows += [(name, *(f"{n:,}" if n is not None else "unknown" for n in size)) for name, size in sizes.items()]
    if len(sizes) == 2:
        pairs = zip(sizes["student G"], sizes["teacher G"])
        rows.append(("ratio", *(f"{new / old:.3f}" if old is not None else "unknown" for new, old in pairs)))
    return "\n".join(f"{name:<10} {params:>14} {macs:>18}" for name, params, macs in rows)


def _macs_or_none(G: torch.nn.Module) -> int | None:
    try:
        return count_macs(G)
    except AttributeError:  # a class of another project, with layers of other names
        return None
