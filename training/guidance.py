# SPDX-License-Identifier: Apache-2.0
"""Options of a run with teachers: opening them, the guided loss, widths and first weights taken from a teacher."""

import os
from typing import Any

import torch

from dgl.fit import settings as fit_settings
from dgl.prune import check_source
from dgl.student import check_smaller, size_table
from dgl.teacher import Teacher, check_teacher, open_teacher
from dnnlib.util import UserError, construct_class_by_name
from training import families
from training.families.family import Data, Family, Like
from training.flags import guidance_weight
from training.initial import network_shape, new_network

# A fitted G is good from the start, so its average may reach far back: FID after 15 kimg 5.5 instead of 6.8 with the
# presets' 0.05 (docs/evidence).
_EMA_RAMPUP_OF_FITTED = 0.5


def open_teachers(paths: list[str], trust: bool, opened) -> None:
    """Open every teacher, files or URLs, into `opened`. Raises UserError as `open_teacher` does."""
    opened.teachers = [open_teacher(path, trust, load=opened.snapshot) for path in paths]


def choose_preset(f, opened) -> list[str]:
    """Without --cfg, have that of the first teacher's family; returns a notice if it is not the usual one."""
    teacher, usual = opened.teachers[0], f.cfg
    if f.given("cfg"):
        return []
    family = families.of(teacher.D)
    f.assume(cfg=next(iter(family.presets)))
    if f.cfg == usual:
        return []
    return [f"Notice: {teacher.path} is of the family {family.name}, and so is the student: --cfg={f.cfg}."]


def like(family: Family, opened) -> Like:
    """What a student of `family` takes from the first teacher."""
    networks = (opened.teachers[0].G, opened.teachers[0].D)
    return Like(*(net.init_kwargs if _is_of(family, net) else None for net in networks))


def _is_of(family: Family, network: torch.nn.Module | None) -> bool:
    return hasattr(network, "init_kwargs") and families.of(network) is family


def add_guidance(f, data: Data, family: Family, options: dict[str, Any], opened) -> list[str]:
    """Make `options` those of a guided run; returns the lines to show at the start: sizes and notices.

    `f` are the values of the flags. The loss is guided by all teachers; G and D start from the first as --dgl-init and
    --dgl-init-d say. Raises UserError if a teacher does not fit the run, or if the student is not smaller and no flag
    asks for it.
    """
    teachers: list[Teacher] = opened.teachers
    for teacher in teachers:
        check_teacher(teacher, data.resolution, data.channels, data.c_dim, options["batch_gpu"])
    options["loss_kwargs"].update(
        class_name="dgl.loss.DGLLoss",
        base_class=options["loss_kwargs"]["class_name"],
        dgl_form=family.adversarial_form,
        teachers=[{"path": teacher.path, "sha256": teacher.sha256} for teacher in teachers],
        trust_pickle=f.trust_pickle,
        dgl_weight=guidance_weight(f),
    )
    if f.dgl_held_out is not None:
        kwargs = {"class_name": "training.dataset.ImageFolderDataset", "path": f.dgl_held_out, "use_labels": f.cond}
        opened.held_out = _open_held_out(kwargs, f, data)
        options["loss_kwargs"]["held_out"] = kwargs
    if f.dgl_update:
        options["loss_kwargs"]["dgl_update"] = {**options["D_opt_kwargs"], "lr": f.dgl_update}
    terms = _terms(f, teachers, options["G_kwargs"])
    if terms:
        options["loss_kwargs"]["terms"] = terms
    shape = network_shape(opened.training_set)
    first, student = teachers[0], new_network(options["G_kwargs"], shape, values=False)
    check_smaller(first.G, student, wanted=f.given("cbase") and 1 <= f.cbase <= 4)
    inherited = {}
    if f.dgl_init != "random":
        check_source(first.G, student, first.path, f.dgl_init, f.dgl_prune)
        inherited.update(parts=f.dgl_init, ranking=f.dgl_prune, svs=f.dgl_svs, seed=f.seed)
    if f.dgl_init_d:
        check_source(first.D, new_network(options["D_kwargs"], shape, values=False), first.path, "D")
        inherited["D"] = True
    if f.dgl_fit:  # of inherited weights, which were checked above
        inherited["fit"] = fit_settings(f.dgl_fit, options, least=2 if family.batch_statistics else 1)
        if options["ema_rampup"] is not None:
            options["ema_rampup"] = _EMA_RAMPUP_OF_FITTED
    if inherited:
        options["init_kwargs"] = {"path": first.path, "sha256": first.sha256, **inherited}
    lines = [size_table(first.G, student)]
    return lines + _schedule_notices(f, options["total_kimg"])


def _schedule_notices(f, total_kimg: float) -> list[str]:
    """What is odd about the schedule of guidance in a run of `total_kimg`."""
    notices = []
    if f.dgl_start != "auto" and f.dgl_start >= total_kimg:
        notices.append(f"Notice: --dgl-start={f.dgl_start:g} is not before the end of the run: no teacher takes part.")
    if f.dgl_stop is not None and f.dgl_stop > total_kimg:
        notices.append(f"Notice: --dgl-stop={f.dgl_stop:g} is after the end of the run: the weight does not reach 0.")
    return notices


def _open_held_out(kwargs: dict[str, Any], f, data: Data):
    """The dataset of --dgl-held-out, made with `kwargs`, its file closed until the first read.

    Raises UserError unless its images and labels are like those of the training set, and others.
    """
    flag = f"--dgl-held-out={f.dgl_held_out}"
    if os.path.realpath(f.dgl_held_out) == os.path.realpath(f.data):
        raise UserError(f"{flag} is the training set itself: name images that the teacher has not seen, or drop it")
    try:
        held_out = construct_class_by_name(**kwargs)
        found = [*held_out.image_shape, held_out.label_dim]
        held_out.close()
    except UserError as err:
        raise UserError(f"--dgl-held-out: {err}") from err
    wanted = [data.channels, data.resolution, data.resolution, data.c_dim]
    if found != wanted:
        shown = ["{2}x{1} pixels, {0} channels and labels of {3} dimensions".format(*size) for size in (found, wanted)]
        raise UserError(f"{flag} has {shown[0]}, and the run has {shown[1]}: name images like those of --data")
    return held_out


def _terms(f, teachers: list[Teacher], G_kwargs: dict[str, Any]) -> list[dict[str, Any]]:
    """The terms besides the adversarial one that the flags ask for, as `dgl.loss.DGLLoss` takes them.

    `G_kwargs`: constructor arguments of the student's generator.
    """
    terms = []
    distances = {"output_weight": f.dgl_distill, "feature_weight": f.dgl_distill_feat}
    distances["verdict_weight"] = f.dgl_distill_verdict
    if any(distances.values()):
        if teachers[0].G is None:
            raise UserError(f"--dgl-distill: {teachers[0].path} has no generator whose images could be the target")
        theirs, ours = teachers[0].G.z_dim, G_kwargs.get("z_dim", teachers[0].G.z_dim)
        if theirs != ours:
            raise UserError(
                f"--dgl-distill: G of {teachers[0].path} takes latents of {theirs} numbers and the student's of "
                f"{ours}; use --z-dim={theirs}"
            )
        terms.append({"class_name": "dgl.distill.DistillationTerm", **distances})
    if f.dgl_heads:
        terms.append({"class_name": "dgl.heads.HeadsTerm", "weight": f.dgl_heads})
    return terms
