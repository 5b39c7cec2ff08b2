# SPDX-License-Identifier: Apache-2.0
"""The demo: compress the shipped teacher to a half and a quarter of its width, beside a network trained from scratch.

Each step runs one of the project's own commands, as a user would: train.py and calc_metrics.py. Interrupted, it goes on
with the steps that are not done. Run it as `make demo`, or `python -m scripts.demo --quick` for a smoke test.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import sys
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # for python scripts/demo.py

from dnnlib import cli
from dnnlib.cli import click
from dnnlib.files import make_folder, write_text
from dnnlib.jobs import LANES, ROOT, Job, run_jobs
from dnnlib.text import aligned, format_time

TEACHER = "data/teachers/fashion.pkl"
DATA, HELD_OUT, DETECTOR = "data/fashion-train-32x32.zip", "data/fashion-test-32x32.zip", "fashion"
FID, RECALL = "fid5k_full", "pr5k3_full"
CLASSES, SEEDS, ZOOM = 10, 6, 2  # of the sample grids: a column per class, a row per seed
STATE = "state.json"  # of a demo that is not finished

COMMON = {"cfg": "cifar", "cond": 1, "batch": 32, "gamma": 10, "aug": "noaug", "seed": 0, "workers": 1}
COMMON |= {"snap": 1000000, "metrics": "none"}
# The widths are the teacher's, but nothing else is: no weights, no guidance.
SCRATCH = {"cbase": 0.5, "dgl-teacher": TEACHER, "dgl-recipe": "paper", "dgl-weight": 0}
STUDENT = {"dgl-teacher": TEACHER}


@dataclasses.dataclass(frozen=True)
class Network:
    """One row of the table. `flags` of train.py, None for the teacher; `plan`: its seconds on one core."""

    key: str
    title: str
    flags: dict[str, Any] | None
    plan: float = 0


# The longest first, so that both cores are busy to the end.
NETWORKS = [
    Network("half", "Student, 1/2", {**STUDENT, "cbase": 0.5, "dgl-fit": 40, "kimg": 20}, 280),
    Network("scratch", "From scratch, 1/2", {**SCRATCH, "kimg": 60}, 240),
    Network("quarter", "Student, 1/4", {**STUDENT, "cbase": 0.25, "dgl-fit": 16, "kimg": 5}, 90),
    Network("teacher", "Teacher", None),
]
MEASURE_PLAN = 15


def flags(options: dict[str, Any]) -> list[str]:
    """Options as the command line takes them."""
    return [f"--{name}={value}" for name, value in options.items()]


def quick(networks: list[Network]) -> list[Network]:
    """The same networks with budgets for a smoke test."""
    tiny = {"kimg": 1, "dgl-fit": 0.1}
    return [
        net
        if net.flags is None
        else dataclasses.replace(net, flags={**net.flags, **{k: tiny[k] for k in tiny if k in net.flags}})
        for net in networks
    ]


def snapshot_of(network: Network, work: pathlib.Path) -> str:
    """The last network snapshot of a finished training, or the teacher's file."""
    if network.flags is None:
        return str(ROOT / TEACHER)
    return str(max((work / network.key).glob("*/network-snapshot-*.pkl")))


class Demo:
    """The jobs of one demo in the folder `work`, and which of them are done: seconds by name, in its STATE."""

    def __init__(self, networks: list[Network], work: pathlib.Path):
        self.networks, self.work = networks, work
        self.settings = json.loads(json.dumps([dataclasses.asdict(network) for network in networks]))
        self.done: dict[str, float] = {}

    def begin(self) -> int:
        """Make the folder, or continue in it if it is of the same demo; returns the number of jobs done before."""
        path = self.work / STATE
        state = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if state.get("settings") == self.settings:
            self.done = state["done"]
        else:
            shutil.rmtree(self.work, ignore_errors=True)
        make_folder(self.work, "--outdir")
        return len(self.done)

    def _finished(self, name: str, started: dict[str, float]) -> None:
        self.done[name] = time.monotonic() - started[name]
        write_text(self.work / STATE, json.dumps({"settings": self.settings, "done": self.done}))

    def jobs(self) -> list[Job]:
        """All trainings, then all measurements."""
        trainings = [self._train(network) for network in self.networks if network.flags is not None]
        return [*trainings, *(self._measure(network) for network in self.networks)]

    def _job(
        self, name: str, log: str, progress: str | dict[str, float], plan: float, needs: tuple[str, ...], command
    ) -> Job:
        started: dict[str, float] = {}

        def args() -> list[str]:
            started[name] = time.monotonic()
            return command()

        job = Job(name, args, progress, self.work / log, plan, needs, lambda: self._finished(name, started))
        job.seconds = self.done.get(name)
        return job

    def _train(self, network: Network) -> Job:
        home = self.work / network.key

        def command() -> list[str]:
            shutil.rmtree(home, ignore_errors=True)
            return ["train.py", *flags({"outdir": home, "data": DATA, **COMMON, **network.flags})]

        # An image takes about as long to fit as to train on.
        fit, train = network.flags.get("dgl-fit", 0), network.flags["kimg"]
        stages = {"fitting": fit / (fit + train), "training": train / (fit + train)}
        return self._job(f"train {network.title}", f"{network.key}-train.log", stages, network.plan, (), command)

    def _measure(self, network: Network) -> Job:
        needs = () if network.flags is None else (f"train {network.title}",)

        def command() -> list[str]:
            options = {"network": snapshot_of(network, self.work), "metrics": f"{FID},{RECALL}"}
            return ["calc_metrics.py", *flags({**options, "detector": DETECTOR, "data": HELD_OUT})]

        log = f"{network.key}-metrics.log"
        return self._job(f"measure {network.title}", log, "fakes", MEASURE_PLAN, needs, command)

    def values(self, network: Network) -> dict[str, float]:
        """The results in the lines of JSON that calc_metrics.py printed."""
        log = (self.work / f"{network.key}-metrics.log").read_text(encoding="utf-8")
        found = [json.loads(line)["results"] for line in log.splitlines() if line.startswith("{")]
        return {name: value for results in found for name, value in results.items()}


