# SPDX-License-Identifier: Apache-2.0
"""Compare ways to train students: arms x widths x seeds from a study file. `python -m dgl.study --help`."""

import signal
import sys

import click

from dgl.study import plan, results
from dnnlib import cli, network_options
from dnnlib.text import aligned


class _Commands(click.Group):
    """A group whose first argument may also be a study file, for the command `run`."""

    def resolve_command(self, ctx: click.Context, args: list[str]):
        """The named command, or `run` with all the arguments."""
        return super().resolve_command(ctx, args if args[0] in self.commands else ["run", *args])


@click.group(cls=_Commands, context_settings={"max_content_width": 120})
def main() -> None:
    """Compare ways to train students: arms x widths x seeds from a study file.

    \b
      python -m dgl.study docs/evidence/fashion.json --results docs/evidence/fashion.jsonl
      python -m dgl.study report docs/evidence/fashion.json --results docs/evidence/fashion.jsonl --out docs/evidence
      python -m dgl.study placebo teacher.pkl placebo.pkl
    """


_results = click.option("--results", "path", required=True, metavar="JSONL", help="A line of JSON per finished run.")
_outdir = click.option("--outdir", default="runs/study", show_default=True, metavar="DIR", help="Folder of the runs.")


@main.command()
@click.argument("file")
@_results
@_outdir
@click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True, help="Processes at a time.")
@click.option("--arms", type=cli.CommaList(), default="", help="Only these.", metavar="LIST")
@click.option("--widths", type=cli.CommaList(), default="", help="Only these.", metavar="LIST")
@click.option("--seeds", type=cli.INT_LIST, help="These instead of the file's.")
@click.option("--kimg", type=click.IntRange(min=1), help="Length of all runs, for a first try.")
@network_options.trust_detector
@click.option("-n", "--dry-run", is_flag=True, help="Show the runs and stop.")
def run(file, path, outdir, jobs, arms, widths, seeds, kimg, trust_detector, dry_run) -> int:
    """Train and measure all runs of the study FILE that have no line in the results.

    Stop it at any time, by Ctrl-C or otherwise: the next call goes on. Exit status 1 if a run failed.
    """
    from dgl.study.run import run_study

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so that the child processes are ended too
    study = plan.load(file, kimg)
    runs = plan.runs_of(study, arms, widths, seeds or ())
    if dry_run:
        lines = results.read(path, study.name)
        rows = [(run.title, "done" if results.find(lines, run) else "to do") for run in runs]
        click.echo(aligned([("run", ""), *rows]))
        return 0
    failed = run_study(study, runs, path, outdir, jobs, trust_detector)
    click.echo(f"{len(runs) - failed} of {len(runs)} runs are in {path}.")
    return int(failed > 0)


@main.command()
@click.argument("file")
@_results
@_outdir
@click.option("--out", required=True, metavar="DIR", help="Folder for report.md and its pictures.")
def report(file, path, outdir, out) -> None:
    """Write the report of the study FILE from its results."""
    from dgl.study.report import write_report

    click.echo(f"Wrote {write_report(plan.load(file), path, outdir, out)}.")


@main.command()
@click.argument("teacher")
@click.argument("dest")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the weights.")
def placebo(teacher, dest, seed) -> None:
    """Write to DEST the networks of the pickle TEACHER with random weights, for an arm whose teacher knows nothing."""
    from dgl.study.placebo import write_placebo

    write_placebo(teacher, dest, seed)


@main.command(hidden=True)
@click.argument("folder")
def measure(folder) -> None:
    """Measure the finished training in FOLDER."""
    import pathlib

    from dgl.study.measure import measure

    measure(pathlib.Path(folder))


if __name__ == "__main__":
    cli.run(main)
