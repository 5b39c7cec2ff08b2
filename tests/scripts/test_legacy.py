# SPDX-License-Identifier: Apache-2.0
"""legacy.py: old pickles are converted with unchanged numbers, or refused without leaving files."""

import errno
import io
import os
import pathlib
import pickle
import sys

import numpy as np
import pytest
import torch

import dnnlib.cli
import legacy
from dnnlib.util import UserError
from tests.metrics import stand_ins
from tests.support import golden_arrays, golden_json, rnd
from tests.training.files import rosinality_checkpoint, tensorflow_pickle
from torch_utils import misc, persistence
from training import augment, networks
from training.files import legacy as legacy_files
from training.files import snapshot

KEYS = ["G", "D", "G_ema", "augment_pipe", "training_set_kwargs"]


@persistence.persistent_class
class Custom(torch.nn.Module):
    """A network that this project does not know."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(3.0))


class Evil:
    def __reduce__(self):
        return print, ("code from the pickle ran",)


@pytest.fixture
def tensorflow(tmp_path):
    """Path of the golden unconditional TensorFlow pickle."""
    return tensorflow_pickle.write(tmp_path / "tf.pkl", tensorflow_pickle.golden_networks("uncond"))


@pytest.fixture
def ours(tmp_path):
    """(path, content) of a conditional snapshot of this project with all entries."""
    data = {
        "G": networks.Generator(4, 2, 4, 16, 1, {"num_layers": 1}, {"channel_base": 64, "channel_max": 8}),
        "D": networks.Discriminator(2, 16, 1, channel_base=64, channel_max=8, block_kwargs={"freeze_layers": 1}),
        "G_ema": networks.Generator(4, 2, 4, 16, 1, {"num_layers": 1}, {"channel_base": 64, "channel_max": 8}),
        "augment_pipe": augment.AugmentPipe(xflip=1),
        "training_set_kwargs": {"path": "x.zip"},
    }
    snapshot.save_snapshot(tmp_path / "ours.pkl", data)
    return str(tmp_path / "ours.pkl"), data


@pytest.fixture
def convert(monkeypatch, capsys, tmp_path):
    """Run the command in this process: `convert(source, *flags)` -> (exit status, stderr, dest)."""

    def run(source, *flags, dest="new.pkl"):
        monkeypatch.setattr(sys, "argv", ["legacy.py", f"--source={source}", f"--dest={tmp_path / dest}", *flags])
        with pytest.raises(SystemExit) as exit_info:
            dnnlib.cli.run(legacy.main)
        return exit_info.value.code, capsys.readouterr().err, tmp_path / dest

    return run


def tensors(network):
    return dict(misc.named_params_and_buffers(network))


def same(a, b):
    a, b = tensors(a), tensors(b)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def load(path, **kwargs):
    with open(path, "rb") as file:
        return legacy.load_network_pkl(file, **kwargs)


def refused(result, *words):
    """Assert status 2, one sentence with `words`, and no file written."""
    status, err, dest = result
    message = err[err.index("Error: ") :]
    assert status == 2 and "Traceback" not in err and message.strip().count("\n") == 0
    for word in words:
        assert word in message
    assert not dest.is_file() and [name for name in os.listdir(dest.parent) if name.endswith(".tmp")] == []


def test_tensorflow_networks(tensorflow):
    data = load(tensorflow)
    assert type(data) is dict and list(data) == KEYS
    assert data["training_set_kwargs"] is None and data["augment_pipe"] is None
    assert data["G_ema"].init_kwargs == golden_json("legacy_tf")["uncond"]["G_init_kwargs"]
    img = data["G_ema"](rnd("z", (4, 16)), torch.zeros(4, 0), noise_mode="const")
    assert np.allclose(img, golden_arrays("legacy_tf")["uncond.img_const"], rtol=0, atol=1e-4)


def test_networks_of_this_project(ours):
    path, expected = ours
    data = load(path)
    assert list(data) == KEYS and data["training_set_kwargs"] == {"path": "x.zip"}
    for key in KEYS[:4]:
        assert type(data[key]) is type(expected[key]) and same(data[key], expected[key])
        assert not data[key].training and not any(t.requires_grad for t in tensors(data[key]).values())


def test_files_in_memory_and_networks_left_out(ours):
    file = io.BytesIO()
    pickle.dump({"G_ema": ours[1]["G_ema"]}, file)
    file.seek(0)
    data = legacy.load_network_pkl(file)
    assert same(data["G_ema"], ours[1]["G_ema"]) and [key for key in KEYS if data[key] is not None] == ["G_ema"]
    with pytest.raises(UserError, match="the network pickle"):
        legacy.load_network_pkl(io.BytesIO(b"nothing"))
    with pytest.raises(UserError, match="print"):
        legacy.load_network_pkl(io.BytesIO(pickle.dumps({"G": Evil()})))


def test_force_fp16(ours, tensorflow):
    before = torch.get_rng_state()
    for path in (ours[0], tensorflow):
        plain, half = load(path), load(path, force_fp16=True)
        for key in ("G", "D", "G_ema"):
            kwargs, half_kwargs = plain[key].init_kwargs, half[key].init_kwargs
            (kwargs if key == "D" else kwargs["synthesis_kwargs"]).update(num_fp16_res=4, conv_clamp=256)
            assert half_kwargs == kwargs and same(plain[key], half[key])
            assert not half[key].training and not any(t.requires_grad for t in tensors(half[key]).values())
        assert not plain["G_ema"].synthesis.b8.use_fp16 and not plain["D"].b8.use_fp16
        for block in (half["G"].synthesis.b8, half["G_ema"].synthesis.b16, half["D"].b8, half["D"].b16):
            assert block.use_fp16 and block.conv1.conv_clamp == 256
        assert (half["augment_pipe"] is None) == (plain["augment_pipe"] is None)
    assert torch.equal(before, torch.get_rng_state())


def test_conversion(tensorflow, convert):
    status, err, dest = convert(tensorflow)
    assert status == 0 and err == ""
    data, expected = snapshot.load_snapshot(dest), load(tensorflow)
    assert set(data) == {"G", "D", "G_ema"}
    assert all(same(data[key], expected[key]) for key in data)
    with open(dest, "rb") as file:
        plain = pickle.load(file)
    assert sorted(plain) == sorted(KEYS) and same(plain["D"], expected["D"])


@pytest.mark.parametrize(
    ("flags", "num_fp16_res"),
    [(["--force-fp16"], 4), (["--force-fp16=1"], 4), (["--force-fp16", "True"], 4), (["--force-fp16=0"], 0)],
    ids=str,
)
def test_conversion_to_half_precision(tensorflow, convert, flags, num_fp16_res):
    status, _, dest = convert(tensorflow, *flags)
    assert status == 0
    assert snapshot.load_snapshot(dest)["D"].init_kwargs.get("num_fp16_res", 0) == num_fp16_res
    refused(convert(tensorflow, "--force-fp16=maybe", dest="other.pkl"), "--force-fp16", "maybe")


def test_a_network_without_half_precision_is_refused(convert, tmp_path):
    path = str(tmp_path / "biggan.pkl")
    snapshot.save_snapshot(path, {"G": None, "D": None, "G_ema": stand_ins.tiny_biggan()})
    refused(convert(path, "--force-fp16"), "--force-fp16", "BigGANGenerator", "full precision")


def test_conversion_in_place(ours, convert):
    path, expected = ours
    assert convert(path, dest="ours.pkl")[0] == 0
    data = load(path)
    assert same(data["G"], expected["G"]) and data["training_set_kwargs"] == {"path": "x.zip"}


def test_custom_networks_need_trust(convert, tmp_path):
    path = tmp_path / "custom.pkl"
    path.write_bytes(pickle.dumps({"G": Custom(), "D": None, "G_ema": Custom()}))
    refused(convert(path), "G in", "'Custom'")
    refused(convert(path, "--trust-pickle", "--force-fp16"), "--force-fp16", "--trust-pickle")
    status, _, dest = convert(path, "--trust-pickle")
    assert status == 0
    with open(dest, "rb") as file:
        assert same(pickle.load(file)["G_ema"], Custom())


def test_sources_that_cannot_be_converted(convert, tmp_path, capsys):
    refused(convert(tmp_path / "none.pkl"), "none.pkl")
    refused(convert(tmp_path), "is a folder")
    (tmp_path / "a.pkl").write_bytes(b"text")
    refused(convert(tmp_path / "a.pkl"), "a.pkl")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"G": Evil()}))
    refused(convert(tmp_path / "a.pkl"), "a.pkl", "print", "--trust-pickle")
    assert "ran" not in capsys.readouterr().out


def test_tensorflow_networks_that_cannot_be_converted(convert, tmp_path):
    G, D, Gs = tensorflow_pickle.golden_networks("uncond")
    D.static_kwargs["blur_filter"] = [1, 2, 1]
    refused(convert(tensorflow_pickle.write(tmp_path / "tf.pkl", (G, D, Gs))), "D in", "tf.pkl", "blur_filter")
    G.version = 3
    refused(convert(tensorflow_pickle.write(tmp_path / "tf.pkl", (G, D, Gs))), "G in", "tf.pkl", "version 3")


def test_destinations_that_cannot_be_written(ours, convert, tmp_path, monkeypatch):
    refused(convert(ours[0], dest=os.path.join("ours.pkl", "new.pkl"))[:2] + (tmp_path / "x",), "--dest", "new.pkl")
    (tmp_path / "folder").mkdir()
    refused(convert(ours[0], dest="folder"), "--dest", "folder")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pickle, "dump", full)
    before = pathlib.Path(ours[0]).read_bytes()
    status, err, dest = convert(ours[0], dest="ours.pkl")
    assert status == 2 and "No space left" in err and "--dest" in err
    assert dest.read_bytes() == before and sorted(os.listdir(tmp_path)) == ["folder", "ours.pkl"]


def test_both_flags_are_required(convert, monkeypatch, capsys):
    for flag in ("--source=a.pkl", "--dest=b.pkl"):
        monkeypatch.setattr(sys, "argv", ["legacy.py", flag])
        with pytest.raises(SystemExit) as exit_info:
            dnnlib.cli.run(legacy.main)
        assert exit_info.value.code == 2 and "--" in capsys.readouterr().err


def test_rosinality_layout_and_back(convert, tmp_path, capsys):
    """Networks, their outputs and the mean w are the same afterwards; what the layout lacks is said."""
    widths = {"channel_base": 100, "channel_max": 8}
    G = networks.Generator(8, 0, 8, 16, 3, {"num_layers": 2}, {**widths, "conv_clamp": 256})
    G.mapping.w_avg.copy_(rnd("w_avg", (8,)))
    D = networks.Discriminator(0, 16, 3, **widths)
    content = {"G": G, "D": D, "G_ema": G, "augment_pipe": augment.AugmentPipe(xflip=1)}
    snapshot.save_snapshot(tmp_path / "a.pkl", content)
    status, _, dest = convert(tmp_path / "a.pkl", dest="a.pt")
    assert status == 0
    assert set(torch.load(dest, weights_only=True)) == {"g", "d", "g_ema", "latent_avg"}
    status, _, dest = convert(dest, dest="b.pkl")
    again = load(dest)
    assert status == 0 and [key for key in KEYS if again[key] is not None] == ["G", "D", "G_ema"]
    assert same(again["G"], G) and same(again["D"], D) and same(again["G_ema"], G)
    z = rnd("z", (4, 8))
    images = [net(z, None, truncation_psi=0.5, noise_mode="const") for net in (again["G_ema"], G.eval())]
    assert torch.equal(*images)


def test_what_rosinality_layout_lacks_is_said(convert, tmp_path, ours, monkeypatch, capsys):
    G = networks.Generator(8, 0, 8, 16, 3, {}, {"channel_base": 64, "channel_max": 8, "conv_clamp": 256})
    content = {"G": None, "D": None, "G_ema": G, "training_set_kwargs": {"path": "x.zip"}}
    snapshot.save_snapshot(tmp_path / "a.pkl", content)
    legacy_files.convert(str(tmp_path / "a.pkl"), str(tmp_path / "a.pt"))
    assert "Not recorded in that layout: conv_clamp=256, training_set_kwargs\n" in capsys.readouterr().out
    refused(convert(ours[0], dest="b.pt"), "G in", "ours.pkl", "cannot be written as a .pt file", "it has labels")
    refused(convert(tmp_path / "a.pkl", "--force-fp16", dest="b.pt"), "--force-fp16", "no precision")
    snapshot.save_snapshot(tmp_path / "biggan.pkl", {"G": None, "D": None, "G_ema": stand_ins.tiny_biggan()})
    refused(convert(tmp_path / "biggan.pkl", dest="b.pt"), "BigGANGenerator", "StyleGAN2", "--dest=FILE.pkl")
    before = (tmp_path / "a.pt").read_bytes()

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    status, err, dest = convert(tmp_path / "a.pkl", dest="a.pt")
    assert status == 2 and "--dest" in err and "No space left" in err and dest.read_bytes() == before


def test_other_data(convert, ours, capsys):
    """A table says what is new; G and G_ema start with the same new weights; the training set is another one."""
    path, before = ours
    flags = ["--resolution=32", "--channels=3", "--classes=5"]
    status, err, dest = convert(path, *flags)
    assert status == 0 and err == ""
    data = load(dest)
    for key in ("G", "D", "G_ema"):
        assert (data[key].img_resolution, data[key].img_channels, data[key].c_dim) == (32, 3, 5)
        assert torch.equal(data[key].get_parameter("mapping.fc0.weight"), before[key].mapping.fc0.weight)
    assert all(map(torch.equal, *(misc.params_and_buffers(data[key].synthesis.b32) for key in ("G", "G_ema"))))
    assert data["training_set_kwargs"] is None and type(data["augment_pipe"]) is augment.AugmentPipe
    legacy_files.convert(path, str(dest), changes={"img_resolution": 32})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["new", "synthesis.b32"] in lines and ["new", "b32"] in lines and ["dropped", "b16.fromrgb"] in lines
    assert lines[1] == ["network", "tensors", "parts"] and lines[3][:2] == ["G,", "G_ema"]


def test_impossible_other_data(convert, ours, tmp_path):
    for flag in ("--resolution=48", "--resolution=4", "--channels=2", "--classes=-1", "--resolution=x"):
        refused(convert(ours[0], flag), flag.split("=")[0])
    refused(convert(ours[0], "--classes=2", "--trust-pickle"), "--trust-pickle")
    snapshot.save_snapshot(tmp_path / "biggan.pkl", {"G": None, "D": None, "G_ema": stand_ins.tiny_biggan()})
    words = ("--resolution and --channels", "G_ema in", "biggan.pkl", "BigGANGenerator")
    refused(convert(tmp_path / "biggan.pkl", "--resolution=64", "--channels=1"), *words)
    path = rosinality_checkpoint.save(tmp_path / "x.pt", rosinality_checkpoint.converted("r16"))
    status, _, dest = convert(path, "--resolution=32", dest="y.pt")
    assert status == 0 and load(dest)["G"].img_resolution == 32
