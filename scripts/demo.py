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
import subprocess
import sys
import time

import click

from dnnlib import cli
from dnnlib.util import UserError, format_time

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATA = "data/mnist5k-32x32.zip"
DETECTOR = "mnist"
METRIC = "fid5k_full"
SEEDS, GRID_COLUMNS = 48, 8
RUN_NAME = re.compile(r"\d{8}-\d{6}")


@dataclasses.dataclass(frozen=True)
class Budget:
    """What all three networks have in common; the flags of train.py of the same names."""

    kimg: int
    batch: int
    gamma: float
    trunc: float


@dataclasses.dataclass(frozen=True)
class Network:
    """One training run. `cbase` is the flag of train.py; `plan` its seconds on two cores, which the first ETA needs."""

    key: str
    title: str
    cbase: float
    guided: bool
    plan: float


# fmt: off
BUDGET = Budget(kimg=24, batch=16, gamma=0.1, trunc=1.0)
QUICK = Budget(kimg=1, batch=16, gamma=0.1, trunc=1.0)
NETWORKS = [
    #       key        title              cbase  guided   plan
    Network("teacher", "Teacher",           512, False,   240),
    Network("control", "Control student",   256, False,   180),
    Network("guided",  "Guided student",    256, True,    220),
]
QUICK_CBASE = 64
MEASURE_PLAN, GENERATE_PLAN = 20, 8
# fmt: on


@dataclasses.dataclass(frozen=True)
class Stage:
    """One command of the demo: its name, its arguments, the word its progress lines start with, its log, its time."""

    title: str
    args: list[str]
    progress: str
    log: pathlib.Path
    plan: float


class Board:
    """Says where the demo stands: stage k of n, how far it has come, and when it and the whole will be done."""

    def __init__(self, plans: list[float]):
        self.plans = plans
        self.start = time.monotonic()
        self.in_place = sys.stderr.isatty()
        self.interval = 1.0 if self.in_place else 10.0
        self.stage = -1

    def begin(self, title: str) -> None:
        """Go on to the next stage."""
        self.stage += 1
        self.title = title
        self.stage_start = self.last_print = time.monotonic()
        self.fraction = 0.0
        self.fraction_time = self.stage_start
        self._print(f"{self._place()} ...", keep=not self.in_place)

    def reached(self, fraction: float) -> None:
        """Note that `fraction` of the present stage is done."""
        if fraction > self.fraction:
            self.fraction, self.fraction_time = min(fraction, 1.0), time.monotonic()

    def show(self) -> None:
        """Print the state, if the last time was long enough ago."""
        now = time.monotonic()
        if now - self.last_print < self.interval:
            return
        self.last_print = now
        left, total = self.remaining(now)
        done = f"{self.fraction:.0%}, " if self.fraction else ""
        text = f"{self._place()}: {done}{format_time(now - self.stage_start)}, ETA {format_time(left)}"
        self._print(f"{text} | whole demo: ETA {format_time(total)}", keep=not self.in_place)

    def remaining(self, now: float) -> tuple[float, float]:
        """Seconds left of the present stage, and of the whole demo: later stages as planned, at the pace so far."""
        stage_time = self.plans[self.stage]
        if self.fraction:
            stage_time = (self.fraction_time - self.stage_start) / self.fraction
        left = max(stage_time - (now - self.stage_start), 0)
        pace = (now - self.start + left) / sum(self.plans[: self.stage + 1])
        return left, left + pace * sum(self.plans[self.stage + 1 :])

    def end(self) -> None:
        """Close the present stage."""
        self._print(f"{self._place()}: done in {format_time(time.monotonic() - self.stage_start)}", keep=True)

    def _place(self) -> str:
        return f"[{self.stage + 1}/{len(self.plans)}] {self.title}"

    def _print(self, text: str, keep: bool) -> None:
        sys.stderr.write(f"\r\033[K{text}" if self.in_place else text)
        sys.stderr.write("\n" if keep else "")
        sys.stderr.flush()


def run_stage(stage: Stage, board: Board) -> float:
    """Run one command of the project, its output going to the stage's log; returns its seconds.

    Raises UserError with the command's own last words where it fails.
    """
    board.begin(stage.title)
    start = time.monotonic()
    stage.log.parent.mkdir(parents=True, exist_ok=True)
    with open(stage.log, "w", encoding="utf-8") as log, open(stage.log, encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, *stage.args], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        try:
            while process.poll() is None:
                for count, total in re.findall(rf"{stage.progress} (\d+)/(\d+) ", output.read()):
                    board.reached(int(count) / int(total))
                board.show()
                time.sleep(0.2)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode != 0:
        last_lines = "\n".join(stage.log.read_text(encoding="utf-8").splitlines()[-12:])
        raise UserError(
            f"the demo stopped at '{stage.title}' (exit status {process.returncode}); whole output in {stage.log}, "
            f"the end of it:\n{last_lines}"
        )
    board.end()
    return time.monotonic() - start


