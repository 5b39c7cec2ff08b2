# SPDX-License-Identifier: Apache-2.0
"""TensorFlow pickles: golden networks give the golden numbers in every tool; every argument is translated."""

import os

import numpy as np
import pytest
import torch

import generate
from dgl.teacher import open_teacher
from dnnlib.util import UserError
from tests import tolerances
from tests.support import golden_arrays, golden_json, make_image_zip, rnd
from tests.training.files import tensorflow_pickle
from tests.training.files.tensorflow_pickle import Network, rebuilt, refusal, stored, tensors
from training.files import snapshot, tf_import
from training.options import build
from training.training_loop import Trainer, TrainingOptions

CASES = ("uncond", "cond")


def golden_inputs(G) -> tuple[torch.Tensor, torch.Tensor]:
    return rnd("z", (4, 16)), torch.eye(4)[:, : G.c_dim]


@pytest.fixture(params=CASES)
def golden(request, tmp_path):
    """(name of the case, path of its pickle)."""
    networks = tensorflow_pickle.golden_networks(request.param)
    return request.param, tensorflow_pickle.write(tmp_path / "network.pkl", networks)


@pytest.mark.parametrize("fused", [False, True])
def test_golden_images(golden, fused):
    name, path = golden
    expected = golden_arrays("legacy_tf")
    for key in ("G", "G_ema"):
        G = snapshot.load_snapshot(path)[key]
        z, c = golden_inputs(G)
        img = G(z, c, noise_mode="const", fused_modconv=fused)
        assert np.allclose(img, expected[f"{name}.img_const"], **tolerances.TENSORFLOW)
        # The network's own truncation_psi, 0.5, is not stored: it is chosen with each image.
        img = G(z, c, noise_mode="none", truncation_psi=0.5, fused_modconv=fused)
        assert np.allclose(img, expected[f"{name}.img_trunc"], **tolerances.TENSORFLOW)


def test_golden_scores(golden):
    name, path = golden
    D = snapshot.load_snapshot(path)["D"]
    img = rnd("img", (4, 3, D.img_resolution, D.img_resolution)) * 0.5
    assert np.allclose(
        D(img, torch.eye(4)[:, : D.c_dim]), golden_arrays("legacy_tf")[f"{name}.logits"], **tolerances.TENSORFLOW
    )


def test_golden_constructor_arguments(golden):
    name, path = golden
    snap = snapshot.load_snapshot(path)
    case = golden_json("legacy_tf")[name]
    assert snap["G"].init_kwargs == snap["G_ema"].init_kwargs == case["G_init_kwargs"]
    assert snap["D"].init_kwargs == case["D_init_kwargs"]


def test_the_third_network_is_the_average(tmp_path):
    G, D, Gs = tensorflow_pickle.golden_networks("uncond")
    G.variables = [(name, value + 1) for name, value in G.variables]
    snap = snapshot.load_snapshot(tensorflow_pickle.write(tmp_path / "network.pkl", (G, D, Gs)))
    assert set(snap) == {"G", "D", "G_ema"}
    assert torch.equal(snap["G"].mapping.w_avg, snap["G_ema"].mapping.w_avg + 1)


def test_networks_are_frozen_and_opening_draws_no_random_numbers(golden):
    before = torch.get_rng_state()
    snap = snapshot.load_snapshot(golden[1])
    for key in snap:
        assert not snap[key].training and not any(t.requires_grad for t in tensors(snap[key]).values())
        assert snap[key] is snap[key]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_every_protocol_trusted_or_not(tmp_path, protocol, trust):
    networks = tensorflow_pickle.golden_networks("uncond")
    path = tensorflow_pickle.write(tmp_path / "network.pkl", networks, protocol)
    snap = snapshot.load_snapshot(path, trust=trust)
    assert torch.equal(snap["D"].b4.out.bias, torch.from_numpy(dict(networks[1].variables)["Output/bias"]))


