# SPDX-License-Identifier: Apache-2.0
"""General utilities. They import neither torch nor any other package of the project."""

from dnnlib import util
from dnnlib.util import EasyDict, make_cache_dir_path

__version__ = "0.1.0"

__all__ = ["EasyDict", "make_cache_dir_path", "util"]
