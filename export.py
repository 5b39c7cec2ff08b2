# SPDX-License-Identifier: Apache-2.0
"""Write networks in other formats: safetensors, ONNX, TorchScript. `python export.py --help` lists the flags."""

import os

from dnnlib import cli, network_options
from dnnlib.cli import click

_PROGRAM_FLAGS = {"psi": "--trunc", "batch": "--batch", "noise_mode": "--noise-mode"}


@click.command(context_settings=network_options.SETTINGS)
@network_options.network
@click.option("--dest", help="File to write: .safetensors, .onnx or .pt", metavar="FILE", required=True)
@click.option("--trunc", "psi", help="Truncation psi, for .onnx and .pt  [default: 1]", type=cli.FINITE_FLOAT)
@click.option("--batch", help="Images per call, for .onnx and .pt", type=click.IntRange(min=1), default=1)
@click.option("--noise-mode", help="Noise, for .onnx and .pt", type=click.Choice(["const", "none"]), default="const")
@network_options.trust_pickle
@click.pass_context
def main(ctx, network, dest, trust_pickle, **program):
    """Write the networks of a pickle in another format.

    \b
    All its networks, in a file that cannot contain code; every --network, --resume and --dgl-teacher here accepts it:
      python export.py --network=ffhq.pkl --dest=ffhq.safetensors

    \b
    G_ema as a program that runs without this project, compared with PyTorch before it is written. Inputs are
    z [batch, z_dim] and, for a conditional network, c [batch, c_dim]; the output is img, nominally in [-1, 1]:
      python export.py --network=ffhq.pkl --dest=ffhq.onnx --trunc=0.7
      python export.py --network=ffhq.pkl --dest=ffhq.pt --batch=4
    """
    kind = os.path.splitext(dest)[1].lower()
    if kind not in (".safetensors", ".onnx", ".pt"):
        raise click.UsageError(f"--dest={dest} must end in .safetensors, .onnx or .pt.")
    given = [
        flag
        for name, flag in _PROGRAM_FLAGS.items()
        if ctx.get_parameter_source(name) != click.core.ParameterSource.DEFAULT
    ]
    if kind == ".safetensors" and given:
        raise click.UsageError(f"{given[0]} has no effect on a .safetensors file, which holds the networks unchanged.")

    from training.export import Settings, export_network

    export_network(network, dest, None if kind == ".safetensors" else Settings(**program), trust_pickle)


if __name__ == "__main__":
    cli.run(main)
