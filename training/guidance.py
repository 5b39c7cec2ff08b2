# SPDX-License-Identifier: Apache-2.0
"""Options of a run with teachers: opening them, the guided loss, widths and first weights taken from a teacher."""

from typing import Any

import torch

from dgl.prune import check_source
from dgl.student import check_smaller, size_table
from dgl.teacher import Teacher, check_teacher, open_teacher
from dnnlib.util import UserError
from training import families
from training.families.family import Data, Family, Like
from training.flags import guidance_weight
from training.initial import network_shape, new_network


def open_teachers(paths: list[str], trust: bool, family: Family, opened) -> Like:
    """Open every teacher, files or URLs, into `opened`; returns what a student of `family` takes from the first.

    Raises UserError as `open_teacher` does.
    """
    opened.teachers = [open_teacher(path, trust, load=opened.snapshot) for path in paths]
    networks = (opened.teachers[0].G, opened.teachers[0].D)
    return Like(*(net.init_kwargs if _is_of(family, net) else None for net in networks))


def _is_of(family: Family, network: torch.nn.Module | None) -> bool:
    return hasattr(network, "init_kwargs") and families.of(network) is family


def add_guidance(f, data: Data, family: Family, options: dict[str, Any], opened) -> list[str]:
    """Make `options` those of a guided run; returns the lines to show at the start: sizes and notices.

    `f` are the values of the flags. The loss is guided by all teachers; G starts from the first as --dgl-init
    says. Raises UserError if a teacher does not fit the run, or if the student is not smaller and no flag asks for it.
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
    if f.dgl_update:
        options["loss_kwargs"]["dgl_update"] = {**options["D_opt_kwargs"], "lr": f.dgl_update}
    terms = _terms(f, teachers)
    if terms:
        options["loss_kwargs"]["terms"] = terms
    first, student = teachers[0], new_network(options["G_kwargs"], network_shape(opened.training_set))
    check_smaller(first.G, student, wanted=f.given("cbase") and 1 <= f.cbase <= 4)
    if f.dgl_init != "random":
        check_source(first.G, student, first.path, f.dgl_init)
        source = {"path": first.path, "sha256": first.sha256}
        options["init_kwargs"] = {
            **source, "parts": f.dgl_init, "ranking": f.dgl_prune, "svs": f.dgl_svs, "seed": f.seed
        }  # fmt: skip
    lines = [size_table(first.G, student)]
    if f.dgl_start >= options["total_kimg"]:
        lines.append(f"Notice: --dgl-start={f.dgl_start:g} is not before the end of the run: no teacher takes part.")
    return lines


def _terms(f, teachers: list[Teacher]) -> list[dict[str, Any]]:
    """The terms besides the adversarial one that the flags ask for, as `dgl.loss.DGLLoss` takes them."""
    terms = []
    distances = {"output_weight": f.dgl_distill, "feature_weight": f.dgl_distill_feat}
    distances["verdict_weight"] = f.dgl_distill_verdict
    if any(distances.values()):
        if teachers[0].G is None:
            raise UserError(f"--dgl-distill: {teachers[0].path} has no generator whose images could be the target")
        terms.append({"class_name": "dgl.distill.DistillationTerm", **distances})
    if f.dgl_heads:
        terms.append({"class_name": "dgl.heads.HeadsTerm", "weight": f.dgl_heads})
    return terms
