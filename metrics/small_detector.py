# SPDX-License-Identifier: Apache-2.0
"""A small feature network for simple images and its training, so that metrics on them work offline.

A classifier, exported as TorchScript with the interface of `metrics.detectors`. Its features are the layer before the
classes, where similar images are close. N images, C channels (1 or 3), d features.
"""

import io
import warnings
import zipfile

import torch
import torch.nn.functional as F

from dnnlib.progress import Progress
from metrics import detector_record


class SmallNet(torch.nn.Module):
    """Images, uint8 [N, 1 or 3, H, W] -> features, float32 [N, d], or class probabilities, float32 [N, classes].

    Args:
        channels: Channels of the images it is made for: 1 averages those of RGB images, 3 repeats those of grey images.
        classes: Number of classes.
        width: d, and the channels of the widest layers; a multiple of 4.
    """

    def __init__(self, channels: int = 1, classes: int = 10, width: int = 64):
        super().__init__()
        self.channels = channels
        self.conv0 = torch.nn.Conv2d(channels, width // 4, 3, padding=1)
        self.conv1 = torch.nn.Conv2d(width // 4, width // 2, 3, padding=1, stride=2)
        self.conv2 = torch.nn.Conv2d(width // 2, width, 3, padding=1, stride=2)
        self.conv3 = torch.nn.Conv2d(width, width, 3, padding=1, stride=2)
        self.features = torch.nn.Linear(width * 4 * 4, width)
        self.classes = torch.nn.Linear(width, classes)

    def prepare(self, img: torch.Tensor) -> torch.Tensor:
        """Images with values in [0, 255], [N, 1 or 3, H, W] -> float32 [N, channels, 32, 32] in [-1, 1]."""
        x = img.to(torch.float32)
        if self.channels == 1:
            x = x.mean(dim=1, keepdim=True)
        elif x.shape[1] == 1:
            x = x.repeat(1, 3, 1, 1)
        x = x / 127.5 - 1
        if x.shape[2] != 32 or x.shape[3] != 32:
            x = F.interpolate(x, size=[32, 32], mode="bilinear", align_corners=False, antialias=True)
        return x

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """Prepared images, float32 [N, channels, 32, 32] -> features [N, d]."""
        x = F.leaky_relu(self.conv0(x), 0.2)
        x = F.leaky_relu(self.conv1(x), 0.2)
        x = F.leaky_relu(self.conv2(x), 0.2)
        x = F.leaky_relu(self.conv3(x), 0.2)
        return self.features(x.flatten(1))

    def forward(self, img: torch.Tensor, return_features: bool = False, no_output_bias: bool = False) -> torch.Tensor:
        """`img` has values in [0, 255] and any size; `no_output_bias` omits the class biases from the probabilities."""
        x = self.embed(self.prepare(img))
        if return_features:
            return x
        logits = self.classes(F.leaky_relu(x, 0.2))
        if no_output_bias:
            logits = logits - self.classes.bias
        return logits.softmax(dim=1)


def distort(images: torch.Tensor, rng: torch.Generator, strength: float = 1.0) -> torch.Tensor:
    """Slightly rotated, scaled and shifted copies of images, float32 [N, C, 32, 32] in [-1, 1].

    At `strength` 1 by up to 0.2 radians, 12 % and 2 pixels; 0 returns the images.
    """
    if strength == 0:
        return images
    n = len(images)
    angle = (torch.rand(n, generator=rng) * 2 - 1) * (0.2 * strength)
    scale = 1 + (torch.rand(n, generator=rng) * 2 - 1) * (0.12 * strength)
    shift = (torch.rand(n, 2, generator=rng) * 2 - 1) * (0.12 * strength)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    theta = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def train(
    images: torch.Tensor,
    labels: torch.Tensor,
    classes: int,
    epochs: int,
    width: int = 64,
    seed: int = 0,
    distortion: float = 1.0,
) -> SmallNet:
    """A network trained on uint8 [N, C, 32, 32] and class numbers [N].

    Seeds the global random generator; equal torch versions on equal processors give equal weights, with one thread.
    """
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    net = SmallNet(images.shape[1], classes, width)
    batch_size = min(64, len(images))
    steps = epochs * (len(images) // batch_size)
    opt = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=3e-3, total_steps=steps)
    with Progress(steps, desc="Training", unit="batch") as progress:
        for _epoch in range(epochs):
            order = torch.randperm(len(images), generator=rng)
            for i in range(len(images) // batch_size):
                batch = order[i * batch_size : (i + 1) * batch_size]
                features = F.dropout(net.embed(distort(net.prepare(images[batch]), rng, distortion)), 0.2)
                loss = F.cross_entropy(net.classes(F.leaky_relu(features, 0.2)), labels[batch], label_smoothing=0.05)
                opt.zero_grad()
                loss.backward()
                opt.step()
                schedule.step()
                progress.update()
    return net.eval().requires_grad_(False)


def export(net: SmallNet, record: detector_record.Record | None = None) -> bytes:
    """The network and its record as a TorchScript file.

    It lacks the debugging records, which contain source paths of this machine.
    """
    whole, stripped = io.BytesIO(), io.BytesIO()
    extra = {} if record is None else detector_record.to_files(record)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.")  # deprecated, but detectors are TorchScript files
        torch.jit.save(torch.jit.script(net), whole, _extra_files=extra)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(stripped, "w", zipfile.ZIP_STORED) as dest:
        for info in source.infolist():
            if not info.filename.endswith(".debug_pkl"):
                dest.writestr(zipfile.ZipInfo(info.filename), source.read(info))
    return stripped.getvalue()
