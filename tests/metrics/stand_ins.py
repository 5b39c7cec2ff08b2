# SPDX-License-Identifier: Apache-2.0
"""Small detectors, generators and datasets with the interfaces that the metrics use."""

import dataclasses
import hashlib
import io
import json
import pathlib
import warnings
import zipfile

import numpy as np
import PIL.Image
import torch

from metrics import catalogue, detectors
from training.networks import Generator
from training.networks_biggan import BigGANGenerator


class Inception(torch.nn.Module):
    """Random projection of 4x4 means: uint8 [N, 3, H, W] -> features [N, d] or probabilities [N, 5]."""

    def __init__(self, d: int = 8, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("weight", torch.randn(48, d, generator=generator))
        self.register_buffer("head", torch.randn(d, 5, generator=generator))

    def forward(self, img: torch.Tensor, return_features: bool = False, no_output_bias: bool = False):
        x = torch.nn.functional.adaptive_avg_pool2d(img.float() / 255, [4, 4]).flatten(1) @ self.weight
        if return_features:
            return x
        logits = x @ self.head
        if not no_output_bias:
            logits = logits + torch.arange(5, device=logits.device)
        return logits.softmax(dim=1)


class PlainClassifier(torch.nn.Module):
    """A detector trained elsewhere: features or probabilities, no other arguments."""

    def forward(self, img: torch.Tensor, return_features: bool = False):
        x = torch.nn.functional.adaptive_avg_pool2d(img.float() / 255, [2, 2]).flatten(1)
        return x if return_features else x.softmax(dim=1)


class VGG16(torch.nn.Module):
    """Features are means of cells; LPIPS features are the pixels, scaled so that distances are mean squares."""

    def forward(
        self,
        img: torch.Tensor,
        resize_images: bool = True,
        return_features: bool = False,
        return_lpips: bool = False,
    ):
        if return_lpips:
            assert not resize_images
            x = img.flatten(1)
            return x / x.shape[1] ** 0.5
        return torch.nn.functional.adaptive_avg_pool2d(img.float(), [2, 2]).flatten(1)


def save_detector(module: torch.nn.Module, path: pathlib.Path, trusted: bool = True) -> str:
    """Write `module` as a TorchScript file, which this process trusts or not; returns the path as a string."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.")  # newer versions of PyTorch deprecate TorchScript
        torch.jit.script(module.eval()).save(str(path))
    if trusted:
        detectors._trusted.add(hashlib.sha256(path.read_bytes()).hexdigest())
    return str(path)


def tiny_generator(resolution: int = 8, channels: int = 3, c_dim: int = 0, seed: int = 0) -> Generator:
    """A generator with visible noise."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        G = Generator(
            z_dim=4,
            c_dim=c_dim,
            w_dim=4,
            img_resolution=resolution,
            img_channels=channels,
            mapping_kwargs={"num_layers": 2},
            synthesis_kwargs={"channel_base": 32, "channel_max": 4},
        )
    for name, parameter in G.named_parameters():
        if name.endswith("noise_strength"):
            torch.nn.init.constant_(parameter, 0.3)
    return G.eval().requires_grad_(False)


def tiny_biggan(
    resolution: int = 32, channels: int = 3, c_dim: int = 2, tables: bool = True, seed: int = 0, ch: int = 2, **kwargs
) -> BigGANGenerator:
    """A generator whose running statistics are not those that any batch has."""
    z_dim = 4 if tables else 2 * (resolution.bit_length() - 2)
    kind = {"shared_dim": 0 if tables else 3, "hierarchical": not tables, "attn_res": (), **kwargs}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        G = BigGANGenerator(z_dim, c_dim, resolution, channels, ch=ch, **kind)
        for name, tensor in G.state_dict().items():
            if name.endswith(("stored_mean", "gain.weight", "bias.weight")):
                torch.nn.init.normal_(tensor, std=0.3)
            if name.endswith("gamma"):
                torch.nn.init.constant_(tensor, 0.5)
    return G.eval().requires_grad_(False)


def make_images(num: int, resolution: int = 8, channels: int = 3, seed: int = 0) -> np.ndarray:
    """uint8 [num, H, W, C]."""
    return np.random.RandomState(seed).randint(0, 256, [num, resolution, resolution, channels], dtype=np.uint8)


def write_zip(path: pathlib.Path, images: np.ndarray, labels: list | None = None) -> str:
    """Write a dataset zip; returns the path as a string."""
    names = [f"{i:05d}.png" for i in range(len(images))]
    with zipfile.ZipFile(path, "w") as archive:
        for name, image in zip(names, images):
            data = io.BytesIO()
            PIL.Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(data, "PNG")
            archive.writestr(name, data.getvalue())
        if labels is not None:
            archive.writestr("dataset.json", json.dumps({"labels": [list(pair) for pair in zip(names, labels)]}))
    return str(path)


def mean_and_covariance(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [d] and covariance [d, d] (normalised by 1/n) of `features` [n, d], both float64."""
    features = np.asarray(features, dtype=np.float64)
    mean = features.mean(axis=0)
    return mean, (features - mean).T @ (features - mean) / len(features)


def smaller(name: str, num_fakes: int | None = None, max_real: int | None = None, **options) -> catalogue.Metric:
    """The metric `name` with fewer images or other options. Put it into `catalogue.METRICS` to use it by name."""
    metric = catalogue.find(name)
    changes = {"options": {**metric.options, **options}, "num_fakes": num_fakes or metric.num_fakes}
    if max_real is not None:
        changes["reals"] = dataclasses.replace(metric.reals, max_items=max_real)
    return dataclasses.replace(metric, **changes)


def dataset_options(path: str, **kwargs) -> dict:
    """`training_set_kwargs` of a snapshot."""
    return {"class_name": "training.dataset.ImageFolderDataset", "path": path, "use_labels": False, **kwargs}
