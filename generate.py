# SPDX-License-Identifier: Apache-2.0
"""Generate images with a trained network. `python generate.py --help` lists the flags."""

from dnnlib import cli, network_options
from dnnlib.cli import click


@click.command(context_settings=network_options.SETTINGS)
@network_options.network
@click.option("--seeds", help="Seeds of the images, such as 0,5,10-19", type=cli.INT_LIST)
@click.option(
    "--trunc",
    "psi",
    help="Truncation. StyleGAN2: psi, 1 is full variety, 0 the mean image  [default: 1]. BigGAN: latents beyond this "
    "value are redrawn, so 1 is not full variety  [default: none]",
    type=cli.FINITE_FLOAT,
)
@network_options.class_idx
@network_options.noise_mode
@click.option("--projected-w", help="Images of the w in this npz file instead of seeds", metavar="NPZ")
@network_options.outdir
@network_options.device
@network_options.trust_pickle
def main(**flags):
    """Generate images from a network pickle.

    \b
    One PNG per seed, the same on every run:
      python generate.py --network=ffhq.pkl --seeds=0-35 --trunc=0.7 --outdir=out

    \b
    One class of a conditional network, by number, or by name if its training data had names:
      python generate.py --network=digits.pkl --class=3 --seeds=0-9 --outdir=out

    \b
    Of a BigGAN, whose latents are redrawn until they are within 0.5 of 0:
      python generate.py --network=biggan.pkl --class=3 --seeds=0-9 --trunc=0.5 --outdir=out

    \b
    The image of a projected latent:
      python generate.py --network=ffhq.pkl --projected-w=out/projected_w.npz --outdir=out
    """
    if not flags["seeds"] and flags["projected_w"] is None:
        raise click.UsageError("--seeds (or --projected-w) is required.")

    from training.sampling import generate_images

    generate_images(**flags)


if __name__ == "__main__":
    cli.run(main)
