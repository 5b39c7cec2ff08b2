# SPDX-License-Identifier: Apache-2.0
"""Pickles of NVIDIA's repositories, written by any old library version: read without running their source.

The files are made from golden names, shapes and weights, so that outputs can be compared with the golden numbers.
"""

import copy
import pickle

import numpy as np
import pytest
import torch

import legacy
from dnnlib.util import EasyDict, UserError
from tests.compat import foreign
from tests.compat.foreign import easy_dict, module, storage, stored, tensor
from tests.compat.opcodes import Raw, call, filled, named, op, pickled
from tests.support import golden_json, rnd
from tests.training.test_networks import close, fill, golden_value, one_hot
from torch_utils import persistence, safe_pickle
from training import networks
from training.augment import AugmentPipe
from training.files import snapshot

GOLDEN = golden_json("networks")
CLASSES = {"Generator": networks.Generator, "Discriminator": networks.Discriminator}


@pytest.fixture(autouse=True)
def no_stored_source_runs(monkeypatch):
    """The reader must never look up a class by its source."""
    monkeypatch.setattr(persistence, "_find_class", None)


def golden_tensors(kind, name):
    """Raw tensors of a golden network by name; filters, which the recipe leaves out, follow from the arguments."""
    spec = GOLDEN["generators" if kind == "Generator" else "discriminators"][name]
    filters = dict(CLASSES[kind](**spec["kwargs"]).named_buffers())
    values = {
        key: filters[key] if key.endswith("resample_filter") else golden_value(key, shape, kind == "Discriminator")
        for key, shape in spec["state"].items()
    }
    return {key: tensor(value.numpy()) for key, value in values.items()}, spec["kwargs"]


def golden_module(kind, name, source=foreign.RAISES, **kwargs):
    tensors, own = golden_tensors(kind, name)
    return module(kind, tensors, source, init_kwargs=kwargs or own)


def write(path, protocol=2, **entries):
    """A snapshot with the five entries."""
    data = {**dict.fromkeys(["G", "D", "G_ema", "augment_pipe"]), "training_set_kwargs": {}, **entries}
    path.write_bytes(pickled(data, protocol))
    return str(path)


def images_of(G, name):
    kwargs = GOLDEN["generators"][name]["kwargs"]
    with torch.no_grad():
        return G(rnd("z", (4, 16)), one_hot(kwargs["c_dim"]), noise_mode="const", fused_modconv=False)


def logits_of(D, name):
    kwargs = GOLDEN["discriminators"][name]["kwargs"]
    shape = (4, kwargs["img_channels"], kwargs["img_resolution"], kwargs["img_resolution"])
    with torch.no_grad():
        return D(rnd("img", shape) * 0.5, one_hot(kwargs["c_dim"]))


@pytest.mark.parametrize("name", GOLDEN["generators"])
def test_generators_give_the_golden_images(name, tmp_path):
    path = write(tmp_path / "net.pkl", G_ema=golden_module("Generator", name))
    G = snapshot.load_snapshot(path)["G_ema"]
    assert G.init_kwargs == GOLDEN["generators"][name]["kwargs"]
    close(images_of(G, name), f"G.{name}.img_const")


@pytest.mark.parametrize("name", GOLDEN["discriminators"])
def test_discriminators_give_the_golden_logits(name, tmp_path):
    path = write(tmp_path / "net.pkl", D=golden_module("Discriminator", name))
    close(logits_of(snapshot.load_snapshot(path)["D"], name), f"D.{name}.logits")


