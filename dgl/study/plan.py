# SPDX-License-Identifier: Apache-2.0
"""A study: arms x widths x seeds from one JSON file, and the flags of train.py for each run. Loads no torch."""

import dataclasses
import functools
import hashlib
import os
import pathlib
import re
from typing import Any

from dnnlib.files import parse_json
from dnnlib.util import UserError
from training.flags import BY_NAME

TICK = 4  # kimg; snapshots are made at the end of a tick
# What the runner sets itself.
RESERVED = ("outdir", "data", "kimg", "seed", "snap", "keep", "dgl_teacher")
# Flags that name further files, which results do not record.
UNRECORDED = ("resume", "detector", "trust_detector", "trust_pickle")
ARM_KEYS = ("title", "flags", "kimg", "as_long_as", "teacher")


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: its name in results.
        title: its name in the report.
        flags: flags of train.py that it adds, without dashes.
        teachers: network pickles for --dgl-teacher; empty trains without one.
        kimg: length of training; None takes the study's.
        as_long_as: the arm whose wall-clock time it trains for, instead of for the same images.
    """

    name: str
    title: str
    flags: dict[str, Any]
    teachers: tuple[str, ...]
    kimg: int | None = None
    as_long_as: str | None = None


@dataclasses.dataclass(frozen=True)
class Study:
    """The content of a study file.

    Attributes:
        name: its name in results and folders.
        data, held_out: datasets for training, and of reals that no network has seen.
        detectors: feature networks, as for --detector; the first gives the primary outcome.
        common: flags of all runs; `widths` has further ones by the name of the width.
        arms: by name; `comparator` is the one that the others are compared with.
        seeds: of the runs.
        kimg: length of training.
        snapshots: how many of the last snapshots the primary outcome averages.
        snap: ticks between them.
        num_fakes: generated images for each measurement, a multiple of 1,000.
    """

    name: str
    data: str
    held_out: str
    detectors: tuple[str, ...]
    common: dict[str, Any]
    widths: dict[str, dict[str, Any]]
    arms: dict[str, Arm]
    comparator: str
    seeds: tuple[int, ...]
    kimg: int
    snapshots: int = 5
    snap: int = 2
    num_fakes: int = 5000

    def base_arm(self, arm: Arm) -> Arm:
        """For an arm that trains as long as another: the arm that differs from it in nothing but the length."""
        return next(
            other
            for other in self.arms.values()
            if other.as_long_as is None and (other.flags, other.teachers) == (arm.flags, arm.teachers)
        )


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: an arm at one width with one seed."""

    study: Study
    arm: Arm
    width: str
    seed: int

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What identifies it in a file of results."""
        return self.study.name, self.arm.name, self.width, self.seed

    @property
    def title(self) -> str:
        """For people: 'pruned 1/2 seed 3'."""
        return f"{self.arm.name} {self.width} seed {self.seed}"

    @property
    def base_kimg(self) -> int:
        """Its length as the study file gives it; for an arm that trains as long as another, the length of that one."""
        arm = self.arm if self.arm.as_long_as is None else self.study.arms[self.arm.as_long_as]
        return self.study.kimg if arm.kimg is None else arm.kimg

    def folder(self, outdir: str | os.PathLike) -> pathlib.Path:
        """Where it trains, below the value of --outdir."""
        return pathlib.Path(outdir) / slug(self.study.name) / f"{slug(self.width)}-{slug(self.arm.name)}-{self.seed}"

    def settings(self) -> dict[str, Any]:
        """Everything in the study file that its outcome depends on, for comparison with an earlier result."""
        study = self.study
        files = {"data": [study.data], "held_out": [study.held_out], "teachers": self.arm.teachers}
        files["detectors"] = study.detectors
        flags = {**study.common, **study.widths[self.width], **self.arm.flags}
        settings = {"flags": flags, "kimg": self.base_kimg, "as_long_as": self.arm.as_long_as}
        measured = {"snapshots": study.snapshots, "snap": study.snap, "num_fakes": study.num_fakes}
        return {**settings, **measured, "files": {use: list(map(fingerprint, names)) for use, names in files.items()}}

    def flags(self, kimg: int) -> dict[str, str]:
        """Flags of train.py without those that name files, for a training of `kimg`."""
        given = {**self.study.common, **self.study.widths[self.width], **self.arm.flags}
        flags = {name: _as_text(value, kimg) for name, value in given.items()}
        return {**flags, "kimg": str(kimg), "seed": str(self.seed), "snap": str(self.study.snap)}

    def command(self, kimg: int, outdir: str | os.PathLike) -> list[str]:
        """The arguments of the Python interpreter that train it."""
        files = {"outdir": outdir, "data": os.path.abspath(self.study.data), "keep": self.study.snapshots + 1}
        if self.arm.teachers:
            files["dgl-teacher"] = ",".join(map(located, self.arm.teachers))
        return ["train.py", *(f"--{name}={value}" for name, value in {**files, **self.flags(kimg)}.items())]


def slug(text: str) -> str:
    """`text` as a part of a file name: '1/2' -> '1-2'."""
    return re.sub(r"[^0-9A-Za-z._-]+", "-", text)


def _as_text(value: Any, kimg: int) -> str:
    if isinstance(value, dict):
        return f"{value['share_of_kimg'] * kimg:g}"
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(int(value)) if isinstance(value, bool) else str(value)


def fingerprint(path: str) -> str:
    """The name of a file and the start of its SHA-256: 'a.zip 0123456789abcdef'; a name without a folder stays.

    Raises UserError if the file is missing.
    """
    if located(path) == path and not os.path.isabs(path):
        return path
    try:
        return f"{os.path.basename(path)} {_sha256(path, os.stat(path).st_mtime_ns)[:16]}"
    except OSError as error:
        raise UserError(f"the study names the file {path}, which cannot be read ({error.strerror})") from error


def located(path: str) -> str:
    """The absolute path of a file; a name such as that of a detector of this project stays."""
    is_name = os.path.basename(path) == path and not os.path.splitext(path)[1] and not os.path.exists(path)
    return path if is_name else os.path.abspath(path)


@functools.cache
def _sha256(path: str, mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def runs_of(study: Study, arms: list[str] = (), widths: list[str] = (), seeds: list[int] = ()) -> list[Run]:
    """All runs in the order in which they are made: seed by seed, each arm after those whose time it needs.

    `arms`, `widths` and `seeds` restrict them, where given. Raises UserError for a name that the study does not have.
    """
    for flag, given, known in (("arms", arms, study.arms), ("widths", widths, study.widths)):
        unknown = [name for name in given or () if name not in known]
        if unknown:
            raise UserError(f"--{flag}: the study {study.name} has no {unknown[0]!r}, only {', '.join(known)}")
    chosen = [arm for name, arm in study.arms.items() if not arms or name in arms]
    chosen.sort(key=lambda arm: arm.as_long_as is not None)
    chosen_widths = [width for width in study.widths if not widths or width in widths]
    return [Run(study, arm, width, seed) for seed in seeds or study.seeds for width in chosen_widths for arm in chosen]


def load(path: str | os.PathLike, kimg: int | None = None) -> Study:
    """The study in a JSON file; `kimg` replaces every length. Raises UserError, naming the file and the key."""
    try:
        content = parse_json(pathlib.Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"there is no readable study file {path} ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"the study file {path} is not JSON: {error}") from error
    try:
        return _study(content, kimg)
    except UserError as error:
        raise UserError(f"the study file {path}: {error}") from error
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise UserError(f"the study file {path} has a key that is missing or of the wrong type: {error!r}") from error


def _study(content: dict[str, Any], kimg: int | None) -> Study:
    content = dict(content)
    teachers, arms = content.pop("teacher", []), content.pop("arms")
    known = {field.name for field in dataclasses.fields(Study)} - {"arms"}
    if content.keys() - known:
        raise UserError(f"unknown key {min(content.keys() - known)!r}")
    content = {"comparator": next(iter(arms)), **content}
    if kimg is not None:
        content["kimg"] = kimg
        arms = {name: {**arm, "kimg": None} for name, arm in arms.items()}
    content["arms"] = {name: _arm(name, arm, teachers) for name, arm in arms.items()}
    content.update({key: tuple(content[key]) for key in ("detectors", "seeds")})
    study = Study(**content)
    _check(study)
    return study


def _arm(name: str, content: dict[str, Any], teachers: str | list[str]) -> Arm:
    if content.keys() - set(ARM_KEYS):
        raise UserError(f"unknown key {min(content.keys() - set(ARM_KEYS))!r} of the arm {name}")
    named = content.get("teacher", teachers) or []
    paths = (named,) if isinstance(named, str) else tuple(named)
    rest = {key: content.get(key) for key in ("kimg", "as_long_as")}
    return Arm(name, content.get("title", name), dict(content.get("flags", {})), paths, **rest)


def _check(study: Study) -> None:
    """Raises UserError if parts of a study contradict each other."""
    for where, flags in {
        "common": study.common,
        **{f"widths {name}": flags for name, flags in study.widths.items()},
        **{f"the flags of the arm {name}": arm.flags for name, arm in study.arms.items()},
    }.items():
        _check_flags(where, flags)
    if study.comparator not in study.arms:
        raise UserError(f"the comparator {study.comparator!r} is not one of its arms")
    if not (study.seeds and study.widths and study.detectors):
        raise UserError("it needs at least one seed, one width and one detector")
    if study.snapshots < 1 or study.snap < 1 or study.kimg < 1 or study.num_fakes < 1000 or study.num_fakes % 1000:
        raise UserError("snapshots, snap and kimg must be at least 1, and num_fakes a multiple of 1000")
    for names in (study.arms, study.widths):
        if len(set(map(slug, names))) < len(names):
            raise UserError(f"two of the names {', '.join(names)} give the same folder: rename one")
    for arm in study.arms.values():
        _check_length(study, arm)


def _check_flags(where: str, flags: dict[str, Any]) -> None:
    for flag, value in flags.items():
        name = flag.replace("-", "_")
        if name not in BY_NAME:
            raise UserError(f"{where} has the flag {flag!r}, which train.py does not have")
        if name in RESERVED:
            raise UserError(f"{where} has the flag {flag!r}, which the runner sets itself")
        if name in UNRECORDED:
            raise UserError(f"{where} has the flag {flag!r}, which a study cannot have")
        if isinstance(value, dict) and value.keys() != {"share_of_kimg"}:
            raise UserError(f"{where}: {flag} is neither a value nor {{'share_of_kimg': number}}")


def _check_length(study: Study, arm: Arm) -> None:
    if arm.as_long_as is None:
        return
    if arm.kimg is not None:
        raise UserError(f"the arm {arm.name} has both kimg and as_long_as: drop one of the two")
    other = study.arms.get(arm.as_long_as)
    if other is None or other.as_long_as is not None:
        raise UserError(f"the arm {arm.name} trains as long as {arm.as_long_as!r}, which is no arm of fixed length")
    try:
        study.base_arm(arm)
    except StopIteration:
        raise UserError(
            f"the arm {arm.name} trains as long as {other.name}, and no arm with the same flags and teacher and of "
            f"fixed length says how long it would take"
        ) from None