def train_stage(network: Network, budget: Budget, folder: pathlib.Path, teacher: pathlib.Path | None) -> Stage:
    """The stage that trains `network` into `folder/<key>`; `teacher` is the pickle that guides it, if any."""
    args = [
        "train.py", f"--outdir={folder / network.key}", f"--data={DATA}", f"--kimg={budget.kimg}",
        f"--batch={budget.batch}", f"--gamma={budget.gamma}", f"--cbase={network.cbase}", "--aug=noaug",
        "--metrics=none", "--snap=1000000", "--workers=1", "--seed=0",
    ]  # fmt: skip
    if teacher is not None:
        args.append(f"--dgl-teacher={teacher}")
    log = folder / network.key / "train.log"
    return Stage(f"train the {network.title.lower()}", args, "training", log, network.plan)


def snapshot_of(folder: pathlib.Path, network: Network) -> pathlib.Path:
    """The last network snapshot of a finished training."""
    return max((folder / network.key).glob("*/network-snapshot-*.pkl"))


def measured_fid(log: pathlib.Path) -> float:
    """The value in the line of JSON that calc_metrics.py printed."""
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("{")]
    (value,) = json.loads(lines[-1])["results"].values()
    return value


def make_entries(folder: pathlib.Path, networks: list[Network], budget: Budget) -> list:
    """Run all stages and collect the rows of the report, one a network."""
    from scripts.demo_report import Entry, make_grid

    plans = [network.plan for network in networks] + [MEASURE_PLAN, GENERATE_PLAN] * len(networks)
    board = Board(plans)
    seconds, pickles = {}, {}
    for network in networks:
        teacher = pickles["teacher"] if network.guided else None
        seconds[network.key] = run_stage(train_stage(network, budget, folder, teacher), board)
        pickles[network.key] = snapshot_of(folder, network)
    entries = []
    for network in networks:
        home, pkl, name = folder / network.key, pickles[network.key], network.title.lower()
        measure = ["calc_metrics.py", f"--network={pkl}", f"--metrics={METRIC}", f"--detector={DETECTOR}"]
        measure.append(f"--data={DATA}")
        run_stage(Stage(f"measure the {name}", measure, "fakes", home / "metrics.log", MEASURE_PLAN), board)
        draw = ["generate.py", f"--network={pkl}", f"--seeds=0-{SEEDS - 1}", f"--trunc={budget.trunc}"]
        draw.append(f"--outdir={home / 'samples'}")
        run_stage(Stage(f"sample the {name}", draw, "Generating", home / "generate.log", GENERATE_PLAN), board)
        entries.append(
            Entry(
                title=network.title,
                **generator_size(pkl),
                fid=measured_fid(home / "metrics.log"),
                seconds=seconds[network.key],
                kimg=budget.kimg,
                batch=budget.batch,
                grid=make_grid([read_image(home / "samples" / f"seed{i:04d}.png") for i in range(SEEDS)], GRID_COLUMNS),
            )
        )
    return entries


def generator_size(pkl: pathlib.Path) -> dict:
    """Channels, parameters and MACs of the generator in a snapshot, by their names in the report's Entry."""
    from dgl.student import count_macs, count_params
    from training.snapshot import load_snapshot

    G = load_snapshot(pkl)["G_ema"]
    blocks = [getattr(G.synthesis, f"b{resolution}") for resolution in G.synthesis.block_resolutions]
    channels = tuple(block.conv1.weight.shape[0] for block in blocks)
    return {"channels": channels, "params": count_params(G), "macs": count_macs(G)}


def read_image(path: pathlib.Path):
    """uint8 array of an image file."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as img:
        return np.asarray(img)


def notes(budget: Budget, elapsed: float) -> list[str]:
    """The paragraphs under the grids."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    return [
        f"All three were trained on the 5,000 digits of {DATA} for the same number of images, with "
        f"--gamma={budget.gamma} --aug=noaug --seed=0 and otherwise the defaults of train.py. The guided student also "
        f"has to convince the frozen discriminator of the teacher (--dgl-teacher, weight 0.1); the control student "
        f"differs in nothing else.",
        f"FID: {METRIC} in the features of the detector '{DETECTOR}', 5,000 generated against the 5,000 real images. "
        f"Such values compare with each other, not with FIDs of the Inception network.",
        f"Grids: the same {SEEDS} seeds for each network, truncation psi {budget.trunc}. MACs per image: convolutions "
        f"and linear layers of the generator. One kimg is 1,000 real images shown.",
        f"Made with PyTorch {torch.__version__} on {device} in {format_time(elapsed)}, all in all.",
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

    from scripts.demo_report import COLUMNS, table, write_html, write_png

    heading = "A guided student beside its teacher and a control"
    for write, name in ((write_png, "report.png"), (write_html, "report.html")):
        write(home / name, heading, entries, notes(budget, elapsed))
    remove_older_runs(home, keep=folder)
    rows = [COLUMNS, *table(entries)]
    widths = [max(len(cell) for cell in column) for column in zip(*rows)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    report = os.path.relpath(home / "report.html")
    click.echo(f"{format_time(elapsed)} in all. Report: {report}, and report.png beside it.")


if __name__ == "__main__":
    cli.run(main)
