# SPDX-License-Identifier: Apache-2.0
"""BigGAN's arguments in files: whatever is accepted runs, within limits; networks come back bit for bit."""

import copy

import pytest
import torch

from dnnlib.util import UserError
from tests.compat import canary
from tests.training.files import biggan_checkpoint
from torch_utils.safe_pickle import StoredObject
from training.families import biggan_arguments
from training.families.biggan import place
from training.files.snapshot import load_snapshot, rebuild, save_snapshot
from training.networks_biggan import BigGANDiscriminator, BigGANGenerator

SHAPE = {"c_dim": 2, "img_resolution": 32, "img_channels": 3}
NETWORKS = {
    BigGANGenerator: {**SHAPE, "z_dim": 4, "ch": 2, "shared_dim": 3, "attn_res": [16]},
    BigGANDiscriminator: {**SHAPE, "ch": 2, "attn_res": [16]},
}
NAMES = {cls: [*kwargs, "sn_eps", "init", *(["hierarchical"] if "z_dim" in kwargs else [])] for cls, kwargs in
         NETWORKS.items()}  # fmt: skip
VALUES = [
    *(0, 1, 2, 3, 4, 5, -1, 32, 33, 64, 2**20, 2**21, 10**40, True, False, None, 0.0, 0.5, 1.0, 32.0, -0.5, 1e300),
    *(float("nan"), float("inf"), "ortho", "N02", "", "32", [], [1], [8, 16], (16,), [16.0], [True], [-16, 15, 10**6]),
    *([[16]], [None], ["a"], {}, {"a": 1}, [8] * 33),
]


def run(network: torch.nn.Module) -> torch.Tensor:
    c = torch.eye(network.c_dim)[:1]
    if isinstance(network, BigGANGenerator):
        return network(torch.ones(1, network.z_dim), c)
    return network(torch.ones(1, network.img_channels, network.img_resolution, network.img_resolution), c)


def stored(cls: type, kwargs: dict) -> StoredObject:
    """A network as a file has it; without tensors if our own constructor fails."""
    try:
        tensors = dict(cls(**kwargs).state_dict())
    except Exception:
        tensors = {"x": torch.zeros(1)}
    return StoredObject.of(cls.__name__, kwargs, tensors)


@pytest.mark.parametrize(("cls", "name"), [(cls, name) for cls in NETWORKS for name in NAMES[cls]])
def test_whatever_is_accepted_runs(cls, name):
    seen = {"accepted": 0, "refused": 0}
    large = name in ("c_dim", "shared_dim", "ch", "img_channels", "z_dim", "img_resolution")
    for value in VALUES:
        kwargs = {**copy.deepcopy(NETWORKS[cls]), name: value}
        if large and isinstance(value, int) and value > 64:
            content = StoredObject.of(cls.__name__, kwargs, {"x": torch.zeros(1)})
        else:
            content = stored(cls, kwargs)
        try:
            with canary.at_most(1 << 29):
                network = rebuild(content, "net")
        except UserError as error:
            assert not canary.ran_out(error) and str(error).startswith("net ") and str(error).isprintable()
            seen["refused"] += 1
            continue
        with torch.no_grad():
            assert run(network).isfinite().all() or name == "sn_eps", (name, value)  # a large floor: large images
        seen["accepted"] += 1
    assert all(seen.values()), seen


@pytest.mark.parametrize("cls", NETWORKS)
def test_missing_and_unknown_arguments_are_named(cls):
    for name in ("c_dim", "img_resolution", "img_channels"):
        kwargs = {key: value for key, value in NETWORKS[cls].items() if key != name}
        with pytest.raises(UserError, match=rf"^net has arguments .*{name} is missing"):
            rebuild(stored(cls, kwargs), "net")
    with pytest.raises(UserError, match=r"^net has arguments .*layers is unknown"):
        rebuild(stored(cls, {**NETWORKS[cls], "layers": 3}), "net")


@pytest.mark.parametrize("cls", NETWORKS)
def test_arguments_by_position(cls):
    names = [*biggan_arguments._ARGUMENTS[cls.__name__]]
    kwargs = {"hierarchical": True, **NETWORKS[cls]}
    args = tuple(kwargs[name] for name in names)
    network = cls(*args)
    rebuilt = rebuild(StoredObject.of(cls.__name__, {}, dict(network.state_dict()), args), "net")
    assert rebuilt.init_args == () and rebuilt.init_kwargs == dict(zip(names, args))
    with pytest.raises(UserError, match="positional arguments"):
        rebuild(StoredObject.of(cls.__name__, {}, dict(network.state_dict()), (*args, 1e-6, "ortho", 1)), "net")