def test_numbers_of_other_types():
    G, _, _ = tensorflow_pickle.golden_networks("uncond")
    plain = tensors(rebuilt(G, "Generator"))

    def changed(convert):
        parts = [G, *G.components.values()]
        for part in parts:
            part.variables = [(name, convert(value)) for name, value in part.variables]
        return tensors(rebuilt(G, "Generator"))

    for dtype in ("<f8", ">f8", ">f4"):
        other = changed(lambda value, dtype=dtype: np.array(value, dtype, order="F"))
        assert all(torch.equal(plain[name], other[name]) for name in plain)
    # TensorFlow returns scalars as numpy scalars.
    other = changed(lambda value: np.float32(value) if value.ndim == 0 else value)
    assert isinstance(dict(G.components["synthesis"].variables)["8x8/Conv1/noise_strength"], np.float32)
    assert all(torch.equal(plain[name], other[name]) for name in plain)


# Entries on access, and the flags that take a pickle


def test_a_discriminator_opens_beside_unreadable_generators(tmp_path):
    G, D, Gs = tensorflow_pickle.golden_networks("uncond")
    G.version = 2
    Gs.static_kwargs["nonsense"] = 1
    path = tensorflow_pickle.write(tmp_path / "network.pkl", (G, D, Gs))
    teacher = open_teacher(path)
    assert teacher.G is None and teacher.group_size == 4
    expected = golden_arrays("legacy_tf")["uncond.logits"]
    scores = teacher.scores(rnd("img", (4, 3, 16, 16)) * 0.5, torch.zeros(4, 0))
    assert np.allclose(scores, expected, **tolerances.TENSORFLOW)
    snap = snapshot.load_snapshot(path)
    with pytest.raises(UserError, match=r"^G in .*network\.pkl .*version 2"):
        snap["G"]
    with pytest.raises(UserError, match=r"^G_ema in .*network\.pkl .*nonsense"):
        snap["G_ema"]


def test_a_generator_opens_without_a_discriminator(tmp_path):
    G, _, Gs = tensorflow_pickle.golden_networks("uncond")
    path = tensorflow_pickle.write(tmp_path / "network.pkl", (G, None, Gs))
    snap = snapshot.load_snapshot(path)
    assert "D" not in snap and snap["G_ema"].z_dim == 16


def test_generate_takes_it_as_network(golden, tmp_path):
    name, path = golden
    args = [f"--network={path}", "--seeds=0", f"--outdir={tmp_path / 'out'}", "--device=cpu"]
    generate.main.main(args + ["--class=1"] * (name == "cond"), standalone_mode=False)
    assert os.listdir(tmp_path / "out") == ["seed0000.png"]


@pytest.mark.parametrize("cbase", [1, 0.5])
def test_a_student_inherits_from_it(golden, cbase, tmp_path):
    """G and D start from its channels; at its own width they make its images and scores."""
    name, path = golden
    snap = snapshot.load_snapshot(path)
    size, labels = snap["G"].img_resolution, snap["G"].c_dim
    data = make_image_zip(tmp_path / "data.zip", resolution=size, num_images=4, num_labels=labels)
    flags = {"cond": name == "cond", "batch": 4, "aug": "noaug", "metrics": [], "device": "cpu", "fp32": True}
    _, made = build(
        data=str(data),
        dgl_teacher=[path],
        cbase=cbase,
        dgl_recipe="paper",
        dgl_init="teacher",
        dgl_init_d=True,
        workers=1,
        **flags,
    )
    run = Trainer(TrainingOptions(run_dir=str(tmp_path), **{**made, "data_loader_kwargs": {}}))
    z, c = golden_inputs(run.G)
    img = rnd("img", (4, 3, size, size)) * 0.5
    for G in (run.G, run.G_ema):
        assert torch.equal(G.mapping(z, c), snap["G_ema"].mapping(z, c))
    if cbase == 1:
        wanted = snap["G_ema"](z, c, noise_mode="const")
        assert torch.allclose(run.G_ema(z, c, noise_mode="const"), wanted, atol=1e-5 * wanted.abs().max())
        assert torch.allclose(run.D(img, c), snap["D"](img, c), atol=1e-5 * snap["D"](img, c).abs().max())
    else:
        assert len(run.D.b4.fc.bias) == len(snap["D"].b4.fc.bias) // 2


