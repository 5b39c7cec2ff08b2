# SPDX-License-Identifier: Apache-2.0
"""Names of the classes of a dataset, by number: `class_names` in `dataset.json` and in network files.

Other programs leave the entry alone. It may come from anywhere, and nothing depends on it but what people read and
type; so names that cannot be used are the same as none.
"""

from collections.abc import Sequence
from typing import Any

from dnnlib import charts
from dnnlib.text import printable

KEY = "class_names"
LONGEST = 255  # characters of a name, as of a folder's
_MOST_LISTED = 20


def checked(value: Any, count: int) -> list[str] | None:
    """The names of `count` classes, if `value` is a list of at least as many different ones, else None."""
    if not isinstance(value, (list, tuple)) or not 0 < count <= len(value):
        return None
    names = list(value[:count])
    if not all(type(name) is str and 0 < len(name) <= LONGEST for name in names) or len(set(names)) < count:
        return None
    return names


def of(dataset: Any) -> list[str] | None:
    """The names of the classes of an open dataset; those of other projects have none."""
    return checked(getattr(dataset, KEY, None), dataset.label_dim)


def listing(names: Sequence[str], images: Sequence[int] | None = None, most: int = _MOST_LISTED) -> list[str]:
    """'NUMBER NAME' of the first `most` classes, with the number of `images` if given, and how many more there are."""
    lines = [f"{index} {printable(name, 60)}" for index, name in enumerate(names[:most])]
    if images is not None:
        lines = [f"{line} ({count})" for line, count in zip(lines, images)]
    return lines if len(names) <= most else [*lines, f"... and {len(names) - most} more"]


def caption(names: Sequence[str], number: int) -> str:
    """The name of a class for a picture, 'class NUMBER' if its letters cannot be drawn."""
    return charts.drawable(printable(names[number], 60)) or f"class {number}"


def find(names: Sequence[str], name: str) -> int | None:
    """The number of the class `name`, in any case if only one has that name then; None if there is none."""
    if name in names:
        return names.index(name)
    alike = [index for index, known in enumerate(names) if known.casefold() == name.casefold()]
    return alike[0] if len(alike) == 1 else None