@pytest.mark.parametrize("resolution", biggan_arguments.RESOLUTIONS)
@pytest.mark.parametrize("cls", NETWORKS)
def test_the_largest_layer_is_that_of_a_pass(cls, resolution):
    kwargs = {**NETWORKS[cls], "img_resolution": resolution, "attn_res": [16], "ch": 8}
    kwargs |= {"z_dim": resolution.bit_length() - 2} if "z_dim" in kwargs else {}
    largest = [0]

    def watch(_module, inputs, output):
        largest[0] = max([largest[0], *(tensor.numel() for tensor in (*inputs, output))])

    network = cls(**{**kwargs, "init": "N02"}).eval()
    for module in network.modules():
        if hasattr(module, "normalised_weight"):
            module.register_forward_hook(watch)
    with torch.no_grad():
        run(network)
    assert biggan_arguments.largest_layer(cls.__name__, kwargs) == largest[0]


def test_attention_counts_by_its_weights():
    kwargs = {**NETWORKS[BigGANGenerator], "img_resolution": 256, "z_dim": 7, "ch": 8}
    sizes = [
        biggan_arguments.largest_layer("BigGANGenerator", {**kwargs, "attn_res": [side]}) for side in (33, 128, 256)
    ]
    assert sizes == [16 * 256**2, 128**2 * 64**2, 256**2 * 128**2]
    content = StoredObject.of("BigGANGenerator", {**kwargs, "attn_res": [256]}, {"x": torch.zeros(1)})
    with pytest.raises(UserError, match="a layer of 1073741824 values for one image, although the file is small"):
        rebuild(content, "net")


RECIPES = {
    "as for ImageNet": biggan_checkpoint.IMAGENET,
    "as for CIFAR-10": biggan_checkpoint.CIFAR,
    "shared, whole latents": {"z_dim": 5, "ch": 1, "shared_dim": 4, "hierarchical": False, "attn_res": ()},
    "tables and attention": {**biggan_checkpoint.CIFAR, "ch": 2, "attn_res": (8, 32), "sn_eps": 0.5, "init": "N02"},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_networks_come_back_bit_for_bit(recipe, tmp_path):
    data = biggan_checkpoint.networks(**RECIPES[recipe])
    save_snapshot(tmp_path / "x.pkl", data)
    snap = load_snapshot(tmp_path / "x.pkl")
    for key, network in data.items():
        ours, theirs = network.state_dict(), snap[key].state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert snap[key].init_kwargs == network.init_kwargs and not snap[key].training
        with torch.no_grad():
            assert torch.equal(run(snap[key]), run(network))


def test_a_generator_of_a_run_on_several_processes_is_stored_without_them(tmp_path):
    class Options:
        num_gpus = 2
        family_kwargs: dict = {}

    data = biggan_checkpoint.networks()
    place(data["G"], Options)
    norms = [module for module in data["G"].modules() if hasattr(type(module), "sum_processes")]
    assert all(norm.sum_processes is not None for norm in norms) and norms
    save_snapshot(tmp_path / "x.pkl", data)
    stored_state = load_snapshot(tmp_path / "x.pkl")["G"]
    for G in (stored_state, copy.deepcopy(data["G"])):
        assert not any("sum_processes" in vars(module) for module in G.modules())
        assert torch.equal(run(G), run(data["G"]))
    assert b"sum_processes" not in without_source((tmp_path / "x.pkl").read_bytes())
    assert all(norm.sum_processes is not None for norm in norms), "the run itself goes on as before"


def without_source(content: bytes) -> bytes:
    source = BigGANGenerator._persistent_source.encode()
    assert content.count(source) == 1
    return content.replace(source, b"")


def operations(work) -> set[str]:
    with torch.autograd.profiler.profile() as profile:
        work()
    return {event.name for event in profile.function_events}


def test_opening_draws_no_initial_weights(tmp_path):
    """Orthogonal matrices take half a minute at ch 96."""
    save_snapshot(tmp_path / "x.pkl", biggan_checkpoint.networks())
    before = torch.get_rng_state()
    snap = load_snapshot(tmp_path / "x.pkl")
    initial = {"aten::linalg_qr", "aten::randn", "aten::rand"}
    assert not operations(lambda: (snap["G"], snap["D"])) & initial
    assert torch.equal(torch.get_rng_state(), before)
    assert operations(biggan_checkpoint.networks) >= initial
