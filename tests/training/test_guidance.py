# SPDX-License-Identifier: Apache-2.0
"""What a student takes from its teacher: widths, sizes of the latents, the first weights; and what is refused."""

import json

import pytest
import torch

from dnnlib.util import UserError
from tests.support import make_image_zip
from tests.training.toy_family import TOY
from training import families
from training.families.family import Data, Like
from training.families.stylegan2 import STYLEGAN2
from training.files.snapshot import load_snapshot, save_snapshot
from training.flags import RECIPES, Flags
from training.networks import Discriminator, Generator
from training.options import build
from training.training_loop import Trainer, TrainingOptions

WIDTHS = {"channel_base": 256, "channel_max": 24}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(make_image_zip(tmp_path_factory.mktemp("data") / "toy.zip", resolution=16, num_images=8, num_labels=3))


def save(path, G=True, **G_kwargs):
    torch.manual_seed(5)
    shape = {"c_dim": 3, "img_resolution": 16, "img_channels": 3}
    made = Generator(z_dim=12, w_dim=20, **shape, mapping_kwargs={"num_layers": 3}, synthesis_kwargs=WIDTHS, **G_kwargs)
    D = Discriminator(
        **shape,
        **WIDTHS,
        architecture="skip",
        epilogue_kwargs={"mbstd_group_size": 2},
        mapping_kwargs={"num_layers": 4},
    )
    save_snapshot(path, {"D": D, **({"G": made, "G_ema": made} if G else {})})
    return str(path)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save(tmp_path_factory.mktemp("teacher") / "teacher.pkl")


def options(data, teacher, dgl_recipe="paper", **flags):
    common = {"data": data, "cond": True, "batch": 2, "aug": "noaug", "metrics": [], "device": "cpu"}
    return build(**common, dgl_teacher=[teacher], dgl_recipe=dgl_recipe, **flags)[1]


def test_widths_and_shapes_come_from_the_teacher(data, teacher):
    made = options(data, teacher, cbase=0.5, cbase_d=0.25)
    G, D = made["G_kwargs"], made["D_kwargs"]
    assert (G["z_dim"], G["w_dim"], G["mapping_kwargs"]) == (12, 20, {"num_layers": 3})
    assert (G["synthesis_kwargs"]["channel_base"], G["synthesis_kwargs"]["channel_max"]) == (128, 12)
    assert (D["channel_base"], D["channel_max"], D["architecture"]) == (64, 6, "skip")
    assert (D["epilogue_kwargs"], D["mapping_kwargs"]) == ({"mbstd_group_size": 2}, {"num_layers": 4})
    json.dumps(made)


def test_given_sizes_win(data, teacher):
    G = options(data, teacher, cbase=128.0, z_dim=7, w_dim=9)["G_kwargs"]
    assert (G["z_dim"], G["w_dim"]) == (7, 9)
    assert (G["synthesis_kwargs"]["channel_base"], G["synthesis_kwargs"]["channel_max"]) == (128, 24)


def test_latent_sizes_without_a_teacher(data):
    desc, made = build(data=data, z_dim=32, w_dim=64)
    assert (made["G_kwargs"]["z_dim"], made["G_kwargs"]["w_dim"]) == (32, 64) and desc == "toy-auto1-z32-w64"


def test_a_teacher_without_a_generator_leaves_g_to_the_preset(data, tmp_path):
    made = options(data, save(tmp_path / "d.pkl", G=False), cbase=0.1)
    assert made["G_kwargs"]["z_dim"] == 512 and made["D_kwargs"]["architecture"] == "skip"


