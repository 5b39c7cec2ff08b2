# SPDX-License-Identifier: Apache-2.0
"""Convert networks of other formats, such as TensorFlow's, and back. `python legacy.py --help` lists the flags.

Notebooks import `load_network_pkl` from here. This project itself uses `training.files.snapshot.load_snapshot`.
"""

from typing import IO, Any

from dnnlib import cli, network_options
from dnnlib.cli import click


@click.command()
@click.option("--source", help="Network file to convert: path or URL", metavar="PKL", required=True)
@click.option(
    "--dest", help="Network pickle to write, or a .pt file in rosinality's layout", metavar="FILE", required=True
)
@click.option(
    "--force-fp16", help="Run the four highest resolutions in half precision on a GPU", type=cli.BOOL, default=False,
    is_flag=False, flag_value=True, metavar="BOOL",  # alone it means yes
)  # fmt: skip
@click.option("--resolution", help="Carry over to images of this width and height", type=click.IntRange(8, 4096))
@click.option("--channels", help="Carry over to grey (1) or RGB (3) images", type=click.Choice(["1", "3"]))
@click.option("--classes", help="Carry over to this many classes; 0: no labels", type=click.IntRange(min=0))
@network_options.trust_pickle
def main(**flags):
    """Convert networks, such as TensorFlow pickles of StyleGAN2, to a pickle that every StyleGAN2-ADA tool reads.

    The scripts of this project read such files directly; other programs may not. A --dest that ends in .pt is a
    checkpoint (g, d, g_ema, latent_avg) in the layout of rosinality's StyleGAN2, which many encoders and editors read.

    \b
    Examples:
      # A TensorFlow pickle
      python legacy.py --source=stylegan2-cat-config-f.pkl --dest=stylegan2-cat-config-f-pytorch.pkl
    \b
      # To rosinality's layout, and back
      python legacy.py --source=ffhq.pkl --dest=ffhq.pt
      python legacy.py --source=ffhq.pt --dest=ffhq-again.pkl
    \b
      # For transfer learning on grey 64x64 images of ten classes: a table says which weights are new
      python legacy.py --source=ffhq.pkl --dest=start.pkl --resolution=64 --channels=1 --classes=10
    """
    given = {"img_resolution": flags.pop("resolution"), "img_channels": flags.pop("channels")}
    given["c_dim"] = flags.pop("classes")
    changes = {name: int(value) for name, value in given.items() if value is not None}
    resolution = changes.get("img_resolution", 8)
    if resolution & (resolution - 1):
        raise click.UsageError(f"--resolution must be a power of two, not {resolution}.")
    if changes and flags["trust_pickle"]:
        raise click.UsageError("--trust-pickle keeps the file's classes, which cannot change their size: leave it out.")
    if flags["force_fp16"] and flags["dest"].endswith(".pt"):
        raise click.UsageError("--force-fp16 has no effect on a .pt file, which records no precision: leave it out.")
    if flags["force_fp16"] and flags["trust_pickle"]:
        raise click.UsageError(
            "--force-fp16 rebuilds the networks with this project's classes; --trust-pickle keeps the file's: use one."
        )

    from training.files.legacy import convert

    convert(changes=changes, **flags)


def load_network_pkl(f: IO[bytes], force_fp16: bool = False) -> dict[str, Any]:
    """`training.files.legacy.load_network_pkl`, imported when it is called: `--help` must not wait for PyTorch."""
    from training.files import legacy

    return legacy.load_network_pkl(f, force_fp16)


if __name__ == "__main__":
    cli.run(main)
