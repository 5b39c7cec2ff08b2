# SPDX-License-Identifier: Apache-2.0
"""projector.py: output files, reproducibility, folders and batches, refusals."""

import errno
import functools

import imageio.v2
import numpy as np
import PIL.Image
import pytest
import torch

import generate
import projector
from metrics import detectors
from tests.metrics import stand_ins
from tests.scripts.outcome import FakeVideo, pixels, refused
from tests.training import in_place_networks
from torch_utils import persistence
from torch_utils.images import on_white
from training import projection_files
from training.files.snapshot import save_snapshot


@pytest.fixture
def run_cli(run_script, tmp_path):
    """`run_script` for the projector, with a stand-in detector and few steps."""
    detector = stand_ins.save_detector(stand_ins.VGG16(), tmp_path / "lpips.pt")
    return functools.partial(run_script, projector.main, detector=detector, num_steps=4)


@pytest.fixture(autouse=True)
def no_ffmpeg(monkeypatch):
    """Independent of what is installed; the tests of videos override it."""
    monkeypatch.setattr(projection_files, "ffmpeg_available", lambda: False)


def make_target(path, mode="RGB", size=(8, 8), seed=0):
    path.parent.mkdir(exist_ok=True)
    noise = np.random.RandomState(seed).randint(0, 256, [size[1], size[0], 3], dtype=np.uint8)
    PIL.Image.fromarray(noise).convert(mode).save(path)
    return path


def projected_w(outdir):
    with np.load(outdir / "projected_w.npz") as arrays:
        return arrays["w"]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_results_of_one_image(network, run_cli, run_script, tmp_path, channels):
    path, G = network(channels=channels, resolution=16)
    target = make_target(tmp_path / "me.png", {1: "L", 3: "RGB", 4: "RGBA"}[channels], (16, 16))
    status, out, err, outdir = run_cli(network=path, target=target)
    assert status == 0 and "LPIPS distance" in out and "Projecting 4/4 step" in err
    assert {file.name for file in outdir.iterdir()} == {"target.png", "proj.png", "projected_w.npz", "proj_frames"}
    assert torch.equal(pixels(outdir / "target.png"), pixels(target))

    w = projected_w(outdir)
    assert w.shape == (1, G.num_ws, G.w_dim) and w.dtype == np.float32
    *_, generated = run_script(generate.main, "generated", network=path, projected_w=outdir / "projected_w.npz")
    assert (generated / "proj00.png").read_bytes() == (outdir / "proj.png").read_bytes()


def test_frames_show_the_target_and_each_step(network, run_cli, tmp_path):
    path, _ = network()
    status, out, _, outdir = run_cli(network=path, target=make_target(tmp_path / "me.png"))
    assert status == 0 and "no ffmpeg" in out
    frames = sorted((outdir / "proj_frames").iterdir())
    assert [file.name for file in frames] == [f"frame{i:04d}.png" for i in range(4)]
    for file in frames:
        assert torch.equal(pixels(file)[:, :, :8], pixels(outdir / "target.png"))
    assert torch.equal(pixels(frames[-1])[:, :, 8:], pixels(outdir / "proj.png"))
    assert not torch.equal(pixels(frames[0])[:, :, 8:], pixels(outdir / "proj.png"))


def test_frames_of_an_earlier_longer_run_are_deleted(network, run_cli, tmp_path):
    path, _ = network()
    target = make_target(tmp_path / "me.png")
    run_cli(network=path, target=target, num_steps=6)
    *_, outdir = run_cli(network=path, target=target, num_steps=2)
    assert len(list((outdir / "proj_frames").iterdir())) == 2


