# SPDX-License-Identifier: Apache-2.0
"""Compiles the CUDA kernels to objects and writes what each uses: registers, spills, shared memory."""

import datetime
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dnnlib import cli
from dnnlib.cli import click
from dnnlib.text import markdown
from dnnlib.util import UserError

with cli.missing_package_exits():
    from torch_utils.ops import _plugin

PAGE = ROOT / "docs" / "benchmarks" / "kernels.md"

# Flags that PyTorch adds to every extension: no implicit conversions or operators of half-precision types.
PYTORCH_FLAGS = [
    "-D__CUDA_NO_HALF_OPERATORS__",
    "-D__CUDA_NO_HALF_CONVERSIONS__",
    "-D__CUDA_NO_BFLOAT16_CONVERSIONS__",
    "-D__CUDA_NO_HALF2_OPERATORS__",
    "--expt-relaxed-constexpr",
]
FLAGS = [*PYTORCH_FLAGS, *_plugin.CUDA_FLAGS]

KERNEL = re.compile(r"Compiling entry function '(\S+)' for")
USED = re.compile(
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\n"
    r".*Used (?P<registers>\d+) registers(?:.*?(?P<shared>\d+) bytes smem)?"
)
TYPES = {"__half": "f16", "__nv_bfloat16": "bf16", "float": "f32", "double": "f64"}
NOTE = (
    "`bias_act_kernel<order, elements per access, type, index>`: value, first or second derivative.\n"
    "`any_kernel<type, index>` computes any upfirdn2d; `plane_kernel` (NCHW) and `channel_kernel` (channels last) the "
    "fast cases, `up:down:taps` along x, then along y."
)

Uses = dict[str, int]  # stack, stores, loads, registers, shared


def command_line(source: str, arch: str, target: str) -> list[str]:
    """The nvcc command that compiles `source` for `arch`, such as '80'."""
    return ["nvcc", *FLAGS, f"-gencode=arch=compute_{arch},code=sm_{arch}", "-Xptxas=-v", "-c", source, "-o", target]


def compile_kernels(source: pathlib.Path, arch: str, folder: pathlib.Path) -> dict[str, Uses]:
    """What each kernel of `source` uses, by its readable name; the object goes to `folder`."""
    target = folder / f"{source.stem}.sm_{arch}.o"
    result = subprocess.run(command_line(str(source), arch, str(target)), capture_output=True, text=True)
    if result.returncode != 0:
        raise UserError(f"nvcc could not compile {source.name} for sm_{arch}:\n{result.stderr.strip()}")
    parts = re.split(r"(?=ptxas info\s+: Compiling entry function)", result.stderr)[1:]
    names = "\n".join(KERNEL.search(part)[1] for part in parts)
    readable = subprocess.run(["c++filt"], input=names, capture_output=True, text=True, check=True).stdout.splitlines()
    uses = [{name: int(value or 0) for name, value in USED.search(part).groupdict().items()} for part in parts]
    return dict(zip(map(shorten, readable), uses, strict=True))


def shorten(name: str) -> str:
    """'void ops::(anonymous namespace)::k<float, ops::Axis<1, 2, 4> >(...)' -> 'k<f32, 1:2:4>'."""
    name = name.removeprefix("void ").replace("ops::", "").replace("(anonymous namespace)::", "")
    name = re.sub(r"Axis<(\d+), (\d+), (\d+)>", r"\1:\2:\3", name)
    name = re.sub(r"\(Order\)(\d)", lambda match: ("value", "first", "second")[int(match[1])], name)
    name = re.sub(r"\(int\)(\d+)", r"\1", name)
    name = name[: name.rindex(">(") + 1]
    for long, short in {**TYPES, "unsigned int": "32-bit", "unsigned long": "64-bit"}.items():
        name = re.sub(rf"(?<=[<,\s]){long}(?=[,> ])", short, name)
    return re.sub(r"\bint\b", "32-bit", re.sub(r"\blong\b", "64-bit", name)).replace(" >", ">")


def table(results: dict[str, dict[str, Uses]]) -> str:
    """`results[architecture][kernel]` in Markdown: registers per architecture, spills in total, shared memory."""
    rows = [["kernel", *(f"registers sm_{arch}" for arch in results), "spilled bytes", "shared bytes"]]
    for name in sorted({name for kernels in results.values() for name in kernels}):
        uses = [kernels[name] for kernels in results.values()]
        spilled = sum(use["stores"] + use["loads"] for use in uses)
        numbers = (*(use["registers"] for use in uses), spilled, max(use["shared"] for use in uses))
        rows.append([f"`{name}`", *map(str, numbers)])
    return markdown(rows, numeric=len(rows[0]) - 1)


def report(results: dict[str, dict[str, Uses]]) -> str:
    """The whole page."""
    version = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    made = (
        f"Written by `python -m scripts.kernel_report` on {datetime.date.today()} with nvcc "
        f"{re.search('release .*', version)[0]}, for {' and '.join(f'sm_{arch}' for arch in results)}. Compiled only: "
        "nothing on this page was run."
    )
    command = f"    {' '.join(command_line('KERNELS.cu', 'XX', 'KERNELS.o'))}"
    return "\n\n".join(["# What the CUDA kernels use", made, command, NOTE, table(results)]) + "\n"


@click.command(context_settings={"show_default": True})
@click.option("--out", default=str(PAGE), help="Page to write.")
@click.option("--arch", "archs", default="80,90", help="Architectures, such as 80,90.")
def main(out: str, archs: str) -> None:
    """Compile the CUDA kernels and write registers, spills and shared memory of each as a table.

    Exits with status 1 if a kernel spills registers.
    """
    if shutil.which("nvcc") is None:
        raise UserError("There is no nvcc on the PATH: install the CUDA toolkit.")
    results: dict[str, dict[str, Uses]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for arch in archs.split(","):
            results[arch] = {}
            for source in (path for path in _plugin.SOURCES if path.suffix == ".cu"):
                click.echo(f"{source.name} for sm_{arch}")
                results[arch] |= compile_kernels(source, arch, pathlib.Path(folder))
    pathlib.Path(out).write_text(report(results))
    kernels = [use for kernels in results.values() for use in kernels.values()]
    spilling = sum(use["stores"] > 0 or use["stack"] > 0 for use in kernels)
    click.echo(f"{len(kernels)} kernels in {out}, {spilling} of them spill")
    sys.exit(1 if spilling else 0)


if __name__ == "__main__":
    cli.run(main)
