# SPDX-License-Identifier: Apache-2.0
"""A benchmark as text and plot: ratios, targets, sec/kimg, shares of the machine's limits; two runs compared."""

import os

from benchmarks.cases import REFERENCE
from benchmarks.results import Change, Result, Run
from dnnlib import charts
from dnnlib.text import aligned

# Two measurements of the same work differ by a few percent, in time by more than the quartiles of a few rounds show.
SLACK = 1.05

# Ratios to the reference that a CPU should reach, by precision: result -> (title, ratios).
CPU_TARGETS = {
    "training iteration, 128x128, batch 4": ("training iteration", {"fp32": 1.4, "bf16": 3.0}),
    "inference/b1 images, 128x128, batch 1": ("generator, 1 image", {"fp32": 1.3, "bf16": 3.0}),
    "inference/b16 images, 128x128, batch 16": ("generator, 16 images", {"fp32": 1.3, "bf16": 3.0}),
}

# Seconds per thousand images of --cfg=auto --aug=ada on one GPU: figures published by StyleGAN2-ADA's authors (PyTorch
# release, README), and the goals for an H100.
PUBLISHED = {256: {"V100": 21.6, "A100": 12.5}, 512: {"V100": 72.5, "A100": 41}, 1024: {"V100": 154, "A100": 90}}
GOALS = {256: 6, 512: 20, 1024: 45}
GOAL_GPU = "H100"
BANDWIDTH_GOAL = 0.7  # of a copy's


def page(run: Run) -> str:
    """All that is known about a run."""
    tables = [table(run), sec_per_kimg(run), arithmetic(run), bandwidth(run), targets(run)]
    sections = [machine_line(run), run.command, *tables]
    return "\n\n".join(section for section in sections if section)


def machine_line(run: Run) -> str:
    """Date, processor and versions in one line."""
    m = run.machine
    name = m["gpu"] if m["device"] == "cuda" else f"{m['cpu']}, {m['cores']} cores, {m['threads']} threads"
    flags = "" if m["device"] == "cuda" else f", {' '.join(m['cpu_flags'])}"
    return f"{run.date}, {name}{flags}, PyTorch {m['torch']}, load {m['load']} at the start"


def emulated(run: Run, variant: str) -> bool:
    """Whether `variant` is a half precision without instructions on the run's CPU."""
    return run.machine["device"] == "cpu" and variant != "fp32" and not run.machine["fast_bf16"]


def cpu_targets(run: Run) -> dict[str, tuple[str, dict[str, float]]]:
    """The targets of the run's device."""
    return CPU_TARGETS if run.machine["device"] == "cpu" else {}


def verdict(run: Run, result: Result, variant: str) -> str:
    """'met' or 'missed' for a target; elsewhere 'slower' than the reference, 'more' memory, 'unclear' or ''.

    A part is slower if three of four rounds were, by more than two measurements of the same work differ; it is unclear
    if only the median says so.
    """
    ratio = result.ratio(variant)
    target = cpu_targets(run).get(result.key, ("", {}))[1].get(variant)
    if emulated(run, variant):
        return "no bf16 instructions on this CPU"
    if target is not None:
        return f"{'met' if ratio.median >= target else 'missed'} (target {target:g}x)"
    if ratio.median * SLACK >= 1:
        return ""
    if ratio.high * SLACK >= 1:
        return "unclear"
    return "more" if result.unit == "bytes" else "slower"


def variants(run: Run) -> dict[str, str]:
    """All variants of a run but the reference, and their titles; users get the one marked `(auto)`."""
    names = [name for result in run.results for name in result.fast_variants]
    return {name: f"{name} (auto)" if name == run.auto else name for name in names}


def table(run: Run) -> str:
    """A row for each result: the reference's median and deviation; ratio, quartiles and verdict of each precision."""
    rows = [["case", "reference", "±", *variants(run).values(), "remarks"]]
    for result in run.results:
        base, ratios, remarks = result.of(REFERENCE), [], []
        for name in variants(run):
            if name not in result.samples:
                ratios.append("")
                continue
            ratio, said = result.ratio(name), verdict(run, result, name)
            ratios.append(f"{ratio.median:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]")
            remarks += [f"{name}: {said}"] if said and not emulated(run, name) else []
        cells = [result.key, amount(base.median, result.unit), f"{base.mad / base.median:.0%}"]
        rows.append([*cells, *ratios, "; ".join(remarks)])
    return aligned(rows)


def targets(run: Run) -> str:
    """A line for each target, and one each for "never slower" and "memory no higher"."""
    rows = [["target", "at least", "measured", ""]]
    found = {result.key: result for result in run.results}
    for key, (title, ratios) in cpu_targets(run).items():
        for variant, ratio in ratios.items():
            measured, text = "-", "not measured"
            if key in found and variant in found[key].samples:
                measured = f"{found[key].ratio(variant).median:.2f}x"
                text = verdict(run, found[key], variant).split(" (")[0]
                text = f"not applicable: {text}" if emulated(run, variant) else text
            rows.append([f"{title}, {key.partition(', ')[2]}, {variant}", f"{ratio:g}x", measured, text])
    return aligned([*rows, _worst(run, "never slower", "s"), _worst(run, "memory no higher", "bytes")])


