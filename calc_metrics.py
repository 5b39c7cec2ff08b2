# SPDX-License-Identifier: Apache-2.0
"""Measure the quality of a trained generator. `python calc_metrics.py --help` lists the flags."""

import click

from dnnlib import cli

_DATASET_CLASS = "training.dataset.ImageFolderDataset"


@click.command(context_settings={"show_default": True})
@click.option("--network", help="Network pickle: path or URL", metavar="PKL", required=True)
@click.option("--metrics", help="Comma-separated metric names", type=cli.CommaList(), default="fid50k_full")
@click.option("--data", help="Folder or zip of real images  [default: the training set]", metavar="PATH")
@click.option("--mirror", help="Count mirrored reals too  [default: as in training]", type=cli.BOOL)
@click.option("--gpus", help="Number of processes, one GPU each", type=click.IntRange(min=1), default=1)
@click.option("--detector", help="Feature network: name, TorchScript file or URL  [default: the metric's own]")
@click.option("--device", help="Where to compute", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto")
@click.option("--trust-pickle", help="Run the code stored in the network pickle", is_flag=True)
@click.option("--verbose", help="Show progress", type=cli.BOOL, default=True)
def main(network, metrics, data, mirror, gpus, detector, device, trust_pickle, verbose):
    """Calculate quality metrics of a network pickle.

    Each result is printed as a line of JSON. A pickle in a run directory also has them appended there, to
    metric-NAME.jsonl.

    \b
      python calc_metrics.py --network=runs/00000-ffhq/network-snapshot-000200.pkl
      python calc_metrics.py --network=digits.pkl --data=data/mnist5k-32x32.zip --metrics=fid5k_full --detector=mnist

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
    from dnnlib.util import UserError
    from metrics import detectors, metric_main
    from torch_utils import distributed

    unknown = [name for name in metrics if not metric_main.is_valid_metric(name)]
    if unknown or not metrics:
        valid = ", ".join(metric_main.list_valid_metrics())
        raise UserError(f"--metrics={','.join(metrics) or 'none'} can only contain the following values: {valid}.")
    for rank in range(gpus):
        distributed.resolve_device(device, rank)
    options = {
        "network": network,
        "metrics": metrics,
        "detector": detector,
        "device": device,
        "gpus": gpus,
        "trust_pickle": trust_pickle,
        "verbose": verbose,
        "dataset_kwargs": _check_data(network, metrics, data, mirror, trust_pickle),
    }
    detectors.ensure_available(metrics, detector)
    distributed.launch(_measure, gpus, options)


def _check_data(network, metrics, data, mirror, trust_pickle):
    """Options of the dataset to measure against, known to open; {} where none is needed. Raises UserError."""
    from dnnlib.util import UserError, construct_class_by_name
    from metrics import metric_main
    from training.snapshot import load_snapshot

    snapshot = load_snapshot(network, trust=trust_pickle)
    G = snapshot["G_ema"]
    if G.c_dim == 0 and not any(metric_main.uses_reals(name) for name in metrics):
        return {}
    if data is not None:
        kwargs = {"class_name": _DATASET_CLASS, "path": data}
    elif snapshot.get("training_set_kwargs"):
        kwargs = dict(snapshot["training_set_kwargs"])
        # A name from a file would be called: only our own is, unless the user vouches for the file.
        if kwargs.get("class_name") != _DATASET_CLASS and not trust_pickle:
            raise UserError(
                f"{network} names {kwargs.get('class_name')} as its dataset class: give the images with --data, or "
                f"use --trust-pickle if you trust the file."
            )
    else:
        raise UserError(f"{network} does not say what it was trained on: give the images with --data.")
    kwargs |= {"resolution": G.img_resolution, "use_labels": G.c_dim > 0}
    if mirror is not None:
        kwargs["xflip"] = mirror
    try:
        dataset = construct_class_by_name(**kwargs)
    except UserError as error:
        raise UserError(f"{str(error).rstrip('.')} (--data says which images to measure against).") from error
    label_dim = dataset.label_dim
    dataset.close()
    if label_dim != G.c_dim:
        raise UserError(
            f"{network} takes labels of {G.c_dim} numbers, and {kwargs.get('path')} has labels of {label_dim}: "
            f"give images with matching labels with --data."
        )
    return kwargs


def _measure(rank, options):
    """What each process does."""
    import os

    from dnnlib.util import is_url
    from metrics import metric_main, metric_utils
    from torch_utils import distributed
    from training.snapshot import load_snapshot

    device = distributed.resolve_device(options["device"], rank)
    distributed.init(rank=rank, world_size=options["gpus"], device=device)
    network = options["network"]
    run_dir = None
    if not is_url(network):
        folder = os.path.dirname(os.path.abspath(network))
        run_dir = folder if os.path.isfile(os.path.join(folder, "training_options.json")) else None
    G = load_snapshot(network, trust=options["trust_pickle"])["G_ema"]
    for metric in options["metrics"]:
        result = metric_main.calc_metric(
            metric,
            G=G,
            dataset_kwargs=options["dataset_kwargs"],
            num_gpus=options["gpus"],
            rank=rank,
            device=device,
            progress=metric_utils.ProgressMonitor(verbose=options["verbose"]),
            detector=options["detector"],
        )
        if rank == 0:
            metric_main.report_metric(result, run_dir=run_dir, snapshot_pkl=network)


if __name__ == "__main__":
    cli.run(main)
