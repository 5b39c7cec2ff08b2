# SPDX-License-Identifier: Apache-2.0
"""Brings old network pickles, TensorFlow's among them, into today's form. `python legacy.py --help` lists the flags.

Notebooks import `load_network_pkl`. Inside this project, `training.files.snapshot.load_snapshot` reads the same files.
"""

from typing import IO, Any

import click

from dnnlib import cli


@click.command()
@click.option("--source", help="Network pickle to convert: path or URL", metavar="PKL", required=True)
@click.option("--dest", help="Network pickle to write", metavar="PKL", required=True)
@click.option("--force-fp16", help="Let the four highest resolutions run in half precision on a GPU", is_flag=True)
@click.option("--trust-pickle", help="Run the code stored in the network pickle", is_flag=True)
def main(source, dest, force_fp16, trust_pickle):
    """Convert a network pickle of StyleGAN2, in TensorFlow or PyTorch, to one that every StyleGAN2-ADA tool reads.

    The scripts of this project take old pickles as they are; other people's tools may not.

    \b
    Example:
      python legacy.py --source=stylegan2-cat-config-f.pkl --dest=stylegan2-cat-config-f-pytorch.pkl
    """
    if force_fp16 and trust_pickle:
        raise click.UsageError(
            "--force-fp16 builds the networks again as this project's own; --trust-pickle keeps the file's: use one."
        )

    from dnnlib.util import UserError
    from training.files.snapshot import load_snapshot, save_snapshot

    click.echo(f"Loading {source}")
    data = _entries(load_snapshot(source, trust=trust_pickle), force_fp16)
    click.echo(f"Saving {dest}")
    try:
        save_snapshot(dest, data)
    except OSError as error:
        raise UserError(f"--dest={dest} cannot be written: {error.strerror or error}") from error


def load_network_pkl(f: IO[bytes], force_fp16: bool = False) -> dict[str, Any]:
    """Networks of a pickle of StyleGAN2-ADA, StyleGAN3's repository or TensorFlow, read from an open binary file.

    Returns `G`, `D`, `G_ema`, `training_set_kwargs` and `augment_pipe`; what the file does not have is None. Networks
    are in eval mode, on the CPU, with requires_grad off. `force_fp16` rebuilds G, D and G_ema with num_fp16_res 4 and
    conv_clamp 256 (arXiv 2006.06676, appendix). Runs no code from the file. Raises dnnlib.util.UserError.
    """
    from training.files.snapshot import read_snapshot

    return _entries(read_snapshot(f), force_fp16)


def _entries(snapshot, force_fp16):
    """All entries of a Snapshot, in a plain dict."""
    from training.files.snapshot import KEYS

    data = {key: snapshot.get(key) for key in KEYS}
    if force_fp16:
        for key in ("G", "D", "G_ema"):
            if data[key] is not None:
                data[key] = _in_half_precision(data[key], f"{key} in {snapshot.path}")
    return data


def _in_half_precision(network, name):
    """The same network, built again so that its four highest resolutions run in half precision."""
    from torch_utils import misc, persistence
    from torch_utils.safe_pickle import StoredObject
    from training.files.snapshot import rebuild

    class_name, kwargs = type(network).__name__, network.init_kwargs
    resolutions = kwargs.setdefault("synthesis_kwargs", {}) if class_name == "Generator" else kwargs
    resolutions.update(num_fp16_res=4, conv_clamp=256)
    tensors = dict(misc.named_params_and_buffers(network))
    state = {"_init_args": network.init_args, "_init_kwargs": kwargs, "_parameters": tensors}
    return rebuild(StoredObject(class_name, "", state, persistence.VERSION), name)


if __name__ == "__main__":
    cli.run(main)
