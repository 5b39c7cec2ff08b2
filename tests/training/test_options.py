# SPDX-License-Identifier: Apache-2.0
"""Command-line values to training options: the golden command lines, widths, batches, guided students."""

import io
import json
import zipfile

import pytest
import torch
from PIL import Image

from dnnlib.util import UserError
from tests.support import golden_json
from training.dataset import ImageFolderDataset
from training.families.family import scale_width
from training.families.stylegan2 import PRESETS
from training.files.snapshot import save_snapshot
from training.flags import PRECISIONS
from training.initial import new_network
from training.networks import Discriminator, Generator
from training.options import build, resolve

GOLDEN = golden_json("train_options")
SHAPE_1024 = {"c_dim": 0, "img_resolution": 1024, "img_channels": 3}


def make_dataset(path, resolution, num_images, num_labels=0):
    """A zip of `num_images` flat colour PNGs, image i labelled i mod `num_labels`; returns its path as text."""
    names = [f"{i:05d}.png" for i in range(num_images)]
    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(names):
            png = io.BytesIO()
            Image.new("RGB", (resolution, resolution), (i, 2 * i, 3 * i)).save(png, format="png")
            archive.writestr(name, png.getvalue())
        if num_labels:
            archive.writestr("dataset.json", json.dumps({"labels": [[n, i % num_labels] for i, n in enumerate(names)]}))
    return str(path)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets")
    return {name: make_dataset(folder / f"{name}.zip", **spec) for name, spec in GOLDEN["datasets"].items()}


