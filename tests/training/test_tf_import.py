# SPDX-License-Identifier: Apache-2.0
"""TensorFlow pickles: the golden ones give the golden numbers, every variable finds its place, the rest is refused."""

import os
import pathlib
import re

import numpy as np
import pytest
import torch

import generate
from dgl.teacher import open_teacher
from dnnlib.util import UserError
from tests.support import golden_arrays, golden_json, make_image_zip, rnd
from tests.training import tensorflow_pickle
from tests.training.tensorflow_pickle import Network
from torch_utils import misc, safe_pickle
from training import networks, snapshot, tf_import
from training.training_loop import Trainer, TrainingOptions

CASES = ("uncond", "cond")


def stored(network: Network) -> safe_pickle.StoredTFNetwork:
    """A network as the loader hands it on."""
    return safe_pickle.loads(tensorflow_pickle.dumps(network))


def rebuilt(network: Network, class_name: str) -> torch.nn.Module:
    return snapshot.rebuild(tf_import.to_stored_object(stored(network), class_name, "net"), "net")


def refusal(network: Network, class_name: str = "Generator") -> str:
    """The one sentence with which a network is refused."""
    with pytest.raises(UserError, match=r"^net .*") as caught:
        rebuilt(network, class_name)
    return str(caught.value)


def golden_inputs(G) -> tuple[torch.Tensor, torch.Tensor]:
    return rnd("z", (4, 16)), torch.eye(4)[:, : G.c_dim]


@pytest.fixture(params=CASES)
def golden(request, tmp_path):
    """(name of the case, path of its pickle)."""
    networks = tensorflow_pickle.golden_networks(request.param)
    return request.param, tensorflow_pickle.write(tmp_path / "network.pkl", networks)