def test_training_takes_it_as_resume(tmp_path):
    path = tensorflow_pickle.write(tmp_path / "network.pkl", tensorflow_pickle.golden_networks("uncond"))
    data = make_image_zip(tmp_path / "data.zip", resolution=16, num_images=4)
    case = golden_json("legacy_tf")["uncond"]
    shape = ("c_dim", "img_resolution", "img_channels")
    G_kwargs, D_kwargs = (
        {key: value for key, value in case[f"{name}_init_kwargs"].items() if key not in shape} for name in "GD"
    )
    dataset = {"class_name": "training.dataset.ImageFolderDataset", "path": str(data)}
    adam = {"class_name": "torch.optim.Adam", "lr": 0.002, "betas": [0, 0.99]}
    options = TrainingOptions(
        run_dir=str(tmp_path), training_set_kwargs=dataset, data_loader_kwargs={"num_workers": 0}, resume_pkl=path,
        G_kwargs={"class_name": "training.networks.Generator", **G_kwargs},
        D_kwargs={"class_name": "training.networks.Discriminator", **D_kwargs},
        G_opt_kwargs=adam, D_opt_kwargs=adam, loss_kwargs={"class_name": "training.loss.StyleGAN2Loss"},
        batch_size=4, batch_gpu=4, device="cpu",
    )  # fmt: skip
    trainer = Trainer(options)
    snap = snapshot.load_snapshot(path)
    for ours, key in [(trainer.G, "G"), (trainer.D, "D"), (trainer.G_ema, "G_ema")]:
        source = tensors(snap[key])
        assert all(torch.equal(value, source[name]) for name, value in tensors(ours).items())


# Arguments

G_RENAMED = {
    "latent_size": ("z_dim", 5), "label_size": ("c_dim", 3), "dlatent_size": ("w_dim", 6),
    "resolution": ("img_resolution", 8), "num_channels": ("img_channels", 1),
    "mapping_layers": ("mapping_kwargs.num_layers", 3), "label_fmaps": ("mapping_kwargs.embed_features", 7),
    "mapping_fmaps": ("mapping_kwargs.layer_features", 9), "use_noise": ("synthesis_kwargs.use_noise", False),
    "mapping_lrmul": ("mapping_kwargs.lr_multiplier", 0.5), "w_avg_beta": ("mapping_kwargs.w_avg_beta", 0.9),
    "fmap_max": ("synthesis_kwargs.channel_max", 10), "num_fp16_res": ("synthesis_kwargs.num_fp16_res", 2),
    "conv_clamp": ("synthesis_kwargs.conv_clamp", 256), "architecture": ("synthesis_kwargs.architecture", "orig"),
    "resample_kernel": ("synthesis_kwargs.resample_filter", [1, 2, 1]),
    "mapping_nonlinearity": ("mapping_kwargs.activation", "relu"),
    "nonlinearity": ("synthesis_kwargs.activation", "relu"),
}  # fmt: skip
D_RENAMED = {
    "label_size": ("c_dim", 3), "resolution": ("img_resolution", 8), "num_channels": ("img_channels", 1),
    "architecture": ("architecture", "skip"), "fmap_max": ("channel_max", 10), "num_fp16_res": ("num_fp16_res", 2),
    "conv_clamp": ("conv_clamp", 256), "resample_kernel": ("block_kwargs.resample_filter", [1, 2, 1]),
    "freeze_layers": ("block_kwargs.freeze_layers", 2), "mapping_layers": ("mapping_kwargs.num_layers", 3),
    "mapping_lrmul": ("mapping_kwargs.lr_multiplier", 0.5), "mbstd_group_size": ("epilogue_kwargs.mbstd_group_size", 8),
    "mbstd_num_features": ("epilogue_kwargs.mbstd_num_channels", 2),
}  # fmt: skip
G_DEFAULTS = {
    "z_dim": 512, "c_dim": 0, "w_dim": 512, "img_resolution": 1024, "img_channels": 3,
    "mapping_kwargs.num_layers": 8, "mapping_kwargs.embed_features": None, "mapping_kwargs.layer_features": None,
    "mapping_kwargs.activation": "lrelu", "mapping_kwargs.lr_multiplier": 0.01, "mapping_kwargs.w_avg_beta": 0.995,
    "synthesis_kwargs.channel_base": 32768, "synthesis_kwargs.channel_max": 512, "synthesis_kwargs.num_fp16_res": 0,
    "synthesis_kwargs.conv_clamp": None, "synthesis_kwargs.architecture": "skip",
    "synthesis_kwargs.resample_filter": [1, 3, 3, 1], "synthesis_kwargs.use_noise": True,
    "synthesis_kwargs.activation": "lrelu",
}  # fmt: skip
D_DEFAULTS = {
    "c_dim": 0, "img_resolution": 1024, "img_channels": 3, "architecture": "resnet", "channel_base": 32768,
    "channel_max": 512, "num_fp16_res": 0, "conv_clamp": None, "cmap_dim": None, "block_kwargs.activation": "lrelu",
    "block_kwargs.resample_filter": [1, 3, 3, 1], "block_kwargs.freeze_layers": 0, "mapping_kwargs.num_layers": 0,
    "mapping_kwargs.embed_features": None, "mapping_kwargs.layer_features": None, "mapping_kwargs.activation": "lrelu",
    "mapping_kwargs.lr_multiplier": 0.1, "epilogue_kwargs.mbstd_group_size": None,
    "epilogue_kwargs.mbstd_num_channels": 1, "epilogue_kwargs.activation": "lrelu",
}  # fmt: skip


