# SPDX-License-Identifier: Apache-2.0
"""Compiles the CUDA kernels to objects and writes what each uses: registers, spills, shared memory."""

import datetime
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import click

from torch_utils.ops import _plugin

ROOT = pathlib.Path(__file__).resolve().parent.parent

# What PyTorch adds to every extension: no implicit conversions or operators of half-precision types.
PYTORCH_FLAGS = [
    "-D__CUDA_NO_HALF_OPERATORS__",
    "-D__CUDA_NO_HALF_CONVERSIONS__",
    "-D__CUDA_NO_BFLOAT16_CONVERSIONS__",
    "-D__CUDA_NO_HALF2_OPERATORS__",
    "--expt-relaxed-constexpr",
]
FLAGS = [*PYTORCH_FLAGS, *_plugin.CUDA_FLAGS]

KERNEL = re.compile(r"Compiling entry function '(?P<name>\S+)' for")
USED = re.compile(
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\n"
    r".*Used (?P<registers>\d+) registers(?:.*?(?P<shared>\d+) bytes smem)?"
)
TYPES = {"__half": "f16", "__nv_bfloat16": "bf16", "float": "f32", "double": "f64"}


def command_line(source: str, arch: str, target: str) -> list[str]:
    """The nvcc command that compiles `source` for `arch`, such as '80'."""
    return ["nvcc", *FLAGS, f"-gencode=arch=compute_{arch},code=sm_{arch}", "-Xptxas=-v", "-c", source, "-o", target]


def compile_kernels(source: pathlib.Path, arch: str, folder: pathlib.Path) -> list[tuple[str, dict[str, int]]]:
    """(kernel, what it uses) for each kernel of `source`, whose object goes to `folder`."""
    target = folder / f"{source.stem}.sm_{arch}.o"
    result = subprocess.run(command_line(str(source), arch, str(target)), capture_output=True, text=True)
    if result.returncode != 0:
        raise click.ClickException(f"nvcc could not compile {source.name} for sm_{arch}:\n{result.stderr.strip()}")
    rows = []
    for part in re.split(r"(?=ptxas info\s+: Compiling entry function)", result.stderr)[1:]:
        numbers = {name: int(value or 0) for name, value in USED.search(part).groupdict().items()}
        rows.append((KERNEL.search(part)["name"], numbers))
    return rows


def readable(names: list[str]) -> list[str]:
    """Names of kernels as the sources spell them, with types and template arguments in short."""
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return [shorten(name) for name in text.splitlines()]


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


def table(results: dict[str, list[tuple[str, dict[str, int]]]]) -> list[str]:
    """Markdown rows, a kernel each: registers per architecture, spills of both, shared memory."""
    archs = list(results)
    by_name: dict[str, dict[str, dict[str, int]]] = {}
    for arch, rows in results.items():
        for name, (_, numbers) in zip(readable([name for name, _ in rows]), rows):
            by_name.setdefault(name, {})[arch] = numbers
    columns = [f"registers sm_{arch}" for arch in archs]
    lines = ["| kernel | " + " | ".join(columns) + " | spilled bytes | shared bytes |"]
    lines.append("|---|" + "---:|" * (len(archs) + 2))
    for name, uses in sorted(by_name.items()):
        registers = " | ".join(str(uses[arch]["registers"]) for arch in archs)
        spilled = sum(numbers["stores"] + numbers["loads"] for numbers in uses.values())
        lines.append(f"| `{name}` | {registers} | {spilled} | {max(n['shared'] for n in uses.values())} |")
    return lines


def report(results: dict[str, list[tuple[str, dict[str, int]]]]) -> str:
    """The whole page."""
    version = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release .*", version)[0]
    command = " ".join(command_line("KERNELS.cu", "XX", "KERNELS.o"))
    return "\n".join(
        [
            "# What the CUDA kernels use",
            "",
            f"Written by `python -m scripts.kernel_report` on {datetime.date.today()} with nvcc {release}, for "
            f"{' and '.join(f'sm_{arch}' for arch in results)}. Compiled only: nothing on this page was run.",
            "",
            f"    {command}",
            "",
            "`bias_act_kernel<order, elements per access, type, index>`: value, first or second derivative.",
            "`any_kernel<type, index>` serves any upfirdn2d; `plane_kernel` (NCHW) and `channel_kernel` (channels last)"
            " the fast cases, `up:down:taps` along x, then along y.",
            "",
            *table(results),
            "",
        ]
    )


@click.command()
@click.option("--out", default=str(ROOT / "docs/benchmarks/kernels.md"), show_default=True, help="Page to write.")
@click.option("--arch", "archs", default="80,90", show_default=True, help="Architectures, such as 80,90.")
def main(out: str, archs: str) -> None:
    """Compile the CUDA kernels and write registers, spills and shared memory of each as a table.

    Exits with status 1 when a kernel spills registers.
    """
    if shutil.which("nvcc") is None:
        raise click.ClickException("There is no nvcc on the PATH: install the CUDA toolkit.")
    results: dict[str, list[tuple[str, dict[str, int]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for arch in archs.split(","):
            results[arch] = []
            for source in (path for path in _plugin.SOURCES if path.suffix == ".cu"):
                click.echo(f"{source.name} for sm_{arch}")
                results[arch] += compile_kernels(source, arch, pathlib.Path(folder))
    pathlib.Path(out).write_text(report(results))
    spilling = [name for rows in results.values() for name, numbers in rows if numbers["stores"] or numbers["stack"]]
    click.echo(f"{sum(map(len, results.values()))} kernels in {out}, {len(spilling)} of them spill")
    sys.exit(1 if spilling else 0)


if __name__ == "__main__":
    main()
