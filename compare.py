# SPDX-License-Identifier: Apache-2.0
"""Compare networks, such as a teacher and its student, in a report. `python compare.py --help` lists the flags."""

import click

from dnnlib import cli, network_options


@click.command(context_settings=network_options.SETTINGS)
@click.option(
    "--networks",
    help="Network pickles, paths or URLs, with commas between; the first is the reference",
    type=cli.CommaList(empty=False),
    metavar="PKL,PKL",
    required=True,
)
@click.option("--names", help="Their names in the report  [default: of the files]", type=cli.CommaList(), metavar="A,B")
@click.option("--data", help="Folder or zip of reals, or saved statistics  [default: the training set]", metavar="PATH")
@click.option("--out", help="Folder for the report", metavar="DIR", required=True)
@click.option(
    "--metrics",
    help="Comma-separated metric names, or none",
    type=cli.CommaList(),
    default="fid5k_full,kid5k_full,pr5k3_full",
)
@click.option("--detector", help="Feature network: name, TorchScript file or URL  [default: the metric's own]")
@click.option("--trunc", help="Truncation of samples and metrics, as in generate.py", type=cli.FINITE_FLOAT)
@network_options.trust_detector
@network_options.device
@network_options.trust_pickle
def main(**flags):
    """Compare networks: sizes, quality, speed and memory, samples of the same seeds, training curves.

    Writes index.html, a page that contains all it shows, compare.png and, with all figures, compare.json.

    \b
      python compare.py --networks=digits.pkl,student.pkl --data=data/mnist5k-32x32.zip --detector=mnist --out=report

    \b
    Without metrics, and so without real images; training curves are those of a network's run directory:
      python compare.py --networks=ffhq.pkl,runs/00000-ffhq/network-snapshot-000200.pkl --metrics=none --out=report
    """
    from metrics.reports.compare import compare

    compare(**flags)


if __name__ == "__main__":
    cli.run(main)
