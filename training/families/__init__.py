# SPDX-License-Identifier: Apache-2.0
"""The registry of network families, by network, class name and --cfg."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dnnlib.util import UserError, get_obj_by_name
from training.families.biggan import BIGGAN
from training.families.family import Family
from training.families.stylegan2 import STYLEGAN2

if TYPE_CHECKING:
    import torch

_FAMILIES: dict[str, Family] = {family.name: family for family in (STYLEGAN2, BIGGAN)}
_AUGMENTATION = {"AugmentPipe": "training.augment.AugmentPipe"}  # of no family: it takes only images


def register(family: Family) -> Family:
    """Register a family: its presets for --cfg, its classes for network files.

    Registering a name again replaces that family. Raises ValueError if another family has one of its class names or
    presets.
    """
    for other in _FAMILIES.values():
        shared = {*family.classes, *family.presets} & {*other.classes, *other.presets}
        if other.name != family.name and shared:
            raise ValueError(f"the family {other.name} has {', '.join(sorted(shared))} already")
    _FAMILIES[family.name] = family
    return family


def unregister(name: str) -> None:
    """Make the family called `name` unknown again. Raises KeyError if it is."""
    del _FAMILIES[name]


def flags() -> frozenset[str]:
    """Flags, as Python names, that only some families have."""
    return frozenset().union(*(family.flags for family in _FAMILIES.values()))


def presets() -> list[str]:
    """Values of --cfg."""
    return [name for family in _FAMILIES.values() for name in family.presets]


def of_preset(cfg: str) -> Family:
    """The family of a value of --cfg. Raises KeyError for an unknown one."""
    for family in _FAMILIES.values():
        if cfg in family.presets:
            return family
    raise KeyError(cfg)


def preset(cfg: str, resolution: int, gpus: int) -> tuple[Family, Any]:
    """The family of a value of --cfg, and its hyper-parameters for images of `resolution` on `gpus` processes."""
    family = of_preset(cfg)
    found = family.presets[cfg]
    return family, found(resolution, gpus) if callable(found) else found


def aliases() -> dict[str, str]:
    """Short names of published networks, and their URLs."""
    return {alias: url for family in _FAMILIES.values() for alias, url in family.published.items()}


def of(network: torch.nn.Module) -> Family:
    """The family of a network, by the name of its class or of a base class.

    A class of an unknown name counts as StyleGAN2's: drop-in replacements of other projects name theirs as they like.
    """
    found = (find(cls.__name__) for cls in type(network).__mro__)
    return next((family for family in found if family is not None), STYLEGAN2)


def find(class_name: str) -> Family | None:
    """The family that stores networks under `class_name`, or None."""
    return next((family for family in _FAMILIES.values() if class_name in family.classes), None)


def require_w(G: torch.nn.Module, what: str) -> None:
    """Raises UserError unless `G` has an intermediate latent space w; `what` is the tool that needs it."""
    if not of(G).has_w:
        raise UserError(f"{what} needs a latent space w, which a {type(G).__name__} ({of(G).name}) does not have.")


def stored_classes() -> dict[str, str]:
    """Stored class name -> importable name, for everything that a network file may hold."""
    return {name: path for family in _FAMILIES.values() for name, path in family.classes.items()} | _AUGMENTATION


def kind_of(class_name: str) -> str | None:
    """'generator', 'discriminator' or 'augmentation', for a stored class name that is known."""
    family = find(class_name)
    if family is None:
        return "augmentation" if class_name in _AUGMENTATION else None
    return "generator" if class_name in family.generators else "discriminator"


def class_of(class_name: str) -> type | None:
    """Our class for the stored name `class_name`, or None if it is unknown."""
    path = stored_classes().get(class_name)
    return None if path is None else get_obj_by_name(path)