def test_arguments_that_a_file_does_not_record_are_those_of_the_classes():
    """Published networks of full width record no widths; the student's count from the classes' own."""
    data = Data("toy", resolution=16, channels=3, num_images=8, has_labels=True, c_dim=3)
    made = STYLEGAN2.options(Flags(cbase=0.5, batch=4), STYLEGAN2.presets["cifar"], data, Like({}, {}))
    for kwargs in (made["G_kwargs"]["synthesis_kwargs"], made["D_kwargs"]):
        assert (kwargs["channel_base"], kwargs["channel_max"]) == (16384, 256)
    assert "architecture" not in made["D_kwargs"] and made["G_kwargs"]["mapping_kwargs"] == {}


def test_a_teacher_of_one_group_of_any_size_fits_any_batch():
    data = Data("toy", resolution=16, channels=3, num_images=8, has_labels=True, c_dim=3)
    like = Like({}, {"epilogue_kwargs": {"mbstd_group_size": None}})
    made = STYLEGAN2.options(Flags(cbase=0.5, batch=3), STYLEGAN2.presets["cifar"], data, like)
    assert made["batch_size"] == 3 and made["D_kwargs"]["epilogue_kwargs"] == {"mbstd_group_size": None}


def test_a_teacher_of_another_family_leaves_the_networks_to_the_preset(tmp_path, data):
    families.register(TOY)
    try:
        D = families.class_of("ToyD")(c_dim=3, img_resolution=16, img_channels=3)
        save_snapshot(tmp_path / "toy.pkl", {"D": D})
        made = options(data, str(tmp_path / "toy.pkl"), cbase=0.1, cfg="cifar")
    finally:
        families.unregister(TOY.name)
    assert made["D_kwargs"]["channel_base"] == 3276 and made["D_kwargs"]["architecture"] == "orig"


@pytest.mark.parametrize("flags", [{}, {"cbase": 256.0}, {"cbase": 1024.0}])
def test_a_student_that_is_not_smaller_is_refused(data, teacher, flags):
    with pytest.raises(UserError, match=r"--cbase: the student's G would have .*--cbase=0.5 .*--cbase=1 trains"):
        options(data, teacher, **flags)


@pytest.mark.parametrize("cbase", [1, 1.5])
def test_a_student_as_wide_as_the_teacher_can_be_asked_for(data, teacher, cbase):
    assert options(data, teacher, cbase=cbase)["G_kwargs"]["synthesis_kwargs"]["channel_base"] == 256 * cbase


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"dgl_init": "teacher", "z_dim": 5}, "--dgl-init: mapping.fc0.weight"),
        ({"dgl_init": "teacher", "cbase": 2}, "--dgl-init: the student is wider"),
        ({"dgl_prune": "random"}, "--dgl-prune and --dgl-svs go with --dgl-init=teacher"),
        ({"dgl_init": "mapping", "dgl_svs": True}, "--dgl-prune and --dgl-svs go with --dgl-init=teacher"),
        ({"dgl_init": "teacher", "resume": "x.pkl"}, "--dgl-init=teacher and --resume"),
        ({"dgl_init_d": True, "resume": "x.pkl"}, "--dgl-init-d and --resume"),
        ({"dgl_init_d": True, "cbase_d": 2}, "--dgl-init-d: the student is wider than D"),
    ],
)
def test_contradictions_are_refused(data, teacher, flags, sentence):
    with pytest.raises(UserError, match=sentence):
        options(data, teacher, **{"cbase": 0.5, **flags})


def test_a_file_without_generator_has_nothing_to_inherit(data, tmp_path):
    with pytest.raises(UserError, match="has no generator to start from"):
        options(data, save(tmp_path / "d.pkl", G=False), cbase=0.1, dgl_init="teacher")


def trainer(made, folder, **changes):
    made = {**made, "data_loader_kwargs": {}, "num_gpus": 1, **changes}
    return Trainer(TrainingOptions(run_dir=str(folder), **made))


