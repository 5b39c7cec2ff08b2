# SPDX-License-Identifier: Apache-2.0
"""Every operation on its fast path against its reference path in float64: output, first and second gradients.

pytest runs it in small shapes (tests/scripts/test_gpu_report.py). `scripts/gpu_check.sh` runs it as a command that does
not need pytest, also under compute-sanitizer (--small):
`python -m tests.torch_utils.ops.sweep --device=cuda --json=sweep.json`.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import click
import torch

from dnnlib.cli import CommaList, run
from dnnlib.text import markdown
from dnnlib.util import open_atomic
from torch_utils import distributed, precision
from torch_utils.ops.backend import reference_path
from torch_utils.ops.bias_act import activation_funcs, bias_act
from torch_utils.ops.conv2d_resample import conv2d_resample
from torch_utils.ops.fma import fma
from torch_utils.ops.upfirdn2d import setup_filter, upfirdn2d
from training.networks import modulated_conv2d

# Largest relative error allowed (norm of the difference over the norm), as stated in docs/numerics.md.
TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 4e-2}
TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LAYOUTS = ("contiguous_format", "channels_last")


@dataclasses.dataclass(frozen=True)
class Case:
    """`func(*tensors)` for random tensors of `shapes`; the first is the image, the only one with a layout."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    func: Callable[..., Any]


def cases(small: bool) -> list[Case]:
    """What is compared, in shapes like those of the networks; `small`: operations with CUDA kernels, in tiny shapes."""
    N, C, R = (2, 16, 9) if small else (4, 48, 32)
    image = (N, C, R, R)
    found = []
    for act in activation_funcs:
        for clamp in (None, 0.8):

            def biased(x, b, act=act, clamp=clamp):
                return bias_act(x, b, act=act, clamp=clamp)

            found.append(Case(f"bias_act {act}{' clamped' if clamp else ''}", (image, (C,)), biased))
    found += _resampling(image)
    if small:
        return found
    found += _convolutions(image)
    found.append(Case("fma", (image, (N, C, 1, 1), (N, 1, R, R)), fma))
    for fused in (False, True):

        def modulated(x, w, s, fused=fused):
            return modulated_conv2d(x, w / 3, s, padding=1, fused_modconv=fused)

        found.append(Case(f"modulated_conv2d{' fused' if fused else ''}", (image, (8, C, 3, 3), (N, C)), modulated))
    return found


def _resampling(image: tuple[int, ...]) -> Iterator[Case]:
    filters = {
        "4 taps": setup_filter([1, 3, 3, 1]),
        "4 taps separable": setup_filter([1, 3, 3, 1], separable=True),
        "12 taps": setup_filter(list(range(1, 13))),
        "3x2": torch.tensor([[0.1, 0.2], [0.3, 0.1], [0.1, 0.2]]),
    }
    for name, f in filters.items():
        for up, down in ((1, 1), (2, 1), (1, 2), ((3, 1), (1, 2))):

            def resampled(x, f=f, up=up, down=down):
                return upfirdn2d(x, f.to(x.device), up=up, down=down, padding=[6, 5, 4, 6], gain=2)

            yield Case(f"upfirdn2d {name} up {up} down {down}", (image,), resampled)


