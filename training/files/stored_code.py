# SPDX-License-Identifier: Apache-2.0
"""Whether the code stored with a network is known here, since this project's own code runs in its place.

Known are the text of the class that runs, the listed texts, and the files that StyleGAN2-ADA and StyleGAN3 ship. The
latter are not available to this project, so they are recognised by the names of their classes and functions: a fork
that changes only what is inside these is not noticed. Once their digests are listed in `ORIGINALS`, it is.

To list a text, add `digest(text)`; of a file, the text is `torch_utils.safe_pickle.StoredObject.module_src`.
"""

import hashlib
import re

from dnnlib.text import printable
from torch_utils.persistence import source_of
from torch_utils.safe_pickle import StoredObject
from training import families

_MOST_NAMES = 3  # that one message lists
_DEFINITION = re.compile(r"^(?:class|def)[ \t]+(\w+)", re.MULTILINE)

# Every version of training/networks.py and networks_biggan.py that may be in a snapshot, the current ones included
OURS = frozenset(
    {
        "7a9f3079ea9b79a8d865952990668e3ca62fc41ebd81ce12abc0a9984faef911",
        "8d0f8dd22932b00b16e0b7ae99e6a40f80c7992abcce01b7f4e04d92fe878955",
        "63c3e5efd0d3094e23a95d98bd6f938cdb797422f77f88a4b32069bec7047c6a",
        "b64635b0c148b4882df67d3c12792ef78032967324ed08cc71d9c8b3c5352386",
        "4351d142f65c0d23d194e5b119d199d3b43d477b9b43e1020741a15b78409d8f",
        "63544cb84da7086db77c2a3ab0c0958cd5d24f380ec93a77f754ff0e85722c1c",
        "09cef83c9bd1d3247d5177afb71f5b7e83283c1bcf6a52bbf63ad4234737509c",
        "2793c10f2b9f83341deb2bf0fb260a96e6126e698dc6fd9c7cc3a706894e361c",
        "4b5a6cc83a7c58e7cac7ee6534b3a356d23374aa1f31362ee32c7de19399f4e9",
        "23d909ab582d882e7d582710b1cedb848d296b4b7462e77c2dfeb450e9dccf08",
        "c3ead4bae8575440cffa37cebf9d8946c87575fac6641c8aa24087d450841917",
        "a824706def01e914b33c8d9826ab421a69328592d59ae623aca351af1e5f5b5e",
        "c43c2373381799a7a831c7f9d0190dcd54675decd755a9c82f0fd7c89ec75f99",
    }
)
ORIGINALS: frozenset[str] = frozenset()  # StyleGAN2-ADA's training/networks.py, StyleGAN3's networks_stylegan2.py


def digest(source: str) -> str:
    """SHA-256 of a text; line ends, spaces at their ends, and empty lines around the text do not count."""
    lines = source.strip().splitlines()
    return hashlib.sha256("\n".join(line.rstrip() for line in lines).encode(errors="replace")).hexdigest()


def unknown(stored: StoredObject) -> str | None:
    """None if the code stored with a network is known, or if there is none. Else its difference in words, or ''.

    The code is not run, and nothing is said of augmentations, which no network depends on.
    """
    family, source = families.find(stored.class_name), stored.module_src
    if family is None or not source:
        return None
    running = source_of(families.class_of(stored.class_name))
    if source == running or digest(source) in OURS | ORIGINALS:
        return None
    defined = _defined(source)
    if defined == family.original_names and not ORIGINALS:
        return None
    nearest = min(family.original_names, _defined(running or ""), key=lambda names: len(defined ^ names))
    differences = {"adds": defined - nearest, "lacks": nearest - defined}
    return " and ".join(f"{verb} {_listed(names)}" for verb, names in differences.items() if names)


def _defined(source: str) -> frozenset[str]:
    """Names of the classes and functions of a module, without parsing its text."""
    return frozenset(_DEFINITION.findall(source))


def _listed(names: frozenset[str]) -> str:
    shown = [printable(name, 60) for name in sorted(names)]
    more = f" and {len(shown) - _MOST_NAMES} more" if len(shown) > _MOST_NAMES else ""
    return ", ".join(shown[:_MOST_NAMES]) + more
