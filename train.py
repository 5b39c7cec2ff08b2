# SPDX-License-Identifier: Apache-2.0
"""Train a GAN: flags -> options (training.config) -> checks -> run directory -> training loop."""

import contextlib
import functools
import json
import os
import re
import traceback

import click

from dnnlib.cli import BOOL, CommaList, run
from dnnlib.util import Logger, UserError, open_atomic
from training.config import (
    AUGMENTATIONS,
    AUGPIPES,
    DGL_WEIGHT,
    DGL_WEIGHTINGS,
    PRECISIONS,
    PRESETS,
    RESUME_ALIASES,
    Flags,
    resolve,
)


class _Flag(click.Option):
    def __init__(self, *args, group: str, **kwargs):
        super().__init__(*args, **kwargs)
        self.group = group


class _GroupedCommand(click.Command):
    """A command whose help lists its flags under the headings of their groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes one section a group, in the order of declaration."""
        sections: dict[str, list] = {}
        for param in self.get_params(ctx):
            sections.setdefault(getattr(param, "group", "Other"), []).append(param.get_help_record(ctx))
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)


def _group(title: str):
    return functools.partial(click.option, cls=_Flag, group=title)


_output, _data, _base = _group("Output"), _group("Data"), _group("Base configuration")
_augment, _transfer = _group("Augmentation of what D sees"), _group("Transfer learning")
_student, _machine = _group("Narrow and guided students (DGL)"), _group("Machine and speed")
_yes_no = {"type": BOOL, "metavar": "BOOL"}
_count = click.IntRange(min=1)


