# SPDX-License-Identifier: Apache-2.0
"""The report of a study: tables of outcomes with paired intervals, FID over training, and samples. Loads no torch."""

import dataclasses
import math
import os
import pathlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from dgl.study import results
from dgl.study.plan import Arm, Run, Study, slug
from dnnlib import charts
from dnnlib.files import make_folder, write_text
from dnnlib.text import markdown
from dnnlib.util import UserError

ZOOM, STRIP = 2, 2  # size of the samples, and rows of each grid that are shown
Line = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The primary outcome of one arm at one width, compared with the study's comparator over common seeds.

    Attributes:
        arm: which one.
        lines: its results, by seed.
        fid: geometric mean over runs of the geometric mean FID of the last snapshots; NaN without a finite run.
        spread: sample standard deviation of log FID over runs, None for a single one.
        seeds: seeds that it has in common with the comparator; empty for the comparator itself.
        ratio, low, high: FID relative to the comparator's and its 95 % interval; None where there are too few seeds.
        p, p_holm: of the paired t-test of log FID, and adjusted for all arms of this width.
    """

    arm: Arm
    lines: list[Line]
    fid: float
    spread: float | None
    seeds: tuple[int, ...] = ()
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None


def compare(study: Study, width: str, lines: list[Line]) -> list[Outcome]:
    """The outcomes of all arms with results at one width, in the order of the study.

    A run whose FID is not finite counts in no mean; `left_out` lists it.
    """
    from metrics import seeds as statistics_of_seeds

    of_arm = {name: sorted(_of(lines, name, width), key=lambda line: line["seed"]) for name in study.arms}
    logs = {name: {line["seed"]: line["log_fid"] for line in found} for name, found in of_arm.items()}
    finite = {name: {seed: log for seed, log in found.items() if log is not None} for name, found in logs.items()}
    base = finite[study.comparator]
    outcomes = []
    for name, own in finite.items():
        if not of_arm[name]:
            continue
        made = statistics_of_seeds.summarise(list(own.values())) if own else {"mean": math.nan, "std": None}
        outcome = Outcome(study.arms[name], of_arm[name], math.exp(made["mean"]), made["std"])
        common = tuple(seed for seed in own if seed in base) if name != study.comparator else ()
        if common:
            found = statistics_of_seeds.paired([base[seed] for seed in common], [own[seed] for seed in common])
            ratio, low, high = (None if x is None else math.exp(x) for x in list(found.values())[:3])
            outcome = dataclasses.replace(outcome, seeds=common, ratio=ratio, low=low, high=high, p=found["p"])
        outcomes.append(outcome)
    adjusted = statistics_of_seeds.holm([outcome.p for outcome in outcomes])
    return [dataclasses.replace(outcome, p_holm=p) for outcome, p in zip(outcomes, adjusted)]


def _of(lines: list[Line], arm: str, width: str) -> list[Line]:
    return [line for line in lines if (line["arm"], line["width"]) == (arm, width)]


def outcome_table(study: Study, outcomes: list[Outcome], source: str) -> str:
    """FID of each arm, the ratio to the comparator, and where the numbers come from."""
    against = f"ratio to {study.arms[study.comparator].title} [95 %]"
    rows = [("arm", "runs", "kimg", "s/kimg", "FID", "spread", against, "p", "p (Holm)", "from")]
    for outcome in outcomes:
        train = [line["train"] for line in outcome.lines]
        rows.append(
            (
                outcome.arm.title,
                str(len(outcome.lines)),
                _median([part["kimg"] for part in train], "{:.0f}"),
                _median([part["sec_per_kimg"] for part in train], "{:.2f}"),
                _number(outcome.fid, "{:.2f}"),
                "" if outcome.spread is None else f"±{math.expm1(outcome.spread):.1%}",
                _ratio(study, outcome),
                _number(outcome.p, "{:.3g}"),
                _number(outcome.p_holm, "{:.3g}"),
                _source(outcome.lines, source),
            )
        )
    return markdown(rows)


def _ratio(study: Study, outcome: Outcome) -> str:
    if outcome.arm.name == study.comparator:
        return "1"
    if outcome.ratio is None:
        return "no common seed"
    interval = "" if outcome.low is None else f" [{outcome.low:.3f}, {outcome.high:.3f}]"
    return f"{outcome.ratio:.3f}{interval}, {len(outcome.seeds)} pair{'s' * (len(outcome.seeds) > 1)}"


def guard_table(study: Study, outcomes: list[Outcome], source: str) -> str:
    """Means over runs of the other measures, each of the last snapshot."""
    others = [f"FID, {os.path.splitext(os.path.basename(name))[0]}" for name in study.detectors[1:]]
    rows = [("arm", *others, "KID", "precision", "recall", "CAS", "within class", "from")]
    for outcome in outcomes:
        last = [line["last"] for line in outcome.lines]
        fids = [_mean([part["fid_other"][i] for part in last], "{:.2f}") for i in range(len(others))]
        cells = [
            _mean([part["kid"] for part in last], "{:.3g}"),
            _mean([part["precision"] for part in last], "{:.3f}"),
            _mean([part["recall"] for part in last], "{:.3f}"),
            _mean([part["classifier_accuracy"] for part in last], "{:.1%}"),
            _mean([_over(part["intra_class"], part["intra_class_reals"]) for part in last], "{:.1%}"),
        ]
        rows.append((outcome.arm.title, *fids, *cells, _source(outcome.lines, source)))
    return markdown(rows)


def size_lines(study: Study, width: str, outcomes: list[Outcome]) -> str:
    """Parameters and MACs of the generators of one width."""
    sizes = {(line["G"]["params"], line["G"]["macs"]) for outcome in outcomes for line in outcome.lines}
    return "; ".join(f"G has {params:,} parameters and {macs:,} MACs per image" for params, macs in sorted(sizes))


def _over(value: float | None, unit: float | None) -> float | None:
    return None if value is None or not unit else value / unit


def _number(value: float | None, form: str) -> str:
    return "" if value is None else "diverged" if math.isnan(value) else form.format(value)


def _summary(function: Callable, values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    missing = len(values) - len(known)
    note = f" (of {len(known)})" if missing and known else ""
    return f"{form.format(function(known))}{note}" if known else ""


def _mean(values: Sequence[float | None], form: str) -> str:
    return _summary(statistics.fmean, values, form)


def _median(values: Sequence[float], form: str) -> str:
    return _summary(statistics.median, values, form)


def _source(lines: list[Line], source: str) -> str:
    pairs = " ".join(f"{line['seed']}:{line['line']}" for line in lines)
    return f"{source} {pairs}"


def left_out(lines: list[Line]) -> list[str]:
    """A sentence for each run without a finite FID."""
    diverged = [line for line in lines if line["log_fid"] is None]
    return [
        f"{line['arm']} {line['width']} seed {line['seed']} (line {line['line']}) diverged and is in no mean."
        for line in diverged
    ]


def curves(study: Study, width: str, outcomes: list[Outcome]):
    """A chart of FID over kimg, geometric means over seeds; None unless a run has several snapshots."""
    series = []
    for index, outcome in enumerate(outcomes):
        # The i-th last snapshot of each run: their kimg differ a little between runs of unequal length.
        count = min(len(line["fid"]) for line in outcome.lines)
        points = []
        for i in range(-count, 0):
            entries = [line["fid"][i] for line in outcome.lines if line["fid"][i]["value"]]
            if entries:
                fid = statistics.geometric_mean(entry["value"] for entry in entries)
                points.append((statistics.fmean(entry["kimg"] for entry in entries), fid))
        series.append(charts.Series(outcome.arm.title, points, index))
    if max(len(s.points) for s in series) < 2:
        return None
    return charts.chart(f"FID at width {width}", "kimg", series, size=(720, 480))


def samples(study: Study, width: str, outcomes: list[Outcome], outdir: str):
    """The first rows of the sample grids of the first seed, arm by arm; None if none of their files is in `outdir`."""
    from PIL import Image

    found = {}
    for outcome in outcomes:
        line = outcome.lines[0]
        path = Run(study, outcome.arm, width, line["seed"]).folder(outdir) / results.GRID
        if path.is_file():
            with Image.open(path, formats=["PNG"]) as grid:
                strip = grid.crop((0, 0, grid.width, grid.height // results.GRID_ROWS * STRIP))
                size = (strip.width * ZOOM, strip.height * ZOOM)
                found[f"{outcome.arm.title}, seed {line['seed']}"] = strip.resize(size, Image.Resampling.NEAREST)
    return charts.below(found) if found else None


def conditions(study: Study, lines: list[Line]) -> list[str]:
    """What the numbers are, and on what they were measured."""
    name = os.path.splitext(os.path.basename(study.detectors[0]))[0]
    first = lines[0]
    machines = sorted({f"{line['machine'].get('gpu') or line['machine']['cpu']}" for line in lines})
    versions = sorted({f"PyTorch {line['versions']['torch']}" for line in lines})
    commits = sorted({line["commit"] or "unknown" for line in lines})
    files = {
        f"{use}: {', '.join(names)}" for line in lines for use, names in line["settings"]["files"].items() if names
    }
    return [
        f"FID: {study.num_fakes:,} fakes against the held-out reals in the features of the detector {name}, the "
        f"geometric mean over the last {study.snapshots} snapshots of a run, then over runs; spread is one standard "
        f"deviation over runs. Ratios below 1 are better than the comparator; they and their intervals are from log "
        f"FID, paired by seed (t-test), and Holm's adjustment is over the arms of one width. The last column has the "
        f"file of results, and seed:line for each run.",
        "The other measures are means over runs, of the last snapshot. CAS is the accuracy on held-out reals of a "
        "classifier trained on fakes alone; within class is the mean pixel distance of two fakes of one class, as a "
        "share of the reals'. s/kimg and kimg are medians.",
        f"Flags of all runs: {_flags(study.common)}. Machine: {'; '.join(machines)}, one thread a run; "
        f"{'; '.join(versions)}; code {', '.join(commits)}; first result {first['finished']}.",
        f"Files (name and start of SHA-256): {'; '.join(sorted(files))}.",
    ]


def arms_list(study: Study) -> str:
    """What each arm is, as a list."""
    lines = []
    for arm in study.arms.values():
        length = f", as long as {arm.as_long_as}" if arm.as_long_as else f", {arm.kimg} kimg" if arm.kimg else ""
        lines.append(f"- {arm.title} (`{arm.name}`): {_flags(arm.flags) or 'no further flags'}{length}")
    return "\n".join(lines)


def _flags(flags: dict[str, Any]) -> str:
    texts = (f"{value['share_of_kimg']:.3g} of kimg" if isinstance(value, dict) else value for value in flags.values())
    return " ".join(f"`--{name}={text}`" for name, text in zip(flags, texts))


def write_report(study: Study, path: str, outdir: str, out: str) -> pathlib.Path:
    """Write report.md and its pictures to the folder `out`; returns the path of the page.

    `path` is the file of results, `outdir` the folder of the runs, which has the samples. Raises UserError without
    results of this study.
    """
    lines = [line for line in results.read(path, study.name) if line["arm"] in study.arms]
    if not lines:
        raise UserError(f"--results={path} has no result of the study {study.name}")
    folder, source = make_folder(out, "--out"), os.path.basename(path)
    parts = [f"# Study {study.name}", arms_list(study)]
    for width in study.widths:
        outcomes = compare(study, width, lines)
        if not outcomes:
            continue
        parts += [f"## Width {width}", size_lines(study, width, outcomes)]
        parts += [outcome_table(study, outcomes, source), guard_table(study, outcomes, source)]
        pictures = {"fid": curves(study, width, outcomes), "samples": samples(study, width, outcomes, outdir)}
        for what, picture in pictures.items():
            if picture is not None:
                name = f"{slug(study.name)}-{slug(width)}-{what}.png"
                charts.save_png(picture, folder / name)
                parts.append(f"![{what} at width {width}]({name})")
    page = "\n\n".join([*parts, "## Conditions", *conditions(study, lines), *left_out(lines)])
    write_text(folder / "report.md", page + "\n")
    return folder / "report.md"
