# SPDX-License-Identifier: Apache-2.0
"""Make a training dataset: a folder or zip of equal square PNG images, with labels in dataset.json."""

from dnnlib import cli
from dnnlib.cli import click


@click.command()
@click.option("--source", required=True, metavar="PATH", help="Folder, zip or archive of images, as described above.")
@click.option("--dest", required=True, metavar="PATH", help="Folder (new or empty) or file ending in .zip to write.")
@click.option("--max-images", type=click.IntRange(min=1), help="Use only the first N images, in path order.")
@click.option(
    "--resize-filter", type=click.Choice(["box", "lanczos"]), default="lanczos", show_default=True,
    help="Resampling filter.",
)  # fmt: skip
@click.option(
    "--transform", type=click.Choice(["center-crop", "center-crop-wide", "fit-wide"]),
    help="Crop before resizing; by default images are stretched to --width and --height.",
)  # fmt: skip
@click.option("--width", type=click.IntRange(min=4), help="Width of the output in pixels, a power of two.")
@click.option("--height", type=click.IntRange(min=1), help="Height of the output in pixels, equal to --width.")
@click.option(
    "--channels", type=click.Choice(["1", "3", "4"]),
    help="Convert all images to 8-bit grey (1), RGB (3) or RGBA (4)  [default: grey if all images are, else RGB]",
)  # fmt: skip
@click.option(
    "--background", type=click.Choice(["white", "black"]), default="white", show_default=True,
    help="Colour under the transparent parts of images.",
)  # fmt: skip
@click.option(
    "--labels-from", type=click.Choice(["folders"]),
    help="Use the top-level folders of --source as classes, in sorted order, instead of its dataset.json.",
)  # fmt: skip
@click.option(
    "--compress-level", type=click.IntRange(0, 9), default=0, show_default=True,
    help="PNG compression: 0 is fastest to read, 9 is smallest.",
)  # fmt: skip
@click.option(
    "--keep-jpeg", is_flag=True,
    help="Copy JPEG files that need no conversion: smaller, but slower to read than uncompressed PNG.",
)  # fmt: skip
@click.option("--skip-broken", is_flag=True, help="Leave out files that cannot be read, and list them.")
@click.option("--overwrite", is_flag=True, help="Replace --dest if it is a zip that exists.")
def main(**flags):
    """Make a training dataset from images.

    Training needs square images of one size, a power of two, all grey, all RGB or all RGBA, with 8 bits per channel.
    Images of every kind (palette, CMYK, 16-bit, transparent) are converted. Sizes are not: without --width and --height
    the tool stops at the first image that does not fit and names it together with the option that helps. Photos are
    turned upright, as their EXIF orientation says. The output appears only when it is complete; a summary says what
    became of the images. Classes get names, which train.py stores in network files, for generate.py --class=NAME.

    \b
    --source may be
      a folder, zip or .tar       all images in it, in path order, labels from its dataset.json
      cifar-10-python.tar.gz      the 50,000 training images and their classes
      train-images-idx3-ubyte.gz  MNIST, padded from 28x28 to 32x32, with the classes in
                                  train-labels-idx1-ubyte.gz in the same folder
      NAME_lmdb                   an LSUN folder (needs: pip install '.[lmdb]')

    --transform=center-crop keeps the largest centred square. Two are for wide scenes: --transform=fit-wide keeps the
    largest centred part with the aspect ratio of --width to --height. --transform=center-crop-wide does as in
    StyleGAN2-ADA: it keeps the full width and as many rows, from the centre, as the image would have if it were --width
    wide; images less than --width wide, or with less than --height such rows, are left out. Both add black bars above
    and below to make a square.

    \b
    Examples:
      Photos of any size and kind, as 256x256 RGB:
        python dataset_tool.py --source=photos --dest=photos256.zip \\
            --transform=center-crop --width=256 --height=256
      One folder per class, for training with --cond=1:
        python dataset_tool.py --source=flowers --dest=flowers.zip --labels-from=folders --width=128 --height=128
      Pictures with transparent parts, for networks that make such pictures:
        python dataset_tool.py --source=emoji --dest=emoji.zip --channels=4 --width=64 --height=64
      MNIST:
        python dataset_tool.py --source=mnist/train-images-idx3-ubyte.gz --dest=mnist.zip
    """
    from training.data.convert import make_dataset

    make_dataset(**flags)


if __name__ == "__main__":
    cli.run(main)
