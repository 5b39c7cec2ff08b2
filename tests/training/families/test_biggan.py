# SPDX-License-Identifier: Apache-2.0
"""BigGAN's options: presets, widths, what is refused and noticed."""

import pytest
import torch

from dnnlib.util import UserError
from tests.support import make_image_zip
from training import networks_biggan
from training.families.biggan import BIGGAN
from training.files.snapshot import save_snapshot
from training.initial import new_network
from training.options import build, resolve


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {
        name: str(make_image_zip(folder / f"{name}.zip", resolution, 12, labels))
        for name, resolution, labels in (
            ("c32", 32, 3),
            ("c64", 64, 3),
            ("c128", 128, 5),
            ("plain32", 32, 0),
            ("c16", 16, 3),
        )
    }


def options_of(path, cfg="biggan-auto", cond=True, **flags):
    return build(data=path, cfg=cfg, cond=cond, **flags)[1]


def test_imagenet_preset(data):
    options = options_of(data["c128"], "biggan128")
    shape = {"ch": 96, "attn_res": [64], "sn_eps": 1e-6, "init": "ortho"}
    latents = {"z_dim": 120, "shared_dim": 128, "hierarchical": True}
    assert options["G_kwargs"] == {"class_name": "training.networks_biggan.BigGANGenerator", **latents, **shape}
    assert options["D_kwargs"] == {"class_name": "training.networks_biggan.BigGANDiscriminator", **shape}
    adam = {"class_name": "torch.optim.Adam", "betas": [0.0, 0.999], "eps": 1e-6}
    assert options["G_opt_kwargs"] == {**adam, "lr": 1e-4}
    assert options["D_opt_kwargs"] == {**adam, "lr": 4e-4}
    assert (options["batch_size"], options["batch_gpu"], options["total_kimg"]) == (2048, 32, 282624)
    own = options["family_kwargs"]
    assert (own["d_steps"], own["ema_decay"], own["ema_start"]) == (1, 0.9999, 20000)
    assert "augment_kwargs" not in options  # ADA only if it is asked for


def test_cifar_preset_and_the_flags_over_it(data):
    options = options_of(data["c32"], "biggan-cifar")
    assert options["G_kwargs"]["z_dim"] == 128 and options["G_kwargs"]["shared_dim"] == 0
    assert options["G_kwargs"]["init"] == "N02" and options["G_kwargs"]["sn_eps"] == 1e-8
    assert (options["batch_size"], options["family_kwargs"]["d_steps"], options["G_kwargs"]["ch"]) == (50, 4, 64)
    changed = options_of(
        data["c32"], "biggan-cifar", ch=48, batch=200, batch_gpu=100, batch_g=100, d_steps=2, ema_start=7, aug="ada"
    )
    assert (changed["G_kwargs"]["ch"], changed["D_kwargs"]["ch"]) == (48, 48)
    assert (changed["batch_size"], changed["batch_gpu"]) == (200, 100)
    own = changed["family_kwargs"]
    assert (own["G_batch"], own["d_steps"], own["ema_start"]) == (100, 2, 7)
    assert changed["augment_kwargs"]["xflip"] == 1 and changed["ada_target"] == 0.6


@pytest.mark.parametrize(
    "flags, widths",
    [
        ({"ch": 16}, (16, 16)),
        ({"cbase": 0.5}, (32, 32)),
        ({"cbase": 0.5, "cbase_d": 1.0}, (32, 64)),
        ({"ch": 16, "cbase_d": 1.0}, (16, 64)),
        ({"cbase": 24.0}, (24, 24)),
    ],
)
def test_widths(flags, widths, data):
    options = options_of(data["c32"], **flags)
    assert (options["G_kwargs"]["ch"], options["D_kwargs"]["ch"]) == widths


