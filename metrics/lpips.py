# SPDX-License-Identifier: Apache-2.0
"""LPIPS features of images (Zhang et al. 2018), whose squared differences sum to the distance of two images."""

from collections.abc import Callable

import torch

from dnnlib.util import UserError
from metrics import detectors
from metrics.perceptual_path_length import lpips_input

_ARGUMENTS = {"resize_images", "return_lpips"}


def open_features(detector: str | None, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from images [N, 1 or 3, R, R] in [-1, 1] to features [N, d], differentiable.

    Images above 256x256 are reduced to that size by area averaging. `detector` is what --detector says; None means
    VGG16. Raises UserError where there is no such detector, or it gives no such features.
    """
    spec = detectors.resolve(detector, "vgg16")
    network = detectors.load(spec, device)
    missing = sorted(_ARGUMENTS - detectors.accepted_arguments(network))
    if missing:
        raise UserError(
            f"Detector '{spec.name}' cannot compare images, as its network takes no {' or '.join(missing)}: choose a "
            f"VGG16 with LPIPS weights for --detector, or leave it out."
        )

    def features(img: torch.Tensor) -> torch.Tensor:
        img = lpips_input(img, img.shape[-1], crop=False)
        return network(img, resize_images=False, return_lpips=True).float().flatten(1)

    return features
