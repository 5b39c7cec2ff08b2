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
@click.option(
    "--class",
    "classes",
    help="Class of a conditional network: its number, or its name if the file has names; several: 0-9, or cat,dog",
    type=cli.CLASSES,
)
@network_options.noise_mode
@click.option("--projected-w", help="Images of the w in this npz file instead of seeds", metavar="NPZ")
@click.option("--outdir", help="Folder for the images", metavar="DIR")
@click.option("--grid", help="One image of all, grid.png; a row for each class if there are several", is_flag=True)
@click.option(
    "--batch", help="Images computed at once; pixels are equal but for rounding", type=click.IntRange(min=1), default=1
)
@click.option("--video", help="Video from seed to seed and back to the first (.mp4)", metavar="FILE")
@click.option("--frames", help="Frames of the video from one seed to the next", type=click.IntRange(min=1), default=60)
@click.option("--fps", help="Frames of the video per second", type=click.IntRange(1, 240), default=30)
@network_options.device
@network_options.trust_pickle
@click.pass_context
def main(ctx, **flags):
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

    \b
    One image of all: ten seeds in each of ten classes:
      python generate.py --network=digits.pkl --class=0-9 --seeds=0-9 --grid --outdir=out

    \b
    A video from seed to seed (pip install imageio-ffmpeg): straight lines in w, or great arcs in z without a w:
      python generate.py --network=ffhq.pkl --seeds=0-5 --trunc=0.7 --video=faces.mp4
    """
    if not flags["seeds"] and flags["projected_w"] is None:
        raise click.UsageError("--seeds (or --projected-w) is required.")

    if flags["outdir"] is None and (flags["video"] is None or flags["grid"]):
        raise click.UsageError("--outdir is required" + (" for --grid." if flags["grid"] else " (or --video)."))
    for name in ("frames", "fps"):
        if flags["video"] is None and ctx.get_parameter_source(name) != click.core.ParameterSource.DEFAULT:
            raise click.UsageError(f"--{name} has no effect without --video.")

    from training.generation import generate_images

    generate_images(**flags)


if __name__ == "__main__":
    cli.run(main)
