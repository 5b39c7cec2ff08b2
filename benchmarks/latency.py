# SPDX-License-Identifier: Apache-2.0
"""Time for one image, teacher against student, in each way to run them on a CPU. `python -m benchmarks.latency`."""

import datetime
import pathlib
import shutil
import tempfile

import click
import torch

from benchmarks import report
from benchmarks.cases import Setting, Variant
from benchmarks.results import Run
from dgl.student import count_macs, count_params
from dnnlib.cli import INT_LIST, run
from dnnlib.files import write_text
from dnnlib.text import markdown
from metrics.reports import speed
from metrics.reports.subjects import Subject
from torch_utils import distributed, machine, timing
from training import families
from training.files.snapshot import load_snapshot, save_snapshot

BATCH = 1
WIDTHS = {"teacher": 1.0, "student": 0.5}
PAGE = """# Latency of teacher and student

Written by `{command}`.

{line}

Milliseconds for {batch} image, G with constant noise: the median of {rounds} rounds and [quartiles]. All ways to run
both networks take turns in each round. The ratio is teacher/student, round by round: above 1 the student is faster.
The networks have the shape of `train.py --cfg=auto` with `--cbase=1` (teacher) and `--cbase=0.5` (student), RGB, with
random weights: no trained ones are at hand at these sizes, and the time does not depend on the values. "load" is the
number of processes that wanted a processor at the start, on {cores} cores: above about 0.2 the milliseconds are those
of a machine shared with other work, and only ratios mean something.

{times}

{sizes}
{remarks}"""


def _compiled(subject: Subject, batch: int, device: torch.device, folder: str) -> timing.Work:
    G = subject.placed(device)
    z, c = speed.inputs(G, batch)
    sample = torch.compile(lambda z, c: families.of(G).sample(G, z, c, truncation_psi=1, noise_mode="const"))

    def work() -> None:
        with torch.no_grad():
            sample(z, c)

    return work


def _no_compiler(subjects: list[Subject], device: torch.device) -> str | None:
    found = any(shutil.which(name) for name in ("g++", "clang++", "cl"))
    return None if found else "it needs a C++ compiler, such as g++"


COMPILED = speed.Runtime("PyTorch compiled fp32", _compiled, _no_compiler)


def _subject(name: str, resolution: int, folder: pathlib.Path) -> Subject:
    """A network of random weights, in a file as the runtimes want it."""
    setting = Setting(torch.device("cpu"), resolution, None, WIDTHS[name], folder)
    path = str(folder / f"{name}{resolution}.pkl")
    save_snapshot(path, {"G_ema": setting.network("G", Variant("fp32", "fp32")).eval().requires_grad_(False)})
    snapshot = load_snapshot(path)
    return Subject(name, snapshot, snapshot["G_ema"])


def _samples(
    subjects: list[Subject], runtimes: list[speed.Runtime], device: torch.device, folder: str, budget: float
) -> dict[str, list]:
    """Seconds of each 'runtime/network', a value for each round."""
    works = {f"{r.name}/{s.name}": r.build(s, BATCH, device, folder) for r in runtimes for s in subjects}
    return timing.interleave({"": works}, timing.clock_for(device), budget)[""]


def _cell(samples: list[float], scale: float = 1) -> str:
    spread = timing.spread([scale * sample for sample in samples])
    return f"{spread.median:.3g} [{spread.low:.3g}, {spread.high:.3g}]"


@click.command()
@click.option("--out", default="docs/benchmarks/latency.md", show_default=True, metavar="MD", help="The page.")
@click.option("--res", type=INT_LIST, default="32,256,1024", show_default=True, help="Sizes of images.")
@click.option("--budget", type=click.FloatRange(min=0), default=30, show_default=True, help="Seconds for a size.")
def main(out: str, res: list[int], budget: float) -> None:
    """Measure the time for one image of a teacher and a student of half its width, eager, compiled and in ONNX."""
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    device = distributed.configure_device(torch.device("cpu"))  # as programs do
    found = Run("python -m benchmarks.latency", date, machine.describe(device), "fp32", None)
    times = [["size", "runtime", "teacher, ms", "student, ms", "teacher/student"]]
    sizes, remarks, rounds = [["size", "teacher", "student"]], {}, set()
    for resolution in res:
        with tempfile.TemporaryDirectory() as folder:
            subjects = [_subject(name, resolution, pathlib.Path(folder)) for name in WIDTHS]
            runtimes, reasons = speed.available(subjects, device, (*speed.FP32, COMPILED))
            samples = _samples(subjects, runtimes, device, folder, budget)
        remarks |= reasons
        for runtime in runtimes:
            teacher, student = (samples[f"{runtime.name}/{name}"] for name in WIDTHS)
            ratio = _cell([a / b for a, b in zip(teacher, student)])
            times.append([str(resolution), runtime.name, _cell(teacher, 1000), _cell(student, 1000), ratio])
            rounds.add(len(teacher))
        cells = [f"{count_params(s.G) / 1e6:.1f} M parameters, {count_macs(s.G) / 1e9:.2f} GMACs" for s in subjects]
        sizes.append([str(resolution), *cells])
        page = PAGE.format(
            command=found.command,
            line=report.machine_line(found),
            batch=BATCH,
            cores=found.machine["cores"],
            rounds=" to ".join(map(str, sorted({min(rounds), max(rounds)}))),
            times=markdown(times),
            sizes=markdown(sizes),
            remarks="".join(f"\n{name}: not measured, because {reason}.\n" for name, reason in remarks.items()),
        )
        write_text(pathlib.Path(out), page)  # after each size: an interrupted run keeps its figures
    click.echo(page)


if __name__ == "__main__":
    run(main)
