# SPDX-License-Identifier: Apache-2.0
"""Measure the quality of a trained generator. `python calc_metrics.py --help` lists the flags."""

from dnnlib import cli, network_options
from dnnlib.cli import click


@click.command(context_settings=network_options.SETTINGS)
@click.option("--network", help="Network pickle: path or URL", metavar="PKL")
@click.option("--fakes", help="Folder or zip of generated images, instead of a network", metavar="PATH")
@click.option("--metrics", help="Comma-separated metric names", type=cli.CommaList(), default="fid50k_full")
@click.option("--data", help="Folder or zip of reals, or saved statistics  [default: the training set]", metavar="PATH")
@click.option("--mirror", help="Include mirrored reals  [default: as in training]", type=cli.BOOL)
@click.option("--save-stats", help="Save statistics of --data here, instead of measuring", metavar="NPZ")
@click.option("--gpus", help="Processes, one GPU each  [default: 1, or those of torchrun]", type=click.IntRange(min=1))
@click.option("--detector", help="Feature network: name, TorchScript file or URL  [default: the metric's own]")
@click.option("--trunc", help="Truncation of the fakes, as in generate.py  [default: none]", type=cli.FINITE_FLOAT)
@click.option(
    "--standing-stats",
    help="For a network with batch norm: statistics of this many batches of 64 instead of its running ones",
    type=click.IntRange(min=0),
    default=0,
    metavar="K",
)
@network_options.trust_detector
@network_options.device
@network_options.trust_pickle
@click.option("--verbose", help="Show progress", type=cli.BOOL, default="yes")
def main(**flags):
    """Calculate quality metrics of a network pickle, or of images.

    Each result is printed as one line of JSON. For a pickle in a run directory it is also appended to metric-NAME.jsonl
    there.

    \b
      python calc_metrics.py --network=runs/00000-ffhq/network-snapshot-000200.pkl
      python calc_metrics.py --network=digits.pkl --data=data/mnist5k-32x32.zip --metrics=fid5k_full --detector=mnist

    \b
    Images against images; statistics (and labels) saved once, for use without the images:
      python calc_metrics.py --fakes=out.zip --data=data/mnist5k-32x32.zip --metrics=fid5k_full --detector=mnist
      python calc_metrics.py --data=ffhq.zip --metrics=fid50k_full,kid50k_full --save-stats=ffhq.npz
      python calc_metrics.py --network=ffhq.pkl --data=ffhq.npz --metrics=fid50k_full,kid50k_full

    \b
    A BigGAN with truncated latents, and with batch norm statistics for them:
      python calc_metrics.py --network=biggan.pkl --trunc=0.5 --standing-stats=16 --metrics=fid5k_full --detector=mnist

    \b
    Recommended, with all reals:
      fid50k_full  Frechet inception distance
      kid50k_full  kernel inception distance
      pr50k3_full  precision and recall
      ppl2_wend    perceptual path length in W, at path ends, no crop
      is50k        inception score
    \b
    With N thousand fakes: fidNk_full, kidNk_full
    With 50,000 reals: fid50k, kid50k, pr50k3
    With a central crop: ppl_zfull, ppl_wfull, ppl_zend, ppl_wend
    """
    if sum(flags[source] is not None for source in ("network", "fakes", "save_stats")) != 1:
        raise click.UsageError("Exactly one of --network, --fakes and --save-stats is needed.")

    from metrics.measure import measure

    measure(**flags)


if __name__ == "__main__":
    cli.run(main)
