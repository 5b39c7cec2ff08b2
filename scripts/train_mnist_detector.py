# SPDX-License-Identifier: Apache-2.0
"""Trains the feature network `data/detectors/mnist.pt`, with which metrics on digits work offline."""

import pathlib
import sys

import click
import numpy as np
import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dnnlib.util import open_atomic  # noqa: E402
from metrics import digit_detector  # noqa: E402
from training.dataset import ImageFolderDataset  # noqa: E402

DATA, DEST = ROOT / "data" / "mnist5k-32x32.zip", ROOT / "data" / "detectors" / "mnist.pt"
HELD_OUT = 500  # images at the end that are never used for training


@click.command(context_settings={"show_default": True})
@click.option("--data", default=str(DATA), help="Digits with labels.")
@click.option("--dest", default=str(DEST), help="TorchScript file to write.")
@click.option("--epochs", type=click.IntRange(min=1), default=20, help="Passes over the data.")
def main(data, dest, epochs):
    """Train the digit detector on all but the last 500 images, check it on those, and write it."""
    # One thread adds in one order, so that a second run gives the same weights.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    dataset = ImageFolderDataset(data, resolution=32, use_labels=True)
    images = torch.from_numpy(np.stack([dataset[i][0] for i in range(len(dataset))]))
    labels = torch.tensor([int(dataset.get_label(i).argmax()) for i in range(len(dataset))])
    net = digit_detector.train(images[:-HELD_OUT], labels[:-HELD_OUT], epochs)
    accuracy = (net(images[-HELD_OUT:]).argmax(dim=1) == labels[-HELD_OUT:]).float().mean().item()
    content = digit_detector.export(net)
    with open_atomic(dest) as file:
        file.write(content)
    size = len(content) / 1e3
    click.echo(f"Wrote {dest}: {size:.0f} kB, {accuracy:.1%} of {HELD_OUT} held-out digits right")


if __name__ == "__main__":
    main()
