# SPDX-License-Identifier: Apache-2.0
"""Flags that several scripts share, as click decorators. Imports click alone."""

import click

from dnnlib import cli

SETTINGS = {"show_default": True}  # context_settings of the commands

network = click.option("--network", help="Network pickle: path or URL", metavar="PKL", required=True)
outdir = click.option("--outdir", help="Folder for the results", metavar="DIR", required=True)
device = click.option(
    "--device", help="Device to compute on", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto"
)
trust_pickle = click.option("--trust-pickle", help="Run the code stored in the network pickle", is_flag=True)
trust_detector = click.option("--trust-detector", help="Run a detector, a program, that is not known", is_flag=True)
trunc = click.option(
    "--trunc", "psi", help="Truncation psi: 1 is full variety, 0 the mean image", type=cli.FINITE_FLOAT, default=1
)
class_idx = click.option(
    "--class",
    "class_idx",
    help="Class of a conditional network: its number, or its name if the file has names",
    type=cli.CLASS,
)
noise_mode = click.option(
    "--noise-mode", help="Per-pixel noise", type=click.Choice(["const", "random", "none"]), default="const"
)