def _convolutions(image: tuple[int, ...]) -> Iterator[Case]:
    f = setup_filter([1, 3, 3, 1])
    for size in (1, 3):
        for up, down in ((1, 1), (2, 1), (1, 2)):

            def convolved(x, w, up=up, down=down, size=size):
                w = w / math.sqrt(w[0].numel())
                return conv2d_resample(x, w, f.to(x.device), up=up, down=down, padding=size // 2, flip_weight=up == 1)

            shapes = (image, (8, image[1], size, size))
            yield Case(f"conv2d_resample {size}x{size} up {up} down {down}", shapes, convolved)


def make_inputs(case: Case) -> list[torch.Tensor]:
    """Random tensors, the same in every type: multiples of 1/32 below 4, odd ones in the image and even ones elsewhere.

    All types represent these exactly. The sum of image and bias is never 0, where the slopes of some activations jump.
    """
    rng = torch.Generator().manual_seed(1)
    inputs = [torch.randn(shape, generator=rng).mul(16).round().clamp(-62, 62) / 16 for shape in case.shapes]
    inputs[0] += 1 / 32
    return inputs


def derivatives(func: Callable[..., torch.Tensor], tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Output, first gradients and second gradients (along fixed random directions) as flat float64 on the CPU."""
    tensors = [x.requires_grad_() for x in tensors]
    y = func(*tensors)
    first = torch.autograd.grad(y, tensors, _direction(y), create_graph=True)
    second = [torch.zeros_like(x) for x in tensors]
    curved = [g for g in first if g.requires_grad]  # none where the operation is linear
    if curved:
        second = torch.autograd.grad(curved, tensors, [_direction(g) for g in curved], materialize_grads=True)
    return [torch.cat([x.detach().double().cpu().flatten() for x in group]) for group in ([y], first, second)]


def _direction(like: torch.Tensor) -> torch.Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(like.numel())).to(like.device, like.dtype)


def compare(case: Case, dtypes: list[str], device: torch.device) -> Iterator[dict[str, Any]]:
    """A row per type and layout: relative errors of output, gradient and second gradient; `ok` if all are small."""
    inputs = make_inputs(case)
    with reference_path():
        exact = derivatives(case.func, [x.to(device, torch.float64) for x in inputs])
    for dtype in dtypes:
        for layout in LAYOUTS:
            fast_inputs = [x.to(device, TYPES[dtype], copy=True) for x in inputs]
            fast_inputs[0] = fast_inputs[0].to(memory_format=getattr(torch, layout))
            fast = derivatives(case.func, fast_inputs)
            errors = [float((a - b).norm() / (b.norm() or 1)) for a, b in zip(fast, exact)]
            ok = all(error <= TOLERANCE[dtype] for error in errors)  # False for NaN
            yield {"case": case.name, "dtype": dtype, "layout": layout, "errors": errors, "ok": ok}


def summary(rows: list[dict[str, Any]]) -> str:
    """A Markdown table with the largest errors of each operation and type."""
    table = [["operation", "type", "cases", "output", "gradient", "second gradient", "allowed"]]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["case"].split()[0], row["dtype"]), []).append(row)
    for (operation, dtype), group in groups.items():
        worst = [max(errors) for errors in zip(*(row["errors"] for row in group))]
        errors = (f"{error:.1e}" for error in worst)
        table.append([operation, dtype, str(len(group)), *errors, f"{TOLERANCE[dtype]:.0e}"])
    return markdown(table)


@click.command(context_settings={"show_default": True})
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cuda", help="Device of the fast path.")
@click.option("--dtypes", type=CommaList(), default="fp32,fp16,bf16", help="Types to compare.")
@click.option("--small", is_flag=True, help="Few cases, tiny shapes: for a sanitizer.")
@click.option("--json", "path", metavar="FILE", help="File for the rows.")
def main(device: str, dtypes: list[str], small: bool, path: str | None) -> int:
    """Compare every operation with its reference path. Exit status 1 if an error is too large."""
    target = distributed.resolve_device(device)
    if target.type == "cuda":
        precision.allow_tf32(False)
    rows = [row for case in cases(small) for row in compare(case, dtypes, target)]
    if path is not None:
        with open_atomic(path, "w") as file:
            json.dump(rows, file)
    click.echo(summary(rows))
    bad = [row for row in rows if not row["ok"]]
    for row in bad:
        click.echo(f"OFF: {row['case']}, {row['dtype']}, {row['layout']}: {row['errors']}")
    click.echo(f"\n{len(rows) - len(bad)} of {len(rows)} within tolerance")
    return int(bool(bad))


if __name__ == "__main__":
    run(main)
