# SPDX-License-Identifier: Apache-2.0
"""The benchmark: our fast path against the plain reference path, interleaved in one process. `python -m benchmarks`."""

import datetime
import importlib.util
import pathlib
import sys
import tempfile

import click

from dnnlib.cli import INT_LIST, CommaList, run

DEFAULT_RESOLUTIONS = {"cpu": [64, 128, 256], "cuda": [256, 512, 1024]}
HEADLINE = {"cpu": 128, "cuda": 256}
CPU_BATCH = 4
BUDGET, QUICK_BUDGET = 15.0, 1.0
JSON_NAME, PLOT_NAME = "benchmark.json", "benchmark.png"
UNNAMED = ("--out", "--compare")  # of the command line, what is not recorded


@click.command()
@click.option("--out", default="runs/bench", show_default=True, metavar="DIR", help="Where JSON and plot go.")
@click.option("--quick", is_flag=True, help="Training and inference at one resolution, few rounds.")
@click.option("--full", is_flag=True, help="Everything at every resolution, whatever the time.")
@click.option("--only", type=CommaList(), metavar="LIST", help="Cases: op, op/bias_act, *conv*, loop ...")
@click.option("--res", type=INT_LIST, help="Resolutions.  [default: 64,128,256; on CUDA 256,512,1024]")
@click.option("--precisions", type=CommaList(), help="Of fp32, fp16, bf16.  [default: all the device has]")
@click.option("--batch", type=click.IntRange(min=1), help="Images an iteration.  [default: 4; on CUDA --cfg=auto's]")
@click.option("--cbase", type=click.FloatRange(min=0, min_open=True), help="Narrower networks, as in train.py.")
@click.option("--budget", type=click.FloatRange(min=0), help="Seconds a case; 3 rounds are made in any case.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: PyTorch's]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--compare", metavar="JSON", help="An earlier run; status 1 if a ratio has fallen.")
@click.option(
    "--tolerance", type=click.FloatRange(0, 100), default=10, show_default=True, help="Percent, for --compare."
)
def main(out, quick, full, only, res, precisions, batch, cbase, budget, threads, device, compare, tolerance):
    """Measure the fast path against the plain reference path of this repository.

    Prints ratios (above 1 is faster), writes benchmark.json and benchmark.png. Leave the machine alone meanwhile.
    """
    import torch

    from benchmarks import machine, measure, results, variants
    from benchmarks.cases import Setting
    from torch_utils.distributed import configure_device, resolve_device

    if threads is not None:
        torch.set_num_threads(threads)
    device = configure_device(resolve_device(device))
    earlier = None if compare is None else results.load(compare)
    chosen = variants.available(device, precisions)
    auto = variants.auto_choice(device)
    scope = _scope(measure, device.type, quick, full, only, res)
    folder = _make_folder(out)
    command = _command(sys.argv[1:])
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    found = results.Run(command, date, machine.describe(device), auto, cbase)
    if batch is None and device.type == "cpu":
        batch = CPU_BATCH
    if budget is None:
        budget = QUICK_BUDGET if quick else BUDGET
    with tempfile.TemporaryDirectory() as temporary:

        def make_setting(resolution):
            return Setting(device, resolution, batch, cbase, pathlib.Path(temporary))

        jobs = measure.select(scope, make_setting, chosen, auto)
        measure.measure(jobs, found, budget, lambda done: done.save(folder / JSON_NAME))
    _report(found, folder)
    return 0 if compare is None else _compare(earlier, found, tolerance, compare)


def _scope(measure, device: str, quick: bool, full: bool, only: list[str] | None, res: list[int] | None):
    """What the flags ask for. Raises UserError where they contradict each other."""
    from benchmarks.cases import check_resolution
    from dnnlib.util import UserError

    if quick and full:
        raise UserError("--quick contradicts --full: drop one of the two")
    for resolution in res or ():
        check_resolution(resolution)
    headline = HEADLINE[device] if not res or HEADLINE[device] in res else res[0]
    return measure.Scope(
        patterns=only or (measure.QUICK_CASES[device] if quick else ["*"]),
        resolutions=res or ([headline] if quick else DEFAULT_RESOLUTIONS[device]),
        headline=headline,
        thorough=full or bool(only) or device == "cuda",
        slow_training=not quick,
    )


def _make_folder(out: str) -> pathlib.Path:
    from dnnlib.util import UserError

    folder = pathlib.Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={out}: cannot make a folder there ({error.strerror})") from error
    return folder


def _command(arguments: list[str]) -> str:
    """The command line without what names files, which are the business of one machine."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and argument.partition("=")[0] not in UNNAMED:
            kept.append(argument)
        skip = not skip and argument in UNNAMED  # its value comes as the next argument
    return " ".join(["python -m benchmarks", *kept])


def _report(found, folder: pathlib.Path) -> None:
    """Print everything and draw the plot."""
    from benchmarks import report

    sections = [report.machine_line(found), found.command, report.table(found), report.sec_per_kimg(found)]
    sections += [report.bandwidth(found), report.targets(found)]
    click.echo("\n\n".join(section for section in sections if section))
    names = JSON_NAME
    if importlib.util.find_spec("matplotlib") is None:
        click.echo("\nNo plot: it needs matplotlib (the extra 'bench').")
    else:
        from benchmarks.plot import save_plot

        save_plot(found, folder / PLOT_NAME)
        names = f"{JSON_NAME} and {PLOT_NAME}"
    click.echo(f"\n{names} are in {folder}.")


def _compare(earlier, found, tolerance: float, path: str) -> int:
    """Print how the ratios have changed; 1 if one has fallen, else 0. UserError where there is nothing to compare."""
    from benchmarks import report, results
    from dnnlib.util import UserError

    changes = results.compare(earlier, found, tolerance)
    if not changes:
        raise UserError(f"--compare={path} has no measurement in common with this run")
    click.echo("\n" + report.comparison(changes, tolerance, results.differences(earlier, found)))
    return int(any(change.regressed for change in changes))


if __name__ == "__main__":
    run(main)