def test_without_ffmpeg_a_long_run_has_a_hundred_frames(monkeypatch):
    steps = projection_files.choose_frames(1000)
    assert len(set(steps)) == 100 and steps == sorted(steps) and (steps[0], steps[-1]) == (0, 999)
    assert projection_files.choose_frames(100) == list(range(100))
    monkeypatch.setattr(projection_files, "ffmpeg_available", lambda: True)
    assert projection_files.choose_frames(1000) == list(range(1000))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_video_with_ffmpeg(network, run_cli, tmp_path, monkeypatch, channels):
    video = FakeVideo()
    monkeypatch.setattr(projection_files, "ffmpeg_available", lambda: True)
    monkeypatch.setattr(imageio.v2, "get_writer", video.open)
    path, _ = network(channels=channels)
    status, out, _, outdir = run_cli(network=path, target=make_target(tmp_path / "me.png"))
    assert status == 0 and "Note" not in out and video.options["format"] == "FFMPEG"
    assert {file.name for file in outdir.iterdir()} == {"target.png", "proj.png", "projected_w.npz", "proj.mp4"}
    assert (outdir / "proj.mp4").read_bytes() == b"video"
    assert [video.options[key] for key in ("fps", "codec", "bitrate")] == [10, "libx264", "16M"]
    assert len(video) == 4 and all(frame.shape == (8, 16, 3) and frame.dtype == np.uint8 for frame in video)
    last = torch.from_numpy(video[-1].copy()).permute(2, 0, 1)
    shown = on_white(pixels(outdir / "proj.png").unsqueeze(0))[0]
    assert torch.equal(last[: len(shown), :, 8:], shown)


def test_what_an_earlier_run_left_of_the_other_kind_goes(network, run_cli, tmp_path, monkeypatch):
    path, _ = network()
    flags = {"network": path, "target": make_target(tmp_path / "me.png")}
    outdir = run_cli(**flags)[-1]
    assert (outdir / "proj_frames" / "frame0000.png").is_file()
    with monkeypatch.context() as patch:
        patch.setattr(projection_files, "ffmpeg_available", lambda: True)
        patch.setattr(imageio.v2, "get_writer", FakeVideo().open)
        run_cli(**flags)
        assert (outdir / "proj.mp4").is_file() and not (outdir / "proj_frames").exists()
        (outdir / "proj_frames").mkdir()
        (outdir / "proj_frames" / "notes.txt").touch()
        run_cli(**flags)
        assert (outdir / "proj_frames" / "notes.txt").is_file()
    run_cli(**flags)
    assert (outdir / "proj_frames" / "frame0003.png").is_file() and not (outdir / "proj.mp4").exists()


def test_save_video_off(network, run_cli, tmp_path):
    path, _ = network()
    status, out, _, outdir = run_cli(network=path, target=make_target(tmp_path / "me.png"), save_video="no")
    assert status == 0 and "Note" not in out
    assert {file.name for file in outdir.iterdir()} == {"target.png", "proj.png", "projected_w.npz"}


def test_the_same_bytes_on_every_run_with_a_seed(network, run_cli, tmp_path):
    path, _ = network()
    flags = {"network": path, "target": make_target(tmp_path / "me.png"), "save_video": 0}
    first, again, other = (run_cli(outdir=f"{i}", seed=seed, **flags)[-1] for i, seed in enumerate([7, 7, 8]))
    assert (first / "proj.png").read_bytes() == (again / "proj.png").read_bytes()
    assert np.array_equal(projected_w(first), projected_w(again))
    assert not np.array_equal(projected_w(first), projected_w(other))


@pytest.mark.parametrize(("size", "box"), [((30, 20), (5, 0, 25, 20)), ((21, 40), (0, 9, 21, 30)), ((5, 5), None)])
def test_targets_of_any_size_are_cropped_and_resized(network, run_cli, tmp_path, size, box):
    path, _ = network()
    target = make_target(tmp_path / "me.png", size=size)
    *_, outdir = run_cli(network=path, target=target, save_video=0)
    image = PIL.Image.open(target).crop(box) if box else PIL.Image.open(target)
    expected = np.array(image.resize((8, 8), PIL.Image.Resampling.LANCZOS))
    assert np.array_equal(pixels(outdir / "target.png").permute(1, 2, 0), expected)


