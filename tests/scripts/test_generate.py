# SPDX-License-Identifier: Apache-2.0
"""generate.py: which images, reproducibility, refusals."""

import functools
import pickle

import imageio.v2
import numpy as np
import pytest
import torch

import generate
from dnnlib.util import UserError
from tests.metrics import stand_ins
from tests.scripts.outcome import FakeVideo, pixels, refused
from torch_utils import images
from training import generation, sampling
from training.files.snapshot import save_snapshot
from training.networks import Generator


@pytest.fixture
def run_cli(run_script):
    return functools.partial(run_script, generate.main)


@pytest.mark.parametrize("channels", [1, 3])
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


def image_of(G, seed, label, trunc=None):
    """uint8 [C, H, W] of a BigGAN's seed and class."""
    z = sampling.truncated_z(np.random.RandomState(seed), (1, G.z_dim), trunc)
    c = torch.eye(G.c_dim)[[label]]
    return images.to_uint8(G(torch.from_numpy(z.astype(np.float32)), c))[0]


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


@pytest.mark.parametrize("noise_mode", ["const", "random"])
def test_a_batch_has_the_same_images(network, run_cli, noise_mode):
    path, _ = network(c_dim=2)
    flags = {"network": path, "seeds": "0-6", "class": "1", "trunc": 0.7, "noise_mode": noise_mode}
    *_, alone = run_cli(**flags, outdir="alone")
    status, _, err, together = run_cli(**flags, batch=3, outdir="together")
    assert status == 0 and "Generating 7/7" in err
    for file in sorted(alone.iterdir()):
        assert (together / file.name).read_bytes() == file.read_bytes()
    assert len(list(together.iterdir())) == 7


def test_a_batch_of_a_biggan_has_the_same_images(biggan, run_cli):
    path, G = biggan()
    status, _, _, outdir = run_cli(network=path, seeds="2-6", batch=4, **{"class": 1})
    assert status == 0 and all(
        torch.equal(pixels(outdir / f"seed{seed:04d}.png"), image_of(G, seed, 1)) for seed in range(2, 7)
    )


def test_several_classes_have_files_of_their_own_or_rows_of_a_grid(network, run_cli):
    path, _ = network(c_dim=3, channels=1)
    status, _, _, outdir = run_cli(network=path, seeds="4-5", batch=3, **{"class": "2,0"})
    names = ["seed0004-class0.png", "seed0004-class2.png", "seed0005-class0.png", "seed0005-class2.png"]
    assert status == 0 and sorted(file.name for file in outdir.iterdir()) == names
    *_, single = run_cli(network=path, seeds="5", outdir="single", **{"class": 2})
    assert (single / "seed0005.png").read_bytes() == (outdir / "seed0005-class2.png").read_bytes()

    *_, folder = run_cli(network=path, seeds="4-5,4,5,4", grid=True, outdir="grid", **{"class": "2,0"})
    assert [file.name for file in folder.iterdir()] == ["grid.png"]
    rows = [torch.cat([pixels(outdir / f"seed000{s}-class{k}.png") for s in (4, 5, 4, 5, 4)], dim=2) for k in (2, 0)]
    assert torch.equal(pixels(folder / "grid.png"), torch.cat(rows, dim=1))


def test_a_grid_of_seeds_is_nearly_square_and_ends_in_black(network, run_cli):
    path, _ = network()
    status, *_, outdir = run_cli(network=path, seeds="0-4", grid=True)
    grid = pixels(outdir / "grid.png")
    assert status == 0 and grid.shape == (3, 16, 24) and (grid[:, 8:, 16:] == 0).all()
    *_, files = run_cli(network=path, seeds="3", outdir="files")
    assert torch.equal(grid[:, 8:, :8], pixels(files / "seed0003.png"))


@pytest.fixture
def video(monkeypatch):
    """The frames of the video that is written."""
    frames = FakeVideo()
    monkeypatch.setattr(generation, "ffmpeg_available", lambda: True)
    monkeypatch.setattr(imageio.v2, "get_writer", frames.open)
    return frames


def frames_of(video):
    return [torch.from_numpy(np.array(frame)).permute(2, 0, 1) for frame in video]


def test_video_from_seed_to_seed_in_w(network, run_cli, tmp_path, video):
    path, G = network(c_dim=2)
    G.mapping.w_avg.fill_(0.3)
    save_snapshot(path, {"G_ema": G})
    flags = {"network": path, "seeds": "3,5", "class": 1, "trunc": 0.7}
    status, _, err, outdir = run_cli(**flags, video=tmp_path / "x.mp4", frames=4, fps=12, batch=3)
    assert status == 0 and "Writing video 8/8 frame" in err and (tmp_path / "x.mp4").read_bytes() == b"video"
    assert video.options["fps"] == 12 and len(video) == 8
    frames = frames_of(video)
    for seed, frame in ((3, frames[0]), (5, frames[4])):
        assert torch.equal(frame, pixels(outdir / f"seed{seed:04d}.png"))
    c = torch.eye(2)[[1]]
    a, b = (sampling.seed_to_ws(G, seed, c, 0.7) for seed in (3, 5))
    assert torch.equal(frames[1], images.to_uint8(G.synthesis(a.lerp(b, 0.25), noise_mode="const"))[0])
    assert torch.equal(frames[7], images.to_uint8(G.synthesis(b.lerp(a, 0.75), noise_mode="const"))[0])