@pytest.fixture(scope="module")
def teacher_pkl(tmp_path_factory):
    """A small 64x64 teacher with minibatch-stddev groups of 4."""
    path = str(tmp_path_factory.mktemp("teacher") / "teacher.pkl")
    widths = {"channel_base": 512, "channel_max": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        D = Discriminator(c_dim=0, img_resolution=64, img_channels=3, **widths)
        G = Generator(z_dim=16, c_dim=0, w_dim=16, img_resolution=64, img_channels=3, synthesis_kwargs=widths)
    save_snapshot(path, {"G": G, "D": D, "G_ema": G, "augment_pipe": None, "training_set_kwargs": {}})
    return path


@pytest.mark.parametrize(
    "case", [case for case in GOLDEN["cases"] if "options" in case], ids=lambda case: f"{case['desc']}-{case['flags']}"
)
def test_golden_command_line(case, datasets):
    data = datasets[case["dataset"]]
    desc, options = build(data=data, **case["flags"])
    assert options["training_set_kwargs"]["path"] == data
    options["training_set_kwargs"]["path"] = "<DATA>"
    assert json.loads(json.dumps(options)) == case["options"]
    assert desc == case["desc"]


def test_all_golden_command_lines_are_there():
    assert sum("options" in case for case in GOLDEN["cases"]) == 33
    assert sum("error" in case for case in GOLDEN["cases"]) == 17


@pytest.mark.parametrize(
    "x, expected",
    [
        (1, (32768, 512)),
        (0.5, (16384, 256)),
        (4, (131072, 2048)),
        (0.3, (9830, 153)),
        (64, (64, 512)),
        (8192, (8192, 512)),
    ],
)
def test_scale_width(x, expected):
    assert scale_width(32768, 512, x) == expected


def test_scale_width_does_not_lose_a_channel_to_rounding():
    assert 100 * 0.29 < 29  # in binary
    assert scale_width(200, 100, 0.29) == (58, 29)


@pytest.mark.parametrize("x", [0, -1, 4.5, 32, 63.9, 100.5, float("nan"), float("inf")])
def test_scale_width_refuses_ambiguous_values(x):
    with pytest.raises(UserError, match=r"--cbase-d=.*multiplier.*channel_base of 64"):
        scale_width(32768, 512, x, "--cbase-d")


@pytest.mark.parametrize(
    "flags, G_count, D_count",
    [
        ({}, 30_370_060, 29_012_513),
        ({"cbase": 0.5}, 10_339_740, 7_256_081),
        ({"cbase": 0.25}, 4_746_532, 1_815_497),
        ({"cbase": 0.5, "cbase_d": 1.0}, 10_339_740, 29_012_513),
        ({"cbase_d": 0.5}, 30_370_060, 7_256_081),
        ({"cbase": 16384.0}, 24_900_764, 24_038_161),
    ],
)
def test_student_sizes(flags, G_count, D_count, datasets):
    _, options = build(data=datasets["toy1024"], cfg="stylegan2", **flags)
    with torch.device("meta"):  # shapes without memory
        nets = [new_network(options[kwargs], SHAPE_1024) for kwargs in ("G_kwargs", "D_kwargs")]
    counts = [sum(p.numel() for p in net.parameters()) for net in nets]
    assert counts == [G_count, D_count]


def test_width_without_a_channel_is_refused(datasets):
    with pytest.raises(UserError, match=r"--cbase=0\.01 leaves no channel at 1024x1024"):
        build(data=datasets["toy1024"], cfg="stylegan2", cbase=0.01)
    with pytest.raises(UserError, match=r"--cbase-d=0\.01"):
        build(data=datasets["toy1024"], cfg="stylegan2", cbase=0.5, cbase_d=0.01)


def test_batch_gpu_accumulates(datasets):
    desc, options = build(data=datasets["toy64"], gpus=2, batch=32, batch_gpu=4)
    assert (options["batch_size"], options["batch_gpu"]) == (32, 4)
    assert desc == "toy64-auto2-batch32-batchgpu4"


def test_preset_batch_fits_more_processes_than_it_was_meant_for(datasets):
    _, options = build(data=datasets["toy256"], cfg="stylegan2", gpus=32)
    assert (options["batch_size"], options["batch_gpu"]) == (32, 1)


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ({"batch": 32, "batch_gpu": 5}, "--batch-gpu=5 must divide the 32 images"),
        ({"batch": 6}, "--batch: 6 images per process .* groups of 4"),
        ({"cfg": "paper256", "batch": 24, "batch_gpu": 12}, "--batch-gpu: 12 images per process .* groups of 8"),
        ({"cfg": "stylegan2", "gpus": 64}, "--batch must be .* divisible by --gpus"),
        ({"gamma": float("nan")}, "--gamma must be a finite number"),
        ({"dgl_weight": 0.1}, "--dgl-weight needs a teacher"),
        ({"dgl_start": 0.0}, "--dgl-start needs a teacher"),
        ({"dgl_ratio": 0.3}, "--dgl-ratio needs a teacher"),
        ({"dgl_stop": 5.0}, "--dgl-stop needs a teacher"),
        ({"dgl_held_out": "x.zip"}, "--dgl-held-out needs a teacher"),
        ({"dgl_teacher": ["x"], "dgl_start": 5.0, "dgl_stop": 4.0}, "--dgl-stop=4 must be later .*--dgl-start=5"),
        ({"dgl_teacher": ["x"], "dgl_start": 5.0, "dgl_stop": 5.0}, "--dgl-stop=5 must be later"),
        ({"dgl_teacher": ["x"], "dgl_start": "auto", "dgl_stop": 0.0}, "--dgl-stop=0 must be later"),
        ({"dgl_teacher": ["x"], "dgl_start": "auto", "dgl_residual": 0.3}, "--dgl-start=auto .*--dgl-residual"),
        ({"dgl_teacher": ["x"], "dgl_ratio": 0.3, "dgl_residual": 0.3}, "--dgl-ratio is about the teachers' term"),
        ({"dgl_weighting": "plain"}, "--dgl-weighting needs a teacher"),
        ({"dgl_augment": False}, "--dgl-augment needs a teacher"),
        ({"aug": "fixed", "p": 0.2, "target": 0.5}, "--target goes with --aug=ada"),
        ({"seed": 2**31, "gpus": 4}, "--seed"),
        ({"fp32": True, "precision": "bf16"}, "--precision=bf16 .*--fp32=1"),
        ({"fp32": True, "precision": "fp16"}, "--precision=fp16 .*--fp32=1"),
    ],
)
def test_contradictions_name_the_flag(flags, sentence, datasets):
    with pytest.raises(UserError, match=sentence):
        build(data=datasets["toy64"], **flags)


