# SPDX-License-Identifier: Apache-2.0
"""Does training end equally well in every precision? The same short runs on the demo data, and their FIDs.

`python -m scripts.precision_check` writes result.json and result.png. A half precision passes if its FIDs differ by no
more than the noise between seeds. With --seconds each run has a fixed duration instead, which compares speed.
"""

import contextlib
import json
import math
import pathlib
import statistics
import sys
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # for python scripts/precision_check.py

from dnnlib import cli, network_options
from dnnlib.cli import click
from dnnlib.files import make_folder, write_text
from dnnlib.text import markdown

with cli.missing_package_exits():
    from dnnlib import charts

TICKS = 20  # points of a loss curve
CLOCK_IMAGES = 320  # images between looks at the clock, with --seconds
# As in the demo: narrow and conditional networks, here with half precision.
FLAGS = {"cfg": "cifar", "cond": True, "gamma": 10.0, "aug": "noaug", "metrics": ()}
COMMON_FLAGS = ("data", "batch", "cbase", "device", "workers")  # passed on to the training options


def train_once(precision: str, seed: int, folder: pathlib.Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train and measure one network; its output goes to `folder`/log.txt. `settings` are the flags of this command.

    Returns precision, seed, kimg, seconds, sec_per_kimg, fid (None without a metric) and the loss curves, as
    [[kimg, loss], ...] for G and D.
    """
    from training.training_loop import Trainer, TrainingOptions

    folder.mkdir(parents=True, exist_ok=True)
    stats = folder / "stats.jsonl"
    stats.unlink(missing_ok=True)  # of an earlier run into the same folder
    start, seconds = time.monotonic(), settings["seconds"]

    def over() -> bool:
        return seconds is not None and time.monotonic() - start >= seconds

    with open(folder / "log.txt", "w", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        options = training_options(precision, seed, settings)
        trainer = Trainer(TrainingOptions(run_dir=str(folder), **options))
        trainer.run(abort_fn=over)
        fid = measure(trainer, options["training_set_kwargs"], settings)
    ticks = [json.loads(line) for line in stats.read_text(encoding="utf-8").splitlines()]
    paces = [tick["Timing/sec_per_kimg"]["mean"] for tick in ticks]
    losses = {
        name: [[tick["Progress/kimg"]["mean"], tick[f"Loss/{name}/loss"]["mean"]] for tick in ticks] for name in "GD"
    }
    return {
        "precision": precision,
        "seed": seed,
        "kimg": trainer.cur_nimg / 1000,
        "seconds": ticks[-1]["Timing/total_sec"]["mean"],
        "sec_per_kimg": statistics.median(paces[1:] or paces),  # the first tick warms up
        "fid": fid,
        "loss": losses,
    }


def training_options(precision: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Options of the training loop."""
    from training.options import build

    common = {name: settings[name] for name in COMMON_FLAGS}
    _desc, options = build(**FLAGS, **common, precision=precision, seed=seed)
    images = settings["iterations"] * settings["batch"]
    per_tick = CLOCK_IMAGES if settings["seconds"] is not None else max(images // TICKS, settings["batch"])
    files = {"image_snapshot_ticks": None, "network_snapshot_ticks": None}  # statistics only
    return {**options, **files, "total_kimg": images / 1000, "kimg_per_tick": per_tick / 1000}


def measure(trainer, dataset_kwargs: dict[str, Any], settings: dict[str, Any]) -> float | None:
    """The metric of the trainer's averaged generator."""
    from metrics.metric_main import calc_metric

    if settings["metric"] is None:
        return None
    options = {"dataset_kwargs": dataset_kwargs, "detector": settings["detector"], "device": trainer.device}
    (value,) = calc_metric(settings["metric"], G=trainer.G_ema, **options).results.values()
    return value


def compare(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and deviation of the FIDs of each precision, and each precision against the first."""
    from metrics import seeds

    fids: dict[str, list[float]] = {}
    for run in runs:
        fids.setdefault(run["precision"], []).append(run["fid"])
    summary = {name: seeds.summarise(values) for name, values in fids.items()}
    first, *others = fids
    pairs = [{"precisions": [first, other], **seeds.difference(fids[first], fids[other])} for other in others]
    return {"summary": summary, "comparisons": pairs}


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table, and a line for each comparison."""
    rows = [["precision", "seed", "kimg", "seconds", "sec/kimg", "FID"]]
    for run in result["runs"]:
        fid = "-" if run["fid"] is None else f"{run['fid']:.2f}"
        numbers = (f"{run['kimg']:g}", f"{run['seconds']:.0f}", f"{run['sec_per_kimg']:.2f}")
        rows.append([run["precision"], str(run["seed"]), *numbers, fid])
    lines = [markdown(rows), ""]
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
    runs = result["runs"]
    colours = {name: index for index, name in enumerate(dict.fromkeys(run["precision"] for run in runs))}
    pictures = []
    for net in "GD":
        curves = [charts.Series(run["precision"], run["loss"][net], colours[run["precision"]]) for run in runs]
        pictures.append(charts.chart(f"Loss of {net}", "kimg", curves))
    if "summary" in result:
        dots = [charts.Series(r["precision"], [(r["seed"], r["fid"])], colours[r["precision"]], False) for r in runs]
        pictures.append(charts.chart("FID", "seed", dots))
    return charts.beside(pictures)


@click.command(context_settings={"show_default": True})
@click.option("--outdir", default="runs/precision", metavar="DIR", help="Folder for result.json and result.png.")
@click.option("--data", default="data/mnist5k-32x32.zip", metavar="ZIP", help="Images with labels.")
@click.option("--precisions", type=cli.CommaList(), default="fp32,bf16", help="Compared with the first.")
@click.option("--seeds", type=cli.INT_LIST, default="0-2", help="A run of each precision for each.")
@click.option("--iterations", type=click.IntRange(min=1), default=200, help="Length of a run.")
@click.option("--batch", type=click.IntRange(min=1), default=32, help="Images per iteration.")
@click.option("--cbase", type=float, default=256, help="Width of both networks, as in train.py.")
@click.option("--seconds", type=click.FloatRange(min=0), help="Stop a run after this time.  [default: never]")
@click.option("--workers", type=click.IntRange(min=1), default=1, help="Data-loader workers.")
@click.option("--metric", default="fid5k_full", help="FID to measure, or none.")
@click.option("--detector", default="mnist", metavar="FILE|NAME", help="Feature network of the FID.")
@network_options.trust_detector
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Device to train on.")
def main(outdir: str, precisions: list[str], seeds: list[int], **settings) -> int:
    """Train the same networks in several precisions and compare the results.

    Exit status 1 if FIDs differ by more than the noise between seeds.
    """
    import torch

    from metrics import detectors
    from torch_utils import distributed, machine

    if settings.pop("trust_detector"):
        detectors.trust(settings["detector"])
    folder = make_folder(outdir, "--outdir")
    settings["metric"] = None if settings["metric"] == "none" else settings["metric"]
    if settings["metric"] is not None:
        detectors.ensure_available([settings["metric"]], settings["detector"])
    device = machine.short_name(distributed.resolve_device(settings["device"]))
    result: dict[str, Any] = {"device": device, "torch": torch.__version__, "settings": settings, "runs": []}
    todo = [(precision, seed) for seed in seeds for precision in precisions]
    for number, (precision, seed) in enumerate(todo, 1):
        click.echo(f"Run {number} of {len(todo)}: {precision}, seed {seed}", err=True)
        result["runs"].append(train_once(precision, seed, folder / f"{precision}-seed{seed}", settings))
        if all(run["fid"] is not None for run in result["runs"]):
            result.update(compare(result["runs"]))
        # After each run, so that an interrupted check keeps its figures.
        write_text(folder / "result.json", json.dumps(result, indent=1))
        charts.save_png(picture(result), folder / "result.png")
    click.echo(table(result))
    fids = [run["fid"] for run in result["runs"] if run["fid"] is not None]
    differs = any(pair["within_noise"] is False for pair in result.get("comparisons", []))
    return int(differs or not all(map(math.isfinite, fids)))


if __name__ == "__main__":
    cli.run(main)
