# SPDX-License-Identifier: Apache-2.0
"""Measure the quality of a trained generator. `python calc_metrics.py --help` lists the flags."""

import click

from dnnlib import cli


@click.command(context_settings={"show_default": True})
@click.option("--network", help="Network pickle: path or URL", metavar="PKL")
@click.option("--fakes", help="Folder or zip of generated images, instead of a network", metavar="PATH")
@click.option("--metrics", help="Comma-separated metric names", type=cli.CommaList(), default="fid50k_full")
@click.option("--data", help="Folder or zip of reals, or saved statistics  [default: the training set]", metavar="PATH")
@click.option("--mirror", help="Count mirrored reals too  [default: as in training]", type=cli.BOOL)
@click.option("--save-stats", help="Save statistics of --data here, instead of measuring", metavar="NPZ")
@click.option("--gpus", help="Number of processes, one GPU each", type=click.IntRange(min=1), default=1)
@click.option("--detector", help="Feature network: name, TorchScript file or URL  [default: the metric's own]")
@click.option("--device", help="Where to compute", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto")
@click.option("--trust-pickle", help="Run the code stored in the network pickle", is_flag=True)
@click.option("--verbose", help="Show progress", type=cli.BOOL, default=True)
def main(network, fakes, metrics, data, mirror, save_stats, gpus, detector, device, trust_pickle, verbose):
    """Calculate quality metrics of a network pickle, or of images.

    Each result is printed as a line of JSON. A pickle in a run directory also has them appended there, to
    metric-NAME.jsonl.

    \b
      python calc_metrics.py --network=runs/00000-ffhq/network-snapshot-000200.pkl
      python calc_metrics.py --network=digits.pkl --data=data/mnist5k-32x32.zip --metrics=fid5k_full --detector=mnist

    \b
    Images against images; statistics (and labels) saved once, for use without the images:
      python calc_metrics.py --fakes=out.zip --data=data/mnist5k-32x32.zip --metrics=fid5k_full --detector=mnist
      python calc_metrics.py --data=ffhq.zip --metrics=fid50k_full,kid50k_full --save-stats=ffhq.npz
      python calc_metrics.py --network=ffhq.pkl --data=ffhq.npz --metrics=fid50k_full,kid50k_full

    \b
    Recommended, with all reals:
      fid50k_full  Frechet inception distance
      kid50k_full  kernel inception distance
      pr50k3_full  precision and recall
      ppl2_wend    perceptual path length in W, ends, no crop
      is50k        inception score
    \b
    With N thousand fakes: fidNk_full, kidNk_full
    With 50,000 reals: fid50k, kid50k, pr50k3
    With a central crop: ppl_zfull, ppl_wfull, ppl_zend, ppl_wend
    """
    if sum(source is not None for source in (network, fakes, save_stats)) != 1:
        raise click.UsageError("One of --network, --fakes and --save-stats is needed, and only one.")

    from dnnlib.util import UserError
    from metrics import detectors, inputs, metric_main
    from torch_utils import distributed

    unknown = [name for name in metrics if not metric_main.is_valid_metric(name)]
    if unknown or not metrics:
        valid = ", ".join(metric_main.list_valid_metrics())
        raise UserError(f"--metrics={','.join(metrics) or 'none'} can only contain the following values: {valid}.")
    for rank in range(gpus):
        distributed.resolve_device(device, rank)
    if network is not None:
        compared = inputs.of_network(network, metrics, data, mirror, detector, trust_pickle)
    elif fakes is not None:
        compared = inputs.of_images(fakes, metrics, data, mirror, detector)
    else:
        inputs.check_stats_path(save_stats)
        compared = inputs.of_reals(data, metrics, mirror, detector)
    options = {"network": network, "metrics": metrics, "save_stats": save_stats, "compared": compared}
    options |= {"detector": detector, "device": device, "gpus": gpus, "trust_pickle": trust_pickle, "verbose": verbose}
    detectors.ensure_available(metrics, detector)
    distributed.launch(_measure, gpus, options)


def _measure(rank, options):
    """What each process does."""
    from metrics import inputs, metric_main, metric_utils
    from torch_utils import distributed
    from training.files.snapshot import load_snapshot

    device = distributed.configure_device(distributed.resolve_device(options["device"], rank))
    distributed.init(rank=rank, world_size=options["gpus"], device=device)
    shared = {
        "num_gpus": options["gpus"],
        "rank": rank,
        "device": device,
        "progress": metric_utils.ProgressMonitor(verbose=options["verbose"]),
        "detector": options["detector"],
        **options["compared"],
    }
    network, metrics = options["network"], options["metrics"]
    if options["save_stats"] is not None:
        inputs.save_reals(metric_utils.MetricOptions(**shared), metrics, options["save_stats"])
        return
    G = None if network is None else load_snapshot(network, trust=options["trust_pickle"])["G_ema"]
    for metric in metrics:
        result = metric_main.calc_metric(metric, G=G, **shared)
        if rank == 0:
            metric_main.report_metric(result, run_dir=_run_dir(network), snapshot_pkl=network)


def _run_dir(network):
    """The run directory that holds the network pickle; None if it lies elsewhere, there is none, or it is read-only."""
    import os

    from dnnlib.util import is_url

    if network is None or is_url(network):
        return None
    folder = os.path.dirname(os.path.abspath(network))
    is_run_dir = os.path.isfile(os.path.join(folder, "training_options.json"))
    return folder if is_run_dir and os.access(folder, os.W_OK) else None


if __name__ == "__main__":
    cli.run(main)
