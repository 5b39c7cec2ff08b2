# SPDX-License-Identifier: Apache-2.0
"""What dataset_tool.py says at the end: how many images, of which kind and classes, what was converted or left out."""

import collections
import dataclasses

from training.data import class_names
from training.data.image_files import CHANNELS, KINDS

_MOST_BROKEN = 10  # that are listed
_MODES = {  # of files, where the name of the mode does not say it
    "1": "1 to 4 bits per pixel", "L": "grey", "LA": "grey + alpha", "P": "palette",
    **dict.fromkeys(("I", "I;16", "I;16B"), "16-bit grey"),
    "LA;16": "16-bit grey + alpha", "RGB;16": "16-bit RGB", "RGBA;16": "16-bit RGBA",
}  # fmt: skip


@dataclasses.dataclass
class Summary:
    """Images written (labels as in `dataset.json`), left out by the transform, broken; the rest counts conversions.

    `shape` is the [C, H, W] of the images written, `modes` counts those whose file has another mode, `names` are those
    of the classes.
    """

    shape: list[int] | None = None
    labels: list[list] = dataclasses.field(default_factory=list)  # [file name, label] of each image written
    names: list[str] | None = None
    left_out: int = 0
    broken: list[str] = dataclasses.field(default_factory=list)  # sentences
    modes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    resized: int = 0
    turned: int = 0
    kept_jpeg: int = 0

    @property
    def written(self) -> int:
        """Number of images in the dataset."""
        return len(self.labels)

    def count(self, mode: str, resized: bool, kept_jpeg: bool, turned: bool) -> None:
        """Count one image written, whose file has this mode ('' where that is unknown)."""
        if mode and CHANNELS.get(mode) != self.shape[0]:
            self.modes[_MODES.get(mode, mode)] += 1
        self.resized += resized
        self.kept_jpeg += kept_jpeg
        self.turned += turned

    def lines(self, dest: str, background: str) -> list[str]:
        """Lines to print about the dataset `dest`, with this colour under transparent parts."""
        channels, height, width = self.shape
        per_class = self._per_class()
        classes = f", {len(per_class)} classes" if per_class else ""
        found = [f"Wrote {self.written} images to {dest}: {width}x{height} {KINDS[channels]}{classes}"]
        if per_class:
            if self.names is not None:
                found += [f"  {line}" for line in class_names.listing(self.names, per_class)]
            empty = per_class.count(0)
            if empty:
                found.append(f"{empty} of {len(per_class)} classes have no images.")
        if self.modes:
            under = f" (transparent parts on {background})" if channels < 4 and self._transparent() else ""
            listed = ", ".join(f"{count} {mode}" for mode, count in self.modes.most_common())
            found.append(f"Converted to {KINDS[channels]}: {listed}{under}")
        if self.resized:
            found.append(f"Cropped or resized: {self.resized}")
        if self.turned:
            found.append(f"Rotated or mirrored as their EXIF orientation says: {self.turned}")
        if self.kept_jpeg:
            found.append(f"Kept as JPEG, byte for byte: {self.kept_jpeg}")
        if self.broken:
            found.append(f"Skipped {len(self.broken)} broken files:")
            found += [f"  {sentence}" for sentence in self.broken[:_MOST_BROKEN]]
            if len(self.broken) > _MOST_BROKEN:
                found.append(f"  ... and {len(self.broken) - _MOST_BROKEN} more")
        return found

    def _transparent(self) -> bool:
        return any("alpha" in mode or "RGBA" in mode for mode in self.modes)

    def _per_class(self) -> list[int]:
        """Number of images of each class; empty without class numbers."""
        counts = collections.Counter(label if isinstance(label, (int, float)) else None for _name, label in self.labels)
        return [] if None in counts else [counts[index] for index in range(max(map(int, counts)) + 1)]
