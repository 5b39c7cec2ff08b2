# SPDX-License-Identifier: Apache-2.0
"""Convert old network pickles, TensorFlow's included, to the current format. `python legacy.py --help` lists the flags.

Notebooks import `load_network_pkl` from here. This project itself uses `training.files.snapshot.load_snapshot`.
"""

from typing import IO, Any

from dnnlib import cli, network_options
from dnnlib.cli import click


@click.command()
@click.option("--source", help="Network pickle to convert: path or URL", metavar="PKL", required=True)
@click.option("--dest", help="Network pickle to write", metavar="PKL", required=True)
@click.option(
    "--force-fp16", help="Run the four highest resolutions in half precision on a GPU", type=cli.BOOL, default=False,
    is_flag=False, flag_value=True, metavar="BOOL",  # alone it means yes
)  # fmt: skip
@network_options.trust_pickle
def main(**flags):
    """Convert a network pickle of StyleGAN2, in TensorFlow or PyTorch, to one that every StyleGAN2-ADA tool reads.

    The scripts of this project read old pickles directly; other programs may not.

    \b
    Example:
      python legacy.py --source=stylegan2-cat-config-f.pkl --dest=stylegan2-cat-config-f-pytorch.pkl
    """
    if flags["force_fp16"] and flags["trust_pickle"]:
        raise click.UsageError(
            "--force-fp16 rebuilds the networks with this project's classes; --trust-pickle keeps the file's: use one."
        )

    from training.files.legacy import convert

    convert(**flags)


def load_network_pkl(f: IO[bytes], force_fp16: bool = False) -> dict[str, Any]:
    """`training.files.legacy.load_network_pkl`, imported when it is called: `--help` must not wait for PyTorch."""
    from training.files import legacy

    return legacy.load_network_pkl(f, force_fp16)


if __name__ == "__main__":
    cli.run(main)