@pytest.mark.parametrize("easy_dict_name", ["dnnlib.EasyDict", "dnnlib.util.EasyDict"])
def test_a_whole_snapshot(tmp_path, easy_dict_name, capsys):
    tensors, kwargs = golden_tensors("Generator", "cond")
    kwargs = {
        key: easy_dict(value, easy_dict_name) if isinstance(value, dict) else value for key, value in kwargs.items()
    }
    pipe = {"p": 0.25, "Hz_geom": AugmentPipe().Hz_geom.numpy(), "Hz_fbank": AugmentPipe().Hz_fbank.numpy()}
    pipe = module(
        "AugmentPipe", {key: tensor(np.float32(v)) for key, v in pipe.items()}, init_kwargs={"xflip": 1, "hue": 0.5}
    )
    path = write(
        tmp_path / "net.pkl",
        G=module("Generator", tensors, init_kwargs=kwargs),
        G_ema=module("Generator", tensors, init_args=(16, 5, 24), init_kwargs=dict(list(kwargs.items())[3:])),
        D=golden_module("Discriminator", "cond"),
        augment_pipe=pipe,
        training_set_kwargs=easy_dict({"path": "x.zip", "max_size": 70000, "use_labels": True}, easy_dict_name),
    )
    snap = snapshot.load_snapshot(path)
    assert list(snap) == ["G", "D", "G_ema", "augment_pipe", "training_set_kwargs"]
    for key in ("G", "G_ema"):
        close(images_of(snap[key], "cond"), "G.cond.img_const")
    close(logits_of(snap["D"], "cond"), "D.cond.logits")
    assert snap["augment_pipe"].p.item() == 0.25 and snap["augment_pipe"].init_kwargs == {"xflip": 1, "hue": 0.5}
    assert snap["training_set_kwargs"] == {"path": "x.zip", "max_size": 70000, "use_labels": True}
    assert type(snap["training_set_kwargs"]) is EasyDict
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("easy_dict_name", [None, "dnnlib.EasyDict", "dnnlib.util.EasyDict"])
def test_nested_arguments_are_attributes(tmp_path, easy_dict_name):
    """Also of files, such as older ones of ours, that store them as plain dicts."""
    tensors, kwargs = golden_tensors("Generator", "cond")
    stored_kwargs = {
        key: easy_dict(value, easy_dict_name) if easy_dict_name and isinstance(value, dict) else value
        for key, value in kwargs.items()
    }
    path = write(tmp_path / "net.pkl", G_ema=module("Generator", tensors, init_kwargs=stored_kwargs))
    G = snapshot.load_snapshot(path)["G_ema"]
    for network in (G, networks.Generator(**kwargs), snapshot.with_arguments(G, "G")):
        arguments = network.init_kwargs
        assert arguments == kwargs
        assert arguments.synthesis_kwargs.channel_base == kwargs["synthesis_kwargs"]["channel_base"]
        assert arguments.mapping_kwargs.num_layers == kwargs["mapping_kwargs"]["num_layers"]
        assert type(network.__dict__["_init_kwargs"]["synthesis_kwargs"]) is EasyDict  # which other programs read


@pytest.mark.parametrize("location", ["cpu", "cuda:0", "cuda:7"])
@pytest.mark.parametrize("package", ["torch", "torch.cuda", "torch.storage"])
def test_storages_of_any_device(package, location):
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    loaded = safe_pickle.loads(pickled(tensor(values, location=location, module=package)))
    assert loaded.device.type == "cpu" and np.array_equal(loaded.numpy(), values)


@pytest.mark.parametrize("dtype", ["f4", "f2", "f8", "i8"])
def test_networks_stored_in_another_precision(dtype, tmp_path):
    D = fill(networks.Discriminator(**GOLDEN["discriminators"]["orig"]["kwargs"]), is_discriminator=True)
    tensors = {key: tensor(value.numpy().astype(dtype)) for key, value in D.state_dict().items()}
    path = write(
        tmp_path / "net.pkl", D=module("Discriminator", tensors, init_kwargs=GOLDEN["discriminators"]["orig"]["kwargs"])
    )
    for key, value in snapshot.load_snapshot(path)["D"].state_dict().items():
        assert value.dtype == torch.float32
        assert np.array_equal(value.numpy(), D.state_dict()[key].numpy().astype(dtype).astype(np.float32)), key


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_numpy_values_among_the_arguments(core, tmp_path):
    tensors, kwargs = golden_tensors("Discriminator", "orig")
    kwargs = {**kwargs, "conv_clamp": foreign.scalar(4, core)}
    path = write(tmp_path / "net.pkl", D=module("Discriminator", tensors, init_kwargs=kwargs))
    D = snapshot.load_snapshot(path)["D"]
    assert D.init_kwargs.conv_clamp == 4
    close(logits_of(D, "orig"), "D.orig.logits")


