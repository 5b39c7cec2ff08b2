# SPDX-License-Identifier: Apache-2.0
"""The report of scripts/gpu_check.sh: what the machine is, how each stage went, and what the stages measured.

`facts` and `build` are stages themselves; `assemble` makes a flat folder of a few files, fit to be committed: nothing
in it names the host, its users or its paths.
"""

import json
import pathlib
import re
import shutil
import socket
import subprocess
import time
from typing import Any

import click

from dnnlib.cli import run
from dnnlib.util import UserError, open_atomic

ROOT = pathlib.Path(__file__).resolve().parent.parent
STAGES_FILE = "stages.tsv"  # a line a stage: name, result, seconds, limit, note
PARTS = {  # where stages leave what goes into the report, and its name there
    "bench/benchmark.json": "benchmark.json",
    "bench/benchmark.png": "benchmark.png",
    "training/result.json": "training.json",
    "training/result.png": "training.png",
    "sweep.json": "sweep.json",
}
LOG_LINES = 30  # of the end of a failed stage's log
PATH = re.compile(r"""(?<![\w.:/~<])(?:/[^\s/:'"`|,;()<>]+)+/(?=[^\s/])""")


def facts() -> dict[str, Any]:
    """Processor, GPU, driver and versions; nothing that names the machine."""
    import torch
    from torch_utils.machine import describe

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    found = describe(device)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["gpu_memory_gib"] = round(properties.total_memory / 2**30, 1)
        found["compute_capability"] = f"{properties.major}.{properties.minor}"
        found["multiprocessors"] = properties.multi_processor_count
        found["gpus"] = torch.cuda.device_count()
        found["cudnn"] = torch.backends.cudnn.version()
        found["driver"] = _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"])
    found["nvcc"] = (_output(["nvcc", "--version"]) or "not found").splitlines()[-1]
    return found


def _output(command: list[str]) -> str | None:
    """What a command prints, or None where there is no such command or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def build() -> str:
    """Compile the CUDA kernels and say how long that took. Raises UserError where it cannot be done."""
    from torch_utils import custom_ops
    from torch_utils.ops import _plugin

    custom_ops.verbosity = "full"
    start = time.monotonic()
    if _plugin.load() is None:
        raise UserError("the CUDA kernels could not be built: see the end of the log")
    return f"{_plugin.NAME} built in {time.monotonic() - start:.0f} s"


def read_stages(work: pathlib.Path) -> list[dict[str, str]]:
    """Name, result ('ok', 'failed', 'timed out' or 'skipped'), seconds, limit and note of each stage, in order."""
    names = ("name", "result", "seconds", "limit", "note")
    lines = (work / STAGES_FILE).read_text(encoding="utf-8").splitlines()
    return [dict(zip(names, line.split("\t"), strict=True)) for line in lines]


def scrub(text: str, work: pathlib.Path) -> str:
    """`text` without what names this machine: paths, the home folder, the host."""
    for folder, name in ((work, "WORK"), (ROOT, "."), (pathlib.Path.home(), "~")):
        if folder != pathlib.Path(folder.anchor):
            text = text.replace(str(folder), name)
    text = PATH.sub("…/", text)
    host = socket.gethostname()
    return re.sub(rf"\b{re.escape(host)}\b", "HOST", text) if host and host != "localhost" else text


def report(work: pathlib.Path, parts: list[str]) -> str:
    """The page, in Markdown. `parts` are the names of the files beside it."""
    machine = _read_json(work / "facts.json") or {}
    stages = read_stages(work)
    title = machine.get("gpu") or f"rehearsal on a CPU ({machine.get('cpu', 'unknown')})"
    sections = [
        f"# GPU check: {title}",
        f"Made by `scripts/gpu_check.sh` on {time.strftime('%Y-%m-%d', time.gmtime())} in "
        f"{sum(int(stage['seconds']) for stage in stages)} s.",
        _table(["stage", "result", "seconds", "limit", ""], [list(stage.values()) for stage in stages]),
        "## Machine",
        _table(["", ""], [[name, _plain(value)] for name, value in machine.items()]) if machine else "Not known.",
    ]
    kernels = [lines[-1] for name in ("build", "sanitizer") if (lines := _lines(work / f"{name}.out"))]
    if kernels:
        sections += ["## Kernels", "\n".join(f"- {line.strip('= ')}" for line in kernels)]
    for heading, name, picture in (
        ("Operations against their reference", "sweep", None),
        ("Benchmark", "benchmark", "benchmark.png"),
        ("Training at 64x64", "training", "training.png"),
    ):
        log = _printed(work, name)
        if log:
            sections += [f"## {heading}", log]
        if picture in parts:
            sections.append(f"![{heading}]({picture})")
    sections += _failures(work, stages)
    return scrub("\n\n".join(sections) + "\n", work)


def _printed(work: pathlib.Path, stage: str) -> str:
    """What a stage printed on its standard output: a Markdown table, or text to be shown as it is."""
    text = "\n".join(_lines(work / f"{stage}.out")).strip()
    return text if text.startswith("|") or not text else f"```text\n{text}\n```"


def _failures(work: pathlib.Path, stages: list[dict[str, str]]) -> list[str]:
    """Sections with the last words of every stage that failed."""
    sections = []
    for stage in stages:
        if stage["result"] in ("failed", "timed out"):
            lines = [line for kind in ("out", "err") for line in _lines(work / f"{stage['name']}.{kind}")]
            ends = "\n".join(lines[-LOG_LINES:]).replace("```", "'''")
            sections += [f"## The last words of {stage['name']} ({stage['result']})", f"```text\n{ends}\n```"]
    return sections


def _lines(path: pathlib.Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _read_json(path: pathlib.Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def assemble(work: pathlib.Path, out: pathlib.Path) -> list[str]:
    """Write report.md, report.json and the measured parts into `out`; returns their names."""
    out.mkdir(parents=True, exist_ok=True)
    names = []
    for source, name in PARTS.items():
        path = work / source
        if not path.exists():
            (out / name).unlink(missing_ok=True)  # of an earlier check into the same folder
            continue
        names.append(name)
        if name.endswith(".json"):
            _write(out / name, scrub(path.read_text(encoding="utf-8"), work))
        else:
            shutil.copyfile(path, out / name)
    record = {"machine": _read_json(work / "facts.json"), "stages": read_stages(work)}
    _write(out / "report.json", scrub(json.dumps(record, indent=1), work))
    _write(out / "report.md", report(work, names))
    return ["report.md", "report.json", *names]


def _write(path: pathlib.Path, text: str) -> None:
    with open_atomic(path, "w") as file:
        file.write(text)


@click.group()
def main() -> None:
    """Stages of scripts/gpu_check.sh, and its report."""


@main.command("facts")
@click.argument("path")
def facts_command(path: str) -> None:
    """Write what the machine is to a JSON file, and print it."""
    text = json.dumps(facts(), indent=1)
    _write(pathlib.Path(path), text)
    click.echo(text)


@main.command("build")
def build_command() -> None:
    """Compile the CUDA kernels."""
    click.echo(build())


@main.command("assemble")
@click.argument("work")
@click.argument("out")
def assemble_command(work: str, out: str) -> None:
    """Make the report in OUT of what the stages left in WORK."""
    names = assemble(pathlib.Path(work).resolve(), pathlib.Path(out))
    click.echo(f"{', '.join(names)} are in {out}")


if __name__ == "__main__":
    run(main)
