# SPDX-License-Identifier: Apache-2.0
"""Mix the styles of seeds with a trained generator. `python style_mixing.py --help` lists the flags."""

import click

from dnnlib import cli


@click.command(context_settings={"show_default": True})
@click.option("--network", help="Network pickle: path or URL", metavar="PKL", required=True)
@click.option("--rows", help="Seeds of the rows, such as 85,100,75-80", type=cli.INT_LIST, required=True)
@click.option("--cols", help="Seeds of the columns", type=cli.INT_LIST, required=True)
@click.option("--styles", help="Which w vectors come from the column's seed", type=cli.INT_LIST, default="0-6")
@click.option(
    "--trunc", "psi", help="Truncation psi: 1 is full variety, 0 the mean image", type=cli.FINITE_FLOAT, default=1
)
@click.option("--class", "class_idx", help="Class number, for a conditional network", type=click.IntRange(min=0))
@click.option("--noise-mode", help="Per-pixel noise", type=click.Choice(["const", "random", "none"]), default="const")
@click.option("--outdir", help="Folder for the images", metavar="DIR", required=True)
@click.option("--device", help="Where to compute", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto")
@click.option("--trust-pickle", help="Run the code stored in the network pickle", is_flag=True)
def main(network, rows, cols, styles, psi, class_idx, noise_mode, outdir, device, trust_pickle):
    """Generate images whose coarse or fine styles come from other images.

    Writes ROW-COL.png for each pair of seeds, SEED-SEED.png for each seed alone, and grid.png: the columns' own images
    above, the rows' own images on the left, the mixtures where they cross. Low styles are coarse, such as pose and
    shape; high ones are fine, such as colours.

    \b
      python style_mixing.py --network=ffhq.pkl --rows=85,100,75 --cols=55,821,1789 --outdir=out
      python style_mixing.py --network=digits.pkl --class=4 --rows=0-2 --cols=3-5 --styles=0-3 --outdir=out
    """
    import os

    import torch

    from dnnlib.progress import Progress
    from dnnlib.util import UserError
    from torch_utils import distributed, images
    from training import sampling

    sampling.check_seeds("--rows", rows)
    sampling.check_seeds("--cols", cols)
    device = distributed.configure_device(distributed.resolve_device(device))
    G = sampling.open_generator(network, trust_pickle, device)
    if max(styles) >= G.num_ws:
        raise UserError(f"--styles={max(styles)} is out of range: the network has styles 0 to {G.num_ws - 1}.")
    sampling.check_truncation(G, psi)
    c = sampling.class_label(G, class_idx, device)
    ws = {seed: sampling.seed_to_ws(G, seed, c, psi) for seed in {*rows, *cols}}

    alone = [(seed, seed) for seed in dict.fromkeys([*rows, *cols])]
    pairs = dict.fromkeys(alone + [(row, col) for row in rows for col in cols])
    with sampling.output_folder(outdir):
        with Progress(len(pairs), "Generating", "img") as progress:
            for row, col in pairs:
                mixed = ws[row].clone()
                mixed[:, styles] = ws[col][:, styles]
                torch.manual_seed(row)
                pairs[row, col] = images.to_uint8(G.synthesis(mixed, noise_mode=noise_mode))[0].cpu()
                images.save_png(pairs[row, col], os.path.join(outdir, f"{row}-{col}.png"))
                progress.update()
        cells = [torch.zeros_like(pairs[alone[0]]), *(pairs[col, col] for col in cols)]
        for row in rows:
            cells += [pairs[row, row], *(pairs[row, col] for col in cols)]
        grid = images.make_grid(torch.stack(cells), (len(cols) + 1, len(rows) + 1))
        images.save_png(grid, os.path.join(outdir, "grid.png"))


if __name__ == "__main__":
    cli.run(main)
