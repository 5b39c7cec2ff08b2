# SPDX-License-Identifier: Apache-2.0
"""The table of ratios, the targets, seconds per thousand images, bandwidth, and the comparison, as text."""

import dataclasses

from benchmarks.results import Change, Result, Run
from benchmarks.variants import REFERENCE

# The same work twice differs by a few percent, in time by more than its quartiles say, there being few rounds.
SLACK = 1.05


@dataclasses.dataclass(frozen=True)
class Target:
    """Ratios to the reference that a part of a case is to reach, by precision."""

    title: str
    case: str
    part: str
    resolution: int
    batch: int
    ratios: dict[str, float]


CPU_TARGETS = [
    Target("training iteration", "training", "iteration", 128, 4, {"fp32": 1.4, "bf16": 3.0}),
    Target("generator, 1 image", "inference/b1", "images", 128, 1, {"fp32": 1.3, "bf16": 3.0}),
    Target("generator, 16 images", "inference/b16", "images", 128, 16, {"fp32": 1.3, "bf16": 3.0}),
]

# Seconds per thousand images of --cfg=auto --aug=ada on one GPU: what StyleGAN2-ADA's authors published (PyTorch
# release, README), and the goals for an H100.
PUBLISHED = {256: {"V100": 21.6, "A100": 12.5}, 512: {"V100": 72.5, "A100": 41}, 1024: {"V100": 154, "A100": 90}}
GOALS = {256: 6, 512: 20, 1024: 45}
GOAL_GPU = "H100"
BANDWIDTH_GOAL = 0.7  # of a copy's


def slow_half(run: Run, variant: str) -> bool:
    """Whether `variant` is a half precision that the run's CPU only emulates."""
    return run.machine["device"] == "cpu" and variant != "fp32" and not run.machine["fast_bf16"]


def target_of(run: Run, result: Result, variant: str) -> float | None:
    """The ratio that was promised for this, or None."""
    for target in CPU_TARGETS if run.machine["device"] == "cpu" else []:
        place = (target.case, target.part, target.resolution, target.batch)
        if place == (result.case, result.part, result.resolution, result.batch):
            return target.ratios.get(variant)
    return None


def verdict(run: Run, result: Result, variant: str) -> str:
    """'met' or 'missed' for a target; elsewhere 'slower' than the reference, 'more' memory, 'unclear' or nothing.

    A part counts as slower when three of four rounds were, by more than the same work twice would be; if it is the
    median alone that says so, that is unclear.
    """
    ratio, target = result.ratio(variant), target_of(run, result, variant)
    if slow_half(run, variant):
        return "no bf16 instructions on this CPU"
    if target is not None:
        return f"{'met' if ratio.median >= target else 'missed'} (target {target:g}x)"
    if ratio.median * SLACK >= 1:
        return ""
    if ratio.high * SLACK >= 1:
        return "unclear"
    return "more" if result.unit == "bytes" else "slower"


def table(run: Run) -> str:
    """A row for each result: the reference's median and deviation, then each precision's ratio, quartiles, verdict."""
    variants = list(dict.fromkeys(name for result in run.results for name in result.fast_variants))
    head = ["case", "reference", "±", *(f"{name} (auto)" if name == run.auto else name for name in variants), "remarks"]
    rows = [head]
    for result in run.results:
        base = result.of(REFERENCE)
        cells = [result.key, amount(base.median, result.unit), f"{base.mad / base.median:.0%}"]
        remarks = []
        for name in variants:
            if name not in result.samples:
                cells.append("")
                continue
            ratio = result.ratio(name)
            cells.append(f"{ratio.median:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]")
            said = verdict(run, result, name)
            remarks += [f"{name}: {said}"] if said and not slow_half(run, name) else []
        rows.append([*cells, "; ".join(remarks)])
    return aligned(rows)


def targets(run: Run) -> str:
    """A line for each target, and one for "never slower"."""
    lines = []
    for target in CPU_TARGETS if run.machine["device"] == "cpu" else []:
        place = (target.case, target.part, target.resolution, target.batch)
        found = [r for r in run.results if (r.case, r.part, r.resolution, r.batch) == place]
        for variant, ratio in target.ratios.items():
            name = f"{target.title}, {target.resolution}x{target.resolution}, batch {target.batch}, {variant}"
            if not found or variant not in found[0].samples:
                lines.append([name, f"{ratio:g}x", "-", "not measured"])
            else:
                measured = found[0].ratio(variant).median
                word = "not applicable: " if slow_half(run, variant) else ""
                text = verdict(run, found[0], variant).split(" (")[0]
                lines.append([name, f"{ratio:g}x", f"{measured:.2f}x", word + text])
    lines += [_worst(run, "never slower", "s"), _worst(run, "memory no higher", "bytes")]
    return aligned([["target", "at least", "measured", ""], *lines])