def test_parameters_that_carry_attributes():
    """PyTorch 2 writes them under a different name."""
    hooks = call("collections.OrderedDict")
    data = tensor(np.ones(2, np.float32))
    loaded = safe_pickle.loads(pickled(call("torch._utils._rebuild_parameter_with_state", data, True, hooks, {"a": 1})))
    assert type(loaded) is torch.nn.Parameter and loaded.tolist() == [1, 1]


def flat(kwargs):
    """Generator arguments as StyleGAN3's repository takes them."""
    return {**{k: v for k, v in kwargs.items() if k != "synthesis_kwargs"}, **kwargs["synthesis_kwargs"]}


@pytest.mark.parametrize("name", GOLDEN["generators"])
def test_generators_of_stylegan3s_repository(name, tmp_path):
    kwargs = flat(GOLDEN["generators"][name]["kwargs"])
    kwargs["fused_modconv_default"] = "inference_only"
    path = write(tmp_path / "net.pkl", G_ema=golden_module("Generator", name, foreign.STYLEGAN3, **kwargs))
    G = snapshot.load_snapshot(path)["G_ema"]
    close(images_of(G, name), f"G.{name}.img_const")
    synthesis = G.init_kwargs.synthesis_kwargs
    assert synthesis["num_fp16_res"] == 4 and synthesis["conv_clamp"] == kwargs.get("conv_clamp", 256)
    assert G.mapping.w_avg_beta == kwargs["mapping_kwargs"].get("w_avg_beta", 0.998)


def alias_free_generator():
    """G of most StyleGAN3 pickles: a known class name with other contents."""
    tensors = {
        "mapping.w_avg": tensor(np.zeros(4, np.float32)),
        "synthesis.input.freqs": tensor(np.zeros((4, 2), np.float32)),
        "synthesis.L0_36_512.up_filter": tensor(np.zeros(4, np.float32)),
    }
    kwargs = {"z_dim": 4, "c_dim": 0, "w_dim": 4, "img_resolution": 32, "img_channels": 3, "magnitude_ema_beta": 0.5}
    return module("Generator", tensors, foreign.RAISES, init_kwargs=kwargs)


UNKNOWN_G = {
    "alias-free": (alias_free_generator, "alias-free StyleGAN3 generator"),
    "other class": (lambda: stored("MyGenerator", {"_init_args": ()}), "MyGenerator"),
    "newer format": (lambda: stored("Generator", {}, version=7), "format version 7"),
    "other arguments": (
        lambda: golden_module("Generator", "skip", **GOLDEN["generators"]["skip"]["kwargs"], nonsense=1),
        "nonsense",
    ),
}


@pytest.mark.parametrize("kind", UNKNOWN_G)
def test_an_unknown_generator_is_refused_on_access(kind, tmp_path):
    make, sentence = UNKNOWN_G[kind]
    D = golden_module("Discriminator", "resnet", foreign.STYLEGAN3, **GOLDEN["discriminators"]["resnet"]["kwargs"])
    path = write(tmp_path / "net.pkl", G=make(), D=D, G_ema=make())
    snap = snapshot.load_snapshot(path)
    close(logits_of(snap["D"], "resnet"), "D.resnet.logits")
    for key in ("G", "G_ema"):
        with pytest.raises(UserError, match=rf"{key} in .*net\.pkl .*{sentence}"):
            snap[key]


