# SPDX-License-Identifier: Apache-2.0
"""Implementation of legacy.py: convert old network pickles, including TensorFlow's, to the current format."""

from typing import IO, Any

import torch

from dnnlib.util import UserError
from training import families
from training.files.snapshot import KEYS, Snapshot, load_snapshot, read_snapshot, save_snapshot, with_arguments


def load_network_pkl(f: IO[bytes], force_fp16: bool = False) -> dict[str, Any]:
    """Load the networks of a StyleGAN2-ADA, StyleGAN3 or TensorFlow pickle from an open binary file.

    Returns `G`, `D`, `G_ema`, `training_set_kwargs` and `augment_pipe`; entries missing in the file are None. Networks
    are in eval mode, on the CPU, with requires_grad off. `force_fp16` rebuilds G, D and G_ema with num_fp16_res 4 and
    conv_clamp 256 (arXiv 2006.06676, appendix). Runs no code from the file. Raises dnnlib.util.UserError.
    """
    return _entries(read_snapshot(f), force_fp16)


def convert(source: str, dest: str, *, force_fp16: bool = False, trust_pickle: bool = False) -> None:
    """Write the networks of the pickle `source` (path or URL) to the pickle `dest` in the current format.

    Prints its progress. Raises UserError, naming the file or flag, if either file is unusable.
    """
    print(f"Loading {source}", flush=True)
    data = _entries(load_snapshot(source, trust=trust_pickle), force_fp16)
    print(f"Saving {dest}", flush=True)
    try:
        save_snapshot(dest, data)
    except OSError as error:
        raise UserError(f"--dest={dest} cannot be written: {error.strerror or error}") from error


def _entries(snapshot: Snapshot, force_fp16: bool) -> dict[str, Any]:
    """All entries of a snapshot as a plain dict."""
    data = {key: snapshot.get(key) for key in KEYS}
    if force_fp16:
        for key in ("G", "D", "G_ema"):
            if data[key] is not None:
                data[key] = _in_half_precision(data[key], f"{key} in {snapshot.path}")
    return data


def _in_half_precision(network: torch.nn.Module, name: str) -> torch.nn.Module:
    """A copy of the network with its four highest resolutions in half precision."""
    kwargs = families.of(network).half_precision(type(network).__name__, network.init_kwargs, None)
    return with_arguments(network, name, **kwargs)
