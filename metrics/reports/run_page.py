# SPDX-License-Identifier: Apache-2.0
"""`report.html` of a run directory: how far the run is, its curves, newest images, best snapshot and options."""

import dataclasses
import html
import json
import os
import pathlib
import time

from dnnlib import pages
from dnnlib.files import write_text
from dnnlib.text import format_time
from metrics import metric_main
from metrics.reports import curves
from training.settings import TrainingOptions

NAME = "report.html"
REFRESH = 60  # seconds after which a browser opens the page of an unfinished run anew


class RunPage:
    """Writes the page of a run with these options; `write` is off in all processes but one."""

    def __init__(self, options: TrainingOptions, write: bool):
        self.options, self.write = options, write
        self.path = os.path.join(options.run_dir, NAME)

    def announce(self) -> None:
        """Write the first page, and say where it is."""
        self.update(done=False)
        if self.write:
            print(f"Progress page: {self.path}")

    def update(self, done: bool) -> None:
        """Write the page anew, atomically, from the files in the run directory. `done`: the run has ended."""
        if self.write:
            write_text(self.path, render(self.options, done))


def render(options: TrainingOptions, done: bool) -> str:
    """The page as text. Pictures of samples are named, not contained: they lie beside it and may be large."""
    found = curves.read(options.run_dir)
    charts = curves.charts({"": found})
    drawn = [pages.picture(picture, title, kind="chart") for title, picture in charts.items()]
    parts = [
        *map(pages.paragraph, [_progress(options, found.last, done), *_best(options)]),
        pages.section("Curves", pages.side_by_side(drawn) if drawn else pages.paragraph("Nothing yet.")),
        _samples(pathlib.Path(options.run_dir)),
        pages.section("Options", pages.details("all options", json.dumps(dataclasses.asdict(options), indent=2))),
    ]
    name = os.path.basename(os.path.abspath(options.run_dir))
    return pages.page(name, "".join(parts), refresh=None if done else REFRESH)


def _progress(options: TrainingOptions, last: dict[str, float], done: bool) -> str:
    kimg, total = last.get("Progress/kimg", 0.0), options.total_kimg
    words = [f"{kimg:g} of {total:g} kimg"]
    if "Timing/total_sec" in last:
        words.append(f"{format_time(last['Timing/total_sec'])} so far")
    pace = last.get("Timing/sec_per_kimg")
    if pace is not None:
        words.append(f"{pace:.3g} sec/kimg")
        if not done:
            words.append(f"about {format_time(pace * max(total - kimg, 0))} more")
    words.append(f"{'ended' if done else 'written'} {time.strftime('%Y-%m-%d %H:%M:%S')}")
    return ", ".join(words) + "."


def _best(options: TrainingOptions) -> list[str]:
    if not options.metrics:
        return []
    best = metric_main.best_snapshot(options.run_dir, options.metrics[0], options.detector)
    return [] if best is None else [f"Best snapshot: {best[0]}, {options.metrics[0]} {best[1]:.4g}."]


def _samples(run_dir: pathlib.Path) -> str:
    numbered = sorted(run_dir.glob("fakes[0-9]*.png"))
    names = [path.name for path in numbered[-1:]] or ["fakes_init.png"]
    figures = [
        pages.image_file(name, title, f'<a href="{html.escape(name)}">{html.escape(name)}</a>: {title}')
        for name, title in [(names[0], "newest samples"), ("reals.png", "training images")]
        if (run_dir / name).is_file()
    ]
    return pages.section("Samples", pages.side_by_side(figures)) if figures else ""