@click.command(cls=_GroupedCommand, context_settings={"max_content_width": 120})
@_output("--outdir", required=True, metavar="DIR", help="Run directories go here, numbered from 00000.")
@_output("--snap", type=_count, default=Flags.snap, show_default=True, help="Ticks between snapshots.")
@_output("--keep", type=_count, help="Network snapshots to keep, the newest.  [default: all]")
@_output("--metrics", type=CommaList(), help="Metrics to compute at each snapshot, or none.  [default: fid50k_full]")
@_output("--detector", metavar="FILE|NAME", help="Feature network of the metrics, such as mnist.")
@_output("-n", "--dry-run", is_flag=True, help="Print the resolved options as JSON and stop.")
@_data("--data", required=True, metavar="ZIP|DIR", help="Images, as dataset_tool.py makes them.")
@_data("--cond", **_yes_no, help="Train on the labels of dataset.json.  [default: no]")
@_data("--subset", type=int, help="Train on this many images, drawn with --seed.  [default: all]")
@_data("--mirror", **_yes_no, help="Add mirrored copies of the images.  [default: no]")
@_base("--cfg", type=click.Choice(["auto", *PRESETS]), default=Flags.cfg, show_default=True, help="Preset.")
@_base("--gamma", type=click.FloatRange(min=0), help="R1 weight.  [default: of --cfg]")
@_base("--kimg", type=_count, help="Length of training in thousand images.  [default: of --cfg]")
@_base("--batch", type=_count, help="Images in an iteration, over all processes.  [default: of --cfg]")
@_base("--batch-gpu", type=_count, help="Images a process takes at once; the rest accumulates.  [default: of --cfg]")
@_base("--seed", type=click.IntRange(min=0), default=Flags.seed, show_default=True, help="Random seed.")
@_augment("--aug", type=click.Choice(AUGMENTATIONS), help="Adaptive, of fixed probability, or none.  [default: ada]")
@_augment("--p", type=click.FloatRange(0, 1), help="Probability for --aug=fixed.")
@_augment("--target", type=click.FloatRange(0, 1), help="Target of --aug=ada, E[sign D(real)].  [default: 0.6]")
@_augment("--augpipe", type=click.Choice(list(AUGPIPES)), help="Kinds of augmentation.  [default: bgc]")
@_transfer(
    "--resume", metavar="PKL", help=f"Start from this network: file, URL, {', '.join(RESUME_ALIASES)}, noresume."
)
@_transfer("--freezed", type=click.IntRange(min=0), help="Freeze this many of D's first layers.  [default: 0]")
@_transfer("--trust-pickle", is_flag=True, help="Run the code that pickles carry. Only for files you made yourself.")
@_student("--cbase", type=float, help="Width of G: a multiplier up to 4, or a channel_base from 64.  [default: 1]")
@_student("--cbase-d", type=float, help="The same for D.  [default: --cbase]")
@_student("--dgl-teacher", type=CommaList(), metavar="PKL,...", help="Networks whose frozen D guide G: as --resume.")
@_student("--dgl-weight", type=click.FloatRange(min=0), help=f"Weight of the teachers' term.  [default: {DGL_WEIGHT}]")
@_student("--dgl-start", type=click.FloatRange(min=0), metavar="KIMG", help="Teachers join here.  [default: 0]")
@_student("--dgl-weighting", type=click.Choice(DGL_WEIGHTINGS), help="How teachers are weighted.  [default: plain]")
@_student("--dgl-augment", **_yes_no, help="Teachers see augmented fakes, as D does.  [default: no]")
@_machine("--gpus", type=_count, default=Flags.gpus, show_default=True, help="Processes: GPUs, or parts of the CPU.")
@_machine("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), help="Where to train.  [default: auto]")
@_machine("--precision", type=click.Choice(PRECISIONS), help="Type of the high resolutions.  [default: auto]")
@_machine("--fp32", **_yes_no, help="Networks without half precision, for good.  [default: no]")
@_machine("--nhwc", **_yes_no, help="Channels-last memory in half-precision blocks.  [default: no]")
@_machine("--nobench", **_yes_no, help="No cuDNN benchmarking.  [default: no]")
@_machine("--allow-tf32", **_yes_no, help="TF32 in matrix products and convolutions.  [default: no]")
@_machine("--workers", type=_count, default=Flags.workers, show_default=True, help="Processes that load data, each.")
def main(outdir: str, dry_run: bool, **flags) -> None:
    """Train a GAN on a dataset of square images; with --dgl-teacher, a narrow one that a large one guides.

    \b
    Examples:
      python train.py --outdir=runs --data=faces.zip --gpus=8 --mirror=1
      python train.py --outdir=runs --data=cats.zip --resume=ffhq256 --snap=10
      python train.py --outdir=runs --data=digits.zip --metrics=fid5k_full --detector=mnist
      python train.py --outdir=runs --data=faces.zip --cfg=stylegan2 --cbase=0.5 --dgl-teacher=ffhq1024
    """
    desc, options, notices = resolve(**flags)
    if dry_run:
        click.echo("\n".join([*notices, f"Run: {desc}"]), err=True)
        click.echo(json.dumps(options, indent=2))
        return

    from torch_utils.distributed import launch
    from training.config_checks import preflight

    preflight(options, outdir)
    options["run_dir"] = create_run_dir(outdir, desc)
    with open_atomic(os.path.join(options["run_dir"], "training_options.json"), "w") as file:
        json.dump(options, file, indent=2)
    with _log(options):
        print("\n".join(["Options:", json.dumps(options, indent=2), *notices, f"Run directory: {options['run_dir']}"]))
        try:
            launch(train_process, options["num_gpus"], options)
        except Exception as error:
            with open(os.path.join(options["run_dir"], "log.txt"), "a", encoding="utf-8") as file:
                file.write(f"Error: {error}\n" if isinstance(error, UserError) else traceback.format_exc())
            raise


def create_run_dir(outdir: str, desc: str) -> str:
    """Makes `<outdir>/<number>-<desc>`, the number one above the highest there; returns its path.

    Raises `UserError` where it cannot be made.
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


def train_process(rank: int, options: dict) -> None:
    """One process of a run; `options` are those of the training loop."""
    from torch_utils import distributed
    from training.training_loop import training_loop

    # A process of several has its own standard output, which the log of the parent does not see.
    with _log(options) if options["num_gpus"] > 1 else contextlib.nullcontext():
        device = distributed.resolve_device(options.get("device", "auto"), rank)
        distributed.init(rank, options["num_gpus"], device)
        training_loop(rank=rank, **options)


def _log(options: dict) -> Logger:
    return Logger(os.path.join(options["run_dir"], "log.txt"), "a")


if __name__ == "__main__":
    run(main)
