# SPDX-License-Identifier: Apache-2.0
"""Features of images whose squared differences sum to the distance of two images: LPIPS (Zhang et al. 2018), pixels."""

from collections.abc import Callable

import torch

from dnnlib.util import UserError
from metrics import catalogue, detectors
from metrics.perceptual_path_length import lpips_input

PIXELS = "pixels"  # the value of --detector for pixel_features
_SMALLEST_SCALE = 4


def pixel_features(img: torch.Tensor) -> torch.Tensor:
    """Images [N, C, R, R] as features [N, d] whose squared differences sum to a distance that needs no network.

    It is the mean, over R, R/2, R/4, ... down to 4 pixels, of the mean squared difference of the images averaged to
    that size; [0, 4] for images in [-1, 1]. Coarse scales guide a search where fine ones hardly overlap.
    """
    scales = [img]
    while scales[-1].shape[-1] >= 2 * _SMALLEST_SCALE:
        scales.append(torch.nn.functional.avg_pool2d(scales[-1], 2))
    return torch.cat([x.flatten(1) / (x[0].numel() * len(scales)) ** 0.5 for x in scales], dim=1)


def open_features(detector: str | None, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """A differentiable function from images [N, 1 or 3, R, R] in [-1, 1] to features [N, d].

    `detector` is the value of --detector: None means VGG16, 'pixels' is `pixel_features`. For a network, images above
    256x256 are reduced to that size by area averaging.

    Raises UserError if there is no such detector, or if it has no LPIPS features.
    """
    if detector == PIXELS:
        return pixel_features
    spec = detectors.resolve(detector, catalogue.LPIPS.kind)
    network = detectors.load(spec, device)
    missing = sorted(set(catalogue.LPIPS.arguments) - detectors.accepted_arguments(network))
    if missing:
        raise UserError(
            f"Detector '{spec.name}' cannot compare images, because its network takes no {' or '.join(missing)}: "
            f"choose a VGG16 with LPIPS weights for --detector, omit it, or use --detector={PIXELS}."
        )

    def features(img: torch.Tensor) -> torch.Tensor:
        img = lpips_input(img, img.shape[-1], crop=False)
        return detectors.apply(network, img, most=None, resize_images=False, return_lpips=True).float()

    return features