def test_widths_and_shape_are_counted_from_the_teacher(data, tmp_path):
    path = str(tmp_path / "teacher.pkl")
    G = networks_biggan.Generator(16, 3, 32, 3, ch=12, shared_dim=5, sn_eps=1e-3)
    save_snapshot(path, {"G_ema": G, "D": networks_biggan.Discriminator(3, 32, 3, ch=10)})
    flags = {"dgl_teacher": [path], "dgl_recipe": "paper", "cbase": 0.5, "metrics": []}
    options = options_of(data["c32"], **flags)
    own = options["G_kwargs"]
    assert (own["ch"], own["z_dim"], own["shared_dim"], own["sn_eps"]) == (6, 16, 5, 1e-3)
    assert options["D_kwargs"]["ch"] == 5
    assert options["loss_kwargs"]["dgl_form"] == "hinge"
    assert options["loss_kwargs"]["base_class"] == "training.loss_biggan.BigGANLoss"


@pytest.mark.parametrize(
    "name, flags, sentence",
    [
        ("c16", {}, "BigGAN has networks for 32, 64, 128, 256 pixels, and the images have 16"),
        ("c32", {"cond": False}, "BigGAN needs class labels; add --cond=1"),
        ("plain32", {"cond": False}, "BigGAN needs class labels; give dataset_tool.py images in folders"),
        ("c32", {"batch_gpu": 1}, "--batch-gpu: batch norm needs 16 images"),
        ("c64", {"z_dim": 98}, "--z-dim=98 must be divisible by 5"),
        ("c128", {"ch": 4}, "attention needs 8 channels, and D with ch 4 has 4"),
        ("c32", {"cbase": 5.0}, "--cbase=5 is ambiguous"),
        ("c32", {"cbase": 0.001}, "--cbase=0.001 leaves no channel"),
        ("c32", {"cbase": 0.5, "ch": 8}, "--ch and --cbase"),
        ("c32", {"batch_g": 3, "gpus": 2}, "--batch-g=3 must be divisible by --gpus=2"),
        ("c32", {"gamma": 1.0}, "--gamma has no meaning for the family biggan"),
        ("c32", {"w_dim": 8}, "--w-dim has no meaning for the family biggan"),
        ("c32", {"precision": "bf16"}, "--precision has no meaning for the family biggan"),
        ("c32", {"cfg": "auto", "ch": 8}, "--ch has no meaning for the family stylegan2"),
        ("c32", {"cfg": "cifar", "d_steps": 2}, "--d-steps has no meaning for the family stylegan2"),
    ],
)
def test_what_is_refused(name, flags, sentence, data):
    with pytest.raises(UserError, match=sentence):
        options_of(data[name], **flags)


def test_rates_of_the_auto_preset_follow_the_width(data):
    wide, narrow = options_of(data["c32"]), options_of(data["c32"], ch=16, cbase_d=1.0)
    assert (wide["G_opt_kwargs"]["lr"], wide["D_opt_kwargs"]["lr"]) == (1e-4, 2e-4)
    assert (narrow["G_opt_kwargs"]["lr"], narrow["D_opt_kwargs"]["lr"]) == (2e-4, 2e-4)


def test_small_batches_are_noticed(data):
    assert any(
        "batch norm over 8 images" in line
        for line in resolve(data=data["c32"], cfg="biggan-auto", cond=True, batch_gpu=8).notices
    )
    assert not resolve(data=data["c32"], cfg="biggan-auto", cond=True, batch_gpu=16).notices


@pytest.mark.parametrize("name", ["c32", "c64", "c128"])
def test_networks_of_the_auto_preset_fit(name, data):
    options = options_of(data[name], ch=8)
    shape = {"c_dim": 3, "img_resolution": int(name[1:]), "img_channels": 3}
    G, D = new_network(options["G_kwargs"], shape), new_network(options["D_kwargs"], shape)
    with torch.no_grad():
        img = BIGGAN.sample(G.eval(), torch.randn([2, G.z_dim]), torch.eye(3)[:2])
        assert img.shape == (2, 3, shape["img_resolution"], shape["img_resolution"])
        assert D(img, torch.eye(3)[:2]).shape == (2, 1)
