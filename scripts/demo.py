# SPDX-License-Identifier: Apache-2.0
"""The demo: a teacher, a narrow control student and a narrow guided student, trained, measured and compared.

Each step is one of the project's own commands, run as a user would: train.py, calc_metrics.py, generate.py. Budgets are
made for 15 minutes on two CPU cores. Run it as `make demo`, or `python -m scripts.demo --quick` for a smoke test.
"""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import time

import click

from dnnlib import cli
from dnnlib.util import UserError, format_time
from scripts.demo_jobs import LANES, Job, run_jobs

DATA = "data/mnist5k-32x32.zip"
DETECTOR = "mnist"
METRIC = "fid5k_full"
CLASSES, SEEDS, TRUNC = 10, 5, 1.0  # of the sample grids: a column a class, a row a seed
# Nobody ships D, so that of a student need not be narrow. On a CPU all is fp32 anyway; --fp32=1 saves the clamping.
PLAIN = ["--cbase-d=256", "--aug=noaug", "--fp32=1"]
RUN_NAME = re.compile(r"\d{8}-\d{6}")


@dataclasses.dataclass(frozen=True)
class Budget:
    """What all three networks have in common: flags of train.py by their names."""

    cfg: str
    cond: int
    kimg: int
    batch: int
    gamma: float

    def flags(self) -> list[str]:
        """As train.py takes them."""
        return [f"--{name}={value}" for name, value in dataclasses.asdict(self).items()]


@dataclasses.dataclass(frozen=True)
class Network:
    """One training run. `cbase` is the flag of train.py; `plan` its seconds on one core, which the first ETA needs."""

    key: str
    title: str
    cbase: float
    guided: bool
    plan: float


# fmt: off
#               cfg      cond  kimg  batch  gamma
BUDGET = Budget("cifar",    1,   60,    32,    10)
QUICK  = Budget("cifar",    1,    1,    32,    10)
NETWORKS = [
    #       key        title              cbase  guided   plan
    Network("teacher", "teacher",           256, False,   420),
    Network("control", "control student",   128, False,   380),
    Network("guided",  "guided student",    128, True,    390),
]
QUICK_CBASE = 64
MEASURE_PLAN = 20
# fmt: on


def train_job(network: Network, budget: Budget, folder: pathlib.Path) -> Job:
    """Trains `network` into `folder/<key>`; a guided one waits for the teacher and takes its last snapshot."""

    def args() -> list[str]:
        teacher = [f"--dgl-teacher={snapshot_of(folder / 'teacher')}"] if network.guided else []
        return [
            "train.py", f"--outdir={folder / network.key}", f"--data={DATA}", *budget.flags(),
            f"--cbase={network.cbase}", *PLAIN, "--seed=0", "--workers=1", "--snap=1000000", "--metrics=none", *teacher,
        ]  # fmt: skip

    log = folder / network.key / "train.log"
    needs = ("train the teacher",) if network.guided else ()
    return Job(f"train the {network.title}", args, "training", log, network.plan, needs)


def measure_job(network: Network, folder: pathlib.Path) -> Job:
    """Measures the last snapshot of `network`."""
    flags = [f"--metrics={METRIC}", f"--detector={DETECTOR}", f"--data={DATA}"]

    def args() -> list[str]:
        return ["calc_metrics.py", f"--network={snapshot_of(folder / network.key)}", *flags]

    log = folder / network.key / "metrics.log"
    return Job(f"measure the {network.title}", args, "fakes", log, MEASURE_PLAN, (f"train the {network.title}",))


def snapshot_of(home: pathlib.Path) -> pathlib.Path:
    """The last network snapshot of a finished training."""
    return max(home.glob("*/network-snapshot-*.pkl"))


def measured_fid(log: pathlib.Path) -> float:
    """The value in the line of JSON that calc_metrics.py printed."""
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("{")]
    (value,) = json.loads(lines[-1])["results"].values()
    return value


def make_entries(folder: pathlib.Path, networks: list[Network], budget: Budget) -> list:
    """Run everything and collect the rows of the report, one a network."""
    trainings = [train_job(network, budget, folder) for network in networks]
    run_jobs([*trainings, *(measure_job(network, folder) for network in networks)])

    from scripts.demo_report import Entry
    from training.files.snapshot import load_snapshot

    generators = [load_snapshot(snapshot_of(folder / network.key))["G_ema"] for network in networks]
    return [
        Entry(
            title=network.title.capitalize(),
            **generator_size(G),
            fid=measured_fid(folder / network.key / "metrics.log"),
            seconds=training.seconds,
            kimg=budget.kimg,
            batch=budget.batch,
            grid=sample_grid(G),
        )
        for network, training, G in zip(networks, trainings, generators)
    ]


