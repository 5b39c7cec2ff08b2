# SPDX-License-Identifier: Apache-2.0
"""The demo: a teacher, a narrow control student and a narrow guided student, trained, measured and compared.

Each step runs one of the project's own commands, as a user would: train.py, calc_metrics.py, generate.py. The budgets
are for 15 minutes on two CPU cores. Run it as `make demo`, or `python -m scripts.demo --quick` for a smoke test.
"""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import time
from typing import Any

import click

from dnnlib import cli
from dnnlib.files import make_folder
from dnnlib.jobs import LANES, Job, run_jobs
from dnnlib.text import aligned, format_time

DATA = "data/mnist5k-32x32.zip"
DETECTOR = "mnist"
METRIC = "fid5k_full"
CLASSES, SEEDS, TRUNC, ZOOM = 10, 5, 1.0, 2  # of the sample grids: a column per class, a row per seed
RUN_NAME = re.compile(r"\d{8}-\d{6}")

# Options of train.py that all three networks share.
BUDGET = {"cfg": "cifar", "cond": 1, "kimg": 60, "batch": 32, "gamma": 10}
QUICK_BUDGET = {**BUDGET, "kimg": 1}
# D is not shipped, so a student's D need not be narrow. On a CPU everything is fp32; --fp32=1 saves the clamping.
PLAIN = {"cbase-d": 256, "aug": "noaug", "fp32": 1}


@dataclasses.dataclass(frozen=True)
class Network:
    """One training run. `cbase` is the option of train.py; `plan` its seconds on one core, for the first ETA."""

    key: str
    title: str
    cbase: int
    guided: bool
    plan: float


# fmt: off
NETWORKS = [
    #       key        title              cbase  guided   plan
    Network("teacher", "teacher",           256, False,   420),
    Network("control", "control student",   128, False,   380),
    Network("guided",  "guided student",    128, True,    390),
]
MEASURE_PLAN = 20
# fmt: on


def flags(options: dict[str, Any]) -> list[str]:
    """Options as the command line takes them."""
    return [f"--{name}={value}" for name, value in options.items()]


def jobs_of(network: Network, budget: dict[str, Any], folder: pathlib.Path) -> tuple[Job, Job]:
    """The training of `network` into `folder`/<key>, and the measurement of its last snapshot.

    A guided network waits for the teacher and takes its last snapshot.
    """
    home = folder / network.key

    def train() -> list[str]:
        other = {"cbase": network.cbase, **PLAIN, "seed": 0, "workers": 1, "snap": 1000000, "metrics": "none"}
        if network.guided:
            other["dgl-teacher"] = snapshot_of(folder / "teacher")
        return ["train.py", *flags({"outdir": home, "data": DATA, **budget, **other})]

    def measure() -> list[str]:
        options = {"network": snapshot_of(home), "metrics": METRIC, "detector": DETECTOR, "data": DATA}
        return ["calc_metrics.py", *flags(options)]

    name = f"train the {network.title}"
    training = Job(name, train, "training", home / "train.log", network.plan, ("train the teacher",) * network.guided)
    return training, Job(f"measure the {network.title}", measure, "fakes", home / "metrics.log", MEASURE_PLAN, (name,))


def snapshot_of(home: pathlib.Path) -> pathlib.Path:
    """The last network snapshot of a finished training."""
    return max(home.glob("*/network-snapshot-*.pkl"))


def measured_fid(log: pathlib.Path) -> float:
    """The value in the line of JSON that calc_metrics.py printed."""
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("{")]
    (value,) = json.loads(lines[-1])["results"].values()
    return value