def test_training_starts_from_the_teachers_images(data, teacher, tmp_path):
    """At the teacher's width G and its average make the teacher's images; the options say where they come from."""
    made = options(data, teacher, cbase=1, dgl_init="teacher")
    assert made["init_kwargs"]["path"] == teacher and len(made["init_kwargs"]["sha256"]) == 64
    run = trainer(made, tmp_path, precision="fp32")
    z, c = torch.randn(4, 12), torch.eye(3)[[0, 1, 2, 0]]
    with torch.no_grad():
        wanted = load_snapshot(teacher)["G_ema"](z, c, noise_mode="const")
        for G in (run.G, run.G_ema):
            assert (G.eval()(z, c, noise_mode="const") - wanted).abs().max() < 1e-5


def test_training_starts_from_the_teachers_scores(data, teacher, tmp_path):
    """At the teacher's width, also where labels are compared with the projection of a wide mapping network."""
    made = options(data, teacher, cbase=0.5, cbase_d=1, dgl_init_d=True)
    assert list(made["init_kwargs"]) == ["path", "sha256", "D"] and made["init_kwargs"]["D"] is True
    run = trainer(made, tmp_path, precision="fp32")
    img, c = torch.randn(4, 3, 16, 16), torch.eye(3)[[0, 1, 2, 0]]
    with torch.no_grad():
        assert (run.D(img, c) - load_snapshot(teacher)["D"](img, c)).abs().max() < 1e-5
        z = torch.randn(2, 12)
        untouched = trainer(options(data, teacher, cbase=0.5, cbase_d=1), tmp_path, precision="fp32")
        assert torch.equal(run.G_ema(z, c[:2]), untouched.G_ema(z, c[:2]))


def test_a_narrow_discriminator_keeps_the_mapping_network_of_labels(data, teacher, tmp_path):
    made = options(data, teacher, cbase=0.5, dgl_init="teacher", dgl_init_d=True, dgl_prune="random", seed=3)
    assert made["D_kwargs"]["channel_max"] == 12 and made["D_kwargs"]["cmap_dim"] == 24
    assert made["init_kwargs"]["parts"] == "teacher" and made["init_kwargs"]["D"] is True
    D, source = trainer(made, tmp_path).D, load_snapshot(teacher)["D"]
    assert all(
        torch.equal(tensor, source.mapping.state_dict()[name]) for name, tensor in D.mapping.state_dict().items()
    )
    kept = {tuple(row.tolist()) for row in source.b4.out.weight.T}
    scaled = D.b4.out.weight.T / 0.5**0.5
    assert len(scaled) == 12 and all(
        min((row - torch.tensor(each)).abs().max() for each in kept) < 1e-6 for row in scaled.detach()
    )


