# SPDX-License-Identifier: Apache-2.0
"""Make images with a trained generator. `python generate.py --help` lists the flags."""

import click

from dnnlib import cli


@click.command(context_settings={"show_default": True})
@click.option("--network", help="Network pickle: path or URL", metavar="PKL", required=True)
@click.option("--seeds", help="Seeds of the images, such as 0,5,10-19", type=cli.INT_LIST)
@click.option(
    "--trunc", "psi", help="Truncation psi: 1 is full variety, 0 the mean image", type=cli.FINITE_FLOAT, default=1
)
@click.option("--class", "class_idx", help="Class number, for a conditional network", type=click.IntRange(min=0))
@click.option("--noise-mode", help="Per-pixel noise", type=click.Choice(["const", "random", "none"]), default="const")
@click.option("--projected-w", help="Images of the w in this npz file instead of seeds", metavar="NPZ")
@click.option("--outdir", help="Folder for the images", metavar="DIR", required=True)
@click.option("--device", help="Where to compute", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto")
@click.option("--trust-pickle", help="Run the code stored in the network pickle", is_flag=True)
def main(network, seeds, psi, class_idx, noise_mode, projected_w, outdir, device, trust_pickle):
    """Generate images from a network pickle.

    \b
    One PNG per seed, the same on every run:
      python generate.py --network=ffhq.pkl --seeds=0-35 --trunc=0.7 --outdir=out

    \b
    One class of a conditional network, such as the demo's:
      python generate.py --network=digits.pkl --class=3 --seeds=0-9 --outdir=out

    \b
    The image of a projected latent:
      python generate.py --network=ffhq.pkl --projected-w=out/projected_w.npz --outdir=out
    """
    if not seeds and projected_w is None:
        raise click.UsageError("--seeds (or --projected-w) is required.")

    import os

    import torch

    from dnnlib.progress import Progress
    from torch_utils import distributed, images
    from training import sampling

    device = distributed.configure_device(distributed.resolve_device(device))
    G = sampling.open_generator(network, trust_pickle, device)
    if projected_w is None:
        latents = _latents_of_seeds(G, seeds, class_idx, psi, device)
    else:
        if seeds or class_idx is not None:
            click.echo("Note: --seeds and --class have no effect beside --projected-w.", err=True)
        latents = _latents_of_file(G, projected_w, device)
    with sampling.output_folder(outdir), Progress(len(latents), "Generating", "img") as progress:
        for name, noise_seed, make_ws in latents:
            torch.manual_seed(noise_seed)
            img = G.synthesis(make_ws(), noise_mode=noise_mode)
            images.save_png(images.to_uint8(img)[0], os.path.join(outdir, name))
            progress.update()


def _latents_of_seeds(G, seeds, class_idx, psi, device):
    """(file name, seed of the noise, function giving ws [1, num_ws, w_dim]) for each seed. Raises UserError."""
    from training import sampling

    sampling.check_seeds("--seeds", seeds)
    sampling.check_truncation(G, psi)
    c = sampling.class_label(G, class_idx, device)
    return [(f"seed{seed:04d}.png", seed, lambda seed=seed: sampling.seed_to_ws(G, seed, c, psi)) for seed in seeds]


def _latents_of_file(G, path, device):
    """As `_latents_of_seeds`, for each w in the npz file `path` (array `w` [n, num_ws, w_dim]). Raises UserError."""
    import zipfile

    import numpy as np
    import torch

    from dnnlib.util import UserError

    try:
        with np.load(path, allow_pickle=False) as arrays:
            ws = torch.from_numpy(arrays["w"]).to(device, torch.float32)
    except OSError as error:
        raise UserError(f"--projected-w={path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, TypeError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"--projected-w={path} is not an npz file with an array 'w' of numbers.") from error
    if ws.ndim != 3 or list(ws.shape[1:]) != [G.num_ws, G.w_dim]:
        raise UserError(
            f"--projected-w={path} holds a w of shape {list(ws.shape)}, and this network takes "
            f"[n, {G.num_ws}, {G.w_dim}]: project with the same --network."
        )
    return [(f"proj{idx:02d}.png", idx, lambda w=w: w.unsqueeze(0)) for idx, w in enumerate(ws)]


if __name__ == "__main__":
    cli.run(main)