def test_run_description_names_each_given_choice(datasets):
    flags = {"aug": "ada", "target": 0.6, "augpipe": "bgc", "subset": 12, "kimg": 100000}
    desc, options = build(data=datasets["toy64"], cbase=0.5, cbase_d=0.25, **flags)
    assert desc == "toy64-subset12-auto1-kimg100000-ada-target0.6-bgc-cbase0.5-cbased0.25"
    assert "random_seed" not in options["training_set_kwargs"]  # the whole dataset: nothing is drawn


def test_additional_flags_appear_only_if_given(datasets):
    _, options = build(
        data=datasets["toy64"], device="cpu", precision="bf16", detector="mnist", keep=2, trust_pickle=True, metrics=[]
    )
    added = {"device": "cpu", "precision": "bf16", "detector": "mnist", "snapshots_keep": 2, "trust_pickle": True}
    assert {key: options.get(key) for key in added} == added
    _, plain = build(data=datasets["toy64"], device="auto", precision="auto", metrics=[])
    assert not set(added) & set(plain)


def test_precision_changes_no_network(datasets):
    plain = build(data=datasets["toy64"])
    for precision in PRECISIONS:
        desc, options = build(data=datasets["toy64"], precision=precision)
        options.pop("precision", None)
        assert (desc, options) == plain


@pytest.mark.parametrize("cond, noticed", [(False, True), (True, False)])
def test_unused_labels_are_noticed(cond, noticed, datasets):
    notices = resolve(data=datasets["toy32"], cond=cond).notices
    assert any("--cond=1" in notice for notice in notices) == noticed


def test_metric_with_a_count_in_its_name(datasets):
    assert build(data=datasets["toy64"], metrics=["fid5k_full"])[1]["metrics"] == ["fid5k_full"]


def test_teacher_selects_the_guided_loss(datasets, teacher_pkl):
    desc, options = build(
        data=datasets["toy64"], batch=8, dgl_teacher=[teacher_pkl], gamma=3.0, cbase=0.5, dgl_recipe="paper"
    )
    (teacher,) = options["loss_kwargs"].pop("teachers")
    assert teacher["path"] == teacher_pkl and len(teacher["sha256"]) == 64
    assert options["loss_kwargs"] == {
        "class_name": "dgl.loss.DGLLoss",
        "base_class": "training.loss.StyleGAN2Loss",
        "dgl_form": "logistic",
        "r1_gamma": 3.0,
        "dgl_weight": 0.1,
        "dgl_start": 0,
        "dgl_weighting": "plain",
        "dgl_augment": False,
        "trust_pickle": False,
    }
    assert desc == "toy64-auto1-gamma3-batch8-cbase0.5-dgl0.1"
    json.dumps(options)


def test_two_teachers_with_every_choice(datasets, teacher_pkl):
    flags = {"dgl_weight": 0.0, "dgl_start": 2.5, "dgl_weighting": "score", "dgl_augment": True, "cbase": 0.5}
    desc, options = build(data=datasets["toy64"], dgl_teacher=[teacher_pkl] * 2, **flags)
    assert len(options["loss_kwargs"]["teachers"]) == 2
    assert {key: options["loss_kwargs"][key] for key in flags if key.startswith("dgl")} == {
        key: value for key, value in flags.items() if key.startswith("dgl")
    }
    assert desc == "toy64-auto1-cbase0.5-dgl0-teachers2-dglstart2.5-score-dglaug"


def test_flags_of_the_schedule(datasets, teacher_pkl):
    flags = {"dgl_ratio": 0.3, "dgl_start": "auto", "dgl_stop": 5.0}
    desc, options = build(data=datasets["toy64"], dgl_teacher=[teacher_pkl], cbase=0.5, dgl_recipe="paper", **flags)
    assert {key: options["loss_kwargs"][key] for key in flags} == flags
    assert desc == "toy64-auto1-cbase0.5-dgl0.1-dglratio0.3-dglstartauto-dglstop5"
    json.dumps(options)


def test_a_stop_after_the_end_of_the_run_is_shown(datasets, teacher_pkl):
    flags = {"data": datasets["toy64"], "dgl_teacher": [teacher_pkl], "kimg": 10, "cbase": 0.5, "dgl_start": "auto"}
    assert "--dgl-stop=11 is after the end" in "\n".join(resolve(**flags, dgl_stop=11.0).notices)
    assert "--dgl-" not in "\n".join(resolve(**flags, dgl_stop=10.0).notices)


