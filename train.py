# SPDX-License-Identifier: Apache-2.0
"""Train a GAN: flags (training.flags) -> options (training.options) -> checks -> run directory -> training loop."""

import contextlib
import json
import os
import re
import sys
import traceback
from typing import Any, NamedTuple

from dnnlib import launcher
from dnnlib.cli import BOOL, click, run
from dnnlib.files import locked, write_text
from dnnlib.util import Logger, UserError
from training.flags import BY_NAME, OPTIONS, SWITCH, Option
from training.options import Opened, Plan, resolve
from training.settings import OPTIONS_FILE


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
      torchrun --nnodes=2 --nproc-per-node=4 ... train.py --outdir=runs --data=faces.zip --resume=auto
      python train.py --outdir=runs --data=cats.zip --resume=ffhq256 --snap=10
      python train.py --outdir=runs --data=digits.zip --metrics=fid5k_full --detector=mnist
      python train.py --outdir=runs --data=faces.zip --cfg=stylegan2 --cbase=0.5 --dgl-teacher=ffhq1024
    """
    given = {name: value for name, value in flags.items() if value is not None}
    if not _continues(given):
        for name, value in {"outdir": outdir, "data": given.get("data")}.items():
            if value is None:
                raise click.UsageError(f"Missing option '--{name}'.")
    from torch_utils import distributed

    with contextlib.ExitStack() as stack:
        stack.enter_context(distributed.joined(*_device_and_timeout(given)))
        job = distributed.decide(_job, outdir, given, dry_run, stack)
        if job is not None:
            _train(job)


def _continues(given: dict[str, Any]) -> bool:
    """Whether --resume names a folder other than one of networks to start from."""
    path = given.get("resume", "")
    if not os.path.isdir(path):
        return False
    from training.files.biggan_pth import file_in

    return os.path.exists(os.path.join(path, OPTIONS_FILE)) or file_in(path) is None


class Job(NamedTuple):
    """What the processes of a run are to do: `options` of the loop, and the arguments of `train_process`."""

    options: dict[str, Any]
    lines: list[str]  # to print first
    summary: list[str] = []  # the same for a person, on stderr
    opened: Opened | None = None
    about: dict[str, Any] | None = None
    resume: bool = False


def _device_and_timeout(given: dict[str, Any]) -> tuple[str, float]:
    """As the flags say, or else the options of the run that is continued."""
    from training.continuing import read_options

    stored: dict[str, Any] = {}
    if _continues(given):
        with contextlib.suppress(UserError):  # _continue will say it
            stored = read_options(given["resume"])
    values = {"device": "auto", "timeout": BY_NAME["timeout"].default, **stored, **given}
    return values["device"], values["timeout"]


def _job(outdir: str | None, given: dict[str, Any], dry_run: bool, stack: contextlib.ExitStack) -> Job | None:
    """Resolve and check the flags, and make the run directory, which is locked until the end of `stack`.

    None: there is nothing to do but what was printed.
    """
    place = launcher.place()
    if place is not None and given.setdefault("gpus", place.size) != place.size:
        raise UserError(f"--gpus={given['gpus']}: the launcher has started {place.size} processes; drop the flag")
    if _continues(given):
        return _continue(given.pop("resume"), given, dry_run, stack)
    auto = given.get("resume") == "auto"
    if auto:
        del given["resume"]
    plan = resolve(**given)
    if auto:
        from training.continuing import newest_unfinished

        run_dir = newest_unfinished(outdir, plan.options, given)
        if run_dir is not None:
            plan.opened.training_set.close()
            return _continue(run_dir, given, dry_run, stack)
    if dry_run:
        options = {"run_dir": next_run_dir(outdir, plan.desc), **plan.options}
        click.echo("\n".join([*plan.notices, *_summary(options)]), err=True)
        click.echo(json.dumps(options, indent=2))
        plan.opened.training_set.close()
        return None
    return _start(outdir, plan, given, stack)


def _start(outdir: str, plan: Plan, given: dict, stack: contextlib.ExitStack) -> Job:
    """Begin a run in a new directory."""
    from training.preflight import preflight

    preflight(plan.options, plan.opened, outdir)
    options = {"run_dir": create_run_dir(outdir, plan.desc), **plan.options}
    stack.enter_context(locked(options["run_dir"]))
    file = os.path.join(options["run_dir"], OPTIONS_FILE)
    write_text(file, json.dumps(options, indent=2))
    opened = plan.opened
    if options["num_gpus"] > 1:  # the others open the files themselves: they cannot be passed on
        opened.training_set.close()
        opened.release()
        opened = None
    return Job(options, [f"Training options: {file}", *plan.notices], _summary(options), opened, {"flags": given})


def _summary(options: dict[str, Any]) -> list[str]:
    """What a person wants to check before a long run."""
    data = options["training_set_kwargs"]
    aug = f"ADA, target {options['ada_target']:g}" if "ada_target" in options else None
    rows = {
        "Run directory": options["run_dir"],
        "Training data": data["path"],
        "Training length": f"{options['total_kimg']} kimg",
        "Processes (GPUs)": options["num_gpus"],
        "Images": data["max_size"],
        "Resolution": data["resolution"],
        "Conditional": "yes" if data["use_labels"] else "no",
        "x-flips": "yes" if data["xflip"] else "no",
        "Batch size": options["batch_size"],
        "Augmentation": aug or (f"p = {options['augment_p']:g}" if "augment_p" in options else "none"),
        "Metrics": ", ".join(options["metrics"]) or "none",
        "Random seed": options["random_seed"],
    }
    return [f"{name + ':':<18s}{value}" for name, value in rows.items()]


def _continue(run_dir: str, given: dict, dry_run: bool, stack: contextlib.ExitStack) -> Job | None:
    """Go on with an interrupted run."""
    from training import continuing

    if not dry_run:
        stack.enter_context(locked(run_dir))
    options = continuing.resume(run_dir, given, dry_run)
    if dry_run:
        click.echo(json.dumps(options, indent=2))
        return None
    return Job(options, [f"Continuing the run in {run_dir}"], resume=True)


def _train(job: Job) -> None:
    """Run the training processes, with a log; a signal that ended them is the exit status."""
    from torch_utils import distributed

    arguments = (job.options["num_gpus"], job.options, job.opened, job.about, job.resume)
    if not distributed.is_main():
        distributed.launch(train_process, *arguments)
        return
    with _log(job.options):
        print("\n".join(job.lines))
        if job.summary:
            print("\n".join(job.summary), file=sys.stderr)
        try:
            signum = distributed.launch(train_process, *arguments)
        except Exception as error:
            path = os.path.join(job.options["run_dir"], "log.txt")
            with contextlib.suppress(OSError), open(path, "a", encoding="utf-8") as file:  # error is said in any case
                file.write(f"Error: {error}\n" if isinstance(error, UserError) else traceback.format_exc())
            raise
    if signum is not None:
        sys.exit(128 + signum)


def next_run_dir(outdir: str, desc: str) -> str:
    """The path `<outdir>/<number>-<desc>`, numbered one above the highest present."""
    names = os.listdir(outdir) if os.path.isdir(outdir) else []
    numbers = [int(found[1]) for name in names if (found := re.match(r"(\d{5,})(?:-|$)", name))]
    return os.path.join(outdir, f"{max(numbers, default=-1) + 1:05d}-{desc}")


def create_run_dir(outdir: str, desc: str) -> str:
    """Make the directory `next_run_dir` and return its path. Raises UserError if it cannot be made."""
    try:
        os.makedirs(outdir, exist_ok=True)
        while True:
            run_dir = next_run_dir(outdir, desc)
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

    # A process that launch() has started has its own standard output, which the log of the parent does not capture.
    own = rank == 0 and options["num_gpus"] > 1 and launcher.place() is None
    with _log(options) if own else contextlib.nullcontext():
        device = distributed.resolve_device(options.get("device", "auto"), distributed.local_rank(rank))
        distributed.init(rank, options["num_gpus"], device, timeout=options.get("timeout", 30))
        signum = training_loop(rank=rank, opened=opened, about=about, resume=resume, **options)
    if signum is not None and options["num_gpus"] > 1:
        sys.exit(128 + signum)
    return signum


def _log(options: dict) -> Logger:
    return Logger(os.path.join(options["run_dir"], "log.txt"), "a")


if __name__ == "__main__":
    run(main)
