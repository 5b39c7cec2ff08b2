# SPDX-License-Identifier: Apache-2.0
"""Split of a CPU's training iteration into dense arithmetic and everything else. `python -m benchmarks.shares`.

Instructions for half precision speed up only the first, so the second bounds their gain.
"""

import pathlib
import statistics
import tempfile
from collections.abc import Callable

import click
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.cases import TRAINING_WEIGHTS, Setting, available, training
from benchmarks.measure import check_resolutions
from dnnlib.cli import CommaList, run
from dnnlib.progress import Progress
from dnnlib.text import aligned

PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"}


def shares_of(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds that one call of `work` spends in convolutions and matrix products, and in everything else."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler, record_function("work"):
        work()
    seconds = {True: 0.0, False: 0.0}
    for event in profiler.key_averages(group_by_input_shape=True):
        seconds[event.key in PRODUCTS or _is_dense_convolution(event)] += event.self_cpu_time_total / 1e6
    return seconds[True], seconds[False]


def _is_dense_convolution(event) -> bool:
    """Whether it is not depthwise, as all FIR filters are: their limit is memory, not arithmetic."""
    weights = [shape for shape in event.input_shapes[1:3] if len(shape) == 4]  # second input; in a backward the third
    return event.key.startswith("aten::") and "conv" in event.key and all(shape[1] > 1 for shape in weights)


def table(found: dict[str, dict[str, list[tuple[float, float]]]]) -> str:
    """A table of found[variant][phase], the shares of each round; an iteration is the weighted sum of the phases."""
    rows = [["seconds, medians", "", "dense", "other"]]
    for variant, phases in found.items():
        medians = {phase: [statistics.median(share) for share in zip(*rounds)] for phase, rounds in phases.items()}
        total = [sum(TRAINING_WEIGHTS[phase] * shares[i] for phase, shares in medians.items()) for i in (0, 1)]
        for name, shares in {**medians, "iteration": total}.items():
            rows.append([variant, name, *(f"{seconds:.2f}" for seconds in shares)])
    return aligned(rows)


@click.command(context_settings={"show_default": True})
@click.option("--res", default=128, help="Resolution.")
@click.option("--batch", type=click.IntRange(min=1), default=4, help="Images per iteration.")
@click.option("--cbase", type=float, help="Narrower networks, as in train.py.")
@click.option("--precisions", type=CommaList(), help="Of fp32, bf16.  [default: both]")
@click.option("--rounds", type=click.IntRange(min=1), default=3, help="Measured rounds, after one to warm up.")
def main(res, batch, cbase, precisions, rounds):
    """Split a CPU's training iteration into dense arithmetic and everything else, on both paths."""
    device = torch.device("cpu")
    check_resolutions([res])
    variants = available(device, precisions)
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    with tempfile.TemporaryDirectory() as folder, Progress(len(variants) * (rounds + 1), "profiling") as progress:
        for variant in variants:
            with variant.path():
                parts = training(Setting(device, res, batch, cbase, pathlib.Path(folder)), variant)
                for index in range(rounds + 1):
                    for name, part in parts.items():
                        shares = shares_of(part.run)
                        if index:
                            found.setdefault(variant.name, {}).setdefault(name, []).append(shares)
                    progress.update(1)
    click.echo(table(found))


if __name__ == "__main__":
    run(main)
