# SPDX-License-Identifier: Apache-2.0
"""The results of a study: one line of JSON for each finished run, appended as soon as it is measured."""

import json
import os
import statistics
from typing import Any

from dgl.study.plan import TICK, Run, Study
from dnnlib.files import parse_json
from dnnlib.util import UserError

GRID_ROWS = 5  # of the sample grid
REQUEST, LINE, GRID = "run.json", "line.json", "grid.png"  # in the folder of a run: what to measure, and what was found


def read(path: str | os.PathLike, study: str) -> list[dict[str, Any]]:
    """The lines of `study`, each with its number in the file as `line`; none if there is no file yet.

    Raises UserError for a line that is not a result, or two of the same run.
    """
    if not os.path.exists(path):
        return []
    found: dict[tuple, dict] = {}
    with open(path, encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            try:
                line = parse_json(text)
                key = key_of(line)
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"--results={path}: line {number} is no result of a study; remove it") from error
            if key in found:
                raise UserError(f"--results={path}: lines {found[key]['line']} and {number} are about the same run")
            if key[0] == study:
                found[key] = {**line, "line": number}
    return list(found.values())


def key_of(line: dict[str, Any]) -> tuple[str, str, str, int]:
    """As `Run.key`."""
    return line["study"], line["arm"], line["width"], line["seed"]


def find(lines: list[dict[str, Any]], run: Run) -> dict[str, Any] | None:
    """The line of `run`, or None. Raises UserError if it was made with other settings than the study file's."""
    line = next((line for line in lines if key_of(line) == run.key), None)
    if line is not None:
        settings = json.loads(json.dumps(run.settings()))
        changed = [key for key, value in settings.items() if line["settings"].get(key) != value]
        if changed:
            raise UserError(
                f"line {line['line']} of the results has {run.title} with other {', '.join(changed)} than the study "
                f"file now says: give the study or the arm another name, or use another file with --results"
            )
    return line


def sec_per_kimg(lines: list[dict[str, Any]], arm: str, width: str) -> float | None:
    """The median of an arm's runs of one width, or None without any."""
    times = [line["train"]["sec_per_kimg"] for line in lines if (line["arm"], line["width"]) == (arm, width)]
    return statistics.median(times) if times else None


def length(study: Study, run: Run, lines: list[dict[str, Any]]) -> int:
    """For how many kimg to train `run`.

    An arm `as_long_as` another gets the length of that one, times the ratio of its seconds per kimg to those of the own
    arm of fixed length, rounded to whole ticks. Raises UserError if `lines` have no run of one of the two.
    """
    arm = run.arm
    if arm.as_long_as is None:
        return run.base_kimg
    names = (arm.as_long_as, study.base_arm(arm).name)
    theirs, own = (sec_per_kimg(lines, name, run.width) for name in names)
    if theirs is None or own is None:
        missing = names[0] if theirs is None else names[1]
        raise UserError(f"could not train {run.title}: its length needs a finished run of {missing} at this width")
    return max(round(run.base_kimg * theirs / own / TICK), 1) * TICK