@pytest.mark.parametrize(("name", "mode"), [("a.png", "RGBA"), ("a.png", "P"), ("a.jpg", "CMYK"), ("a.webp", "RGB")])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_targets_of_any_kind_get_the_channels_of_the_network(tmp_path, name, mode, channels):
    targets = projection_files.read_targets(str(make_target(tmp_path / name, mode)), 16, channels)
    assert list(targets) == [""] and targets[""].shape == (channels, 16, 16) and targets[""].dtype == torch.uint8


def test_a_folder_of_images(network, run_cli, tmp_path):
    path, _ = network()
    for seed, name in enumerate(["b.png", "a.png", "c.png", "c.webp"]):
        make_target(tmp_path / "photos" / name, seed=seed)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    make_target(tmp_path / "photos" / "out" / "proj.png")
    flags = {"network": path, "target": tmp_path / "photos", "save_video": 0}
    status, out, err, outdir = run_cli(batch=3, **flags)
    assert status == 0 and out.count("LPIPS") == 4 and "Projecting 8/8" in err
    assert {file.name for file in outdir.iterdir()} == {"a", "b", "c.png", "c.webp"}
    assert torch.equal(pixels(outdir / "b" / "target.png"), pixels(tmp_path / "photos" / "b.png"))

    *_, singly = run_cli(outdir="singly", batch=1, **flags)
    *_, alone = run_cli(outdir="alone", **{**flags, "target": tmp_path / "photos" / "b.png"})
    np.testing.assert_allclose(projected_w(outdir / "b"), projected_w(alone), atol=1e-3)
    assert np.array_equal(projected_w(singly / "b"), projected_w(alone))
    assert np.abs(projected_w(outdir / "a") - projected_w(outdir / "b")).max() > 1e-2


def test_videos_of_a_folder(network, run_cli, tmp_path):
    path, _ = network()
    for seed, name in enumerate(["a.png", "b.png"]):
        make_target(tmp_path / "photos" / name, seed=seed)
    status, _, err, outdir = run_cli(network=path, target=tmp_path / "photos")
    assert status == 0 and "Writing video 8/8 frame" in err
    assert torch.equal(pixels(outdir / "b" / "proj_frames" / "frame0003.png")[:, :, 8:], pixels(outdir / "b/proj.png"))


def test_class_of_a_conditional_network(network, run_cli, tmp_path):
    path, _ = network(c_dim=2)
    flags = {"network": path, "target": make_target(tmp_path / "me.png"), "save_video": 0}
    zero, one = (run_cli(outdir=f"{i}", **{"class": i}, **flags) for i in range(2))
    assert zero[0] == one[0] == 0
    assert not np.array_equal(projected_w(zero[-1]), projected_w(one[-1]))
    refused(run_cli(outdir="none", **flags), "--class, 0 to 1")
    refused(run_cli(outdir="none", **{"class": 2}, **flags), "--class=2")


def _truncated(path):
    make_target(path, size=(50, 50))
    path.write_bytes(path.read_bytes()[:500])


@pytest.mark.parametrize(
    "make",
    [_truncated, lambda path: path.write_bytes(b""), lambda path: path.write_text("no image"), lambda path: None],
)
def test_unreadable_targets_are_refused(network, run_cli, tmp_path, make):
    make(tmp_path / "me.png")
    path, _ = network()
    refused(run_cli(network=path, target=tmp_path / "me.png"), "--target=", "me.png")


def test_one_bad_image_in_a_folder_is_found_before_any_work(network, run_cli, tmp_path):
    path, _ = network()
    make_target(tmp_path / "photos" / "a.png")
    _truncated(tmp_path / "photos" / "b.png")
    refused(run_cli(network=path, target=tmp_path / "photos"), "--target=", "b.png")


