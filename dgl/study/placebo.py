# SPDX-License-Identifier: Apache-2.0
"""A teacher that knows nothing: the networks of a real teacher with random weights, to test whether any second critic
helps as much.
"""

import os

import torch

from dnnlib.util import UserError
from training.files.snapshot import load_snapshot, save_snapshot


def write_placebo(teacher: str, dest: str, seed: int = 0) -> None:
    """Write to `dest` a network pickle with the classes and sizes of `teacher` and newly drawn weights.

    Raises UserError if `teacher` has no D, or if `dest` cannot be written.
    """
    snapshot = load_snapshot(teacher)
    if "D" not in snapshot:
        raise UserError(f"{teacher} holds no discriminator D: name another network pickle")
    networks = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for key in ("D", "G_ema"):
            if key in snapshot:
                networks[key] = type(snapshot[key])(*snapshot[key].init_args, **snapshot[key].init_kwargs)
    G = networks.get("G_ema")
    data = {"G": G, "D": networks["D"], "G_ema": G, "augment_pipe": None, "training_set_kwargs": {}}
    try:
        save_snapshot(os.fspath(dest), data)
    except OSError as error:
        raise UserError(f"{dest} cannot be written ({error.strerror})") from error