def test_held_out_images_must_be_like_the_training_images_and_others(datasets, teacher_pkl, tmp_path):
    flags = {"data": datasets["toy64"], "dgl_teacher": [teacher_pkl], "cbase": 0.5, "dgl_recipe": "paper"}
    other = make_dataset(tmp_path / "other.zip", resolution=64, num_images=3, num_labels=2)
    plan = resolve(**flags, dgl_held_out=other)
    plan.opened.training_set.close()
    assert plan.opened.held_out.image_shape == [3, 64, 64] and not plan.opened.held_out.has_labels
    assert plan.options["loss_kwargs"]["held_out"]["path"] == other and plan.desc == "toy64-auto1-cbase0.5-dgl0.1"
    json.dumps(plan.options)
    refused = {
        datasets["toy32"]: "has 32x32 pixels, .* the run has 64x64 pixels",
        datasets["toy64"]: "is the training set itself",
        "/no/such.zip": "--dgl-held-out: .*/no/such.zip",
    }
    for path, sentence in refused.items():
        with pytest.raises(UserError, match=sentence):
            build(**flags, dgl_held_out=path)


def test_size_table_and_late_start_are_shown(datasets, teacher_pkl):
    flags = {"data": datasets["toy64"], "dgl_teacher": [teacher_pkl], "kimg": 10, "cbase": 0.5}
    shown = "\n".join(resolve(**flags, dgl_start=10.0).notices)
    assert "parameters" in shown and "ratio" in shown
    assert "--dgl-start=10" in shown
    assert "--dgl-start" not in "\n".join(resolve(**flags, dgl_start=9.0).notices)


def test_teacher_for_another_resolution_is_refused(datasets, teacher_pkl):
    with pytest.raises(UserError, match=r"--dgl-teacher.*64x64"):
        build(data=datasets["toy32"], dgl_teacher=[teacher_pkl])


def test_teacher_needs_whole_groups_on_each_process(datasets, teacher_pkl):
    with pytest.raises(UserError, match="multiple of 4"):
        build(data=datasets["toy64"], gpus=4, batch=8, dgl_teacher=[teacher_pkl])


def test_resolving_draws_no_random_numbers(datasets, teacher_pkl):
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    build(data=datasets["toy64"], dgl_teacher=[teacher_pkl], cbase=0.5)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("flags", "half_life"),
    [
        ({"cfg": "cifar"}, 500),
        ({"cfg": "cifar", "kimg": 10000}, 500),
        ({"cfg": "cifar", "kimg": 60}, 3),
        ({"cfg": "paper256"}, 20),
        ({"cfg": "paper256", "kimg": 400}, 20),
        ({"cfg": "stylegan2", "kimg": 100}, 5),
    ],
)
def test_the_average_of_a_resumed_run_follows_within_the_run(flags, half_life, datasets):
    """At most 5 % of the run is the half-life; the presets' own lengths keep theirs."""
    made = build(data=datasets["toy64"], **flags, resume="x.pkl")[1]
    assert made["ema_kimg"] == pytest.approx(half_life) and made["ema_rampup"] is None
    fresh = build(data=datasets["toy64"], **flags)[1]
    assert build(data=datasets["toy64"], **flags, resume="noresume")[1] == fresh
    assert fresh["ema_kimg"] == PRESETS[flags["cfg"]].ema


@pytest.mark.parametrize("flags", [{"dgl_teacher": []}, {"mirror": False, "cond": False}, {"metrics": []}])
def test_flags_given_with_nothing_are_not_named(flags, datasets):
    assert build(data=datasets["toy64"], **flags)[0] == "toy64-auto1"


def test_a_refusal_closes_the_dataset(datasets, monkeypatch):
    closed = []
    monkeypatch.setattr(ImageFolderDataset, "close", lambda self: closed.append(self))
    with pytest.raises(UserError, match="--subset must be between"):
        resolve(data=datasets["toy64"], subset=1000)
    assert len(closed) == 1
