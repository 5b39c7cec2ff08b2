# SPDX-License-Identifier: Apache-2.0
"""Find the latents of given images in a trained generator. `python projector.py --help` lists the flags."""

import click

from dnnlib import cli


@click.command(context_settings={"show_default": True})
@click.option("--network", help="Network pickle: path or URL", metavar="PKL", required=True)
@click.option("--target", help="Image to project, or a folder of images", metavar="PATH", required=True)
@click.option("--num-steps", help="Optimisation steps per image", type=click.IntRange(min=1), default=1000)
@click.option("--seed", help="Random seed", type=click.IntRange(0, 2**32 - 1), default=303)
@click.option("--save-video", help="Make a video of the optimisation", type=cli.BOOL, default=True)
@click.option("--class", "class_idx", help="Class number, for a conditional network", type=click.IntRange(min=0))
@click.option("--batch", help="Images optimised at once", type=click.IntRange(min=1), default=1)
@click.option("--outdir", help="Folder for the results", metavar="DIR", required=True)
@click.option("--detector", help="Network that compares images: name, TorchScript file or URL  [default: VGG16]")
@click.option("--device", help="Where to compute", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto")
@click.option("--trust-pickle", help="Run the code stored in the network pickle", is_flag=True)
def main(network, target, num_steps, seed, save_video, class_idx, batch, outdir, detector, device, trust_pickle):
    """Find the w that makes the generator draw a given image.

    \b
    Writes the image as it was projected, what the generator makes of its w, the w, and a video:
      target.png proj.png projected_w.npz proj.mp4

    \b
    Images of any size are cropped to their centred square:
      python projector.py --network=ffhq.pkl --target=me.png --outdir=out
      python generate.py --network=ffhq.pkl --projected-w=out/projected_w.npz --outdir=out
      python projector.py --network=digits.pkl --class=4 --target=four.png --outdir=out

    \b
    Those of a folder have their results in folders of their names:
      python projector.py --network=ffhq.pkl --target=photos --batch=4 --save-video=no --outdir=out
    """
    import os

    import torch

    from dnnlib.progress import Progress
    from metrics import lpips
    from torch_utils import distributed, images
    from training import projection, projection_files, sampling

    device = distributed.configure_device(distributed.resolve_device(device))
    G = sampling.open_generator(network, trust_pickle, device)
    c = sampling.class_label(G, class_idx, device)
    targets = projection_files.read_targets(target, G.img_resolution, G.img_channels)
    features = lpips.open_features(detector, device)
    torch.backends.cudnn.deterministic = True

    paths, summary = {}, []
    names = list(targets)
    groups = [names[first : first + batch] for first in range(0, len(names), batch)]
    with sampling.output_folder(outdir):
        with Progress(len(groups) * num_steps, "Projecting", "step") as progress:
            for group in groups:
                for name in group:
                    os.makedirs(os.path.join(outdir, name), exist_ok=True)
                    images.save_png(targets[name], os.path.join(outdir, name, "target.png"))
                wanted = torch.stack([targets[name] for name in group])
                found = projection.project(G, wanted, features, c=c, num_steps=num_steps, seed=seed, progress=progress)
                for index, name in enumerate(group):
                    projection_files.save_result(os.path.join(outdir, name), G, found, index)
                    paths[name] = found.w[index]
                    first, last = found.distance[index, [0, -1]].tolist()
                    summary.append(
                        f"{os.path.join(outdir, name, 'proj.png')}: LPIPS distance {first:.4g} -> {last:.4g}"
                    )
        click.echo("\n".join(summary))
        if save_video:
            _save_videos(outdir, G, targets, paths, num_steps)


def _save_videos(outdir, G, targets, paths, num_steps):
    import os

    from dnnlib.progress import Progress
    from training import projection_files

    steps = projection_files.choose_frames(num_steps)
    with Progress(len(targets) * len(steps), "Writing video", "frame") as progress:
        for name, path in paths.items():
            projection_files.save_video(os.path.join(outdir, name), G, targets[name], path[steps], progress)
    if not projection_files.ffmpeg_available():
        click.echo("Note: the videos are PNGs in proj_frames, as there is no ffmpeg: pip install imageio-ffmpeg.")


if __name__ == "__main__":
    cli.run(main)