def make_entries(demo: Demo, outdir: pathlib.Path) -> list:
    """The rows of the report, the teacher first. Writes the students to `outdir`, ready for generate.py."""
    from dgl.student import count_macs, count_params
    from scripts.demo_report import Entry
    from training.files.snapshot import load_snapshot, save_snapshot

    entries = []
    for network in sorted(demo.networks, key=lambda network: network.flags is not None):
        G = load_snapshot(snapshot_of(network, demo.work))["G_ema"].eval()
        path = outdir / f"{network.key}.pkl"
        save_snapshot(str(path), {"G_ema": G})
        values = demo.values(network)
        entries.append(
            Entry(
                network.title,
                params=count_params(G),
                macs=count_macs(G),
                fid=values[f"{FID}-{DETECTOR}"],
                recall=values[f"{RECALL}_recall-{DETECTOR}"],
                milliseconds=milliseconds(G),
                bytes=path.stat().st_size,
                seconds=demo.done.get(f"train {network.title}"),
                grid=sample_grid(G),
            )
        )
    return entries


def milliseconds(G, repeats: int = 30) -> float:
    """Median time of one image of one latent on this machine's CPU, with one thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    z, c = torch.zeros([1, G.z_dim]), torch.eye(1, G.c_dim)
    times = []
    with torch.no_grad():
        for _ in range(repeats):
            start = time.perf_counter()
            G(z, c, noise_mode="const")
            times.append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    return sorted(times)[repeats // 2] * 1000


def sample_grid(G):
    """Images of the same seeds for every network, uint8 [H, W]: as from generate.py with --seeds and --class."""
    import numpy as np
    import torch

    from torch_utils import images

    z = np.stack([np.random.RandomState(seed).randn(G.z_dim) for seed in range(SEEDS) for _ in range(CLASSES)])
    c = torch.eye(CLASSES).repeat(SEEDS, 1)
    with torch.no_grad():
        img = G(torch.from_numpy(z).float(), c, truncation_psi=1, noise_mode="const")
    return images.make_grid(images.to_uint8(img), (CLASSES, SEEDS))[..., 0].repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)


def notes(networks: list[Network], elapsed: float) -> list[str]:
    """The paragraphs below the grids."""
    import torch

    from torch_utils import machine

    device = machine.short_name(torch.device("cpu"))
    commands = [f"{net.title}: {' '.join(flags(net.flags))}." for net in networks if net.flags is not None]
    return [
        f"The teacher, {TEACHER}, was trained on all 60,000 training images; the others on the 10,000 of {DATA}, with "
        f"{' '.join(flags({k: v for k, v in COMMON.items() if k not in ('seed', 'workers', 'snap', 'metrics')}))}. "
        + " ".join(commands),
        f"FID and recall: 5,000 generated against the 2,000 real images of {HELD_OUT}, which no network has seen, in "
        f"the features of the detector '{DETECTOR}'. Such values compare with each other, not with FIDs of the "
        "Inception network.",
        "Grids: a column for each class, a row for each seed, the same for each network; truncation psi 1. MACs: "
        "convolutions and linear layers of the generator for one image. Milliseconds: one image on one thread.",
        f"Made with PyTorch {torch.__version__} on {device} in {format_time(elapsed)} in total. {LANES} jobs ran at a "
        "time, each on its share of the cores.",
    ]


@click.command()
@click.option("--outdir", default="runs/demo", show_default=True, metavar="DIR", help="Folder for the report.")
@click.option("--quick", "smoke", is_flag=True, help="Tiny budgets: tests that it runs, not how well it works.")
def main(outdir: str, smoke: bool) -> None:
    """Compress a teacher to a half and a quarter of its width, and compare the students in a report."""
    home = make_folder(pathlib.Path(outdir).resolve(), "--outdir")
    demo = Demo(quick(NETWORKS) if smoke else NETWORKS, home / "work")
    before = demo.begin()
    if before:
        click.echo(f"Continuing: {before} steps were done before; delete {os.path.relpath(demo.work)} to start anew.")
    start = time.monotonic()
    run_jobs(demo.jobs())
    elapsed = time.monotonic() - start
    entries = make_entries(demo, home)

    from scripts.demo_report import table, write_html, write_png

    heading = "A teacher compressed to a half and a quarter of its width"
    for write, name in ((write_png, "report.png"), (write_html, "report.html")):
        write(home / name, heading, entries, notes(demo.networks, elapsed))
    (demo.work / STATE).unlink()  # the next demo starts anew
    click.echo(aligned(table(entries)))
    report = os.path.relpath(home / "report.html")
    click.echo(f"{format_time(elapsed)} in all. Report: {report}; the networks are beside it.")


if __name__ == "__main__":
    cli.run(main)
