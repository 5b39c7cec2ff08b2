# SPDX-License-Identifier: Apache-2.0
"""generate.py: which images, reproducibility, refusals."""

import functools
import pickle

import numpy as np
import pytest
import torch

import generate
from dnnlib.util import UserError
from tests.metrics import stand_ins
from tests.scripts.outcome import image_of, pixels, refused
from torch_utils import images
from training import sampling
from training.files.snapshot import save_snapshot
from training.networks import Generator


@pytest.fixture
def run_cli(run_script):
    return functools.partial(run_script, generate.main)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_are_those_of_the_seeds(network, run_cli, channels):
    path, G = network(channels=channels)
    status, _, err, outdir = run_cli(network=path, seeds="3,85-86", trunc=0.7)
    assert status == 0 and "Generating 3/3" in err
    assert sorted(file.name for file in outdir.iterdir()) == ["seed0003.png", "seed0085.png", "seed0086.png"]
    for seed in [3, 86]:
        z = torch.from_numpy(np.random.RandomState(seed).randn(1, G.z_dim)).float()
        img = G(z, torch.zeros(1, 0), truncation_psi=0.7, noise_mode="const")
        assert torch.equal(pixels(outdir / f"seed{seed:04d}.png"), images.to_uint8(img)[0])


@pytest.mark.parametrize("noise_mode", ["const", "random", "none"])
def test_the_same_bytes_on_every_run_and_with_any_other_seeds(network, run_cli, noise_mode):
    path, _ = network()
    *_, first = run_cli(network=path, seeds="0,1,7", noise_mode=noise_mode, outdir="first")
    *_, second = run_cli(network=path, seeds="7", noise_mode=noise_mode, outdir="second")
    assert (first / "seed0007.png").read_bytes() == (second / "seed0007.png").read_bytes()
    assert (first / "seed0000.png").read_bytes() != (first / "seed0001.png").read_bytes()


def test_noise_modes_differ(network, run_cli):
    path, _ = network()
    modes = ["const", "random", "none"]
    outdirs = [run_cli(network=path, seeds="1", noise_mode=mode, outdir=mode)[-1] for mode in modes]
    assert len({(outdir / "seed0001.png").read_bytes() for outdir in outdirs}) == 3


def test_class_of_a_conditional_network(network, run_cli):
    path, G = network(c_dim=3)
    *_, outdir = run_cli(network=path, seeds="5", **{"class": 2})
    z = torch.from_numpy(np.random.RandomState(5).randn(1, G.z_dim)).float()
    img = G(z, torch.tensor([[0.0, 0, 1]]), noise_mode="const")
    assert torch.equal(pixels(outdir / "seed0005.png"), images.to_uint8(img)[0])


def test_class_by_name(network, run_cli):
    path, _ = network(c_dim=3, notes={"class_names": ["Food & Drink", "Flags", "7"]})
    made = [
        (run_cli(network=path, seeds="5", outdir=str(i), **{"class": which})[-1] / "seed0005.png").read_bytes()
        for i, which in enumerate((1, "Flags", "flags", 2))
    ]
    assert made[0] == made[1] == made[2] != made[3]
    known = "0 Food & Drink, 1 Flags, 2 7"
    refused(run_cli(network=path, seeds="5", outdir="no", **{"class": "Flag"}), "--class=Flag:", known)
    refused(run_cli(network=path, seeds="5", outdir="no", **{"class": 7}), "--class=7 is out of range", known)
    refused(run_cli(network=path, seeds="5", outdir="no"), "choose a class with --class, 0 to 2", known)


def test_several_classes_by_name(network, run_cli):
    path, _ = network(c_dim=3, notes={"class_names": ["a, b", "c", "d"]})
    for number, which in enumerate(["c,2", "1, d"]):
        *_, outdir = run_cli(network=path, seeds="5", outdir=str(number), **{"class": which})
        assert sorted(file.name for file in outdir.iterdir()) == ["seed0005-class1.png", "seed0005-class2.png"]
    *_, outdir = run_cli(network=path, seeds="5", outdir="one", **{"class": "a, b"})
    assert [file.name for file in outdir.iterdir()] == ["seed0005.png"]
    refused(run_cli(network=path, seeds="5", outdir="no", **{"class": "c,e"}), "--class=e: the network has no class")


@pytest.mark.parametrize(
    "names", [None, ["a", "b"], ["a", "a", "b"], ["a", "b", "x" * 256], [["a"], "b", "c"], 7, {0: "a"}]
)
def test_names_that_cannot_be_used_are_none(network, run_cli, names):
    path, _ = network(c_dim=3, notes={"class_names": names})
    refused(
        run_cli(network=path, seeds="5", outdir="no", **{"class": "a"}), "--class=a: the network has no names", "0 to 2"
    )
    assert run_cli(network=path, seeds="5", **{"class": 1})[0] == 0


