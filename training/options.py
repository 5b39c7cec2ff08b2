# SPDX-License-Identifier: Apache-2.0
"""The options of a run: the values of the flags, converted to keyword arguments of the training loop.

`resolve` starts from the network family's options for the --cfg preset and overrides them with the values of the flags,
which `training.flags` declares. Importing this module is cheap: torch is loaded only by `resolve`.
"""

import dataclasses
import math
from typing import Any, NamedTuple

from dnnlib.util import UserError
from metrics import catalogue
from training import families
from training.families.family import Data, Family
from training.flags import AUGPIPES, BY_NAME, OPTIONS, Flags, Option

_ADA_KIMG_OF_TRANSFER = 100  # ADA adapts faster in transfer learning
# Half-life of G_ema as a fraction of the run's length: where the ramp of --cfg=auto and --cfg=cifar ends.
_EMA_LIMIT_OF_TRANSFER = 0.05


@dataclasses.dataclass
class Opened:
    """Files opened while resolving and checking the options; a single-process run uses them for training.

    training_set: the dataset of `training_set_kwargs`.
    teachers:     the teachers of `loss_kwargs`, in their order.
    held_out:     the dataset of --dgl-held-out, its file closed until the first read; None without the flag.
    snapshots:    network files by path.
    """

    training_set: Any
    teachers: list = dataclasses.field(default_factory=list)
    held_out: Any = None
    snapshots: dict[str, Any] = dataclasses.field(default_factory=dict)

    def snapshot(self, path: str, trust: bool) -> Any:
        """The network file at `path` (file or URL), opened once. Raises UserError as `load_snapshot` does."""
        from training.files.snapshot import load_snapshot

        if path not in self.snapshots:
            opened = load_snapshot(path, trust=trust)
            self.snapshots |= {path: opened, opened.path: opened}  # of a folder, the latter is a file in it
        return self.snapshots[path]

    def loss_arguments(self) -> dict[str, Any]:
        """Arguments of a guided loss that replace those of `loss_kwargs` which name files to open."""
        named = {"teachers": self.teachers or None, "held_out": self.held_out}
        return {name: opened for name, opened in named.items() if opened is not None}

    def release(self) -> None:
        """Free all that set-up alone needed. Those who go on with a part of it have their own reference."""
        self.teachers, self.held_out, self.snapshots = [], None, {}


class Plan(NamedTuple):
    """A resolved command line: run name, keyword arguments of the training loop, start-up notices, opened files."""

    desc: str
    options: dict[str, Any]
    notices: list[str]
    opened: Opened


def build(**flags) -> tuple[str, dict[str, Any]]:
    """Run name and options of the training loop, for flags given by name with `_` for `-`.

    A flag left out, or None, counts as not given. Ranges are checked by the command line (`train.py`); here the flags
    are checked against each other and against the data. Reads the dataset and the teachers, writes nothing.
    Raises UserError naming the flag.
    """
    plan = resolve(**flags)
    plan.opened.training_set.close()
    return plan.desc, plan.options


def resolve(**flags) -> Plan:
    """As `build`, with the notices and the size table for start-up, and the opened files."""
    f = Flags(**flags)
    check_flags(f)
    training_set = _open_data(f)
    try:
        return _plan(f, training_set)
    except BaseException:
        training_set.close()
        raise


