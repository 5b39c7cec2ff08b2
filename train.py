# SPDX-License-Identifier: Apache-2.0
"""Train a GAN: flags (training.flags) -> options (training.options) -> checks -> run directory -> training loop."""

import contextlib
import json
import os
import re
import traceback

import click

from dnnlib.cli import BOOL, run
from dnnlib.util import Logger, UserError, open_atomic
from training.flags import OPTIONS, SWITCH, Option
from training.options import resolve


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
        required=option.name == "data", **kwargs,
    )  # fmt: skip


def _flags_of_the_table(command):
    for option in reversed(OPTIONS):
        command = _flag(option)(command)
    return command


@click.command(cls=_GroupedCommand, context_settings={"max_content_width": 120})
@click.option("--outdir", cls=_Flag, group="Output", required=True, metavar="DIR",
              help="Run directories go here, numbered from 00000.")  # fmt: skip
@_flags_of_the_table
@click.option("-n", "--dry-run", cls=_Flag, group="Output", is_flag=True,
              help="Print the resolved options as JSON and stop.")  # fmt: skip
def main(outdir: str, dry_run: bool, **flags) -> None:
    """Train a GAN on a dataset of square images; with --dgl-teacher, a narrow one guided by a large one.

    \b
    Examples:
      python train.py --outdir=runs --data=faces.zip --gpus=8 --mirror=1
      python train.py --outdir=runs --data=cats.zip --resume=ffhq256 --snap=10
      python train.py --outdir=runs --data=digits.zip --metrics=fid5k_full --detector=mnist
      python train.py --outdir=runs --data=faces.zip --cfg=stylegan2 --cbase=0.5 --dgl-teacher=ffhq1024
    """
    plan = resolve(**flags)
    if dry_run:
        click.echo("\n".join([*plan.notices, f"Run: {plan.desc}"]), err=True)
        click.echo(json.dumps(plan.options, indent=2))
        plan.opened.training_set.close()
        return

    from torch_utils.distributed import launch
    from training.preflight import preflight

    preflight(plan.options, plan.opened, outdir)
    options = {"run_dir": create_run_dir(outdir, plan.desc), **plan.options}
    with open_atomic(os.path.join(options["run_dir"], "training_options.json"), "w") as file:
        json.dump(options, file, indent=2)
    with _log(options):
        lines = ["Options:", json.dumps(options, indent=2), *plan.notices, f"Run directory: {options['run_dir']}"]
        print("\n".join(lines))
        opened = plan.opened
        if options["num_gpus"] > 1:  # the others open the files themselves: they cannot be passed on
            opened.training_set.close()
            opened.release()
            opened = None
        try:
            launch(train_process, options["num_gpus"], options, opened)
        except Exception as error:
            with open(os.path.join(options["run_dir"], "log.txt"), "a", encoding="utf-8") as file:
                file.write(f"Error: {error}\n" if isinstance(error, UserError) else traceback.format_exc())
            raise


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


def train_process(rank: int, options: dict, opened=None) -> None:
    """One process of a run; `options` are those of the training loop, `opened` the files already open."""
    from torch_utils import distributed
    from training.training_loop import training_loop

    # Each of several processes has a separate standard output, which the parent's log does not capture.
    with _log(options) if options["num_gpus"] > 1 else contextlib.nullcontext():
        device = distributed.resolve_device(options.get("device", "auto"), rank)
        distributed.init(rank, options["num_gpus"], device)
        training_loop(rank=rank, opened=opened, **options)


def _log(options: dict) -> Logger:
    return Logger(os.path.join(options["run_dir"], "log.txt"), "a")


if __name__ == "__main__":
    run(main)
