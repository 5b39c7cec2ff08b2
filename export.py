# SPDX-License-Identifier: Apache-2.0
"""Write networks in other formats: safetensors, ONNX, PyTorch programs. `python export.py --help` lists the flags."""

import os

from dnnlib import cli, network_options
from dnnlib.cli import click

_PROGRAM_FLAGS = {"dtype": "--dtype", "noise_mode": "--noise-mode", "parts": "--parts", "license": "--license"}


@click.command(context_settings=network_options.SETTINGS)
@network_options.network
@click.option("--dest", help="File to write (.safetensors, .onnx or .pt2), or folder", metavar="PATH", required=True)
@click.option("--format", "folder", help="Folder of this kind at --dest: hf, Hugging Face", type=click.Choice(["hf"]))
@click.option("--dtype", help="Numbers in .onnx", type=click.Choice(["fp32", "fp16", "int8"]), default="fp32")
@click.option("--noise-mode", help="Per-pixel noise in programs", type=click.Choice(["const", "none"]), default="const")
@click.option("--parts", help="Mapping and synthesis as two programs", is_flag=True)
@click.option("--license", help="Licence of the network, stored in programs and cards", metavar="NAME")
@network_options.trust_pickle
@click.pass_context
def main(ctx, network, dest, folder, trust_pickle, **program):
    """Write the networks of a pickle in another format.

    \b
    All its networks, in a file that cannot contain code; every --network, --resume and --dgl-teacher here accepts it:
      python export.py --network=ffhq.pkl --dest=ffhq.safetensors

    \b
    G_ema as a program that runs without this project, compared with PyTorch before it is written. Inputs are
    z [batch, z_dim], c [batch, c_dim] of a conditional network, and psi [1], the truncation, where w has a mean; any
    number of images per call; the output is img, nominally in [-1, 1]:
      python export.py --network=ffhq.pkl --dest=ffhq.onnx
      python export.py --network=ffhq.pkl --dest=ffhq.pt2

    \b
    G_ema as a folder for the Hugging Face Hub, with a model card; every --network here accepts it:
      python export.py --network=ffhq.pkl --dest=ffhq --format=hf --license=mit

    \b
    Smaller, with a loss that is printed: half precision, or convolutions in int8, calibrated on 64 seeds:
      python export.py --network=ffhq.pkl --dest=ffhq.int8.onnx --dtype=int8

    With --parts, two programs: ffhq.mapping.onnx (z, c, psi -> ws) and ffhq.synthesis.onnx (ws -> img).
    """
    given = [name for name in _PROGRAM_FLAGS if ctx.get_parameter_source(name) != click.core.ParameterSource.DEFAULT]
    if folder is not None:
        for name in given:
            if name != "license":
                raise click.UsageError(f"{_PROGRAM_FLAGS[name]} has no effect with --format={folder}.")
        from training.export import export_folder

        return export_folder(network, dest, program["license"], trust_pickle)
    kind = os.path.splitext(dest)[1].lower()
    if kind == ".pt":
        raise click.UsageError(f"--dest={dest}: PyTorch has deprecated TorchScript (.pt); write .pt2 or .onnx.")
    if kind not in (".safetensors", ".onnx", ".pt2"):
        raise click.UsageError(f"--dest={dest} must end in .safetensors, .onnx or .pt2.")
    if kind == ".safetensors" and given:
        flag = _PROGRAM_FLAGS[given[0]]
        raise click.UsageError(f"{flag} has no effect on a .safetensors file, which holds the networks unchanged.")

    from training.export import Settings, export_network

    return export_network(network, dest, None if kind == ".safetensors" else Settings(**program), trust_pickle)


if __name__ == "__main__":
    cli.run(main)