def test_class_of_an_unconditional_network_is_a_notice(network, run_cli):
    path, _ = network()
    status, _, err, outdir = run_cli(network=path, seeds="5", **{"class": 2})
    assert status == 0 and "--class has no effect" in err and (outdir / "seed0005.png").exists()


def test_projected_latents(network, run_cli, tmp_path):
    path, G = network()
    ws = np.random.RandomState(0).randn(2, G.num_ws, G.w_dim).astype(np.float32)
    np.savez(tmp_path / "w.npz", w=ws)
    status, _, err, outdir = run_cli(network=path, projected_w=tmp_path / "w.npz", seeds="1")
    assert status == 0 and "--seeds and --class have no effect" in err
    assert sorted(file.name for file in outdir.iterdir()) == ["proj00.png", "proj01.png"]
    img = G.synthesis(torch.from_numpy(ws[1:]), noise_mode="const")
    assert torch.equal(pixels(outdir / "proj01.png"), images.to_uint8(img)[0])


def test_latents_of_another_shape_are_refused(network, run_cli, tmp_path):
    path, G = network()
    np.savez(tmp_path / "w.npz", w=np.zeros([1, G.num_ws + 2, 512], dtype=np.float32))
    shapes = (f"[1, {G.num_ws + 2}, 512]", f"[n, {G.num_ws}, {G.w_dim}]")
    refused(run_cli(network=path, projected_w=tmp_path / "w.npz"), "--projected-w", *shapes)


def _npy(path):
    np.save(path, np.zeros(3))
    path.with_name(path.name + ".npy").rename(path)


def _other_name(path):
    with open(path, "wb") as file:
        np.savez(file, v=np.zeros([1, 2, 4]))


def _objects(path):
    with open(path, "wb") as file:
        np.savez(file, w=np.array([{}], dtype=object))


def _text(path):
    with open(path, "wb") as file:
        np.savez(file, w=np.array([["a"]]))


def _huge(path):
    with open(path, "wb") as file:
        np.savez(file, w=np.zeros(7))
    path.write_bytes(path.read_bytes().replace(b"'shape': (7,)", b"'shape': (1000000000000000,)"))


def _not_finite(path):
    with open(path, "wb") as file:
        np.savez(file, w=np.full([1, 2, 4], np.inf))


def _device(path):
    path.symlink_to("/dev/zero")


BAD_FILES = [_npy, _other_name, _objects, _text, _huge, _not_finite, _device]


@pytest.mark.parametrize("make", [lambda path: path.write_bytes(b"x" * 50), lambda path: None, *BAD_FILES])
def test_files_without_a_w_are_refused(network, run_cli, tmp_path, make):
    make(tmp_path / "w.npz")
    path, _ = network()
    refused(run_cli(network=path, projected_w=tmp_path / "w.npz"), "--projected-w", "w.npz")


@pytest.mark.parametrize(
    ("c_dim", "flags", "words"),
    [
        (3, {}, ["--class", "0 to 2"]),
        (3, {"class": 3}, ["--class=3", "0 to 2"]),
        (3, {"class": -1}, ["--class"]),
        (0, {"seeds": 2**32}, ["--seeds=4294967296"]),
        (0, {"seeds": "x"}, ["--seeds"]),
        (0, {"noise_mode": "loud"}, ["--noise-mode"]),
        (0, {"trunc": "nan"}, ["--trunc", "finite"]),
        (0, {"network": "missing.pkl"}, ["missing.pkl"]),
    ],
)
def test_refusals(network, run_cli, c_dim, flags, words):
    path, _ = network(c_dim=c_dim)
    refused(run_cli(**{"network": path, "seeds": "0", **flags}), *words)


def test_seeds_are_required(network, run_cli):
    path, _ = network()
    refused(run_cli(network=path), "--seeds")


def test_an_outdir_that_cannot_be_made_is_refused(network, run_cli, tmp_path):
    path, _ = network()
    (tmp_path / "file").write_text("in the way")
    refused(run_cli(network=path, seeds="0", outdir="file/out"), "--outdir")


def test_truncation_without_a_mean_w_is_refused(run_cli, tmp_path):
    G = Generator(4, 0, 4, 8, 3, mapping_kwargs={"num_layers": 1, "w_avg_beta": None}).eval()
    save_snapshot(tmp_path / "net.pkl", {"G_ema": G})
    refused(run_cli(network=tmp_path / "net.pkl", seeds=1, trunc=0.5), "--trunc=0.5")