def _plan(f: Flags, training_set: Any) -> Plan:
    data = _describe(f, training_set)
    opened, teacher, notices = Opened(training_set), None, []
    if f.dgl_teacher:
        from training import guidance

        guidance.open_teachers([_location(name) for name in f.dgl_teacher], f.trust_pickle, opened)
        notices = guidance.choose_preset(f, opened)
    family, preset = families.preset(f.cfg, data.resolution, f.gpus)
    for name in families.flags() - family.flags:
        if f.given(name):
            raise UserError(f"{BY_NAME[name].flag} has no meaning for the family {family.name} of --cfg={f.cfg}")
    for name in f.metrics:
        if catalogue.find(name).needs_w and not family.has_w:
            raise UserError(f"--metrics={name} needs a latent space w, which networks of --cfg={f.cfg} do not have")
    if f.dgl_teacher:
        teacher = guidance.like(family, opened)
    options = {
        "training_set_kwargs": _training_set_kwargs(f, data),
        "data_loader_kwargs": {"pin_memory": True, "prefetch_factor": 2},
        **family.options(f, preset, data, teacher),
        **_augment_options(f, family),
    }
    if f.resume not in (None, "noresume"):
        # G_ema starts from a trained network, so its half-life is not ramped up but limited.
        options.update(resume_pkl=_location(f.resume), ada_kimg=_ADA_KIMG_OF_TRANSFER, ema_rampup=None)
    _land(f, options)
    if "resume_pkl" in options:
        options["ema_kimg"] = min(options["ema_kimg"], _EMA_LIMIT_OF_TRANSFER * options["total_kimg"])
    plan = Plan(_run_name(data.name, f), options, [*notices, *options.pop("notices", [])], opened)
    if data.has_labels and not f.cond:
        plan.notices.append(f"Notice: {f.data} has labels and this run ignores them; --cond=1 trains on them.")
    if f.dgl_teacher:
        plan.notices.extend(guidance.add_guidance(f, data, family, options, opened))
    return plan


