# SPDX-License-Identifier: Apache-2.0
"""Makes a dataset for training: a folder or zip of equal square PNG images, with labels in dataset.json."""

import click

from dnnlib import cli


@click.command()
@click.option("--source", required=True, metavar="PATH", help="Folder, zip or archive to take images from; see below.")
@click.option("--dest", required=True, metavar="PATH", help="Folder (new or empty) or file ending in .zip to write.")
@click.option("--max-images", type=click.IntRange(min=1), help="Take only the first so many images, in path order.")
@click.option(
    "--resize-filter", type=click.Choice(["box", "lanczos"]), default="lanczos", show_default=True,
    help="How pixels are weighed when images are resized.",
)  # fmt: skip
@click.option(
    "--transform", type=click.Choice(["center-crop", "center-crop-wide"]),
    help="Crop before resizing; without it, images are stretched to --width and --height.",
)  # fmt: skip
@click.option("--width", type=click.IntRange(min=4), help="Width of the output in pixels, a power of two.")
@click.option("--height", type=click.IntRange(min=1), help="Height of the output in pixels, equal to --width.")
@click.option(
    "--channels", type=click.Choice(["1", "3"]),
    help="Convert all images to 8-bit grey (1) or RGB (3). Transparency is laid over white.",
)  # fmt: skip
@click.option(
    "--labels-from", type=click.Choice(["folders"]),
    help="Number the folders at the top of --source as classes, in sorted order, instead of reading dataset.json.",
)  # fmt: skip
@click.option(
    "--compress-level", type=click.IntRange(0, 9), default=0, show_default=True,
    help="PNG compression: 0 reads fastest, 9 is smallest.",
)  # fmt: skip
def main(source, dest, max_images, resize_filter, transform, width, height, channels, labels_from, compress_level):
    """Make a training dataset out of images.

    Training needs square images of one size, a power of two, all grey or all RGB, eight bits a channel. This tool
    brings them there, and stops at the first image that does not fit, naming it and the option that helps. The output
    appears when it is complete, never in part.

    \b
    --source may be
      a folder or zip             all images in it, in path order, labels from its dataset.json
      cifar-10-python.tar.gz      the 50,000 training images and their classes
      train-images-idx3-ubyte.gz  MNIST, padded from 28x28 to 32x32, with the classes in
                                  train-labels-idx1-ubyte.gz beside it
      NAME_lmdb                   an LSUN folder (needs: pip install '.[lmdb]')

    --transform=center-crop cuts the largest centred square. --transform=center-crop-wide cuts the largest centred part
    with the aspect of --width to --height, for wide scenes, and fills up to a square with black bars above and below.

    \b
    Examples:
      Photos of any size and kind, as 256x256 RGB:
        python dataset_tool.py --source=photos --dest=photos256.zip \\
            --transform=center-crop --width=256 --height=256 --channels=3
      One folder a class, as for --cond=1 in training:
        python dataset_tool.py --source=flowers --dest=flowers.zip --labels-from=folders
      MNIST:
        python dataset_tool.py --source=mnist/train-images-idx3-ubyte.gz --dest=mnist.zip
    """
    from training.data.convert import convert, make_transform
    from training.data.sources import open_source

    apply = make_transform(transform, width, height, resize_filter)
    images = open_source(source, channels and int(channels), labels_from)
    count = convert(images, dest, apply, max_images, compress_level)
    click.echo(f"Wrote {count} images to {dest}")


if __name__ == "__main__":
    cli.run(main)
