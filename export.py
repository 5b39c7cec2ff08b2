# SPDX-License-Identifier: Apache-2.0
"""Write networks in other forms: safetensors, ONNX, TorchScript. `python export.py --help` lists the flags."""

import click
from click.core import ParameterSource

from dnnlib import cli

_PROGRAM_FLAGS = {"psi": "--trunc", "batch": "--batch", "noise_mode": "--noise-mode"}


@click.command(context_settings={"show_default": True})
@click.option("--network", help="Network pickle: path or URL", metavar="PKL", required=True)
@click.option("--dest", help="File to write: .safetensors, .onnx or .pt", metavar="FILE", required=True)
@click.option("--trunc", "psi", help="Truncation psi, for .onnx and .pt", type=cli.FINITE_FLOAT, default=1)
@click.option("--batch", help="Images per call, for .onnx and .pt", type=click.IntRange(min=1), default=1)
@click.option("--noise-mode", help="Noise, for .onnx and .pt", type=click.Choice(["const", "none"]), default="const")
@click.option("--trust-pickle", help="Run the code stored in the network pickle", is_flag=True)
@click.pass_context
def main(ctx, network, dest, psi, batch, noise_mode, trust_pickle):
    """Write the networks of a pickle in another form.

    \b
    All its networks, in a file that cannot hold code; every --network, --resume and --dgl-teacher here takes it:
      python export.py --network=ffhq.pkl --dest=ffhq.safetensors

    \b
    G_ema as a program that runs without this project, compared with PyTorch before it is written. Inputs are
    z [batch, z_dim] and, for a conditional network, c [batch, c_dim]; the output is img, nominally in [-1, 1]:
      python export.py --network=ffhq.pkl --dest=ffhq.onnx --trunc=0.7
      python export.py --network=ffhq.pkl --dest=ffhq.pt --batch=4
    """
    import os

    from dnnlib.util import UserError
    from training import export
    from training.files import safetensors_io
    from training.files.snapshot import KEYS, load_snapshot

    kind = export.ending(dest)
    if kind not in (".safetensors", ".onnx", ".pt"):
        raise click.UsageError(f"--dest={dest} must end in .safetensors, .onnx or .pt.")
    given = [flag for name, flag in _PROGRAM_FLAGS.items() if ctx.get_parameter_source(name) != ParameterSource.DEFAULT]
    if kind == ".safetensors" and given:
        raise click.UsageError(
            f"{given[0]} has no meaning for a .safetensors file, which holds the networks as they are."
        )
    if not os.path.isdir(os.path.dirname(os.path.abspath(dest))):
        raise UserError(f"--dest={dest} lies in a folder that does not exist.")
    snapshot = load_snapshot(network, trust=trust_pickle)
    try:
        if kind == ".safetensors":
            safetensors_io.write(dest, {key: snapshot.get(key) for key in KEYS})
            click.echo(f"{dest}: {', '.join(key for key in snapshot if key in KEYS[:-1])}")
            return
        G = snapshot["G_ema"]
        click.echo(f"Exporting G_ema, {G.img_resolution}x{G.img_resolution}, {batch} image(s) per call", err=True)
        difference = export.export(G, dest, export.Settings(psi, batch, noise_mode))
        click.echo(f"{dest}: max abs difference to PyTorch {difference:.2g}")
    except OSError as error:
        raise UserError(f"--dest={dest} cannot be written: {error.strerror or error}.") from error


if __name__ == "__main__":
    cli.run(main)