def test_a_folder_without_images_is_refused(network, run_cli, tmp_path):
    path, _ = network()
    (tmp_path / "photos").mkdir()
    refused(run_cli(network=path, target=tmp_path / "photos"), "--target=", "without images")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"num_steps": 0}, ["--num-steps"]),
        ({"num_steps": 10**11}, ["--num-steps"]),
        ({"target": "/dev/zero"}, ["--target=/dev/zero", "not a regular file"]),
        ({"batch": 0}, ["--batch"]),
        ({"seed": -1}, ["--seed"]),
        ({"seed": 2**32}, ["--seed"]),
        ({"network": "missing.pkl"}, ["missing.pkl"]),
        ({"detector": "missing.pt"}, ["--detector", "missing.pt"]),
        ({"target": "missing.png"}, ["--target=missing.png"]),
    ],
)
def test_refusals(network, run_cli, tmp_path, flags, words):
    path, _ = network()
    refused(run_cli(**{"network": path, "target": make_target(tmp_path / "me.png"), **flags}), *words)


def test_a_network_without_w_is_refused(biggan, run_cli, tmp_path):
    path, _ = biggan()
    flags = {"network": path, "target": make_target(tmp_path / "me.png", size=(32, 32)), "class": 1}
    refused(run_cli(**flags), "Projection needs a latent space w", "BigGANGenerator (biggan)")


def test_a_detector_without_lpips_is_refused(network, run_cli, tmp_path):
    path, _ = network()
    detector = stand_ins.save_detector(stand_ins.Inception(), tmp_path / "inception.pt")
    target = make_target(tmp_path / "me.png")
    refused(run_cli(network=path, target=target, detector=detector), "'inception'", "return_lpips", "--detector")


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_need_no_detector(network, run_script, tmp_path, monkeypatch, channels):
    monkeypatch.setattr(detectors, "locate", None)
    path, _ = network(channels=channels)
    flags = {"network": path, "target": make_target(tmp_path / "me.png"), "num_steps": 3, "save_video": 0}
    status, out, *_ = run_script(projector.main, detector="pixels", trust_detector=True, **flags)
    assert status == 0 and "pixel distance" in out and "LPIPS" not in out


def test_without_the_default_detector_nothing_is_written(network, run_script, tmp_path, monkeypatch):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(detectors, "BASE_URL", "http://127.0.0.1:9/metrics")
    path, _ = network()
    result = run_script(projector.main, network=path, target=make_target(tmp_path / "me.png"))
    refused(result, "vgg16.pt", "--detector=pixels", str(tmp_path / "cache"))


def test_an_outdir_that_cannot_be_made_is_refused(network, run_cli, tmp_path):
    path, _ = network()
    (tmp_path / "file").write_text("in the way")
    refused(run_cli(network=path, target=make_target(tmp_path / "me.png"), outdir="file/out"), "--outdir")


def test_a_full_disk_leaves_complete_files_only(network, run_cli, tmp_path, monkeypatch):
    path, _ = network()
    target = make_target(tmp_path / "me.png")

    def savez(file, **arrays):
        file.write(b"half of")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", savez)
    status, _, err, outdir = run_cli(network=path, target=target)
    assert status == 2 and "--outdir" in err and "No space left" in err and "Traceback" not in err
    assert {file.name for file in outdir.iterdir()} == {"target.png", "proj.png"}


def test_the_code_in_a_trusted_pickle_is_differentiated(run_cli, tmp_path, monkeypatch):
    """It changes the outputs of our operations in place."""
    monkeypatch.setattr(persistence, "_classes", {})
    G = in_place_networks.Generator(8, 0, 8, 16, 3, synthesis_kwargs={"channel_base": 128, "channel_max": 8})
    G.mapping(torch.randn(64, 8), torch.zeros(64, 0))
    path = tmp_path / "net.pkl"
    save_snapshot(path, {"G": None, "D": None, "G_ema": G, "augment_pipe": None, "training_set_kwargs": {}})
    target = make_target(tmp_path / "me.png", size=(16, 16))
    status, _out, err, outdir = run_cli(network=path, target=target, trust_pickle=True)
    assert status == 0, err
    w = torch.from_numpy(projected_w(outdir))[0]
    assert w.isfinite().all() and not torch.equal(w, G.mapping.w_avg.expand_as(w))
