# SPDX-License-Identifier: Apache-2.0
"""The versions that are compared: the plain reference path, and the fast path in each precision."""

import contextlib
import dataclasses

import torch

from dnnlib.util import UserError
from torch_utils import precision
from torch_utils.ops.backend import reference_path

REFERENCE = "reference"
PRECISIONS = ("fp32", "fp16", "bf16")


@dataclasses.dataclass(frozen=True)
class Variant:
    """One version of everything: `plain` takes the reference path, in fp32."""

    name: str
    precision: str
    plain: bool = False

    def path(self) -> contextlib.AbstractContextManager:
        """To be held while this version is built and run."""
        return reference_path() if self.plain else contextlib.nullcontext()

    @property
    def dtype(self) -> torch.dtype:
        """Type of the high resolutions."""
        return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[self.precision]


def available(device: torch.device, wanted: list[str] | None = None) -> list[Variant]:
    """The reference and the fast path in the precisions `wanted`, by default in all that `device` has.

    Raises UserError for a precision that is unknown or that the device does not have.
    """
    for name in wanted or ():
        if name not in PRECISIONS:
            raise UserError(f"--precisions must be of {', '.join(PRECISIONS)}, got {name!r}")
        precision.run_dtype(name, device)  # says what the device lacks
    names = list(dict.fromkeys(wanted or ())) or [name for name in PRECISIONS if _has(name, device)]
    return [Variant(REFERENCE, "fp32", plain=True), *(Variant(name, name) for name in names)]


def _has(name: str, device: torch.device) -> bool:
    try:
        precision.run_dtype(name, device)
    except UserError:
        return False
    return True


def auto_choice(device: torch.device) -> str:
    """The precision that --precision=auto, which users get, means on `device`."""
    dtype = precision.run_dtype("auto", device)
    return next(name for name in PRECISIONS if Variant(name, name).dtype == dtype)


def half_is_slow(variant: Variant, device: torch.device) -> bool:
    """Whether `variant` is a half precision that this CPU has no instructions for, so that it only emulates it."""
    return variant.precision != "fp32" and device.type == "cpu" and not precision.cpu_has_fast_bf16()
