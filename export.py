# SPDX-License-Identifier: Apache-2.0
"""Write networks in other formats: safetensors, programs, a web page. `python export.py --help` lists the flags."""

import os

from dnnlib import cli, network_options
from dnnlib.cli import click

_PROGRAM_FLAGS = {"dtype": "--dtype", "noise_mode": "--noise-mode", "parts": "--parts", "license": "--license"}


def _kind(dest: str, folder: str | None, given: set[str]) -> str:
    """'hf', 'web' or the ending of `dest`. Raises UsageError if `given` names flags that have no effect on it."""
    flags = {name: flag for name, flag in _PROGRAM_FLAGS.items() if name in given}
    if folder != "web":
        for name in {"teacher", "runtime"} & given:
            raise click.UsageError(f"--{name} has no effect without --format=web.")
    useless = {"web": {"parts"}, "hf": flags.keys() - {"license"}}.get(folder, set())
    for name in useless & flags.keys():
        raise click.UsageError(f"{flags[name]} has no effect with --format={folder}.")
    kind = os.path.splitext(dest)[1].lower() if folder is None else folder
    if kind == ".pt":
        raise click.UsageError(f"--dest={dest}: PyTorch has deprecated TorchScript (.pt); write .pt2 or .onnx.")
    if kind not in ("hf", "web", ".safetensors", ".onnx", ".pt2"):
        raise click.UsageError(f"--dest={dest} must end in .safetensors, .onnx or .pt2.")
    if kind == ".safetensors" and flags:
        flag = next(iter(flags.values()))
        raise click.UsageError(f"{flag} has no effect on a .safetensors file, which holds the networks unchanged.")
    if "check_fid" not in given:
        for name in {"data", "detector", "trust_detector"} & given:
            raise click.UsageError(f"--{name.replace('_', '-')} has no effect without --check-fid.")
    elif kind not in (".onnx", ".pt2"):
        raise click.UsageError("--check-fid measures programs: name an .onnx or .pt2 file with --dest.")
    return kind


@click.command(context_settings=network_options.SETTINGS)
@network_options.network
@click.option("--dest", help="File to write: .safetensors, .onnx or .pt2; or a folder", metavar="PATH", required=True)
@click.option(
    "--format",
    "folder",
    help="Folder of this kind at --dest: hf is Hugging Face's, web a page for browsers",
    type=click.Choice(["hf", "web"]),
)
@click.option("--dtype", help="Numbers in .onnx", type=click.Choice(["fp32", "fp16", "int8"]), default="fp32")
@click.option("--noise-mode", help="Per-pixel noise in programs", type=click.Choice(["const", "none"]), default="const")
@click.option("--parts", help="Mapping and synthesis as two programs", is_flag=True)
@click.option("--license", help="Licence of the network, stored in programs and cards", metavar="NAME")
@click.option(
    "--check-fid",
    help="FID of the program and of PyTorch from N images, 5000 without a number",
    type=click.IntRange(min=2),
    is_flag=False,
    flag_value=5000,
    metavar="N",
)
@click.option(
    "--data", help="Reals for --check-fid, as in calc_metrics.py  [default: the training set]", metavar="PATH"
)
@click.option("--detector", help="Feature network for --check-fid, as in calc_metrics.py")
@network_options.trust_detector
@click.option("--teacher", help="Network pickle that the page shows beside --network", metavar="PKL")
@click.option("--runtime", help="Unpacked npm package for the page", metavar="DIR", default="build/onnxruntime-web")
@network_options.trust_pickle
@click.pass_context
def main(
    ctx, network, dest, folder, check_fid, data, detector, trust_detector, teacher, runtime, trust_pickle, **program
):
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

    \b
    A program, and its FID beside PyTorch's of the same seeds, with the flags of calc_metrics.py:
      python export.py --network=ffhq.pkl --dest=ffhq.onnx --check-fid=5000 --data=ffhq.zip

    \b
    As two programs, ffhq.mapping.onnx (z, c, psi -> ws) and ffhq.synthesis.onnx (ws -> img):
      python export.py --network=ffhq.pkl --dest=ffhq.onnx --parts

    \b
    As a page that runs student and teacher in a browser, from a folder for any web server:
      scripts/fetch_onnxruntime_web.sh
      python export.py --network=student.pkl --teacher=ffhq.pkl --dest=web --format=web
    """
    given = {name for name in ctx.params if ctx.get_parameter_source(name) != click.core.ParameterSource.DEFAULT}
    kind = _kind(dest, folder, given)

    from training import export

    if kind == "web":
        from training import export_web

        settings = export.Settings(**program)
        export_web.export_page(network, dest, settings, teacher=teacher, runtime=runtime, trust=trust_pickle)
    elif kind == "hf":
        export.export_folder(network, dest, program["license"], trust_pickle)
    elif check_fid is not None:
        from metrics import exported

        check = exported.Check(check_fid, data, detector, trust_detector)
        exported.export_and_measure(network, dest, export.Settings(**program), check, trust_pickle)
    else:
        settings = None if kind == ".safetensors" else export.Settings(**program)
        export.export_network(network, dest, settings, trust_pickle)


if __name__ == "__main__":
    cli.run(main)