@pytest.mark.parametrize("tables", [True, False])
def test_biggan_makes_images_of_seeds_in_a_class(biggan, run_cli, tables):
    path, G = biggan(c_dim=4, tables=tables)
    status, _, err, outdir = run_cli(network=path, seeds="3,5", **{"class": 3})
    assert status == 0, err
    for seed in (3, 5):
        assert torch.equal(pixels(outdir / f"seed{seed:04d}.png"), image_of(G, seed, 3))
    assert not torch.equal(image_of(G, 3, 3), image_of(G, 3, 2))


def test_trunc_of_a_biggan_bounds_its_latents(biggan, run_cli):
    path, G = biggan()
    for trunc in (0.5, 1):
        status, _, err, outdir = run_cli(network=path, seeds="3", trunc=trunc, outdir=f"out{trunc}", **{"class": 1})
        assert status == 0, err
        assert torch.equal(pixels(outdir / "seed0003.png"), image_of(G, 3, 1, trunc))
        assert not torch.equal(image_of(G, 3, 1, trunc), image_of(G, 3, 1))


@pytest.mark.parametrize("trunc", [0, -1, 1e-9])
def test_a_bound_that_no_latent_meets_is_refused(biggan, run_cli, trunc):
    path, _ = biggan()
    refused(run_cli(network=path, seeds="3", trunc=trunc, **{"class": 1}), f"--trunc={trunc:g}", "at least 0.001")


def test_what_a_biggan_lacks_is_refused_or_a_notice(biggan, run_cli, tmp_path):
    path, G = biggan()
    refused(run_cli(network=path, seeds="3"), "--class", "0 to 1")
    np.savez(tmp_path / "w.npz", w=np.zeros([1, 8, 4], dtype=np.float32))
    words = ("--projected-w needs a latent space w", "BigGANGenerator (biggan)")
    refused(run_cli(network=path, projected_w=tmp_path / "w.npz"), *words)
    status, _, err, outdir = run_cli(network=path, seeds="3", noise_mode="random", **{"class": 1})
    assert status == 0 and "--noise-mode has no effect" in err
    assert torch.equal(pixels(outdir / "seed0003.png"), image_of(G, 3, 1))


def test_a_frozen_generator_gives_the_same_images_and_is_not_stored(biggan, tmp_path):
    path, G = biggan(tables=False)
    frozen = sampling.open_generator(path, trust=False, device=torch.device("cpu"))
    z, c = torch.randn(2, G.z_dim), torch.eye(2)
    images_before = frozen(z, c)
    assert torch.equal(images_before, G(z, c)) and frozen.state_dict().keys() == G.state_dict().keys()
    for network in (G, frozen):
        for name, buffer in network.named_buffers():
            if name.endswith("u0"):
                buffer.fill_(1)
    assert torch.equal(frozen(z, c), images_before) and not torch.equal(G(z, c), images_before)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        save_snapshot(tmp_path / "frozen.pkl", {"G_ema": frozen})
    assert not (tmp_path / "frozen.pkl").exists()


def save_changed(path, change, **kwargs):
    G = stand_ins.tiny_generator(**kwargs)
    with torch.no_grad():
        change(G)
    save_snapshot(path, {"G_ema": G})
    return path


def test_a_network_with_nan_weights_makes_no_pictures(run_cli, tmp_path):
    for value in (float("nan"), float("inf")):
        path = save_changed(tmp_path / "net.pkl", lambda G, value=value: G.synthesis.b8.conv1.bias[1].fill_(value))
        refused(run_cli(network=path, seeds="1"), "synthesis.b8.conv1.bias holds NaN or infinite", "earlier snapshot")


def test_a_mean_w_of_nan_matters_only_for_truncation(run_cli, tmp_path):
    path = save_changed(tmp_path / "net.pkl", lambda G: G.mapping.w_avg.fill_(float("nan")))
    refused(run_cli(network=path, seeds="1", trunc=0.7), "--trunc=0.7", "NaN or infinite")
    assert run_cli(network=path, seeds="1")[0] == 0


@pytest.mark.parametrize("channels", [2, 5])
def test_images_that_are_neither_grey_nor_rgb_nor_rgba_are_refused(run_cli, tmp_path, channels):
    path = save_changed(tmp_path / "net.pkl", lambda G: None, channels=channels)
    refused(run_cli(network=path, seeds="1"), f"images of {channels} channels")


def test_a_foreign_module_that_is_no_generator_is_refused(run_script, tmp_path):
    save_snapshot(tmp_path / "net.pkl", {"G_ema": torch.nn.Linear(2, 2)})
    with pytest.raises(UserError, match=r"G_ema in .*net.pkl is a Linear without z_dim"):
        sampling.open_generator(str(tmp_path / "net.pkl"), trust=True, device=torch.device("cpu"))