def _worst(run: Run, title: str, unit: str) -> list[str]:
    pairs = [
        (result.ratio(name).median, f"{result.key} ({name})", verdict(run, result, name))
        for result in run.results
        if result.unit == unit
        for name in result.fast_variants
        if not slow_half(run, name)
    ]
    if not pairs:
        return [title, "1x", "-", "not measured"]
    ratio, where, _said = min(pairs)
    said = [words for *_, words in pairs]
    counts = [("missed by", said.count("slower") + said.count("more")), ("unclear for", said.count("unclear"))]
    faults = ", ".join(f"{words} {count} of {len(pairs)}" for words, count in counts if count)
    return [title, "1x", f"{ratio:.2f}x", f"{faults}; least: {where}" if faults else "met"]


def sec_per_kimg(run: Run) -> str:
    """Seconds per thousand images of every training iteration and loop; on CUDA beside published ones."""
    rows = [["sec/kimg", REFERENCE, "", ""]]
    for result in run.results:
        if result.part != "iteration":
            continue
        row = [f"{result.case}, {result.resolution}x{result.resolution}, batch {result.batch}"]
        row.append(f"{result.of(REFERENCE).median / result.batch * 1000:.4g}")
        row.append(", ".join(f"{n} {result.of(n).median / result.batch * 1000:.4g}" for n in result.fast_variants))
        rows.append([*row, _published(run, result)])
    return aligned(rows) if len(rows) > 1 else ""


def _published(run: Run, result: Result) -> str:
    if run.machine["device"] != "cuda" or result.resolution not in PUBLISHED or run.auto not in result.samples:
        return ""
    words = [f"{gpu} {seconds:g}" for gpu, seconds in PUBLISHED[result.resolution].items()]
    goal, got = GOALS[result.resolution], result.of(run.auto).median / result.batch * 1000
    fits = GOAL_GPU in run.machine["gpu"]
    words.append(f"goal on an {GOAL_GPU} {goal}: {('met' if got <= goal else 'missed') if fits else 'not applicable'}")
    return "published: " + ", ".join(words)


def bandwidth(run: Run) -> str:
    """Bytes a second of the memory-bound operations, and their share of a copy's."""
    rows = [["bandwidth", "", "GB/s", "of a copy"]]
    for result in run.results:
        for name, moved in result.moved.items():
            rate = moved / result.of(name).median
            share = rate / run.copy_bytes_per_s if run.copy_bytes_per_s else 0
            low = (
                " (goal 70%)"
                if run.machine["device"] == "cuda" and name != REFERENCE and share < BANDWIDTH_GOAL
                else ""
            )
            rows.append([result.key, name, f"{rate / 1e9:.1f}", f"{share:.0%}{low}"])
    return aligned(rows) if len(rows) > 1 else ""


def comparison(changes: list[Change], tolerance: float, differing: list[str]) -> str:
    """Every ratio then and now, regressions marked, and how many there are; `differing` names other conditions."""
    rows = [["compared", "", "then", "now", "change", ""]]
    for change in changes:
        mark = "regression" if change.regressed else ""
        ratios = (f"{change.old:.2f}x", f"{change.new:.2f}x", f"{change.percent:+.0f}%")
        rows.append([change.key, change.variant, *ratios, mark])
    count = sum(change.regressed for change in changes)
    note = f" The two runs differ in {', '.join(differing)}." if differing else ""
    return f"{aligned(rows)}\n{count} of {len(changes)} ratios fell by more than {tolerance:g}%.{note}"


def machine_line(run: Run) -> str:
    """Where the figures come from, in one line."""
    m = run.machine
    name = m["gpu"] if m["device"] == "cuda" else f"{m['cpu']}, {m['cores']} cores, {m['threads']} threads"
    flags = "" if m["device"] == "cuda" else f", {' '.join(m['cpu_flags'])}"
    return f"{run.date}, {name}{flags}, PyTorch {m['torch']}, load {m['load']} at the start"


def amount(value: float, unit: str) -> str:
    """Seconds or bytes with a fitting prefix."""
    if unit == "bytes":
        return f"{value / 2**20:.0f} MiB"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.3g} ms"


def aligned(rows: list[list[str]]) -> str:
    """Columns of equal width, the last as it is."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