def tensors(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(misc.named_params_and_buffers(network))


@pytest.mark.parametrize("fused", [False, True])
def test_golden_images(golden, fused):
    name, path = golden
    expected = golden_arrays("legacy_tf")
    for key in ("G", "G_ema"):
        G = snapshot.load_snapshot(path)[key]
        z, c = golden_inputs(G)
        img = G(z, c, noise_mode="const", fused_modconv=fused)
        assert np.allclose(img, expected[f"{name}.img_const"], rtol=0, atol=1e-4)
        # The network's own truncation_psi, 0.5, is not stored: it is chosen with each image.
        img = G(z, c, noise_mode="none", truncation_psi=0.5, fused_modconv=fused)
        assert np.allclose(img, expected[f"{name}.img_trunc"], rtol=0, atol=1e-4)


def test_golden_scores(golden):
    name, path = golden
    D = snapshot.load_snapshot(path)["D"]
    img = rnd("img", (4, 3, D.img_resolution, D.img_resolution)) * 0.5
    assert np.allclose(D(img, torch.eye(4)[:, : D.c_dim]), golden_arrays("legacy_tf")[f"{name}.logits"], atol=1e-4)


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


def test_networks_are_still_and_opening_draws_nothing(golden):
    before = torch.get_rng_state()
    snap = snapshot.load_snapshot(golden[1])
    for key in snap:
        assert not snap[key].training and not any(t.requires_grad for t in tensors(snap[key]).values())
        assert snap[key] is snap[key]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("protocol", [3, 4, 5])
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
    # TensorFlow hands out single numbers as numpy scalars.
    other = changed(lambda value: np.float32(value) if value.ndim == 0 else value)
    assert isinstance(dict(G.components["synthesis"].variables)["8x8/Conv1/noise_strength"], np.float32)
    assert all(torch.equal(plain[name], other[name]) for name in plain)


# Entries on demand, and the flags that take a pickle


def test_a_discriminator_serves_beside_generators_that_cannot_be_read(tmp_path):
    G, D, Gs = tensorflow_pickle.golden_networks("uncond")
    G.version = 2
    Gs.static_kwargs["nonsense"] = 1
    path = tensorflow_pickle.write(tmp_path / "network.pkl", (G, D, Gs))
    teacher = open_teacher(path)
    assert teacher.G is None and teacher.group_size == 4
    expected = golden_arrays("legacy_tf")["uncond.logits"]
    scores = teacher.scores(rnd("img", (4, 3, 16, 16)) * 0.5, torch.zeros(4, 0))
    assert np.allclose(scores, expected, rtol=0, atol=1e-4)
    snap = snapshot.load_snapshot(path)
    with pytest.raises(UserError, match=r"^G in .*network\.pkl .*version 2"):
        snap["G"]
    with pytest.raises(UserError, match=r"^G_ema in .*network\.pkl .*nonsense"):
        snap["G_ema"]


def test_a_discriminator_that_cannot_be_read_leaves_the_generator(tmp_path):
    G, _, Gs = tensorflow_pickle.golden_networks("uncond")
    path = tensorflow_pickle.write(tmp_path / "network.pkl", (G, None, Gs))
    snap = snapshot.load_snapshot(path)
    assert "D" not in snap and snap["G_ema"].z_dim == 16


def test_generate_takes_it_as_network(golden, tmp_path):
    name, path = golden
    args = [f"--network={path}", "--seeds=0", f"--outdir={tmp_path / 'out'}", "--device=cpu"]
    generate.main.main(args + ["--class=1"] * (name == "cond"), standalone_mode=False)
    assert os.listdir(tmp_path / "out") == ["seed0000.png"]


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
    """Our constructor arguments, those in groups by dotted name, that come of TensorFlow's."""
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
def test_each_argument_lands_in_its_place_alone(class_name, defaults, renamed):
    for theirs, (ours, value) in renamed.items():
        assert arguments(class_name, **{theirs: value}) == {**defaults, ours: value}


def test_arguments_with_more_to_them():
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


# Variables


def in_tensorflow(G: networks.Generator, **static_kwargs) -> Network:
    """A generator of ours as TensorFlow would have stored it; the inverse of what is tested."""
    own, mapping, synthesis = {}, {}, {}
    layers = {"conv0": "Conv0_up", "conv1": "Conv1", "torgb": "ToRGB", "skip": "Skip"}
    for name, tensor in tensors(G).items():
        value = tensor.detach().numpy()
        part, *path = name.split(".")
        if name == "mapping.w_avg":
            own["dlatent_avg"] = value
        elif part == "mapping":
            layer = "LabelEmbed" if path[0] == "embed" else path[0].replace("fc", "Dense")
            mapping[f"{layer}/{path[1]}"] = value.T
        elif path[-1] == "const":
            synthesis["4x4/Const/const"] = value[np.newaxis]
        elif path[-1] == "noise_const":
            res = int(np.log2(value.shape[0]))
            synthesis[f"noise{2 * res - (5 if path[1] == 'conv0' else 4)}"] = value[np.newaxis, np.newaxis]
        elif path[-1] != "resample_filter":
            res = path[0][1:]
            layer = "Conv" if path[:2] == ["b4", "conv1"] else layers[path[1]]
            if value.ndim == 4:
                value = value[:, :, ::-1, ::-1] if layer in ("Conv0_up", "Skip") else value
                value = value.transpose(2, 3, 1, 0)
            variable = "_".join(path[2:]).replace("affine", "mod")
            value = value - np.float32(1) if variable == "mod_bias" else value.T if variable == "mod_weight" else value
            synthesis[f"{res}x{res}/{layer}/{variable}"] = value
    components = {"mapping": Network(values=mapping), "synthesis": Network(values=synthesis)}
    return Network(static_kwargs, own, components)


def discriminator_in_tensorflow(D: networks.Discriminator, **static_kwargs) -> Network:
    """As `in_tensorflow`, for a discriminator."""
    layers = {"fromrgb": "FromRGB", "conv0": "Conv0", "conv1": "Conv1_down", "skip": "Skip"}
    names = {"b4.conv": "4x4/Conv", "b4.fc": "4x4/Dense0", "b4.out": "Output", "mapping.embed": "LabelEmbed"}
    variables = {}
    for name, tensor in tensors(D).items():
        value = tensor.detach().numpy()
        scope, _, variable = name.rpartition(".")
        block, _, layer = scope.partition(".")
        if variable != "resample_filter":
            if scope not in names:
                res = block[1:]
                is_mapping = block == "mapping"
                names[scope] = layer.replace("fc", "Mapping") if is_mapping else f"{res}x{res}/{layers[layer]}"
            variables[f"{names[scope]}/{variable}"] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
    return Network(static_kwargs, variables)


SIZES = {"resolution": 16, "num_channels": 1, "fmap_base": 64, "fmap_max": 12}
OUR_SIZES = {"channel_base": 128, "channel_max": 12}


def randomised(network):
    for name, tensor in tensors(network).items():
        if not name.endswith("resample_filter"):
            tensor.data.copy_(rnd(name, tuple(tensor.shape)))
    return network.eval().requires_grad_(False)


def tiny_G(architecture="skip", **synthesis_kwargs):
    synthesis_kwargs = {"architecture": architecture, **OUR_SIZES, **synthesis_kwargs}
    return randomised(networks.Generator(6, 3, 5, 16, 1, {"num_layers": 2}, synthesis_kwargs))


def tiny_D(architecture="resnet", c_dim=3):
    kwargs = {"mapping_kwargs": {"num_layers": 2}, "epilogue_kwargs": {"mbstd_group_size": None}}
    return randomised(networks.Discriminator(c_dim, 16, 1, architecture, **OUR_SIZES, **kwargs))


G_SIZES = {**SIZES, "latent_size": 6, "label_size": 3, "dlatent_size": 5, "mapping_layers": 2}
D_SIZES = {**SIZES, "label_size": 3, "mapping_layers": 2, "mapping_lrmul": 0.01}


def same_tensors(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.allclose(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("architecture", networks.ARCHITECTURES)
def test_generators_of_every_architecture(architecture):
    G = tiny_G(architecture)
    result = rebuilt(in_tensorflow(G, architecture=architecture, **G_SIZES), "Generator")
    assert same_tensors(tensors(G), tensors(result))
    z, c = rnd("z", (2, 6)), torch.eye(3)[:2]
    assert torch.allclose(G(z, c, noise_mode="const"), result(z, c, noise_mode="const"), atol=1e-4)


@pytest.mark.parametrize("architecture", networks.ARCHITECTURES)
@pytest.mark.parametrize("c_dim", [0, 3])
def test_discriminators_of_every_architecture(architecture, c_dim):
    D = tiny_D(architecture, c_dim)
    sizes = {**D_SIZES, "label_size": c_dim}
    result = rebuilt(discriminator_in_tensorflow(D, architecture=architecture, **sizes), "Discriminator")
    assert same_tensors(tensors(D), tensors(result))


def grown(variables, layer: str, resolution: int) -> list:
    """Variables named as by networks that were grown, with what growth leaves behind."""
    renamed = [(name.replace(f"{resolution}x{resolution}/{layer}/", f"{layer}_lod0/"), v) for name, v in variables]
    leftovers = [(f"{layer}_lod{level}/bias", rnd("bias", (1,)).numpy()) for level in (1, 2)]
    return [("lod", np.float32(0)), *renamed, *leftovers]


def test_grown_networks_are_of_the_original_architecture():
    G, D = tiny_G("orig"), tiny_D("orig")
    network = in_tensorflow(G, **G_SIZES)
    synthesis = network.components["synthesis"]
    synthesis.variables = grown(synthesis.variables, "ToRGB", 16)
    assert "ToRGB_lod0/mod_weight" in dict(synthesis.variables)
    result = rebuilt(network, "Generator")
    assert result.init_kwargs.synthesis_kwargs["architecture"] == "orig"
    assert same_tensors(tensors(G), tensors(result))

    network = discriminator_in_tensorflow(D, **D_SIZES)
    network.variables = grown(network.variables, "FromRGB", 16)
    result = rebuilt(network, "Discriminator")
    assert result.init_kwargs.architecture == "orig" and same_tensors(tensors(D), tensors(result))


def test_a_network_still_growing_is_refused():
    network = discriminator_in_tensorflow(tiny_D("orig"), **D_SIZES)
    network.variables = grown(network.variables, "FromRGB", 16)[1:] + [("lod", np.float32(0.5))]
    assert "lod [] is unknown here" in refusal(network, "Discriminator")


def test_noise_maps_of_a_network_without_noise_have_no_meaning():
    G = tiny_G(use_noise=False)
    network = in_tensorflow(G, use_noise=False, **G_SIZES)
    network.components["synthesis"].variables.append(("noise1", np.zeros([1, 1, 8, 8], np.float32)))
    assert same_tensors(tensors(G), tensors(rebuilt(network, "Generator")))


def test_every_variable_that_does_not_fit_is_named():
    network = in_tensorflow(tiny_G(), **G_SIZES)
    variables = dict(network.components["synthesis"].variables)
    del variables["8x8/Conv1/mod_bias"], variables["noise3"]
    variables["16x16/Conv1/weight"] = np.zeros([3, 3, 8, 2], np.float32)
    variables["4x4/ToRGB/bias"] = np.zeros([], np.float32)
    variables["4x4/Conv/weight"] = np.zeros([4], np.float32)
    variables["noise0"] = np.zeros([4, 4, 1], np.float32)
    variables["8x8/Conv2/weight"] = np.zeros([3, 3, 8, 8], np.float32)
    network.components["synthesis"].variables = list(variables.items())
    network.variables = [*network.variables, ("Dense0/kernel", np.zeros([2, 1], np.float32))]
    sentence = refusal(network)
    assert sentence.startswith("net does not fit Generator: ")
    faults = set(sentence.removeprefix("net does not fit Generator: ").split("; "))
    assert faults == {
        "synthesis.b8.conv1.affine.bias [12] is missing there",
        "synthesis.b16.conv0.noise_const [16, 16] is missing there",
        "synthesis.b16.conv1.weight is [2, 8, 3, 3] there and [8, 8, 3, 3] here",
        "synthesis.b4.torgb.bias is [] there and [1] here",
        "synthesis.b4.conv1.weight is [4] there and [12, 12, 3, 3] here",
        "synthesis.b4.conv1.noise_const is [4, 4, 1] there and [4, 4] here",
        "synthesis/8x8/Conv2/weight [3, 3, 8, 8] is unknown here",
        "Dense0/kernel [2, 1] is unknown here",
    }


def test_two_variables_for_one_tensor_are_refused():
    network = discriminator_in_tensorflow(tiny_D(), **D_SIZES)
    network.variables = network.variables * 2
    assert "more than one TensorFlow variable for b16.fromrgb.weight" in refusal(network, "Discriminator")


# Damage and malice


def cyclic() -> Network:
    network = Network({"resolution": 8}, components={})
    network.components = {"mapping": network}
    return network


@pytest.mark.parametrize(
    "network",
    [
        Network(static_kwargs=[("resolution", 8)]),
        Network({"fmap_base": None}),
        Network({"fmap_base": "16"}),
        Network({"resolution": 12}),
        Network({"resolution": [8]}),
        Network({"architecture": "unet"}),
        Network({"use_noise": np.zeros(3)}, {"noise0": np.zeros(2)}),
        Network(variables=5),
        Network(variables=[("a", 1.0)]),
        Network(variables=[(1, np.zeros(1))]),
        Network(variables=[("a", np.zeros(1), 3)]),
        Network({"resolution": 4}, {"4x4/Conv/bias": np.complex64(1), "synthesis/4x4/Conv/bias": np.complex64(1)}),
        Network(components=[1]),
        Network(components={"mapping": 3}),
        Network({"resolution": 4}, {"lod": np.zeros(0)}),
        Network({"resolution": "4"}, {"ToRGB_lod0/weight": np.zeros(3)}),
        cyclic(),
    ],
    ids=str,
)
@pytest.mark.parametrize("class_name", ["Generator", "Discriminator"])
def test_damaged_networks_are_refused_in_one_sentence(network, class_name):
    assert "\n" not in refusal(network, class_name)


@pytest.mark.parametrize(
    "static_kwargs",
    [
        {"resolution": 2**18},
        {"resolution": 2**18, "fmap_base": 2**19, "fmap_max": 2**19},
        {"mapping_layers": 10**9},
        {"latent_size": 10**30},
        {"num_channels": 2**20},
        {"resample_kernel": [[[[1]]]]},
    ],
)
def test_false_arguments_cost_nothing(static_kwargs):
    network = in_tensorflow(tiny_G(), **{**G_SIZES, **static_kwargs})
    refusal(network)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_another_number_of_networks_is_refused(tmp_path, count):
    network = tensorflow_pickle.golden_networks("uncond")[0]
    path = tensorflow_pickle.write(tmp_path / "network.pkl", (network,) * count)
    with pytest.raises(UserError, match=rf"network\.pkl holds {count} TensorFlow networks"):
        snapshot.load_snapshot(path)


def test_mutated_pickles_never_fail_in_another_way(tmp_path):
    G = in_tensorflow(tiny_G(), **G_SIZES)
    networks = (G, discriminator_in_tensorflow(tiny_D(), **D_SIZES), G)
    path = tensorflow_pickle.write(tmp_path / "network.pkl", networks)
    content = pathlib.Path(path).read_bytes()
    # What is not a number in an array: there, a changed byte changes nothing but a value.
    names = [m.start() for m in re.finditer(rb"[A-Za-z_/0-9]{4,}|numpy|version", content)]
    seed = int.from_bytes(os.urandom(4), "little")
    print("seed", seed)
    rng = np.random.RandomState(seed)
    refused = 0
    for _ in range(100):
        mutant = bytearray(content)
        for start in rng.choice(names, size=rng.randint(1, 4)):
            mutant[min(start + rng.randint(-8, 8), len(mutant) - 1)] = rng.randint(256)
        pathlib.Path(path).write_bytes(mutant)
        try:
            snap = snapshot.load_snapshot(path)
            for key in snap:
                snap[key]
        except UserError:
            refused += 1
    assert refused > 0
