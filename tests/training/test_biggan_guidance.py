# SPDX-License-Identifier: Apache-2.0
"""BigGAN students and teachers by flags: presets, recipes, what each flag does in training, and what is refused."""

import copy
import json
import pathlib

import pytest
import torch

from dgl.live import LiveTerm
from dnnlib.util import UserError
from tests.dgl.tiny import make_D as make_stylegan2_D
from tests.dgl.tiny import same
from tests.dgl.tiny_biggan import C_DIM, RESOLUTION, Z_DIM, images, run_options, save_teacher
from tests.support import make_image_zip
from training import continuing
from training.families import biggan_pruning
from training.files.snapshot import load_snapshot, save_snapshot
from training.networks import Generator
from training.options import build, resolve
from training.settings import OPTIONS_FILE, TrainingOptions
from training.training_loop import Trainer, training_loop

COMMON = {"cond": True, "batch": 4, "d_steps": 2, "metrics": [], "device": "cpu", "workers": 1}
# A StyleGAN2 smaller than the teachers here
STYLEGAN2 = {"cfg": "auto", "cbase": 64.0, "z_dim": Z_DIM, "w_dim": 8, "d_steps": None, "aug": "noaug"}


@pytest.fixture(autouse=True)
def settles_quickly(monkeypatch):
    monkeypatch.setattr(biggan_pruning, "BATCH", 8)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(make_image_zip(tmp_path_factory.mktemp("data") / "toy.zip", RESOLUTION, num_images=12, num_labels=C_DIM))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def stylegan2(tmp_path_factory):
    """A StyleGAN2 for the same images and labels."""
    path = str(tmp_path_factory.mktemp("stylegan2") / "stylegan2.pkl")
    shape = {"c_dim": C_DIM, "w_dim": 8, "img_resolution": RESOLUTION, "img_channels": 3}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        G = Generator(Z_DIM, **shape, synthesis_kwargs={"channel_base": 512, "channel_max": 32})
    data = {"G": G, "D": make_stylegan2_D(5, img_resolution=RESOLUTION), "G_ema": G}
    save_snapshot(path, {**data, "augment_pipe": None, "training_set_kwargs": {}})
    return path


def trainer(made, folder, **changes):
    quiet = {"image_snapshot_ticks": None, "network_snapshot_ticks": None, "kimg_per_tick": 0.016, "num_gpus": 1}
    made = {**made, "data_loader_kwargs": {"num_workers": 0}, **quiet, **changes}
    folder.mkdir(exist_ok=True)
    return Trainer(TrainingOptions(run_dir=str(folder), **made))


def trained(made, folder, iterations=3, **changes):
    """The trainer after some iterations of 8 reals, two ticks."""
    run = trainer(made, folder, total_kimg=iterations * 0.008, **changes)
    run.run()
    assert run.iteration == iterations
    assert all(tensor.isfinite().all() for net in run.networks.values() for tensor in net.state_dict().values())
    return run


def weights(run) -> dict:
    return {f"{name}.{key}": t for name, net in run.networks.items() for key, t in net.state_dict().items()}


def statistics(run) -> dict:
    return json.loads(pathlib.Path(run.options.run_dir, "stats.jsonl").read_text().splitlines()[-1])


# Presets and recipes


def test_the_student_of_a_biggan_is_one(data, teacher):
    plan = resolve(data=data, dgl_teacher=[teacher], cbase=0.5, **COMMON)
    plan.opened.training_set.close()
    G, D, init = plan.options["G_kwargs"], plan.options["D_kwargs"], plan.options["init_kwargs"]
    assert plan.desc.startswith("toy-cond-biggan-auto-")
    assert any("is of the family biggan, and so is the student: --cfg=biggan-auto." in line for line in plan.notices)
    assert (G["class_name"].rpartition(".")[2], G["ch"], G["z_dim"], D["ch"]) == ("BigGANGenerator", 2, Z_DIM, 4)
    # The recipe: diversity of channels needs a latent space w
    assert (init["parts"], init["ranking"], init["D"], init["fit"]["kimg"]) == ("teacher", "l1", True, 100)
    assert plan.options["loss_kwargs"]["dgl_weight"] == 0 and plan.options["loss_kwargs"]["dgl_form"] == "hinge"
    assert plan.options == build(data=data, cfg="biggan-auto", dgl_teacher=[teacher], cbase=0.5, **COMMON)[1]


