# SPDX-License-Identifier: Apache-2.0
"""Mix the styles of seeds with a trained generator. `python style_mixing.py --help` lists the flags."""

from dnnlib import cli, network_options
from dnnlib.cli import click


@click.command(context_settings=network_options.SETTINGS)
@network_options.network
@click.option("--rows", help="Seeds of the rows, such as 85,100,75-80", type=cli.INT_LIST, required=True)
@click.option("--cols", help="Seeds of the columns", type=cli.INT_LIST, required=True)
@click.option("--styles", help="Indices of the w vectors taken from the column  [default: 0-6]", type=cli.INT_LIST)
@network_options.trunc
@network_options.class_idx
@network_options.noise_mode
@network_options.outdir
@network_options.device
@network_options.trust_pickle
def main(**flags):
    """Generate images whose coarse or fine styles come from other images.

    Writes ROW-COL.png for each pair of seeds, SEED-SEED.png for each seed alone, and grid.png: the columns' own images
    in the top row, the rows' own images in the left column, the mixtures where they cross. Low styles are coarse, such
    as pose and shape; high styles are fine, such as colours.

    \b
      python style_mixing.py --network=ffhq.pkl --rows=85,100,75 --cols=55,821,1789 --outdir=out
      python style_mixing.py --network=digits.pkl --class=4 --rows=0-2 --cols=3-5 --styles=0-3 --outdir=out
    """
    from training.sampling import mix_styles

    mix_styles(**flags)


if __name__ == "__main__":
    cli.run(main)
