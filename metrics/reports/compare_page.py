# SPDX-License-Identifier: Apache-2.0
"""The report of a comparison as index.html, compare.png and compare.json."""

import datetime
import json
import pathlib
from collections.abc import Iterable

from PIL import Image

from dnnlib import charts
from dnnlib.files import write_text
from dnnlib.text import aligned, printable
from metrics.reports.found import Found
from metrics.reports.speed import Timing
from metrics.reports.subjects import Subject
from torch_utils import pages

PAGE, PICTURE, FIGURES = "index.html", "compare.png", "compare.json"
_MIB, _MB = 2**20, 10**6
_COUNTS = {"num_fakes": "generated images", "num_reals": "real images"}
_NOTE_ON_FILES = "A file may also hold D and the trained G; weights are those of G_ema."


def write(folder: pathlib.Path, found: Found) -> None:
    """Write the three files to `folder`, each atomically."""
    write_text(folder / FIGURES, json.dumps(figures(found), indent=1))
    charts.save_png(_picture(found), folder / PICTURE)
    write_text(folder / PAGE, _page(found))


def summary_text(found: Found) -> str:
    """The table of the networks as lines for a terminal."""
    return aligned(summary(found))


def summary(found: Found) -> list[tuple[str, ...]]:
    """A header and a row for each network; sizes and times also relative to the first one."""
    first = found.subjects[0]
    results = list(dict.fromkeys(name for values in found.results.values() for name in values))
    fastest = _runtimes(found)[:1]
    header = ["network", "parameters", "MACs per image", *map(_short, results)]
    header += [f"ms per image ({runtime})" for runtime in fastest] + ["weights", "file"]
    rows = [tuple(header)]
    for subject in found.subjects:
        cells = [subject.name, _relative(subject.params, first.params), _relative(subject.macs, first.macs)]
        values = found.results.get(subject.name, {})
        cells += [f"{values[name]:.4g}" if name in values else "" for name in results]
        cells += [_time_cell(found, runtime, 1, subject)[0] for runtime in fastest]
        cells += [_megabytes(subject.weight_bytes), _megabytes(subject.file_bytes)]
        rows.append(tuple(cells))
    return rows


def speeds(found: Found) -> list[tuple[str, ...]]:
    """A header and a row for each runtime and batch size: milliseconds per image with quartiles, ratio, memory."""
    header = ["", "batch"]
    for subject in found.subjects:
        header += [f"{subject.name}: ms per image", "quartiles", "memory"]
    rows = [tuple(header)]
    for runtime in _runtimes(found):
        for batch in dict.fromkeys(t.batch for t in found.timings):
            cells = [runtime, str(batch)]
            for subject in found.subjects:
                cells += _time_cell(found, runtime, batch, subject)
            rows.append(tuple(cells))
    return rows


def _time_cell(found: Found, runtime: str, batch: int, subject: Subject) -> tuple[str, str, str]:
    timing, reference = (_timing(found, runtime, batch, name) for name in (subject.name, found.subjects[0].name))
    low, middle, high = (1000 * x / batch for x in (timing.seconds.low, timing.seconds.median, timing.seconds.high))
    text = f"{middle:.3g}"
    if timing is not reference:
        text += f" ({reference.seconds.median / timing.seconds.median:.2f}x)"
    memory = "" if timing.memory is None else f"{timing.memory / _MIB:.1f} MiB"
    return text, f"{low:.3g} to {high:.3g}", memory


def _timing(found: Found, runtime: str, batch: int, name: str) -> Timing:
    return next(t for t in found.timings if (t.runtime, t.batch, t.network) == (runtime, batch, name))


def _runtimes(found: Found) -> list[str]:
    return list(dict.fromkeys(timing.runtime for timing in found.timings))


def _relative(value: int | None, reference: int | None) -> str:
    if value is None:
        return "unknown"
    text = f"{value / _MB:,.2f} M"
    return text if not reference or value == reference else f"{text} ({value / reference:.0%})"


def _megabytes(count: int | None) -> str:
    return "" if count is None else f"{count / _MB:.2f} MB"


def _short(name: str) -> str:
    """'pr5k3_full_recall-fashion' -> 'recall (pr5k3_full)': the provenance names the detector."""
    metric, _, output = name.split("-")[0].partition("_full_")
    return f"{output} ({metric})" if output else metric.removesuffix("_full")


def figures(found: Found) -> dict:
    """All numbers of the report, ready for JSON."""
    networks = {
        subject.name: {
            "path": subject.path,
            "sha256": subject.snapshot.sha256,
            "class": type(subject.G).__name__,
            "resolution": subject.G.img_resolution,
            "classes": subject.G.c_dim,
            "parameters": subject.params,
            "macs": subject.macs,
            "weight_bytes": subject.weight_bytes,
            "file_bytes": subject.file_bytes,
            "results": found.results.get(subject.name, {}),
        }
        for subject in found.subjects
    }
    timings = [
        {
            "network": t.network,
            "runtime": t.runtime,
            "batch": t.batch,
            "seconds": t.seconds._asdict(),
            "memory": t.memory,
        }
        for t in found.timings
    ]
    nearest = {name: {"distance": n.distance, "between_reals": n.between_reals} for name, n in found.nearest.items()}
    return {
        "networks": networks,
        "trunc": found.trunc,
        "provenance": found.provenance,
        "timings": timings,
        "unmeasured": found.unmeasured,
        "nearest_reals": nearest,
        "machine": found.machine,
        "notes": found.notes,
    }