def check_flags(f: Flags) -> None:
    """Raises UserError if flags contradict each other; independent of the data."""
    for option in OPTIONS:
        value = getattr(f, option.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{option.flag} must be a finite number, not {value}")
        if option.needs is not None and f.given(option.name) and not getattr(f, option.needs):
            raise UserError(f"{option.flag} needs a teacher: give its network pickle with --dgl-teacher")
    if f.gpus & (f.gpus - 1):
        raise UserError(f"--gpus must be a power of two, not {f.gpus}")
    if (f.seed + 1) * f.gpus > 2**32:
        raise UserError(f"--seed={f.seed} is too large: --seed times --gpus must stay below 2^32")
    if f.aug == "fixed" and f.p is None:
        raise UserError("--aug=fixed needs the augmentation probability, --p")
    if f.p is not None and f.aug != "fixed":
        raise UserError("--p goes with --aug=fixed only")
    if f.given("target") and f.aug != "ada":
        raise UserError(f"--target goes with --aug=ada only, not with --aug={f.aug}")
    if f.given("augpipe") and f.aug == "noaug":
        raise UserError("--augpipe has no effect with --aug=noaug: drop one of the two")
    if f.dgl_init != "teacher" and (f.given("dgl_prune") or f.dgl_svs):
        raise UserError("--dgl-prune and --dgl-svs go with --dgl-init=teacher only")
    if f.dgl_init != "random" and f.resume not in (None, "noresume"):
        raise UserError(f"--dgl-init={f.dgl_init} and --resume both say where G starts: drop one of the two")
    if f.given("dgl_fit") and f.dgl_fit and f.dgl_init == "random":
        raise UserError("--dgl-fit continues from inherited weights: give --dgl-init=teacher as well")
    if f.dgl_init_d and f.resume not in (None, "noresume"):
        raise UserError("--dgl-init-d and --resume both say where D starts: drop one of the two")
    _check_guidance(f)
    if f.fp32 and f.precision in ("fp16", "bf16"):
        raise UserError(f"--precision={f.precision} contradicts --fp32=1: drop one of the two")
    for name in f.metrics:
        if catalogue.find(name) is None:
            raise UserError(f"--metrics={name}: no such metric; choose none or from {', '.join(catalogue.METRICS)}")


def _check_guidance(f: Flags) -> None:
    """Raises UserError if flags say contradictory things of what teachers do."""
    start = 0 if f.dgl_start == "auto" else f.dgl_start
    if f.dgl_stop is not None and f.dgl_stop <= start:
        raise UserError(f"--dgl-stop={f.dgl_stop:g} must be later than the start of guidance, --dgl-start={start:g}")
    if f.given("dgl_residual") and f.dgl_start == "auto":
        raise UserError("--dgl-start=auto has no meaning with --dgl-residual, whose start is a number of kimg")
    if f.dgl_update:
        if f.given("dgl_residual"):
            raise UserError("--dgl-residual needs a frozen teacher and --dgl-update trains it: drop one of the two")
        if f.dgl_weight == 0:
            raise UserError("--dgl-update trains teachers that --dgl-weight=0 never asks: drop one of the two")
        if len(set(f.dgl_teacher)) < len(f.dgl_teacher):
            raise UserError("--dgl-update trains each teacher once: name every file of --dgl-teacher once")
    if f.given("dgl_residual") and not f.given("dgl_weight"):
        for name in ("dgl_weighting", "dgl_augment", "dgl_ratio", "dgl_stop"):
            if f.given(name):
                raise UserError(
                    f"{BY_NAME[name].flag} is about the teachers' term, which --dgl-residual replaces: drop it, or "
                    "give that term a --dgl-weight"
                )


def _run_name(dataset: str, f: Flags) -> str:
    """The dataset's name, the preset, and a word for each flag that was given."""
    words = [dataset]
    for option in OPTIONS:
        value = getattr(f, option.name)
        if option.word is None or value is False or value == [] or not (f.given(option.name) or option.name == "cfg"):
            continue
        if callable(option.word):
            words.append(option.word(f))
        elif value is True:
            words.append(option.word)
        else:
            words.append(f"{option.word}{value:g}" if isinstance(value, float) else f"{option.word}{value}")
    return "-".join(words)


def _land(f: Flags, options: dict[str, Any]) -> None:
    """Store the values of the flags under their keys in the options of the loop."""
    for option in OPTIONS:
        value = getattr(f, option.name)
        wanted = option.always or (value is not None and value != option.default)
        if not wanted or (option.needs is not None and not getattr(f, option.needs)):
            continue
        put(option, value, options)


def put(option: Option, value: Any, options: dict[str, Any]) -> None:
    """Store the value of one flag under its keys in the options of the loop."""
    for place in option.lands:
        *folders, key = place.split(".")
        target = options
        for folder in folders:
            target = target.setdefault(folder, {})
        target[key] = option.stores(value)


def _location(name: str) -> str:
    """File or URL of a network; aliases of published networks give their URLs."""
    return families.aliases().get(name, name)


def _open_data(f: Flags) -> Any:
    """The training set."""
    from training.dataset import ImageFolderDataset

    try:
        return ImageFolderDataset(path=f.data, use_labels=f.cond, max_size=f.subset, xflip=f.mirror, random_seed=f.seed)
    except UserError:
        raise
    except OSError as error:  # of another project's class
        raise UserError(f"--data={f.data} cannot be used: {error}") from error


def _describe(f: Flags, dataset: Any) -> Data:
    """The properties of the training set that the options depend on. Raises UserError if the flags do not fit them."""
    size = (dataset.resolution, dataset.num_channels)
    data = Data(dataset.name, *size, *_in_storage(f, dataset), dataset.label_dim)
    if f.cond and not data.c_dim:
        raise UserError(f"--cond=1 needs labels in dataset.json, and {f.data} has none")
    if f.subset is not None and not 1 <= f.subset <= data.num_images:
        raise UserError(f"--subset must be between 1 and {data.num_images}, the images of {f.data}, not {f.subset}")
    return data


def _in_storage(f: Flags, dataset: Any) -> tuple[int, bool]:
    """Number of images of the training set, and whether it has labels, without --subset, --mirror and --cond."""
    if hasattr(type(dataset), "num_files"):
        return dataset.num_files, dataset.labels_available
    whole = type(dataset)(path=f.data, use_labels=True)  # of another project, with StyleGAN2-ADA's interface
    try:
        return len(whole), whole.has_labels
    finally:
        whole.close()


def _training_set_kwargs(f: Flags, data: Data) -> dict[str, Any]:
    kwargs = {
        "class_name": "training.dataset.ImageFolderDataset",
        "path": f.data,
        "use_labels": f.cond,
        "max_size": data.num_images if f.subset is None else f.subset,
        "xflip": f.mirror,
        "resolution": data.resolution,
    }
    if kwargs["max_size"] < data.num_images:
        kwargs["random_seed"] = f.seed
    return kwargs


def _augment_options(f: Flags, family: Family) -> dict[str, Any]:
    asked = any(f.given(name) for name in ("aug", "target", "augpipe"))
    aug = f.aug if asked else family.augmentation
    if aug == "noaug":
        return {}
    pipe = {"class_name": "training.augment.AugmentPipe", **dict.fromkeys(AUGPIPES[f.augpipe], 1)}
    strength = {"augment_p": f.p} if aug == "fixed" else {"ada_target": f.target}
    return {**strength, "augment_kwargs": pipe}