def test_a_given_preset_wins_over_the_teacher(data, teacher):
    desc, made = build(data=data, dgl_teacher=[teacher], dgl_recipe="paper", **{**COMMON, **STYLEGAN2})
    assert made["G_kwargs"]["class_name"] == "training.networks.Generator" and "-auto1-" in desc
    assert made["loss_kwargs"]["dgl_form"] == "logistic"


def test_without_its_generator_the_student_is_still_of_the_family(data, tmp_path):
    path = save_teacher(tmp_path, has_G=False)
    made = build(data=data, dgl_teacher=[path], dgl_recipe="paper", ch=2, **COMMON)[1]
    assert made["G_kwargs"]["class_name"].endswith("BigGANGenerator") and made["G_kwargs"]["z_dim"] == 128
    assert made["D_kwargs"]["ch"] == 2


@pytest.mark.parametrize(
    ("flags", "G_ch", "D_ch"),
    [({"ch": 3}, 3, 4), ({"cbase": 0.5, "cbase_d": 0.25}, 2, 1), ({"ch": 1, "cbase_d": 2}, 1, 8)],
)
def test_widths_count_from_the_teachers(data, teacher, flags, G_ch, D_ch):
    made = build(data=data, dgl_teacher=[teacher], dgl_init_d=False, **flags, **COMMON)[1]
    assert (made["G_kwargs"]["ch"], made["D_kwargs"]["ch"]) == (G_ch, D_ch)


