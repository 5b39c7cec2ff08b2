# SPDX-License-Identifier: Apache-2.0
"""The benchmark: the fast path against the plain reference path, interleaved in one process. `python -m benchmarks`."""

import datetime
import pathlib
import sys
import tempfile

import click

from dnnlib.cli import INT_LIST, CommaList, run
from dnnlib.files import make_folder
from dnnlib.util import UserError

CPU_BATCH = 4
BUDGET, QUICK_BUDGET = 15.0, 1.0
JSON_NAME, PLOT_NAME = "benchmark.json", "benchmark.png"
UNNAMED = ("--out", "--compare")  # options that are not recorded


@click.command()
@click.option("--out", default="runs/bench", show_default=True, metavar="DIR", help="Folder for JSON file and plot.")
@click.option("--quick", is_flag=True, help="Training and inference at one resolution, few rounds.")
@click.option("--full", is_flag=True, help="Everything at every resolution, without regard to time.")
@click.option("--only", type=CommaList(), metavar="LIST", help="Cases: op, op/bias_act, *conv*, loop ...")
@click.option("--res", type=INT_LIST, help="Resolutions.  [default: 64,128,256; on CUDA 256,512,1024]")
@click.option("--precisions", type=CommaList(), help="Of fp32, fp16, bf16.  [default: all that the device supports]")
@click.option("--batch", type=click.IntRange(min=1), help="Images per iteration.  [default: 4; on CUDA --cfg=auto's]")
@click.option("--cbase", type=click.FloatRange(min=0, min_open=True), help="Narrower networks, as in train.py.")
@click.option("--budget", type=click.FloatRange(min=0), help="Seconds per case, for at least 3 rounds.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: PyTorch's]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--compare", metavar="JSON", help="An earlier run; exit status 1 if a ratio fell.")
@click.option("--tolerance", type=click.FloatRange(0, 100), default=10, help="Percent, for --compare.  [default: 10]")
def main(out, quick, full, only, res, precisions, batch, cbase, budget, threads, device, compare, tolerance):
    """Measure the fast path against the plain reference path of this repository.

    Prints ratios (above 1 is faster), writes benchmark.json and benchmark.png. Keep the machine idle otherwise.
    """
    import torch

    from benchmarks import cases, measure, report, results
    from torch_utils import machine
    from torch_utils.distributed import configure_device, resolve_device

    if threads is not None:
        torch.set_num_threads(threads)
    device = configure_device(resolve_device(device))
    earlier = None if compare is None else results.load(compare)
    chosen, auto = cases.available(device, precisions), cases.auto_choice(device)
    folder = make_folder(out, "--out")
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    found = results.Run(_command(sys.argv[1:]), date, machine.describe(device), auto, cbase)
    if batch is None and device.type == "cpu":
        batch = CPU_BATCH
    if budget is None:
        budget = QUICK_BUDGET if quick else BUDGET
    with tempfile.TemporaryDirectory() as temporary:

        def make_setting(resolution):
            return cases.Setting(device, resolution, batch, cbase, pathlib.Path(temporary))

        jobs = measure.select(device.type, make_setting, chosen, auto, quick, full, only, res)
        measure.measure(jobs, found, budget, lambda done: done.save(folder / JSON_NAME))
    click.echo(report.page(found))
    report.save_plot(found, folder / PLOT_NAME)
    click.echo(f"\n{JSON_NAME} and {PLOT_NAME} are in {folder}.")
    if earlier is None:
        return 0
    changes = results.compare(earlier, found, tolerance)
    if not changes:
        raise UserError(f"--compare={compare} has no measurement in common with this run")
    click.echo("\n" + report.comparison(changes, tolerance, results.differences(earlier, found)))
    return int(any(change.regressed for change in changes))


def _command(arguments: list[str]) -> str:
    """The command line without options that name files, which have no meaning on other machines."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and argument.partition("=")[0] not in UNNAMED:
            kept.append(argument)
        skip = not skip and argument in UNNAMED  # the value is the next argument
    return " ".join(["python -m benchmarks", *kept])


if __name__ == "__main__":
    run(main)