@pytest.mark.parametrize("kind", UNKNOWN_G)
def test_load_network_pkl_gives_the_networks_beside_an_unknown_generator(kind, tmp_path):
    make, sentence = UNKNOWN_G[kind]
    path = write(tmp_path / "net.pkl", G=make(), D=golden_module("Discriminator", "resnet"), G_ema=make())
    with open(path, "rb") as file:
        data = legacy.load_network_pkl(file)
    assert type(data) is dict and list(data) == ["G", "D", "G_ema", "augment_pipe", "training_set_kwargs"]
    close(logits_of(data["D"], "resnet"), "D.resnet.logits")
    assert data["augment_pipe"] is None and sentence in repr(data.get("G_ema"))
    uses = [lambda G: G.z_dim, lambda G: G.to("cpu"), lambda G: G(1, 2), copy.deepcopy, pickle.dumps]
    for key in ("G", "G_ema"):
        for use in uses:
            with pytest.raises(UserError, match=rf"{key} in .*net\.pkl .*{sentence}"):
                use(data[key])


def test_load_network_pkl_refuses_a_file_without_usable_networks(tmp_path):
    path = write(tmp_path / "net.pkl", G=alias_free_generator(), G_ema=alias_free_generator())
    with open(path, "rb") as file, pytest.raises(UserError, match=r"G in .*net\.pkl is an alias-free"):
        legacy.load_network_pkl(file)


def test_every_tensor_that_does_not_fit_is_named_with_both_shapes(tmp_path):
    tensors, kwargs = golden_tensors("Discriminator", "resnet")
    del tensors["b8.skip.weight"], tensors["b4.out.bias"], tensors["b16.resample_filter"]
    tensors["b4.fc.weight"] = tensor(np.zeros((3, 5), np.float32))
    tensors["b32.conv0.bias"] = tensor(np.zeros((), np.float32))
    tensors["b32.conv7.weight"] = tensor(np.zeros((2, 2), np.float32))
    path = write(tmp_path / "net.pkl", D=module("Discriminator", tensors, init_kwargs=kwargs))
    with pytest.raises(UserError) as caught:
        snapshot.load_snapshot(path)["D"]
    sentence = str(caught.value)
    for part in (
        f"D in {path} does not fit Discriminator",
        "b8.skip.weight [16, 16, 1, 1] is missing there",
        "b4.out.bias [1] is missing there",
        "b4.fc.weight is [3, 5] there and [16, 256] here",
        "b32.conv0.bias is [] there and [16] here",
        "b32.conv7.weight [2, 2] is unknown here",
    ):
        assert part in sentence
    assert "resample_filter" not in sentence, "filters follow from the arguments"


def test_a_snapshot_may_hold_more_than_the_five_entries(tmp_path):
    path = write(tmp_path / "net.pkl", D=golden_module("Discriminator", "orig"), cur_nimg=5000, notes=["x"])
    snap = snapshot.load_snapshot(path)
    assert list(snap) == ["D", "training_set_kwargs"]


def test_a_storage_that_several_tensors_share():
    """Memo references: one storage, two views."""
    shared = Raw(storage(np.arange(6, dtype=np.float32)) + b"r\x00\x00\x00\x01")
    again = Raw(b"j\x00\x00\x00\x01")
    views = [
        call("torch._utils._rebuild_tensor_v2", source, offset, (3,), (1,), False, call("collections.OrderedDict"))
        for source, offset in ((shared, 0), (again, 3))
    ]
    first, second = safe_pickle.loads(pickled(views))
    assert first.tolist() == [0, 1, 2] and second.tolist() == [3, 4, 5]


def test_ordered_dicts_of_both_forms():
    by_pairs = call("collections.OrderedDict", [["a", 1], ["b", 2]])
    by_items = filled(call("collections.OrderedDict"), {"a": 1, "b": 2})
    assert safe_pickle.loads(pickled([by_pairs, by_items])) == [{"a": 1, "b": 2}] * 2


def test_types_as_values():
    values = [named("torch.float16"), call("torch.Size", [1, 2]), call("torch.device", "cuda", 1)]
    assert safe_pickle.loads(pickled(values)) == [torch.float16, torch.Size([1, 2]), torch.device("cuda", 1)]
    assert safe_pickle.loads(b"\x80\x02" + op("x") + b".") == "x"
