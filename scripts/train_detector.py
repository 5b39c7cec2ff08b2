# SPDX-License-Identifier: Apache-2.0
"""Trains a small feature network on labelled images, so that metrics on such images work offline (`--detector`)."""

import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # for python scripts/train_detector.py

from dnnlib import cli
from dnnlib.cli import click
from dnnlib.progress import Progress
from dnnlib.util import UserError, open_atomic

with cli.missing_package_exits():
    import numpy as np
    import torch
    import torch.nn.functional as F

    from metrics import detector_record, small_detector
    from training.dataset import ImageFolderDataset

BATCH = 256  # images in memory at full size


def open_labelled(path: str, flag: str) -> ImageFolderDataset:
    """The dataset at `path`. Raises UserError, naming `flag`, unless its labels are class numbers, or for RGBA."""
    dataset = ImageFolderDataset(path, use_labels=True)
    if not dataset.has_labels or not dataset.has_onehot_labels:
        raise UserError(f"{flag}={path} has no class numbers, which the detector learns: label its images.")
    if dataset.num_channels == 4:
        raise UserError(f"{flag}={path} has RGBA images: convert them with dataset_tool.py --channels=3.")
    return dataset


def batches(dataset: ImageFolderDataset, doing: str):
    """Images, uint8 [n, C, H, W], and class numbers [n], in order, with progress."""
    with Progress(len(dataset), desc=doing, unit="img") as progress:
        for start in range(0, len(dataset), BATCH):
            items = [dataset[i] for i in range(start, min(start + BATCH, len(dataset)))]
            images, labels = zip(*items)
            yield torch.from_numpy(np.stack(images)), torch.tensor([int(label.argmax()) for label in labels])
            progress.update(len(items))
    dataset.close()


def read(dataset: ImageFolderDataset) -> tuple[torch.Tensor, torch.Tensor]:
    """All images, uint8 [N, C, 32, 32], and class numbers [N]."""
    images, labels = zip(*batches(dataset, "Reading"))
    if dataset.resolution != 32:
        images = [F.interpolate(x.float(), size=32, mode="bilinear", antialias=True).round().byte() for x in images]
    return torch.cat(images), torch.cat(labels)


def split(dataset, held_out: str, shuffle: bool) -> tuple:
    """Images and labels for training, and those for the check, which `held_out` describes."""
    images, labels = read(dataset)
    if not held_out.isdecimal():
        other = open_labelled(held_out, "--held-out")
        if other.num_channels != dataset.num_channels or other.label_dim > dataset.label_dim:
            raise UserError(f"--held-out={held_out} has other channels or classes than --data: choose similar images.")
        return images, labels, *read(other)
    count = int(held_out)
    if not 0 < count < len(images):
        raise UserError(f"--held-out={held_out} must be from 1 to {len(images) - 1}, fewer than the images of --data.")
    order = np.random.RandomState(0).permutation(len(images)) if shuffle else np.arange(len(images))
    kept, checked = order[:-count], order[-count:]
    return images[kept], labels[kept], images[checked], labels[checked]


def record_of(net, dataset: ImageFolderDataset, accuracy: float, held_out: int) -> detector_record.Record:
    """The record of `net`, with statistics of all images of `dataset`."""
    found = [(net(x, return_features=True), net(x).argmax(dim=1)) for x, _ in batches(dataset, "Computing features")]
    features, seen = (torch.cat(parts).numpy() for parts in zip(*found))
    return detector_record.Record(
        dataset=dataset.name,
        image_shape=dataset.image_shape,
        num_images=len(dataset),
        classes=dataset.label_dim,
        accuracy=round(accuracy, 4),
        held_out=held_out,
        **detector_record.statistics(features, seen, dataset.label_dim),
    )


@click.command(context_settings={"show_default": True})
@click.option("--data", required=True, metavar="ZIP", help="Images with class numbers, grey or RGB, of any size.")
@click.option("--dest", required=True, metavar="PT", help="TorchScript file to write.")
@click.option("--epochs", type=click.IntRange(min=1), default=20, help="Passes over the data.")
@click.option("--held-out", default="500", metavar="N|ZIP", help="For the check: images of --data, or other images.")
@click.option("--shuffle", type=cli.BOOL, default=True, help="Shuffle the images before N of them are held out.")
@click.option("--width", type=click.IntRange(min=4), default=64, help="Number of features, a multiple of 4.")
@click.option("--distortion", type=click.FloatRange(0, 1), default=1.0, help="Strength of random rotations and shifts.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Seed of weights, order and distortions.")
def main(data, dest, epochs, held_out, shuffle, width, distortion, seed):
    """Train a detector, check it on images that it was not trained on, and write it with a record of its images.

    The file is a TorchScript program, so scripts take it only with --trust-detector.
    """
    # One thread adds in one order, so that a second run gives the same weights.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    if width % 4:
        raise UserError(f"--width={width} must be a multiple of 4.")
    if not os.path.isdir(os.path.dirname(os.path.abspath(dest))):
        raise UserError(f"--dest={dest} is in a folder that does not exist.")
    dataset = open_labelled(data, "--data")
    images, labels, other_images, other_labels = split(dataset, held_out, shuffle)
    net = small_detector.train(images, labels, dataset.label_dim, epochs, width, seed, distortion)
    answers = torch.cat([net(part).argmax(dim=1) for part in other_images.split(BATCH)])
    accuracy = (answers == other_labels).float().mean().item()
    content = small_detector.export(net, record_of(net, dataset, accuracy, len(answers)))
    with open_atomic(dest) as file:
        file.write(content)
    click.echo(f"Wrote {dest}: {len(content) / 1e3:.0f} kB, {accuracy:.1%} of {len(answers)} held-out images right")


if __name__ == "__main__":
    cli.run(main)