def test_no_process_fits_one_image_at_a_time(data, teacher):
    """Batch norm would make another network of it."""
    flags = {**COMMON, "batch": 64, "gpus": 32, "sync_bn": False}
    made = build(data=data, dgl_teacher=[teacher], cbase=0.5, **flags)[1]
    assert (made["init_kwargs"]["fit"]["batch"], made["init_kwargs"]["fit"]["batch_gpu"]) == (2, 2)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"cbase": 0.5, "cond": False}, "BigGAN needs class labels; add --cond=1"),
        ({"cbase": 0.5, "gamma": 1.0}, "--gamma has no meaning for the family biggan of --cfg=biggan-auto"),
        ({"cbase": 0.5, "dgl_svs": True}, "--dgl-svs has no meaning for the family biggan"),
        ({"cbase": 0.5, "dgl_prune": "diversity"}, "--dgl-prune=diversity needs a latent space w, which a BigGANGen"),
        ({"cbase": 0.5, "dgl_init": "mapping", "dgl_fit": 0.0}, "--dgl-init=mapping: G of .* has no mapping network"),
        ({**STYLEGAN2, "dgl_fit": 0.0}, "--dgl-init: G of .* is of the family biggan, not stylegan2; leave --cfg to"),
        ({"cbase": 0.5, "dgl_recipe": "paper", "dgl_distill": 1.0, "z_dim": 5}, r"takes latents of 8 .*use --z-dim=8"),
        (
            {**STYLEGAN2, "z_dim": 7, "dgl_recipe": "paper", "dgl_distill": 1.0},
            "takes latents of 8 numbers and .* of 7",
        ),
        ({"ch": 4, "dgl_recipe": "paper"}, "--cbase: the student's G would have .*--cbase=1 trains"),
        ({"cbase": 0.5, "batch": 1, "dgl_recipe": "paper"}, "--batch-gpu: batch norm needs 16 images or more"),
        ({"cbase": 0.5, "batch": 8, "gpus": 8}, "--batch-gpu: batch norm needs 16 images"),
        ({"cbase": 0.5, "batch_g": 3, "gpus": 2}, "--batch-g=3 must be divisible by --gpus=2"),
        (
            {"cbase": 0.5, "batch_g": 9},
            "--batch-g=9: the 9 images of each process must be .* above 4 .* a multiple of it",
        ),
        ({"cbase": 0.5, "batch_g": 2, "gpus": 2}, "--batch-g=2: the 1 images of each process must be 2 or more"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(data, teacher, flags, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        build(data=data, dgl_teacher=[teacher], **{**COMMON, **flags})
    assert "\n" not in str(error.value)


def test_small_batches_of_a_norm_are_noted(data):
    def notices(**flags):
        plan = resolve(data=data, cfg="biggan-auto", ch=1, cond=True, **flags)
        plan.opened.training_set.close()
        return [line for line in plan.notices if "batch norm" in line]

    assert notices(batch=8) and not notices(batch=16)
    assert notices(batch=16, gpus=2, sync_bn=False) and not notices(batch=16, gpus=2)


def test_a_run_does_not_continue_with_too_many_processes(data, tmp_path):
    settings = run_options(tmp_path / "run", data, iterations=1)
    training_loop(**settings)
    file = tmp_path / "run" / OPTIONS_FILE
    file.write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"--batch-gpu: batch norm needs 16 images or more .* or fewer --gpus"):
        continuing.resume(settings["run_dir"], {"gpus": 8, "kimg": 1})
    assert json.loads(file.read_text()) == settings  # it can go on with fewer
    assert continuing.resume(settings["run_dir"], {"gpus": 2, "kimg": 1})["batch_gpu"] == 4


# First weights


def test_training_starts_from_the_teachers_images_and_scores(data, teacher, tmp_path):
    made = build(data=data, dgl_teacher=[teacher], cbase=1, dgl_recipe="paper", dgl_init="teacher", **COMMON)[1]
    made["init_kwargs"]["D"] = True
    run, source = trainer(made, tmp_path), load_snapshot(teacher)
    assert same(run.G.state_dict(), source["G_ema"].state_dict())
    assert same(run.G_ema.state_dict(), run.G.state_dict()) and same(run.D.state_dict(), source["D"].state_dict())


@pytest.mark.slow
def test_whole_compression(data, teacher, tmp_path):
    """Pruned and fitted, with the teacher's D: the images are nearer to the teacher's than the pruned ones."""
    target = images(load_snapshot(teacher)["G_ema"], 64)
    found = []
    for fit in (0.0, 0.4):
        made = build(data=data, dgl_teacher=[teacher], cbase=0.5, dgl_fit=fit, **{**COMMON, "batch": 16})[1]
        run = trainer(made, tmp_path)
        assert same(run.G.state_dict(), run.G_ema.state_dict()) and run.G.training
        found.append((images(run.G_ema, 64) - target).abs().mean().item())
    assert found[1] < 0.8 * found[0]


# What teachers do in training


@pytest.fixture(scope="module")
def unguided(data, tmp_path_factory):
    """A short run without a teacher, of the widths of students."""
    return trained(build(data=data, cfg="biggan-auto", ch=2, z_dim=Z_DIM, **COMMON)[1], tmp_path_factory.mktemp("none"))


def guided(data, teachers, folder, **flags):
    flags = {"dgl_teacher": teachers, "dgl_recipe": "paper", "cbase": 0.5, **flags}
    return trained(build(data=data, **{**COMMON, **flags})[1], folder)


@pytest.mark.parametrize("flags", [{}, {"dgl_weighting": "score"}, {"dgl_start": 1.0, "dgl_weight": 1.0}], ids=str)
def test_without_weight_a_run_is_one_without_a_teacher_bit_for_bit(data, teacher, tmp_path, unguided, flags):
    run = guided(data, [teacher], tmp_path, **{"dgl_weight": 0.0, **flags})
    assert same(weights(run), weights(unguided))


GUIDANCE = [
    ({"dgl_weight": 1.0}, "Loss/DGL/scores0"),
    ({"dgl_weight": 1.0, "dgl_weighting": "score"}, "Loss/DGL/loss0"),
    ({"dgl_weight": 1.0, "dgl_augment": True, "aug": "fixed", "p": 0.5}, "Loss/DGL/loss0"),
    ({"dgl_weight": 1.0, "dgl_ratio": 0.1, "dgl_stop": 0.02}, "Loss/DGL/weight"),
    ({"dgl_weight": 1.0, "dgl_start": 0.008}, "Loss/DGL/grad_ratio"),
    ({"dgl_weight": 1.0, "dgl_start": "auto"}, "Loss/DGL/scores0"),
    ({"dgl_residual": 0.3}, "Loss/hinge/real"),
    ({"dgl_weight": 0.0, "dgl_distill": 1.0}, "Loss/DGL/distill_output"),
    ({"dgl_weight": 0.0, "dgl_distill_feat": 1.0}, "Loss/DGL/distill_features"),
    ({"dgl_weight": 0.0, "dgl_distill_verdict": 1.0}, "Loss/DGL/distill_verdict"),
    ({"dgl_weight": 0.0, "dgl_heads": 1.0}, "Loss/DGL/heads_D"),
    ({"dgl_weight": 1.0, "dgl_update": 1e-3}, "Loss/DGL/real_scores0"),
]


@pytest.mark.parametrize(("flags", "statistic"), GUIDANCE, ids=[str(flags) for flags, _ in GUIDANCE])
def test_each_way_of_guidance_trains_and_leaves_the_teacher(data, teacher, tmp_path, unguided, flags, statistic):
    run, source = guided(data, [teacher], tmp_path, **flags), load_snapshot(teacher)
    assert not same(weights(run), weights(unguided))
    assert statistics(run)[statistic]["num"] > 0
    moved = not same(run.loss.teachers[0].D.state_dict(), source["D"].state_dict())
    assert moved is ("dgl_update" in flags)


def test_ada_and_several_teachers(data, teacher, tmp_path):
    other = save_teacher(tmp_path, "other.pkl", seed=200)
    run = guided(data, [teacher, other], tmp_path / "run", aug="ada", augpipe="bg")
    assert statistics(run)["Loss/DGL/scores1"]["num"] > 0 and run.ada is not None


@pytest.mark.parametrize("update", [{"dgl_distill": 1.0}, {"dgl_update": 1e-3}], ids=str)
def test_a_stylegan2_student_of_a_biggan(data, teacher, tmp_path, update):
    """Only scores pass between them; a live teacher has R1 as the student's D has."""
    flags = {**COMMON, **STYLEGAN2, **update}
    made = build(data=data, dgl_teacher=[teacher], dgl_recipe="paper", **flags)[1]
    made.update(D_reg_interval=2, G_reg_interval=2)
    run = trainer(made, tmp_path, total_kimg=0.012)
    if "dgl_update" in update:
        assert isinstance(run.loss.terms[0], LiveTerm) and run.loss.terms[0].r1_gamma > 0
    run.run()
    assert (
        statistics(run)["Loss/DGL/scores0"]["num"] > 0
        and run.loss.teachers[0]
        .scores(torch.zeros([2, 3, RESOLUTION, RESOLUTION]), torch.eye(C_DIM)[:2])
        .isfinite()
        .all()
    )


@pytest.mark.parametrize("flags", [{}, {"dgl_update": 1e-3}, {"dgl_distill": 1.0, "z_dim": Z_DIM}], ids=str)
def test_a_biggan_student_of_a_stylegan2(data, stylegan2, tmp_path, flags):
    run = guided(data, [stylegan2], tmp_path, cfg="biggan-auto", ch=1, cbase=None, **flags)
    assert statistics(run)["Loss/DGL/scores0"]["num"] > 0 and run.G.init_kwargs["ch"] == 1


def test_what_teachers_say_of_reals_changes_no_teacher(data, teacher, tmp_path):
    """Lines at the start: scores, but no safe weight, which is about another form of the loss. Live teachers too."""
    for number, flags in enumerate(({}, {"dgl_update": 1e-3})):
        made = build(data=data, dgl_teacher=[teacher], dgl_recipe="paper", cbase=0.5, **flags, **COMMON)[1]
        run = trainer(made, tmp_path / str(number))
        before = copy.deepcopy(run.loss.teachers[0].D.state_dict())
        lines = run.loss.describe_teachers(run.training_set, 4)
        assert len(lines) == 1 and lines[0].startswith("Teacher 0: mean score")
        D = run.loss.teachers[0].D
        assert same(D.state_dict(), before) and D.training is bool(flags)
