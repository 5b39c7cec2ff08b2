# SPDX-License-Identifier: Apache-2.0
"""Builds 32x32 datasets of Fashion-MNIST from the files of Debian's package dataset-fashion-mnist; needs no network.

Equal versions of Pillow and zlib give equal bytes (see data/README.md).
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dnnlib import cli
from dnnlib.cli import click
from dnnlib.util import UserError

with cli.missing_package_exits():
    from training.data.convert import Output, convert, make_transform
    from training.data.sources import Source, open_source

INSTALLED = "/usr/share/datasets/fashion-mnist"
# Parts of the source: file, name and size of the full dataset, name and images per class of the bundled subset.
PARTS = [
    ("train-images-idx3-ubyte.gz", "fashion60k-train-32x32.zip", "fashion-train-32x32.zip", 1000),
    ("t10k-images-idx3-ubyte.gz", "fashion10k-test-32x32.zip", "fashion-test-32x32.zip", 200),
]


def first_of_each_class(source: Source, per_class: int) -> Source:
    """The first `per_class` images of each of the ten classes, in the order of the source, which is shuffled."""
    kept, counts = [], {}
    for item in source.images:
        counts[item.label] = counts.get(item.label, 0) + 1
        if counts[item.label] <= per_class:
            kept.append(item)
    return Source(len(kept), iter(kept))


@click.command(context_settings={"show_default": True})
@click.option("--source", default=INSTALLED, metavar="DIR", help="Folder of the four .gz files.")
@click.option("--dest", default=str(ROOT / "data"), metavar="DIR", help="Folder for the zips.")
@click.option("--full", is_flag=True, help="All 60,000 and 10,000 images, instead of the bundled subset.")
def main(source, dest, full):
    """Build the training and the test images of Fashion-MNIST, as two datasets with labels."""
    for file, full_name, subset_name, per_class in PARTS:
        path = pathlib.Path(source) / file
        if not path.is_file():
            raise UserError(
                f"There is no {path}: install the package dataset-fashion-mnist, or unpack it (apt-get download "
                f"dataset-fashion-mnist; dpkg-deb -x dataset-fashion-mnist_*.deb DIR) and name the folder with "
                f"--source=DIR{INSTALLED}."
            )
        images = open_source(str(path))
        if not full:
            images = first_of_each_class(images, per_class)
        target = pathlib.Path(dest) / (full_name if full else subset_name)
        made = convert(
            images, str(target), make_transform(None, None, None), how=Output(compress_level=9), overwrite=True
        )
        click.echo(f"Wrote {made.written:,} images to {target}")


if __name__ == "__main__":
    cli.run(main)
