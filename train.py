# SPDX-License-Identifier: Apache-2.0
"""Train a GAN: flags (training.flags) -> options (training.options) -> checks -> run directory -> training loop."""

import contextlib
import json
import os
import re
import sys
import traceback

import click

from dnnlib.cli import BOOL, run
from dnnlib.files import locked
from dnnlib.util import Logger, UserError, open_atomic
from training.flags import OPTIONS, SWITCH, Option
from training.options import Plan, resolve


class _Flag(click.Option):
    def __init__(self, *args, group: str, **kwargs):
        super().__init__(*args, **kwargs)
        self.group = group


class _GroupedCommand(click.Command):
    """A command whose help lists its flags under the headings of their groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section per group, in the order of declaration."""
        sections: dict[str, list] = {}
        for param in self.get_params(ctx):
            sections.setdefault(getattr(param, "group", "Other"), []).append(param.get_help_record(ctx))
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)


def _flag(option: Option):
    """The click option of one row of the table. An absent flag is None, since the table has the default."""
    unset = option.default if option.unset is None else option.unset
    unset = {True: "yes", False: "no"}.get(unset, unset) if isinstance(unset, bool) else unset
    unset = ",".join(unset) if isinstance(unset, list) else unset
    kwargs = {"is_flag": True} if option.type is SWITCH else {"type": option.type}
    shown = "" if unset in (None, "") or option.type is SWITCH else f"  [default: {unset}]"
    metavar = "BOOL" if option.type is BOOL else option.metavar
    return click.option(
        option.flag, cls=_Flag, group=option.group, help=option.help + shown, default=None, metavar=metavar,
        **kwargs,
    )  # fmt: skip


def _flags_of_the_table(command):
    for option in reversed(OPTIONS):
        command = _flag(option)(command)
    return command


@click.command(cls=_GroupedCommand, context_settings={"max_content_width": 120})
@click.option("--outdir", cls=_Flag, group="Output", metavar="DIR",
              help="Run directories go here, numbered from 00000.")  # fmt: skip
@_flags_of_the_table
@click.option("-n", "--dry-run", cls=_Flag, group="Output", is_flag=True,
              help="Print the resolved options as JSON and stop.")  # fmt: skip
def main(outdir: str | None, dry_run: bool, **flags) -> None:
    """Train a GAN on a dataset of square images; with --dgl-teacher, a narrow one guided by a large one.

    \b
    Examples:
      python train.py --outdir=runs --data=faces.zip --gpus=8 --mirror=1
      python train.py --outdir=runs --data=faces.zip --gpus=8 --mirror=1 --resume=auto
      python train.py --resume=runs/00000-faces-auto
      python train.py --outdir=runs --data=cats.zip --resume=ffhq256 --snap=10
      python train.py --outdir=runs --data=digits.zip --metrics=fid5k_full --detector=mnist
      python train.py --outdir=runs --data=faces.zip --cfg=stylegan2 --cbase=0.5 --dgl-teacher=ffhq1024
    """
    given = {name: value for name, value in flags.items() if value is not None}
    if os.path.isdir(given.get("resume", "")):
        _continue(given.pop("resume"), given, dry_run)
        return
    for name, value in {"outdir": outdir, "data": given.get("data")}.items():
        if value is None:
            raise click.UsageError(f"Missing option '--{name}'.")
    auto = given.get("resume") == "auto"
    if auto:
        del given["resume"]
    plan = resolve(**given)
    if auto:
        from training.continuing import newest_unfinished

        run_dir = newest_unfinished(outdir, plan.options)
        if run_dir is not None:
            plan.opened.training_set.close()
            _continue(run_dir, given, dry_run)
            return
    if dry_run:
        click.echo("\n".join([*plan.notices, f"Run: {plan.desc}"]), err=True)
        click.echo(json.dumps(plan.options, indent=2))
        plan.opened.training_set.close()
        return
    _start(outdir, plan, given)


def _start(outdir: str, plan: Plan, given: dict) -> None:
    """Begin a run in a new directory."""
    from training.preflight import preflight

    preflight(plan.options, plan.opened, outdir)
    options = {"run_dir": create_run_dir(outdir, plan.desc), **plan.options}
    with open_atomic(os.path.join(options["run_dir"], "training_options.json"), "w") as file:
        json.dump(options, file, indent=2)
    opened = plan.opened
    if options["num_gpus"] > 1:  # the others open the files themselves: they cannot be passed on
        opened.training_set.close()
        opened.release()
        opened = None
    lines = ["Options:", json.dumps(options, indent=2), *plan.notices, f"Run directory: {options['run_dir']}"]
    _train(options, lines, opened, {"flags": given})


def _continue(run_dir: str, given: dict, dry_run: bool) -> None:
    """Go on with an interrupted run."""
    from training import continuing

    options = continuing.resume(run_dir, given, dry_run)
    if dry_run:
        click.echo(json.dumps(options, indent=2))
        return
    _train(options, [f"Continuing the run in {run_dir}"], resume=True)


def _train(options: dict, lines: list[str], opened=None, about: dict | None = None, resume: bool = False) -> None:
    """Run the training processes, with a log; a signal that ended them is the exit status."""
    from torch_utils.distributed import launch

    with locked(options["run_dir"]), _log(options):
        print("\n".join(lines))
        try:
            signum = launch(train_process, options["num_gpus"], options, opened, about, resume)
        except Exception as error:
            with open(os.path.join(options["run_dir"], "log.txt"), "a", encoding="utf-8") as file:
                file.write(f"Error: {error}\n" if isinstance(error, UserError) else traceback.format_exc())
            raise
    if signum is not None:
        sys.exit(128 + signum)


def create_run_dir(outdir: str, desc: str) -> str:
    """Make `<outdir>/<number>-<desc>`, numbered one above the highest present, and return its path.

    Raises UserError if it cannot be made.
    """
    try:
        os.makedirs(outdir, exist_ok=True)
        while True:
            numbers = [int(found[1]) for name in os.listdir(outdir) if (found := re.match(r"(\d{5,})(?:-|$)", name))]
            run_dir = os.path.join(outdir, f"{max(numbers, default=-1) + 1:05d}-{desc}")
            with contextlib.suppress(FileExistsError):  # another run took the number in the meantime
                os.mkdir(run_dir)
                return run_dir
    except OSError as error:
        raise UserError(f"--outdir={outdir}: cannot make a run directory there ({error.strerror})") from error


def train_process(rank: int, options: dict, opened=None, about: dict | None = None, resume: bool = False) -> int | None:
    """One process of a run; `options` are those of the training loop, `opened` the files already open.

    `about` and `resume` as for the loop. Returns the number of the signal that ended the run, or None; one of several
    processes exits with the status that belongs to it.
    """
    from torch_utils import distributed
    from training.training_loop import training_loop

    # Each of several processes has a separate standard output, which the parent's log does not capture.
    with _log(options) if options["num_gpus"] > 1 else contextlib.nullcontext():
        device = distributed.resolve_device(options.get("device", "auto"), rank)
        distributed.init(rank, options["num_gpus"], device)
        signum = training_loop(rank=rank, opened=opened, about=about, resume=resume, **options)
    if signum is not None and options["num_gpus"] > 1:
        sys.exit(128 + signum)
    return signum


def _log(options: dict) -> Logger:
    return Logger(os.path.join(options["run_dir"], "log.txt"), "a")


if __name__ == "__main__":
    run(main)
