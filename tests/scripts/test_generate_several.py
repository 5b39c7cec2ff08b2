# SPDX-License-Identifier: Apache-2.0
"""generate.py: batches, several classes, grids, videos."""

import functools

import imageio.v2
import numpy as np
import pytest
import torch

import generate
from tests.scripts.outcome import FakeVideo, image_of, pixels, refused
from torch_utils import images
from training import generation, sampling
from training.files.snapshot import save_snapshot


@pytest.fixture
def run_cli(run_script):
    return functools.partial(run_script, generate.main)


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