def generator_size(G) -> dict:
    """Channels, parameters and MACs of a generator, by their names in the report's Entry."""
    from dgl.student import count_macs, count_params

    blocks = [getattr(G.synthesis, f"b{resolution}") for resolution in G.synthesis.block_resolutions]
    channels = tuple(block.conv1.weight.shape[0] for block in blocks)
    return {"channels": channels, "params": count_params(G), "macs": count_macs(G)}


def sample_grid(G):
    """Images of the same seeds for every network, uint8 [H, W]: what generate.py makes with --seeds and --class."""
    import numpy as np
    import torch

    from scripts.demo_report import make_grid
    from torch_utils.images import to_uint8

    z = np.stack([np.random.RandomState(seed).randn(G.z_dim) for seed in range(SEEDS) for _ in range(CLASSES)])
    c = torch.eye(CLASSES).repeat(SEEDS, 1)
    with torch.no_grad():
        img = G(torch.from_numpy(z).float(), c, truncation_psi=TRUNC, noise_mode="const")
    return make_grid(list(to_uint8(img)[:, 0].numpy()), CLASSES)


def notes(budget: Budget, elapsed: float) -> list[str]:
    """The paragraphs under the grids."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    return [
        f"All three were trained on the same number of the 5,000 digits of {DATA} and their labels, with "
        f"{' '.join([*budget.flags(), *PLAIN])}. The guided student also has to convince the frozen discriminator of "
        f"the teacher (--dgl-teacher, weight 0.1); the control student differs in nothing else.",
        f"FID: {METRIC} in the features of the detector '{DETECTOR}', 5,000 generated against the 5,000 real images. "
        f"Such values compare with each other, not with FIDs of the Inception network.",
        f"Grids: a column for each digit from 0 to 9, a row for each seed from 0 to {SEEDS - 1}, the same for each "
        f"network; truncation psi {TRUNC:g}. MACs per image: convolutions and linear layers of the generator. One kimg "
        f"is 1,000 real images shown.",
        f"Made with PyTorch {torch.__version__} on {device} in {format_time(elapsed)}, all in all. {LANES} jobs ran at "
        f"a time, each on its share of the cores.",
    ]


def remove_older_runs(outdir: pathlib.Path, keep: pathlib.Path) -> None:
    """Delete the networks of earlier demos, which no report shows any more."""
    for path in outdir.iterdir():
        if path.is_dir() and path != keep and RUN_NAME.fullmatch(path.name):
            shutil.rmtree(path)


@click.command()
@click.option("--outdir", default="runs/demo", show_default=True, metavar="DIR", help="Where the report goes.")
@click.option("--quick", is_flag=True, help="Tiny networks and budgets: shows that it runs, not what it can do.")
def main(outdir: str, quick: bool) -> None:
    """Train a teacher and two narrow students on digits, and compare them in a report."""
    budget = QUICK if quick else BUDGET
    networks = [dataclasses.replace(net, cbase=QUICK_CBASE, plan=20) for net in NETWORKS] if quick else NETWORKS
    home = pathlib.Path(outdir).resolve()
    folder = home / time.strftime("%Y%m%d-%H%M%S")
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--outdir={outdir}: cannot make a folder there ({error.strerror})") from error

    start = time.monotonic()
    entries = make_entries(folder, networks, budget)
    elapsed = time.monotonic() - start

    from scripts.demo_report import HEADER, table, write_html, write_png

    heading = "A guided student beside its teacher and a control"
    for write, name in ((write_png, "report.png"), (write_html, "report.html")):
        write(home / name, heading, entries, notes(budget, elapsed))
    remove_older_runs(home, keep=folder)
    rows = [HEADER, *table(entries)]
    widths = [max(len(cell) for cell in column) for column in zip(*rows)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    report = os.path.relpath(home / "report.html")
    click.echo(f"{format_time(elapsed)} in all. Report: {report}, and report.png beside it.")


if __name__ == "__main__":
    cli.run(main)