def test_video_of_a_biggan_stays_on_arcs_within_the_bound(biggan, run_cli, tmp_path, video, monkeypatch):
    path, G = biggan()
    seen = []
    forward = type(G).forward
    monkeypatch.setattr(type(G), "forward", lambda self, z, c: seen.append((z, c)) or forward(self, z, c))
    flags = {"network": path, "seeds": "3,5,3", "class": 1, "trunc": 1, "frames": 2, "outdir": "out"}
    status, _, err, outdir = run_cli(**flags, video=tmp_path / "x.mp4")
    assert status == 0, err
    frames = frames_of(video)
    assert len(frames) == 6 and torch.equal(frames[2], pixels(outdir / "seed0005.png"))
    (first, c), (between, _), (second, _) = seen[-6:-3]
    assert c.tolist() == [[0, 1]] and torch.cat([z for z, _ in seen]).abs().max() <= 1
    mean = (first.norm() + second.norm()) / 2
    middle = ((first / first.norm() + second / second.norm()) / 2) * mean
    wanted = (middle * (mean / middle.norm())).clamp(-1, 1)
    assert torch.allclose(between, wanted, atol=1e-5)


def test_video_alone_needs_no_folder_and_projected_latents_make_one(network, tmp_path, video):
    path, G = network()
    np.savez(tmp_path / "w.npz", w=np.random.RandomState(0).randn(2, G.num_ws, G.w_dim).astype(np.float32))
    argv = [f"--network={path}", f"--projected-w={tmp_path / 'w.npz'}", f"--video={tmp_path / 'x.mp4'}"]
    generate.main([*argv, "--frames=3", "--device=cpu"], standalone_mode=False)
    assert len(video) == 6 and sorted(file.name for file in tmp_path.iterdir()) == ["network.pkl", "w.npz", "x.mp4"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"video": "x.avi"}, ["--video=x.avi", ".mp4"]),
        ({"video": "missing/x.mp4"}, ["--video=missing/x.mp4", "folder"]),
        ({"video": "x.mp4", "seeds": "1"}, ["--seeds", "two or more"]),
        ({"video": "x.mp4", "class": "0,1"}, ["--video shows one class"]),
        ({"frames": 3}, ["--frames has no effect without --video"]),
        ({"batch": 0}, ["--batch"]),
        ({"class": "0-3"}, ["--class=3 is out of range", "0 to 2"]),
    ],
)
def test_refusals_of_grids_and_videos(network, run_cli, video, flags, words):
    path, _ = network(c_dim=3)
    refused(run_cli(**{"network": path, "seeds": "0-1", "class": 0, **flags}), *words)


def test_a_video_without_ffmpeg_is_refused_before_the_network_is_read(run_cli, monkeypatch):
    monkeypatch.setattr(generation, "ffmpeg_available", lambda: False)
    refused(run_cli(network="missing.pkl", seeds="0-1", video="x.mp4"), "pip install imageio-ffmpeg")


def test_a_single_latent_makes_no_video(network, run_cli, tmp_path, video):
    path, G = network()
    np.savez(tmp_path / "w.npz", w=np.zeros([1, G.num_ws, G.w_dim], dtype=np.float32))
    flags = {"network": path, "projected_w": tmp_path / "w.npz", "video": tmp_path / "x.mp4"}
    refused(run_cli(**flags), "--projected-w", "only one")


def test_a_grid_needs_a_folder_and_memory(network, run_cli, monkeypatch):
    path, _ = network()
    with pytest.raises(generate.click.UsageError, match="--outdir is required for --grid"):
        generate.main([f"--network={path}", "--seeds=0", "--grid", "--video=x.mp4"], standalone_mode=False)
    with pytest.raises(generate.click.UsageError, match="--outdir is required"):
        generate.main([f"--network={path}", "--seeds=0"], standalone_mode=False)
    monkeypatch.setattr(generation, "MOST_GRID_BYTES", 300)
    refused(run_cli(network=path, seeds="0-1", grid=True), "--grid", "fewer --seeds")


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


@pytest.mark.parametrize("channels", [2, 4])
def test_images_that_are_neither_grey_nor_rgb_are_refused(run_cli, tmp_path, channels):
    path = save_changed(tmp_path / "net.pkl", lambda G: None, channels=channels)
    refused(run_cli(network=path, seeds="1"), f"images of {channels} channels")


def test_a_foreign_module_that_is_no_generator_is_refused(run_script, tmp_path):
    save_snapshot(tmp_path / "net.pkl", {"G_ema": torch.nn.Linear(2, 2)})
    with pytest.raises(UserError, match=r"G_ema in .*net.pkl is a Linear without z_dim"):
        sampling.open_generator(str(tmp_path / "net.pkl"), trust=True, device=torch.device("cpu"))
