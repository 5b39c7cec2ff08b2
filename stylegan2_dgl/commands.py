# SPDX-License-Identifier: Apache-2.0
"""The console commands of an installed package, one for each script: `sg2-train` is `python train.py`."""

import functools
import importlib
from typing import NoReturn

from stylegan2_dgl import activate


def _run(script: str) -> NoReturn:
    activate()
    from dnnlib import cli

    cli.run(importlib.import_module(script).main)


calc_metrics = functools.partial(_run, "calc_metrics")
compare = functools.partial(_run, "compare")
dataset_tool = functools.partial(_run, "dataset_tool")
export = functools.partial(_run, "export")
generate = functools.partial(_run, "generate")
legacy = functools.partial(_run, "legacy")
projector = functools.partial(_run, "projector")
style_mixing = functools.partial(_run, "style_mixing")
train = functools.partial(_run, "train")
train_detector = functools.partial(_run, "scripts.train_detector")
