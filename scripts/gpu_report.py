# SPDX-License-Identifier: Apache-2.0
"""The report of scripts/gpu_check.sh: the machine, the result of each stage, and what the stages measured.

`facts` and `build` are stages themselves; `assemble` makes a flat folder of a few files that can be committed: nothing
in it names the host, its users or its paths.
"""

import itertools
import json
import pathlib
import re
import shutil
import socket
import sys
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # for python scripts/gpu_report.py

from dnnlib.cli import click, run
from dnnlib.files import write_text
from dnnlib.text import markdown
from dnnlib.util import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
STAGES_FILE = "stages.tsv"  # a line per stage
STAGE_FIELDS = ("name", "result", "seconds", "limit", "note")
HEADINGS = {  # of the stages whose output is shown, and whose folders have files for the report
    "sweep": "Operations against their reference",
    "benchmark": "Benchmark",
    "training": "Training at 64x64",
}
LOG_LINES = 30  # from the end of a failed stage's log
PATH = re.compile(r"""(?<![\w.:/~<])(?:/[^\s/:'"`|,;()<>]+)+/(?=[^\s/])""")


def facts() -> dict[str, Any]:
    """Processor, GPU, driver and versions; nothing that identifies the machine."""
    import torch

    from torch_utils import machine

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    nvcc = machine.command_output(["nvcc", "--version"]) or "not found"
    return {**machine.describe(device), "nvcc": nvcc.splitlines()[-1]}


def build() -> str:
    """Compile the CUDA kernels and return how long that took. Raises UserError if it fails."""
    from torch_utils import custom_ops
    from torch_utils.ops import _plugin

    custom_ops.verbosity = "full"
    start = time.monotonic()
    if _plugin.load() is None:
        raise UserError("the CUDA kernels could not be built: see the end of the log")
    return f"{_plugin.NAME} built in {time.monotonic() - start:.0f} s"


def scrub(text: str, work: pathlib.Path) -> str:
    """`text` without what identifies this machine: paths, the home folder, the host."""
    for folder, name in ((work, "WORK"), (ROOT, "."), (pathlib.Path.home(), "~")):
        if folder != pathlib.Path(folder.anchor):
            text = text.replace(str(folder), name)
    text = PATH.sub("…/", text)
    host = socket.gethostname()
    return re.sub(rf"\b{re.escape(host)}\b", "HOST", text) if host and host != "localhost" else text


def report(record: dict[str, Any], work: pathlib.Path, parts: list[str]) -> str:
    """The page, in Markdown. `record` has `machine` and `stages`; `parts` are the names of the other files."""
    machine, stages = record["machine"] or {}, record["stages"]
    title = machine.get("gpu") or f"rehearsal on a CPU ({machine.get('cpu', 'unknown')})"
    known = [[name, ", ".join(value) if isinstance(value, list) else str(value)] for name, value in machine.items()]
    seconds = sum(int(stage["seconds"]) for stage in stages)
    sections = [
        f"# GPU check: {title}",
        f"Made by `scripts/gpu_check.sh` on {time.strftime('%Y-%m-%d', time.gmtime())} in {seconds} s.",
        markdown([["stage", "result", "seconds", "limit", ""], *(list(stage.values()) for stage in stages)]),
        "## Machine",
        markdown([["", ""], *known]) if machine else "Not known.",
    ]
    kernels = [lines[-1] for name in ("build", "sanitizer") if (lines := _lines(work / f"{name}.out"))]
    if kernels:
        sections += ["## Kernels", "\n".join(f"- {line.strip('= ')}" for line in kernels)]
    for name, heading in HEADINGS.items():
        log = "\n".join(_lines(work / f"{name}.out")).strip()
        if log:
            sections += [f"## {heading}", log if log.startswith("|") else f"```text\n{log}\n```"]
        if f"{name}.png" in parts:
            sections.append(f"![{heading}]({name}.png)")
    for stage in stages:
        if stage["result"] in ("failed", "timed out"):
            lines = [line for kind in ("out", "err") for line in _lines(work / f"{stage['name']}.{kind}")]
            end = "\n".join(lines[-LOG_LINES:]).replace("```", "'''")
            sections += [f"## End of the log of {stage['name']} ({stage['result']})", f"```text\n{end}\n```"]
    return "\n\n".join(sections) + "\n"


def _lines(path: pathlib.Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []


def assemble(work: pathlib.Path, out: pathlib.Path) -> list[str]:
    """Write report.md, report.json and what the stages measured into `out`; returns the names of the files.

    A stage's files are those that it left in the folder of its name.
    """
    out.mkdir(parents=True, exist_ok=True)
    parts = {}
    for stage, suffix in itertools.product(HEADINGS, (".json", ".png")):
        (out / f"{stage}{suffix}").unlink(missing_ok=True)  # of an earlier check into the same folder
        parts |= {f"{stage}{suffix}": path for path in (work / stage).glob(f"*{suffix}")}
    machine = json.loads("\n".join(_lines(work / "facts.json")) or "null")
    stages = [dict(zip(STAGE_FIELDS, line.split("\t"), strict=True)) for line in _lines(work / STAGES_FILE)]
    record = {"machine": machine, "stages": stages}
    texts = {"report.md": report(record, work, list(parts)), "report.json": json.dumps(record, indent=1)}
    for name, path in parts.items():
        if path.suffix == ".json":
            texts[name] = path.read_text(encoding="utf-8")
        else:
            shutil.copyfile(path, out / name)
    for name, text in texts.items():
        write_text(out / name, scrub(text, work))
    return ["report.md", "report.json", *parts]


@click.group()
def main() -> None:
    """Stages of scripts/gpu_check.sh, and its report."""


@main.command("facts")
@click.argument("path")
def facts_command(path: str) -> None:
    """Write the description of the machine to a JSON file, and print it."""
    text = json.dumps(facts(), indent=1)
    write_text(path, text)
    click.echo(text)


@main.command("build")
def build_command() -> None:
    """Compile the CUDA kernels."""
    click.echo(build())


@main.command("assemble")
@click.argument("work")
@click.argument("out")
def assemble_command(work: str, out: str) -> None:
    """Make the report in OUT from what the stages left in WORK."""
    names = assemble(pathlib.Path(work).resolve(), pathlib.Path(out))
    click.echo(f"{', '.join(names)} are in {out}")


if __name__ == "__main__":
    run(main)