def _worst(run: Run, title: str, unit: str) -> list[str]:
    pairs = [
        (result.ratio(name).median, f"{result.key} ({name})", verdict(run, result, name))
        for result in run.results
        if result.unit == unit
        for name in result.fast_variants
        if not emulated(run, name)
    ]
    if not pairs:
        return [title, "1x", "-", "not measured"]
    ratio, where, _said = min(pairs)
    said = [words for *_, words in pairs]
    counts = [("missed by", said.count("slower") + said.count("more")), ("unclear for", said.count("unclear"))]
    faults = ", ".join(f"{words} {count} of {len(pairs)}" for words, count in counts if count)
    return [title, "1x", f"{ratio:.2f}x", f"{faults}; least: {where}" if faults else "met"]


def sec_per_kimg(run: Run) -> str:
    """Seconds per thousand images of every training iteration and loop; on CUDA with published figures."""
    rows = [["sec/kimg", REFERENCE, "", ""]]
    for result in run.results:
        if result.part == "iteration":
            rates = {name: result.of(name).median / result.batch * 1000 for name in result.samples}
            fast = ", ".join(f"{name} {rates[name]:.4g}" for name in result.fast_variants)
            name = f"{result.case}, {result.resolution}x{result.resolution}, batch {result.batch}"
            rows.append([name, f"{rates[REFERENCE]:.4g}", fast, _published(run, result.resolution, rates)])
    return aligned(rows) if len(rows) > 1 else ""


def _published(run: Run, resolution: int, rates: dict[str, float]) -> str:
    if run.machine["device"] != "cuda" or resolution not in PUBLISHED or run.auto not in rates:
        return ""
    words = [f"{gpu} {seconds:g}" for gpu, seconds in PUBLISHED[resolution].items()]
    goal = GOALS[resolution]
    said = "not applicable" if GOAL_GPU not in run.machine["gpu"] else "met" if rates[run.auto] <= goal else "missed"
    return f"published: {', '.join(words)}, goal on an {GOAL_GPU} {goal}: {said}"


def bandwidth(run: Run) -> str:
    """Bytes per second of the memory-bound operations, and their share of a copy's."""
    rows = [["bandwidth", "", "GB/s", "of a copy"]]
    for result in run.results:
        for name, moved in result.moved.items():
            rate = moved / result.of(name).median
            share = rate / run.copy_bytes_per_s if run.copy_bytes_per_s else 0
            low = run.machine["device"] == "cuda" and name != REFERENCE and share < BANDWIDTH_GOAL
            rows.append([result.key, name, f"{rate / 1e9:.1f}", f"{share:.0%}{' (goal 70%)' if low else ''}"])
    return aligned(rows) if len(rows) > 1 else ""


def arithmetic(run: Run) -> str:
    """Operations per second in the dense layers, and their share of the limit of a variant's precision.

    A row for each result whose operations were counted, after the limits.
    """
    titles = {REFERENCE: REFERENCE, **variants(run)}
    limits = {name: run.flops_per_s.get("fp32" if name == REFERENCE else name) for name in titles}
    of_limits = [f"{_giga(limit)} GFLOP/s" if limit else "" for limit in limits.values()]
    rows = [["dense arithmetic", "GFLOP", *titles.values()], ["limit", "", *of_limits]]
    for result in run.results:
        if result.flops is not None:
            cells = [result.key, _giga(result.flops)]
            for name, limit in limits.items():
                rate = result.flops / result.of(name).median if name in result.samples else None
                cells.append(f"{_giga(rate)} GFLOP/s {rate / limit:.0%}" if rate and limit else "")
            rows.append(cells)
    return aligned(rows) if len(rows) > 2 else ""


def _giga(value: float) -> str:
    value /= 1e9
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def comparison(changes: list[Change], tolerance: float, differing: list[str]) -> str:
    """Every ratio then and now, with regressions marked and counted; `differing` names conditions that differ."""
    rows = [["compared", "", "then", "now", "change", ""]]
    for change in changes:
        ratios = (f"{change.old:.2f}x", f"{change.new:.2f}x", f"{change.percent:+.0f}%")
        rows.append([change.key, change.variant, *ratios, "regression" if change.regressed else ""])
    count = sum(change.regressed for change in changes)
    note = f" The two runs differ in {', '.join(differing)}." if differing else ""
    return f"{aligned(rows)}\n{count} of {len(changes)} ratios fell by more than {tolerance:g}%.{note}"


def amount(value: float, unit: str) -> str:
    """Seconds or bytes with a suitable prefix."""
    if unit == "bytes":
        return f"{value / 2**20:.0f} MiB"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.3g} ms"


def save_plot(run: Run, path: str | os.PathLike) -> None:
    """Write a PNG: for each result a bar per precision, the median of its ratio with the quartiles."""
    titles = variants(run)
    rows = {
        result.key: {titles[name]: result.ratio(name)[:3] for name in result.fast_variants} for result in run.results
    }
    name = run.machine["gpu"] if run.machine["device"] == "cuda" else run.machine["cpu"]
    title = f"{name}, PyTorch {run.machine['torch']}, {run.date}"
    picture = charts.bars(title, "times the reference: above 1 is faster, or less memory", rows, mark=1)
    charts.save_png(picture, path)
