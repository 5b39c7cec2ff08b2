# SPDX-License-Identifier: Apache-2.0
"""C++ and CUDA extensions, compiled when they are first asked for."""

import os
import time
import types
from collections.abc import Sequence
from typing import Any

from dnnlib.util import format_time

verbosity = "brief"  # 'none' = silent, 'brief' = a line for each plugin, 'full' = also what the compiler says

_VERBOSITIES = ("none", "brief", "full")
_plugins: dict[str, types.ModuleType] = {}


def get_plugin(module_name: str, sources: Sequence[str | os.PathLike], **build_kwargs: Any) -> types.ModuleType:
    """The Python module `module_name`, compiled from C++ and CUDA files; the same one for the life of the process.

    `build_kwargs` go to `torch.utils.cpp_extension.load`, which keeps what it built (under TORCH_EXTENSIONS_DIR) for
    later processes. Raises ValueError for an unknown `verbosity`, and whatever the compilation raises: a machine
    without a compiler is for the caller to deal with.
    """
    if verbosity not in _VERBOSITIES:
        raise ValueError(f"custom_ops.verbosity must be one of {', '.join(_VERBOSITIES)}, got {verbosity!r}")
    if module_name in _plugins:
        return _plugins[module_name]
    import torch.utils.cpp_extension  # takes a second, and most processes never need it

    if verbosity != "none":
        print(f"Compiling {module_name}: ", end="\n" if verbosity == "full" else "", flush=True)
    start = time.monotonic()
    try:
        plugin = torch.utils.cpp_extension.load(
            name=module_name, sources=[os.fspath(path) for path in sources], verbose=verbosity == "full", **build_kwargs
        )
    except BaseException:
        if verbosity != "none":
            print("failed", flush=True)
        raise
    if verbosity != "none":
        print(f"done in {format_time(time.monotonic() - start)}", flush=True)
    _plugins[module_name] = plugin
    return plugin
