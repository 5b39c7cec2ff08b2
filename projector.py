# SPDX-License-Identifier: Apache-2.0
"""Find the latents of given images in a trained generator. `python projector.py --help` lists the flags."""

from dnnlib import cli, network_options
from dnnlib.cli import click


@click.command(context_settings=network_options.SETTINGS)
@network_options.network
@click.option("--target", help="Image to project, or a folder of images", metavar="PATH", required=True)
@click.option("--num-steps", help="Optimisation steps per image", type=click.IntRange(1, 100_000), default=1000)
@click.option("--seed", help="Random seed", type=click.IntRange(0, 2**32 - 1), default=303)
@click.option("--save-video", help="Make a video of the optimisation", type=cli.BOOL, default="yes")
@network_options.class_idx
@click.option("--batch", help="Images optimised at once", type=click.IntRange(min=1), default=1)
@network_options.outdir
@click.option("--detector", help="What compares images: TorchScript file, URL or pixels  [default: VGG16]")
@network_options.trust_detector
@network_options.device
@network_options.trust_pickle
def main(**flags):
    """Find the w whose image is closest to a given image.

    \b
    Writes the cropped target, the image of the w that was found, the w, and a video:
      target.png proj.png projected_w.npz proj.mp4

    \b
    Images of any size are cropped to their centred square:
      python projector.py --network=ffhq.pkl --target=me.png --outdir=out
      python generate.py --network=ffhq.pkl --projected-w=out/projected_w.npz --outdir=out
      python projector.py --network=digits.pkl --class=4 --target=four.png --outdir=out

    \b
    Without VGG16, which is downloaded otherwise, pixels are compared at several scales:
      python projector.py --network=digits.pkl --class=4 --target=four.png --detector=pixels --outdir=out

    \b
    The results for a folder of images are in folders with the images' names:
      python projector.py --network=ffhq.pkl --target=photos --batch=4 --save-video=no --outdir=out
    """
    from training.projection_files import project_images

    project_images(**flags)


if __name__ == "__main__":
    cli.run(main)
