# SPDX-License-Identifier: Apache-2.0
"""The project as an installed package: console commands, and `activate()` for programs.

The project's modules import each other as StyleGAN2-ADA's do (`training`, `metrics`, `torch_utils`, ...), and network
pickles refer to `torch_utils.persistence`. As top-level modules of an environment such names would clash; `dgl` is also
Deep Graph Library. So a wheel has a copy of the project's tree in `stylegan2_dgl/project`, which only the commands and
programs that call `activate()` see.
"""

import pathlib
import sys

_HERE = pathlib.Path(__file__).parent
PROJECT = _HERE / "project" if (_HERE / "project").is_dir() else _HERE.parent  # the latter in a clone
_NEEDED = ("dnnlib", "metrics", "torch_utils", "training")


def activate() -> pathlib.Path:
    """Make the project's modules importable in this process, before others of the same names; returns their folder.

    Afterwards `import legacy`, `from training import networks` and so on work as in a clone. A module `dgl` that is
    already imported stays: a program that also uses Deep Graph Library imports that first.

    Raises ImportError if another module is already imported as dnnlib, metrics, torch_utils or training.
    """
    for name in _NEEDED:
        module = sys.modules.get(name)
        if module is not None and str(PROJECT / name) not in map(str, getattr(module, "__path__", [])):
            raise ImportError(f"stylegan2_dgl.activate: another module is already imported as '{name}'; activate first")
    if str(PROJECT) not in sys.path[:1]:
        sys.path.insert(0, str(PROJECT))
    return PROJECT