def _heading(found: Found) -> str:
    return f"{', '.join(s.name for s in found.subjects[1:])} compared with {found.subjects[0].name}"


def _machine(found: Found) -> str:
    info = found.machine
    threads = f"{info['threads']} thread{'s' if info['threads'] != 1 else ''} on {info['cores']} cores"
    what = info.get("gpu") or f"{info['cpu']}, {threads}"
    date = datetime.date.today().isoformat()
    return f"Measured on {what}, load {info['load']:g}, PyTorch {info['torch']}, Python {info['python']}, {date}."


def _about_metrics(found: Found) -> list[str]:
    if not found.provenance:
        return ["No metrics were measured."]
    lines: dict[str, list[str]] = {}
    for metric, facts in found.provenance.items():
        text = " against ".join(f"{facts[key]:,} {what}" for key, what in _COUNTS.items() if key in facts)
        if "detector" in facts:
            text += f", detector {facts['detector']} (SHA-256 {facts['detector_sha256'][:12]})"
        lines.setdefault(f"{text}, seed {facts['seed']}.", []).append(metric)
    return [f"{', '.join(metrics)}: {text}" for text, metrics in lines.items()]


def _about_speed(found: Found) -> list[str]:
    lines = [
        "Times are medians over rounds in which all networks and runtimes took turns; (2x) is twice as fast as the "
        "first network. Memory is what the first call in a new process adds at its peak to that of the loaded network.",
        _machine(found),
    ]
    return lines + [f"{name} was not measured: {reason.rstrip('.')}." for name, reason in found.unmeasured.items()]


def _about_samples(found: Found) -> str:
    trunc = "no truncation" if found.trunc is None else f"--trunc={found.trunc:g}"
    columns = (
        "a column is a class, a group of rows a seed" if found.classes else "a cell of each group of rows is a seed"
    )
    text = f"The same seeds for each network: {columns}; {trunc}."
    if found.class_names is None:
        return text
    return f"{text} Classes: {', '.join(f'{k} {printable(found.class_names[k], 60)}' for k in found.classes)}."


def _bars(found: Found) -> Image.Image:
    rows = {}
    for runtime in _runtimes(found):
        for batch in dict.fromkeys(t.batch for t in found.timings):
            timings = [_timing(found, runtime, batch, subject.name) for subject in found.subjects]
            rows[f"{runtime}, batch {batch}"] = {
                t.network: tuple(1000 * x / batch for x in (t.seconds.median, t.seconds.low, t.seconds.high))
                for t in timings
            }
    return charts.bars("Time per image", "milliseconds, median and quartiles; less is better", rows, mark=0, width=900)


def _page(found: Found) -> str:
    def paragraphs(lines: Iterable[str]) -> str:
        return "".join(map(pages.paragraph, lines))

    def drawn(picture: Image.Image, alt: str) -> str:
        return pages.scrolled(pages.picture(picture, alt))

    parts = [
        pages.table(summary(found)),
        paragraphs([_NOTE_ON_FILES, *_about_metrics(found)]),
        pages.section("Samples", paragraphs([_about_samples(found)]), drawn(found.side_by_side, "samples")),
        pages.section(
            "Speed and memory",
            pages.scrolled(pages.picture(_bars(found), "times per image", kind="chart")),
            pages.table(speeds(found)),
            paragraphs(_about_speed(found)),
        ),
    ]
    if found.sweeps:
        sweeps = [drawn(picture, "truncation") for picture in found.sweeps]
        parts.append(pages.section("Truncation", *sweeps))
    for name, nearest in found.nearest.items():
        text = (
            f"Samples of {name}, and below each the real images nearest to it in the detector's features. The median "
            f"distance is {nearest.distance:.3g}; that of a real image from its nearest other one is "
            f"{nearest.between_reals:.3g}. Samples that are much nearer would be copies."
        )
        parts.append(
            pages.section(f"Nearest real images: {name}", paragraphs([text]), drawn(nearest.picture, "nearest"))
        )
    if found.charts:
        curves = [pages.picture(picture, title, kind="chart") for title, picture in found.charts.items()]
        parts.append(pages.section("Training", pages.side_by_side(curves)))
    parts.append(pages.section("Details", paragraphs(found.notes), pages.details("all figures", _json(found))))
    return pages.page(_heading(found), "".join(parts))


def _json(found: Found) -> str:
    return json.dumps(figures(found), indent=1)


def _picture(found: Found) -> Image.Image:
    parts = [charts.table(summary(found)), charts.beside([found.side_by_side, *found.sweeps], gap=24), _bars(found)]
    width = max(part.width for part in parts)
    notes = [_about_samples(found), *_about_metrics(found), _about_speed(found)[0], _machine(found)]
    texts = [charts.text(note, width, 15) for note in notes]
    return charts.column([charts.text(_heading(found), width, 26, charts.INK), *parts, *texts], gap=16, margin=24)
