# SPDX-License-Identifier: Apache-2.0
"""Does training end alike in every precision? The same short runs on the demo data, seed by seed, and their FIDs.

`python -m scripts.precision_check` writes result.json and result.png: FIDs that differ by no more than the seeds do are
what half precision has to show. With --seconds each run lasts that long instead, which shows speed.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import statistics
import time
from typing import Any

import click

from dnnlib import cli
from dnnlib.util import UserError, open_atomic

SIGNIFICANCE = 0.05  # of the test whether two sets of FIDs have the same mean
TICKS = 20  # points of a loss curve
CLOCK_IMAGES = 320  # images between looks at the clock, with --seconds


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all runs have in common; the names are those of the flags."""

    data: str
    iterations: int
    batch: int
    cbase: float
    seconds: float | None
    workers: int
    device: str
    metric: str | None
    detector: str


def train_once(precision: str, seed: int, folder: pathlib.Path, settings: Settings) -> dict[str, Any]:
    """Train and measure one network; what it says on the way goes to `folder`/log.txt.

    Returns precision, seed, kimg, seconds, sec_per_kimg, fid (None without a metric) and the loss curves, as
    [[kimg, loss], ...] for G and D.
    """
    from training.training_loop import Trainer, TrainingOptions

    folder.mkdir(parents=True, exist_ok=True)
    stats = folder / "stats.jsonl"
    stats.unlink(missing_ok=True)  # of an earlier run into the same folder
    start = time.monotonic()

    def over() -> bool:
        return settings.seconds is not None and time.monotonic() - start >= settings.seconds

    with open(folder / "log.txt", "w", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        trainer = Trainer(TrainingOptions(run_dir=str(folder), **options(precision, seed, settings)))
        trainer.run(abort_fn=over)
        fid = measure(trainer, settings)
    ticks = [json.loads(line) for line in stats.read_text(encoding="utf-8").splitlines()]
    return {
        "precision": precision,
        "seed": seed,
        "kimg": trainer.cur_nimg / 1000,
        "seconds": ticks[-1]["Timing/total_sec"]["mean"],
        # The first tick warms up, the others are alike.
        "sec_per_kimg": statistics.median(tick["Timing/sec_per_kimg"]["mean"] for tick in ticks[1:] or ticks),
        "fid": fid,
        "loss": {
            name: [[tick["Progress/kimg"]["mean"], tick[f"Loss/{name}/loss"]["mean"]] for tick in ticks]
            for name in "GD"
        },
    }


def options(precision: str, seed: int, settings: Settings) -> dict[str, Any]:
    """Options of the training loop: those of the demo's networks, narrow and conditional, in half precision."""
    from training import config

    _desc, made = config.build(
        data=settings.data,
        cfg="cifar",
        cond=True,
        gamma=10.0,
        aug="noaug",
        batch=settings.batch,
        cbase=settings.cbase,
        precision=precision,
        seed=seed,
        device=settings.device,
        workers=settings.workers,
        metrics=(),
    )
    images = settings.iterations * settings.batch
    per_tick = CLOCK_IMAGES if settings.seconds is not None else max(images // TICKS, settings.batch)
    made.update(total_kimg=images / 1000, kimg_per_tick=per_tick / 1000)
    made.update(image_snapshot_ticks=None, network_snapshot_ticks=None)  # nothing but statistics
    return made


def measure(trainer, settings: Settings) -> float | None:
    """The metric of the trainer's averaged generator."""
    from metrics.metric_main import calc_metric

    if settings.metric is None:
        return None
    result = calc_metric(
        metric=settings.metric,
        G=trainer.G_ema,
        dataset_kwargs=trainer.opt.training_set_kwargs,
        device=trainer.device,
        detector=settings.detector,
    )
    (value,) = result.results.values()
    return value


def compare(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and deviation of the FIDs of each precision, and each of them against the first by Welch's test."""
    import numpy as np
    import scipy.stats

    by_precision: dict[str, list[float]] = {}
    for run in runs:
        by_precision.setdefault(run["precision"], []).append(run["fid"])
    summary = {
        name: {"mean": float(np.mean(fids)), "std": float(np.std(fids, ddof=1)) if len(fids) > 1 else None}
        for name, fids in by_precision.items()
    }
    first, *others = by_precision
    comparisons = []
    for other in others:
        a, b = by_precision[first], by_precision[other]
        enough = min(len(a), len(b)) > 1
        p = float(scipy.stats.ttest_ind(a, b, equal_var=False).pvalue) if enough else None
        comparisons.append(
            {
                "precisions": [first, other],
                "difference": summary[other]["mean"] - summary[first]["mean"],
                "p": p,
                "within_noise": None if p is None else p > SIGNIFICANCE,  # NaN, of a broken run, is not
            }
        )
    return {"summary": summary, "comparisons": comparisons}


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table with a line for each comparison below it."""
    lines = ["| precision | seed | kimg | seconds | sec/kimg | FID |", "| --- | --- | --- | --- | --- | --- |"]
    for run in result["runs"]:
        fid = "-" if run["fid"] is None else f"{run['fid']:.2f}"
        numbers = f"{run['kimg']:g} | {run['seconds']:.0f} | {run['sec_per_kimg']:.2f}"
        lines.append(f"| {run['precision']} | {run['seed']} | {numbers} | {fid} |")
    lines.append("")
    for name, value in result.get("summary", {}).items():
        spread = "" if value["std"] is None else f" ± {value['std']:.2f}"
        lines.append(f"- {name}: FID {value['mean']:.2f}{spread}")
    for pair in result.get("comparisons", []):
        verdict = {None: "too few seeds to say", True: "within the noise between seeds", False: "MORE than noise"}
        p = "" if pair["p"] is None else f" (p = {pair['p']:.2f})"
        names = " and ".join(pair["precisions"])
        lines.append(f"- {names} differ by {pair['difference']:+.2f}: {verdict[pair['within_noise']]}{p}")
    return "\n".join(lines)


def picture(result: dict[str, Any]):
    """Loss curves and, where measured, FIDs by seed; a colour for each precision."""
    from dnnlib.charts import Series, beside, chart

    names = list(dict.fromkeys(run["precision"] for run in result["runs"]))
    charts = []
    for network in "GD":
        curves = [Series(r["precision"], r["loss"][network], names.index(r["precision"])) for r in result["runs"]]
        charts.append(chart(f"Loss of {network}", "kimg", curves))
    if "summary" in result:
        dots = [Series(r["precision"], [(r["seed"], r["fid"])], names.index(r["precision"]), False)
                for r in result["runs"]]  # fmt: skip
        charts.append(chart("FID", "seed", dots))
    return beside(charts)


def write(result: dict[str, Any], outdir: pathlib.Path) -> None:
    """result.json and result.png."""
    with open_atomic(outdir / "result.json", "w") as file:
        json.dump(result, file, indent=1)
    with open_atomic(outdir / "result.png") as file:
        picture(result).save(file, format="png")


def machine(settings: Settings) -> dict[str, str]:
    """Device and PyTorch version, for the record."""
    import torch

    from torch_utils.distributed import resolve_device

    device = resolve_device(settings.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} CPU cores"
    return {"device": name, "torch": torch.__version__}


@click.command(context_settings={"show_default": True})
@click.option("--outdir", default="runs/precision", metavar="DIR", help="Where result.json and result.png go.")
@click.option("--data", default="data/mnist5k-32x32.zip", metavar="ZIP", help="Images with labels.")
@click.option("--precisions", type=cli.CommaList(), default="fp32,bf16", help="What to compare, with the first.")
@click.option("--seeds", type=cli.INT_LIST, default="0-2", help="A run of each precision for each.")
@click.option("--iterations", type=click.IntRange(min=1), default=200, help="Length of a run.")
@click.option("--batch", type=click.IntRange(min=1), default=32, help="Images of an iteration.")
@click.option("--cbase", type=float, default=256, help="Width of both networks, as in train.py.")
@click.option("--seconds", type=click.FloatRange(min=0), help="Stop a run after this time.  [default: never]")
@click.option("--workers", type=click.IntRange(min=1), default=1, help="Processes that load data.")
@click.option("--metric", default="fid5k_full", help="FID to measure, or none.")
@click.option("--detector", default="mnist", metavar="FILE|NAME", help="Feature network of the FID.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where to train.")
def main(outdir: str, precisions: list[str], seeds: list[int], metric: str, **common) -> int:
    """Train the same networks in several precisions and compare how they end.

    Exit status 1 where FIDs differ by more than the noise between seeds.
    """
    settings = Settings(metric=None if metric == "none" else metric, **common)
    folder = pathlib.Path(outdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--outdir={outdir}: cannot make a folder there ({error.strerror})") from error
    result: dict[str, Any] = {**machine(settings), "settings": dataclasses.asdict(settings), "runs": []}
    todo = [(precision, seed) for seed in seeds for precision in precisions]
    for number, (precision, seed) in enumerate(todo, 1):
        click.echo(f"Run {number} of {len(todo)}: {precision}, seed {seed}", err=True)
        result["runs"].append(train_once(precision, seed, folder / f"{precision}-seed{seed}", settings))
        if all(run["fid"] is not None for run in result["runs"]):
            result.update(compare(result["runs"]))
        write(result, folder)  # after each run, so that an interrupted check has something to show
    click.echo(table(result))
    fids = [run["fid"] for run in result["runs"] if run["fid"] is not None]
    noisy = any(pair["within_noise"] is False for pair in result.get("comparisons", []))
    return int(noisy or not all(map(math.isfinite, fids)))


if __name__ == "__main__":
    cli.run(main)
