# SPDX-License-Identifier: Apache-2.0
"""The work of export.py --format=web: a folder with a page that runs one or two generators in a browser.

The page calls ONNX Runtime Web, whose files are copied into the folder: it asks for nothing outside it.
"""

import json
import pathlib
import shutil
import sys
from typing import Any

from dnnlib.files import folder_atomic, write_text
from dnnlib.util import UserError
from training import export, families
from training.data import class_names
from training.files.snapshot import Snapshot, load_snapshot

TESTED_RUNTIME = "1.30.0"  # of ONNX Runtime Web; scripts/fetch_onnxruntime_web.sh has the same
RUNTIME_FILES = ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
INDEX = "index.html"
PAGE = pathlib.Path(__file__).with_suffix(".html")
_CHANNELS = (1, 3, 4)  # that the page can draw


def export_page(
    network: str, dest: str, settings: export.Settings, *, teacher: str | None, runtime: str, trust: bool = False
) -> None:
    """Write the folder `dest`: index.html, the networks as .onnx files with `settings`, ONNX Runtime Web.

    `network` is drawn beside `teacher`, if there is one; `runtime` is the folder of the unpacked npm package. Files of
    the same names are replaced when all is ready, the page last. Prints a line about each network and how to see the
    page. Raises UserError if the networks do not take the same inputs, files are missing, and as `export.export` does.
    """
    folder = pathlib.Path(dest)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--dest={dest} is a file: --format=web writes a folder.")
    if not folder.absolute().parent.is_dir():
        raise UserError(f"--dest={dest} is in a folder that does not exist.")
    version = _runtime_version(runtime)
    paths = {"teacher": teacher, "student": network} if teacher is not None else {"generator": network}
    snapshots = {role: load_snapshot(path, trust=trust) for role, path in paths.items()}
    described = _describe(snapshots, settings, version)
    try:
        with folder_atomic(folder, last=INDEX) as draft:
            _write(draft, snapshots, described, settings, runtime)
    except OSError as error:
        raise UserError(f"--dest={dest} cannot be written: {error.strerror or error}.") from error
    print(f"To see it, run  python -m http.server --directory={dest}  and open http://localhost:8000 in a browser.")


def _runtime_version(folder: str) -> str:
    """The version of ONNX Runtime Web in `folder`. Raises UserError if it is not there."""
    package = pathlib.Path(folder)
    missing = [name for name in RUNTIME_FILES if not (package / "dist" / name).is_file()]
    try:
        version = json.loads((package / "package.json").read_text(encoding="utf-8"))["version"]
    except (OSError, ValueError, LookupError, TypeError):
        version = None
    if missing or not isinstance(version, str):
        raise UserError(
            f"--format=web needs ONNX Runtime Web, which is not in {folder}: run scripts/fetch_onnxruntime_web.sh, or "
            f"unpack the npm package onnxruntime-web {TESTED_RUNTIME} and name its folder with --runtime."
        )
    if version != TESTED_RUNTIME:
        print(f"Note: the page is tested with onnxruntime-web {TESTED_RUNTIME}, not {version}.", file=sys.stderr)
    return version


def _describe(snapshots: dict[str, Snapshot], settings: export.Settings, version: str) -> dict[str, Any]:
    """What the page knows about its networks, as JSON. Raises UserError if it cannot show them with the same inputs."""
    networks = {role: snapshot["G_ema"] for role, snapshot in snapshots.items()}
    *_, G = networks.values()
    for other in networks.values():
        for name, what in (("z_dim", "wide latents"), ("c_dim", "classes")):
            if getattr(other, name) != getattr(G, name):
                raise UserError(
                    f"--teacher has {getattr(other, name)} {what} and --network {getattr(G, name)} "
                    f"({name}): the page gives both the same, so leave out --teacher or name another."
                )
        if families.of(other).truncates_z != families.of(G).truncates_z:
            raise UserError(
                f"--teacher is a {families.of(other).name} and --network a {families.of(G).name}, which truncate "
                "differently: leave out --teacher or name another."
            )
        if other.img_channels not in _CHANNELS:
            raise UserError(f"--format=web draws images of 1, 3 or 4 channels, not {other.img_channels}.")
    return {
        "z_dim": G.z_dim,
        "classes": _class_names([*snapshots.values()][-1], G.c_dim),
        "truncation": "bound" if families.of(G).truncates_z else "psi" if export.has_psi(G) else None,
        "runtime": version,
        "license": f"Licence of the networks: {settings.license}." if settings.license else "",
        "networks": [
            {
                "title": role.capitalize(),
                "name": pathlib.Path(snapshots[role].path).name,
                "file": f"{role}.onnx",
                "resolution": G.img_resolution,
                "params": sum(parameter.numel() for parameter in G.parameters()),
                "dtype": settings.dtype,
            }
            for role, G in networks.items()
        ],
    }


def _class_names(snapshot: Snapshot, classes: int) -> list[str]:
    """Names of the classes in order, their numbers if the file does not name each."""
    return class_names.checked(snapshot.class_names, classes) or [str(number) for number in range(classes)]


def _write(
    folder: pathlib.Path,
    snapshots: dict[str, Snapshot],
    described: dict[str, Any],
    settings: export.Settings,
    runtime: str,
) -> None:
    """Fill the empty `folder`."""
    for network, snapshot in zip(described["networks"], snapshots.values(), strict=True):
        print(f"Exporting {snapshot.path}, {settings.dtype}", file=sys.stderr, flush=True)
        (found,) = export.export(snapshot["G_ema"], folder / network["file"], settings).values()
        network["bytes"] = (folder / network["file"]).stat().st_size
        print(f"{network['file']}: {network['bytes'] / 1e6:.3g} MB, {found}")
    (folder / "runtime").mkdir()
    for name in RUNTIME_FILES:
        shutil.copyfile(pathlib.Path(runtime, "dist", name), folder / "runtime" / name)
    # Nothing in the networks' names can end the script element.
    content = json.dumps(described).replace("<", "\\u003c")
    write_text(folder / INDEX, PAGE.read_text(encoding="utf-8").replace("__PAGE__", content))
