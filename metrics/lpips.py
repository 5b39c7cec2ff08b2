# SPDX-License-Identifier: Apache-2.0
"""LPIPS features of images (Zhang et al. 2018): their squared differences sum to the distance of two images."""

from collections.abc import Callable

import torch

from dnnlib.util import UserError
from metrics import catalogue, detectors
from metrics.perceptual_path_length import lpips_input


def open_features(detector: str | None, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """A differentiable function from images [N, 1 or 3, R, R] in [-1, 1] to features [N, d].

    Images above 256x256 are reduced to that size by area averaging. `detector` is the value of --detector; None means
    VGG16. Raises UserError if there is no such detector, or if it has no LPIPS features.
    """
    spec = detectors.resolve(detector, catalogue.LPIPS.kind)
    network = detectors.load(spec, device)
    missing = sorted(set(catalogue.LPIPS.arguments) - detectors.accepted_arguments(network))
    if missing:
        raise UserError(
            f"Detector '{spec.name}' cannot compare images, because its network takes no {' or '.join(missing)}: "
            f"choose a VGG16 with LPIPS weights for --detector, or omit it."
        )

    def features(img: torch.Tensor) -> torch.Tensor:
        img = lpips_input(img, img.shape[-1], crop=False)
        return detectors.apply(network, img, most=None, resize_images=False, return_lpips=True).float()

    return features
