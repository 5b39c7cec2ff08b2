# SPDX-License-Identifier: Apache-2.0
"""A small feature network for 32x32 digits and its training; the detector `mnist`, with which metrics work offline.

A classifier, exported as TorchScript with the interface of `metrics.detectors`. Its 64 features are the layer before
the classes, where similar images are close.
"""

import io
import warnings
import zipfile

import torch
import torch.nn.functional as F

from dnnlib.progress import Progress


class DigitNet(torch.nn.Module):
    """Images, uint8 [N, 1 or 3, H, W] -> features, float32 [N, 64], or class probabilities, float32 [N, 10]."""

    def __init__(self):
        super().__init__()
        self.conv0 = torch.nn.Conv2d(1, 16, 3, padding=1)
        self.conv1 = torch.nn.Conv2d(16, 32, 3, padding=1, stride=2)
        self.conv2 = torch.nn.Conv2d(32, 64, 3, padding=1, stride=2)
        self.conv3 = torch.nn.Conv2d(64, 64, 3, padding=1, stride=2)
        self.features = torch.nn.Linear(64 * 4 * 4, 64)
        self.classes = torch.nn.Linear(64, 10)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """Grey images, float32 [N, 1, 32, 32] in [-1, 1] -> features [N, 64]."""
        x = F.leaky_relu(self.conv0(x), 0.2)
        x = F.leaky_relu(self.conv1(x), 0.2)
        x = F.leaky_relu(self.conv2(x), 0.2)
        x = F.leaky_relu(self.conv3(x), 0.2)
        return self.features(x.flatten(1))

    def forward(self, img: torch.Tensor, return_features: bool = False, no_output_bias: bool = False) -> torch.Tensor:
        """`img` has values in [0, 255] and any size; `no_output_bias` omits the class biases from the probabilities."""
        x = img.to(torch.float32).mean(dim=1, keepdim=True) / 127.5 - 1
        if x.shape[2] != 32 or x.shape[3] != 32:
            x = F.interpolate(x, size=[32, 32], mode="bilinear", align_corners=False, antialias=True)
        x = self.embed(x)
        if return_features:
            return x
        logits = self.classes(F.leaky_relu(x, 0.2))
        if no_output_bias:
            logits = logits - self.classes.bias
        return logits.softmax(dim=1)


def distort(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Slightly rotated, scaled and shifted copies of grey images, float32 [N, 1, 32, 32] in [-1, 1]."""
    n = len(images)
    angle = (torch.rand(n, generator=rng) * 2 - 1) * 0.2
    scale = 1 + (torch.rand(n, generator=rng) * 2 - 1) * 0.12
    shift = (torch.rand(n, 2, generator=rng) * 2 - 1) * 0.12
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    theta = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def train(images: torch.Tensor, labels: torch.Tensor, epochs: int, batch_size: int = 64) -> DigitNet:
    """A network trained on uint8 [N, 1, 32, 32] and class numbers [N].

    Seeds the global random generator; equal torch versions on equal processors give equal weights, with one thread.
    """
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    net = DigitNet()
    steps = epochs * (len(images) // batch_size)
    opt = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=3e-3, total_steps=steps)
    images = images.to(torch.float32) / 127.5 - 1
    with Progress(steps, desc="Training", unit="batch") as progress:
        for _epoch in range(epochs):
            order = torch.randperm(len(images), generator=rng)
            for i in range(len(images) // batch_size):
                batch = order[i * batch_size : (i + 1) * batch_size]
                features = F.dropout(net.embed(distort(images[batch], rng)), 0.2)
                loss = F.cross_entropy(net.classes(F.leaky_relu(features, 0.2)), labels[batch], label_smoothing=0.05)
                opt.zero_grad()
                loss.backward()
                opt.step()
                schedule.step()
                progress.update()
    return net.eval().requires_grad_(False)


def export(net: DigitNet) -> bytes:
    """The network as a TorchScript file, without the debugging records, which contain source paths of this machine."""
    whole, stripped = io.BytesIO(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # detectors are TorchScript files
        torch.jit.save(torch.jit.script(net), whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(stripped, "w", zipfile.ZIP_STORED) as dest:
        for info in source.infolist():
            if not info.filename.endswith(".debug_pkl"):
                dest.writestr(zipfile.ZipInfo(info.filename), source.read(info))
    return stripped.getvalue()
