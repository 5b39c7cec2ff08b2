# SPDX-License-Identifier: Apache-2.0
"""A study of small files, and results for it that were never measured."""

import json
import math
import pathlib
from typing import Any

from dgl.study import plan
from dgl.study.plan import Run, Study

ARMS = {
    "control": {"title": "Control", "flags": {"dgl-weight": 0}},
    "timed": {"title": "Control, same time", "flags": {"dgl-weight": 0}, "as_long_as": "guided"},
    "guided": {"title": "Guided", "flags": {"dgl-weight": 0.1, "dgl-start": {"share_of_kimg": 0.25}}},
}


def content(folder: pathlib.Path, **changes: Any) -> dict[str, Any]:
    """A study file's content; the files that it names exist in `folder` and are empty."""
    names = {key: str(folder / f"{key}.bin") for key in ("data", "held_out", "teacher")}
    for name in names.values():
        pathlib.Path(name).touch()
    rest = {"detectors": ["mnist"], "common": {"cond": True}, "widths": {"1/2": {"cbase": 0.5}, "1/4": {"cbase": 0.25}}}
    return {"name": "toy", **names, **rest, "arms": ARMS, "seeds": [1, 2], "kimg": 40, **changes}


def study(folder: pathlib.Path, **changes: Any) -> Study:
    """The study with this content."""
    path = folder / "study.json"
    path.write_text(json.dumps(content(folder, **changes)), encoding="utf-8")
    return plan.load(path)


def line(run: Run, fid: float | None = 50.0, sec_per_kimg: float = 2.0, **last: Any) -> dict[str, Any]:
    """A result of `run`; all fids are e^`log_fid`, None for a diverged run."""

    about = {"study": run.study.name, "arm": run.arm.name, "width": run.width, "seed": run.seed, "kimg": run.base_kimg}
    measured = {"fid_other": [], "kid": 0.004, "precision": 0.75, "recall": 0.5, "classifier_accuracy": 0.8}
    return {
        **about,
        "flags": run.flags(run.base_kimg),
        "settings": run.settings(),
        "log_fid": None if fid is None else math.log(fid),
        "fid": [{"kimg": kimg, "value": fid} for kimg in (32, 40)],
        "last": {"kimg": 40, **measured, "intra_class": 0.2, "intra_class_reals": 0.25, **last},
        "G": {"params": 1000, "macs": 20000},
        "train": {"kimg": 40.064, "seconds": 80.0, "sec_per_kimg": sec_per_kimg},
        "measure": {"seconds": 30.0},
        "versions": {"torch": "2.13.0"},
        "machine": {"cpu": "a processor"},
        "commit": "abc",
        "finished": "2026-01-01 00:00 UTC",
    }


def write(path: pathlib.Path, lines: list[dict[str, Any]]) -> str:
    """A file of results."""
    path.write_text("".join(f"{json.dumps(item)}\n" for item in lines), encoding="utf-8")
    return str(path)