def make_entries(folder: pathlib.Path, networks: list[Network], budget: dict[str, Any]) -> list:
    """Run everything and collect the rows of the report, one per network."""
    trainings, measurements = zip(*(jobs_of(network, budget, folder) for network in networks))
    run_jobs([*trainings, *measurements])

    from dgl.student import count_macs, count_params
    from scripts.demo_report import Entry
    from training.files.snapshot import load_snapshot

    entries = []
    for network, training, measurement in zip(networks, trainings, measurements):
        G = load_snapshot(snapshot_of(folder / network.key))["G_ema"]
        blocks = [getattr(G.synthesis, f"b{resolution}") for resolution in G.synthesis.block_resolutions]
        channels = tuple(block.conv1.weight.shape[0] for block in blocks)
        sizes = {"channels": channels, "params": count_params(G), "macs": count_macs(G)}
        found = {"fid": measured_fid(measurement.log), "seconds": training.seconds, "grid": sample_grid(G)}
        entries.append(Entry(network.title.capitalize(), **sizes, **found, kimg=budget["kimg"], batch=budget["batch"]))
    return entries


def sample_grid(G):
    """Images of the same seeds for every network, uint8 [H, W]: as from generate.py with --seeds and --class."""
    import numpy as np
    import torch

    from torch_utils import images

    z = np.stack([np.random.RandomState(seed).randn(G.z_dim) for seed in range(SEEDS) for _ in range(CLASSES)])
    c = torch.eye(CLASSES).repeat(SEEDS, 1)
    with torch.no_grad():
        img = G(torch.from_numpy(z).float(), c, truncation_psi=TRUNC, noise_mode="const")
    return images.make_grid(images.to_uint8(img), (CLASSES, SEEDS))[..., 0].repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)


def notes(budget: dict[str, Any], elapsed: float) -> list[str]:
    """The paragraphs below the grids."""
    import torch

    from torch_utils import machine

    device = machine.short_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return [
        f"All three were trained on the same number of the 5,000 digits of {DATA} and their labels, with "
        f"{' '.join(flags({**budget, **PLAIN}))}. The guided student also has to convince the frozen discriminator of "
        f"the teacher (--dgl-teacher, weight 0.1); the control student differs in nothing else.",
        f"FID: {METRIC} in the features of the detector '{DETECTOR}', 5,000 generated against the 5,000 real images. "
        f"Such values compare with each other, not with FIDs of the Inception network.",
        f"Grids: a column for each digit from 0 to 9, a row for each seed from 0 to {SEEDS - 1}, the same for each "
        f"network; truncation psi {TRUNC:g}. MACs per image: convolutions and linear layers of the generator. One kimg "
        f"is 1,000 real images shown.",
        f"Made with PyTorch {torch.__version__} on {device} in {format_time(elapsed)} in total. {LANES} jobs ran at "
        f"a time, each on its share of the cores.",
    ]


def remove_older_runs(outdir: pathlib.Path, keep: pathlib.Path) -> None:
    """Delete the networks of earlier demos, which the report no longer shows."""
    for path in outdir.iterdir():
        if path.is_dir() and path != keep and RUN_NAME.fullmatch(path.name):
            shutil.rmtree(path)


@click.command()
@click.option("--outdir", default="runs/demo", show_default=True, metavar="DIR", help="Folder for the report.")
@click.option("--quick", is_flag=True, help="Tiny networks and budgets: tests that it runs, not how well it works.")
def main(outdir: str, quick: bool) -> None:
    """Train a teacher and two narrow students on digits, and compare them in a report."""
    budget = QUICK_BUDGET if quick else BUDGET
    networks = [dataclasses.replace(net, cbase=net.cbase // 2, plan=20) for net in NETWORKS] if quick else NETWORKS
    home = pathlib.Path(outdir).resolve()
    folder = make_folder(home / time.strftime("%Y%m%d-%H%M%S"), "--outdir")
    start = time.monotonic()
    entries = make_entries(folder, networks, budget)
    elapsed = time.monotonic() - start

    from scripts.demo_report import table, write_html, write_png

    heading = "A guided student beside its teacher and a control"
    for write, name in ((write_png, "report.png"), (write_html, "report.html")):
        write(home / name, heading, entries, notes(budget, elapsed))
    remove_older_runs(home, keep=folder)
    click.echo(aligned(table(entries)))
    report = os.path.relpath(home / "report.html")
    click.echo(f"{format_time(elapsed)} in all. Report: {report}, and report.png in the same folder.")


if __name__ == "__main__":
    cli.run(main)