def test_diversity_ranks_in_training(data, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr("dgl.diversity.SAMPLES", 2)
    made = {rank: options(data, teacher, cbase=0.5, dgl_init="teacher", dgl_prune=rank) for rank in ("l1", "diversity")}
    runs = [trainer(made[ranking], tmp_path) for ranking in ("l1", "diversity", "diversity")]
    weights = [run.G.synthesis.b16.conv0.weight for run in runs]
    assert torch.equal(weights[1], weights[2]) and not torch.equal(weights[0], weights[1])


def test_mapping_alone_is_inherited(data, teacher, tmp_path):
    run = trainer(options(data, teacher, cbase=0.5, dgl_init="mapping"), tmp_path)
    source = load_snapshot(teacher)["G_ema"].mapping.state_dict()
    assert all(torch.equal(tensor, source[name]) for name, tensor in run.G.mapping.state_dict().items())


def test_a_changed_file_is_not_inherited(data, teacher, tmp_path):
    made = options(data, teacher, cbase=0.5, dgl_init="teacher")
    made["init_kwargs"]["sha256"] = "0" * 64
    with pytest.raises(UserError, match=r"--dgl-init: .* has changed since"):
        trainer(made, tmp_path)


def test_random_start_is_the_run_without_the_flag(data, teacher, tmp_path):
    """--dgl-init=random draws what a run draws that was never told of it."""
    made = options(data, teacher, cbase=0.5, dgl_init="random")
    assert "init_kwargs" not in made and made == options(data, teacher, cbase=0.5)


def test_the_average_follows_at_the_pace_of_the_preset(data, teacher):
    """Unlike --resume, inheriting keeps the ramp of the half-life: a short run of --cfg=cifar moves its average."""
    made = options(data, teacher, cfg="cifar", cbase=0.5, kimg=60, dgl_init="teacher", dgl_init_d=True)
    assert (made["ema_kimg"], made["ema_rampup"]) == (500, 0.05)


def test_fitting_comes_after_pruning_and_starts_the_average(data, teacher, tmp_path):
    runs = {}
    for fit in (0, 0.2):
        made = options(data, teacher, cbase=0.5, dgl_init="teacher", dgl_fit=fit, dgl_weight=0)
        runs[fit] = trainer(made, tmp_path)
    assert "fit" not in runs[0].options.init_kwargs
    assert same(runs[0.2].G, runs[0.2].G_ema) and not same(runs[0.2].G, runs[0].G) and same(runs[0.2].D, runs[0].D)
    json.dumps(runs[0.2].options.init_kwargs)
    with pytest.raises(UserError, match="--dgl-fit continues from inherited weights"):
        options(data, teacher, cbase=0.5, dgl_fit=1)


# Recipes


def test_a_narrow_student_is_compressed_by_default(data, teacher):
    desc, made = build(data=data, cond=True, dgl_teacher=[teacher], batch=2, cbase=0.5)
    recipe, init = RECIPES["compress"], made["init_kwargs"]
    assert (init["parts"], init["D"], init["fit"]["kimg"]) == ("teacher", True, recipe["dgl_fit"])
    assert made["loss_kwargs"]["dgl_weight"] == 0
    assert made["D_kwargs"]["channel_base"] == WIDTHS["channel_base"]
    assert desc.endswith("compress")
    assert made["ema_rampup"] == 0.5  # the fitted G is good from the start
    assert made == build(data=data, cond=True, dgl_teacher=[teacher], batch=2, cbase=0.5, dgl_recipe="compress")[1]


@pytest.mark.parametrize(
    "flags", [{"cbase": 1.0}, {"dgl_recipe": "paper"}, {"dgl_teacher": 2}, {"resume": "x.pkl"}], ids=str
)
def test_where_it_has_no_meaning_the_paper_is_the_default(data, teacher, flags):
    flags = {"cbase": 0.5, **flags, "dgl_teacher": [teacher] * flags.get("dgl_teacher", 1)}
    made = build(data=data, cond=True, batch=2, **flags)[1]
    assert "init_kwargs" not in made and made["loss_kwargs"]["dgl_weight"] == 0.1
    assert made["D_kwargs"]["channel_base"] == WIDTHS["channel_base"] * flags["cbase"]


def test_a_given_flag_wins_over_the_recipe(data, teacher):
    made = build(data=data, cond=True, dgl_teacher=[teacher], batch=2, cbase=0.5, cbase_d=0.25, dgl_fit=3.0)[1]
    assert made["D_kwargs"]["channel_base"] == WIDTHS["channel_base"] / 4
    assert made["init_kwargs"]["fit"]["kimg"] == 3
    made = build(data=data, cond=True, dgl_teacher=[teacher], batch=2, cbase=0.5, dgl_init="random")[1]
    assert made["init_kwargs"].keys() == {"path", "sha256", "D"}


def test_steering_the_guidance_asks_for_it(data, teacher):
    made = build(data=data, cond=True, dgl_teacher=[teacher], batch=2, cbase=0.5, dgl_stop=10.0)[1]
    assert made["loss_kwargs"]["dgl_weight"] == 0.1 and made["init_kwargs"]["parts"] == "teacher"


def test_a_recipe_without_a_teacher_changes_nothing(data):
    assert build(data=data)[1] == build(data=data, dgl_teacher=[])[1]
    with pytest.raises(UserError, match="--dgl-recipe needs a teacher"):
        build(data=data, dgl_recipe="paper")


# What the teachers do


def test_a_live_teacher_has_the_optimiser_of_d(data, teacher):
    made = options(data, teacher, cbase=0.5, dgl_update=5e-4)
    assert made["loss_kwargs"]["dgl_update"] == {**made["D_opt_kwargs"], "lr": 5e-4}
    assert made["loss_kwargs"]["dgl_weight"] == 0.1
    assert options(data, teacher, cbase=0.5, dgl_update=0.0) == options(data, teacher, cbase=0.5)


@pytest.mark.parametrize(
    ("flags", "kappa", "weight", "words"),
    [
        ({"dgl_residual": 0.3}, 0.3, 0, "dgl0-residual0.3"),
        ({"dgl_residual": 0.0}, 0, 0, "dgl0-residual0"),  # a control: no teacher, not the teachers' term
        ({"dgl_residual": 0.3, "dgl_weight": 0.2}, 0.3, 0.2, "dgl0.2-residual0.3"),
    ],
)
def test_a_residual_critic_takes_the_place_of_the_term(data, teacher, flags, kappa, weight, words):
    common = {"cond": True, "batch": 2, "cbase": 0.5, "dgl_recipe": "paper"}
    desc, made = build(data=data, dgl_teacher=[teacher], **common, **flags)
    assert (made["loss_kwargs"]["dgl_residual"], made["loss_kwargs"]["dgl_weight"]) == (kappa, weight)
    assert desc.endswith(words)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"dgl_update": 1e-3, "dgl_residual": 0.3}, "--dgl-residual needs a frozen teacher and --dgl-update trains it"),
        ({"dgl_update": 1e-3, "dgl_weight": 0}, "--dgl-update trains teachers that --dgl-weight=0 never asks"),
        ({"dgl_update": 1e-3, "dgl_teacher": ["a.pkl", "a.pkl"]}, "--dgl-update trains each teacher once"),
        ({"dgl_residual": 0.3, "dgl_weighting": "score"}, "--dgl-weighting is about the teachers' term"),
        ({"dgl_residual": 0.3, "dgl_augment": False}, "--dgl-augment is about the teachers' term"),
        ({"dgl_update": 1e-3, "dgl_teacher": []}, "--dgl-update needs a teacher"),
        ({"dgl_residual": 0.3, "dgl_teacher": []}, "--dgl-residual needs a teacher"),
    ],
)
def test_what_teachers_cannot_do_is_refused(data, flags, sentence):
    with pytest.raises(UserError, match=sentence):
        build(data=data, **{"dgl_teacher": ["a.pkl"], **flags})


@pytest.mark.parametrize("flags", [{"dgl_update": 5e-4, "dgl_augment": True}, {"dgl_residual": 0.3}])
def test_whole_training(data, teacher, tmp_path, flags):
    """The snapshot holds the plain student; a live teacher has moved, a frozen one is that of the file."""
    made = options(data, teacher, cbase=0.5, **flags)
    made.update(augment_kwargs={"class_name": "training.augment.AugmentPipe", "xflip": 1, "brightness": 1})
    run = trainer(made, tmp_path, augment_p=0.5, total_kimg=0.006, kimg_per_tick=0.004, image_snapshot_ticks=None)
    run.run()
    saved = load_snapshot(next(tmp_path.glob("network-snapshot-*.pkl")))["D"]
    assert saved.init_kwargs["channel_base"] == WIDTHS["channel_base"] / 2
    assert same(saved, run.D)
    assert same(load_snapshot(teacher)["D"], run.loss.teachers[0].D) is ("dgl_residual" in flags)
    assert all(tensor.isfinite().all() for net in (run.G, run.D) for tensor in net.state_dict().values())


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    tensors = b.state_dict()
    return all(torch.equal(tensor, tensors[name]) for name, tensor in a.state_dict().items())
