# SPDX-License-Identifier: Apache-2.0
"""A generator in a folder as the Hugging Face Hub has them: `model.safetensors`, `config.json`, a card in `README.md`.

`model.safetensors` holds the tensors of G_ema under their own names, `config.json` its constructor arguments in the
form of the header of this project's safetensors files. Needs the package `safetensors`, and none of the Hub's.
"""

import glob
import json
import os
from typing import Any

import torch

from dnnlib.files import folder_atomic, write_text
from dnnlib.text import printable
from dnnlib.util import UserError
from training import families
from training.data import class_names
from training.files import safetensors_io
from training.settings import OPTIONS_FILE

MODEL, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
_MOST_CONFIG_BYTES = 1 << 20


def file_in(folder: str) -> str | None:
    """The file of tensors in `folder`, or None if it is not such a folder."""
    paths = [os.path.join(folder, name) for name in (MODEL, CONFIG)]
    return paths[0] if all(os.path.isfile(path) for path in paths) else None


def config_beside(path: str | None) -> str | None:
    """The config.json of the file of tensors at `path`, or None if it has none."""
    if path is None or os.path.basename(path) != MODEL or file_in(os.path.dirname(path)) is None:
        return None
    return os.path.join(os.path.dirname(path), CONFIG)


def read(data: bytes, config: bytes, path: str) -> dict[str, Any]:
    """G_ema as a StoredObject, not rebuilt yet, of the bytes of the two files. Raises UserError, naming `path`."""
    try:
        if len(config) > _MOST_CONFIG_BYTES:
            raise ValueError("it is too long")
        described = json.loads(config)
        network = described["networks"]["G_ema"] if described["format"] == safetensors_io.FORMAT else None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read: {CONFIG} beside it is not one written by export.py "
            f"({type(error).__name__}: {printable(str(error), 100)})"
        ) from error
    if network is None:
        raise UserError(f"{path} cannot be read: {CONFIG} beside it is not one written by export.py")
    entries = safetensors_io.read_one(data, "G_ema", network, path)
    return {**entries, class_names.KEY: described.get(class_names.KEY)}


def write(folder: str, G: torch.nn.Module, network: str, license: str | None) -> None:
    """Write G_ema, read from the file `network`, as a new folder, completely or not at all.

    Raises UserError if `folder` has files already, or as `safetensors_io.write_one` does; OSError if it cannot be made.
    """
    if os.path.isfile(folder) or (os.path.isdir(folder) and os.listdir(folder)):
        raise UserError(f"--dest={folder} exists already: name a new folder.")
    described = {
        "architectures": [type(G).__name__],
        "model_type": families.of(G).name,
        "format": safetensors_io.FORMAT,
        "version": safetensors_io.FORMAT_VERSION,
        "networks": {"G_ema": safetensors_io.describe(G, "G_ema")},
        "resolution": G.img_resolution,
        "channels": G.img_channels,
        "classes": G.c_dim,
        class_names.KEY: getattr(G, class_names.KEY, None),
        "z_dim": G.z_dim,
        "range": [-1, 1],
        "license": license or "unknown",
    }
    with folder_atomic(folder) as draft:
        safetensors_io.write_one(draft / MODEL, G)
        write_text(draft / CONFIG, json.dumps(described, indent=2) + "\n")
        write_text(draft / CARD, card(G, os.path.basename(os.path.abspath(folder)), network, license))


def card(G: torch.nn.Module, name: str, network: str, license: str | None) -> str:
    """The text of the model card of `G`, with what is known from the run directory of the file `network`."""
    family = families.of(G)
    colours = {1: "grey", 3: "RGB"}.get(G.img_channels, f"{G.img_channels}-channel")
    classes = f" in {G.c_dim} classes" if G.c_dim else ""
    parameters = sum(parameter.numel() for parameter in G.parameters())
    label = " --class=0" if G.c_dim else ""
    teacher = _teacher(network)
    lines = [
        "---",
        f"license: {(license or 'unknown').lower()}",
        "library_name: stylegan2-ada-dgl",
        "pipeline_tag: unconditional-image-generation",
        f"tags: [gan, {family.name}]",
        "---",
        "",
        f"# {name}",
        "",
        f"A {family.name} generator of {G.img_resolution}x{G.img_resolution} {colours} images{classes}: {parameters:,} "
        f"parameters, {family.macs(G):,} multiply-accumulates per image. Pixels are in [-1, 1].",
        *([f"It was compressed from the teacher `{teacher}` (DGL-GAN, arXiv 2112.06502)."] if teacher else []),
        "",
        "## Quality",
        "",
        *(_figures(network) or ["Not measured."]),
        "",
        "## Use",
        "",
        "With the programs of stylegan2-ada-dgl, this folder is a network like any other:",
        "",
        f"    python generate.py --network={name} --seeds=0-9{label} --outdir=out",
        "",
        "In Python, with its folder in the path:",
        "",
        "    from training.files.snapshot import load_snapshot",
        f'    G = load_snapshot("{name}")["G_ema"]  # z [N, {G.z_dim}], c [N, {G.c_dim}] -> images',
        "",
    ]
    return "\n".join(lines)


def _figures(network: str) -> list[str]:
    """A table of the newest result of each metric of the snapshot, from the metric-*.jsonl beside it."""
    found = {}
    for path in sorted(
        glob.glob(os.path.join(glob.escape(os.path.dirname(os.path.abspath(network))), "metric-*.jsonl"))
    ):
        for line in _json_lines(path):
            if line.get("snapshot_pkl") == os.path.basename(network) and isinstance(line.get("results"), dict):
                found[line.get("metric")] = line["results"]
    rows = [
        f"| {printable(key, 100)} | {value:.4g} |"
        for results in found.values()
        for key, value in results.items()
        if isinstance(value, (int, float))
    ]
    return ["| metric | value |", "|---|---|", *rows] if rows else []


def _json_lines(path: str) -> list[dict[str, Any]]:
    found = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return [line for line in found if isinstance(line, dict)]


def _teacher(network: str) -> str | None:
    """File name of the teacher in the options of the run that made the snapshot, if there was one."""
    path = os.path.join(os.path.dirname(os.path.abspath(network)), OPTIONS_FILE)
    try:
        with open(path, encoding="utf-8") as file:
            teachers = json.load(file)["loss_kwargs"]["teachers"]
        first = teachers[0] if isinstance(teachers, list) else teachers
        return printable(os.path.basename(str(first["path"] if isinstance(first, dict) else first)), 200)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