def arguments(class_name: str, **static_kwargs) -> dict:
    """Our constructor arguments for TensorFlow's, nested ones by dotted name."""
    network = stored(Network(static_kwargs))
    kwargs = tf_import.to_stored_object(network, class_name, "net").init_kwargs
    flat = {}
    for key, value in kwargs.items():
        flat.update({f"{key}.{name}": v for name, v in value.items()} if isinstance(value, dict) else {key: value})
    return flat


@pytest.mark.parametrize(("class_name", "defaults"), [("Generator", G_DEFAULTS), ("Discriminator", D_DEFAULTS)])
def test_default_arguments(class_name, defaults):
    assert arguments(class_name) == defaults


@pytest.mark.parametrize(
    ("class_name", "defaults", "renamed"),
    [("Generator", G_DEFAULTS, G_RENAMED), ("Discriminator", D_DEFAULTS, D_RENAMED)],
)
def test_each_argument_changes_only_its_counterpart(class_name, defaults, renamed):
    for theirs, (ours, value) in renamed.items():
        assert arguments(class_name, **{theirs: value}) == {**defaults, ours: value}


def test_converted_and_shared_arguments():
    assert arguments("Generator", fmap_base=100)["synthesis_kwargs.channel_base"] == 200
    assert arguments("Discriminator", fmap_base=100)["channel_base"] == 200
    assert arguments("Generator", w_avg_beta=None)["mapping_kwargs.w_avg_beta"] == 1
    for key in ("cmap_dim", "mapping_kwargs.embed_features", "mapping_kwargs.layer_features"):
        assert arguments("Discriminator", mapping_fmaps=7)[key] == 7
    for key in ("block_kwargs.activation", "mapping_kwargs.activation", "epilogue_kwargs.activation"):
        assert arguments("Discriminator", nonlinearity="relu")[key] == "relu"


def test_arguments_of_training_and_sampling_are_ignored():
    ignored = {"truncation_psi": 0.7, "truncation_cutoff": 8, "style_mixing_prob": None, "structure": "fixed"}
    assert arguments("Generator", **ignored) == G_DEFAULTS


@pytest.mark.parametrize("class_name", ["Generator", "Discriminator"])
def test_unknown_arguments_are_refused_by_name(class_name):
    sentence = refusal(Network({"resolution": 8, "blur_filter": [1], "use_wscale": True}), class_name)
    assert "blur_filter, use_wscale" in sentence and "resolution" not in sentence


@pytest.mark.parametrize("version", [3, 2, None, "4", 4.5, [[4]]])
def test_old_versions_are_refused(version):
    assert f"version {version if type(version) is int else None};" in refusal(Network(version=version))
