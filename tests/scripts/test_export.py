# SPDX-License-Identifier: Apache-2.0
"""export.py: output files and messages, combinations of flags, refusals."""

import re
import sys

import pytest

import dnnlib.cli
import export
import generate
from tests.metrics import stand_ins
from training import export as exporter
from training.files.snapshot import load_snapshot, save_snapshot


@pytest.fixture
def network(tmp_path):
    """A snapshot file."""
    G = stand_ins.tiny_generator(c_dim=2, channels=1)
    content = {"G": G, "D": None, "G_ema": G, "augment_pipe": None, "training_set_kwargs": {"path": "x.zip"}}
    save_snapshot(tmp_path / "net.pkl", content)
    return tmp_path / "net.pkl"


@pytest.fixture
def run_cli(monkeypatch, capsys):
    """Run a command in this process: `run_cli(command, flag=value, ...)` -> (exit status, stdout, stderr)."""

    def run(command, **flags):
        argv = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
        monkeypatch.setattr(sys, "argv", ["script.py", *argv])
        with pytest.raises(SystemExit) as exit_info:
            dnnlib.cli.run(command)
        return (exit_info.value.code, *capsys.readouterr())

    return run


def refused(result, *words):
    status, _, err = result
    message = err[err.index("Error: ") :]
    assert status == 2 and "Traceback" not in err
    for word in words:
        assert word in message


def test_generate_takes_the_safetensors_file(network, run_cli, tmp_path):
    dest = tmp_path / "net.safetensors"
    assert run_cli(export.main, network=network, dest=dest)[:2] == (0, f"{dest}: G, G_ema\n")
    outdirs = []
    for source in (network, dest):
        outdirs.append(tmp_path / f"out{len(outdirs)}")
        flags = {"seeds": "0,5", "class": 1, "trunc": 0.7, "outdir": outdirs[-1], "device": "cpu"}
        assert run_cli(generate.main, network=source, **flags)[0] == 0
    for name in ("seed0000.png", "seed0005.png"):
        assert (outdirs[0] / name).read_bytes() == (outdirs[1] / name).read_bytes()
    assert load_snapshot(dest)["training_set_kwargs"] == {"path": "x.zip"}


def test_a_safetensors_file_is_exported_again_to_the_same_bytes(network, run_cli, tmp_path):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    run_cli(export.main, network=network, dest=first)
    run_cli(export.main, network=first, dest=second)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("name", ["net.onnx", "net.PT2"])
def test_flags_reach_the_program_and_the_difference_is_printed(network, run_cli, tmp_path, monkeypatch, name):
    seen = []

    def stand_in(G, path, settings):
        seen.append((type(G).__name__, path, settings))
        (tmp_path / name).write_bytes(b"x" * 2000)
        return {path: exporter.Difference(1.5e-6, 2e-7)}

    monkeypatch.setattr(exporter, "export", stand_in)
    dest = str(tmp_path / name)
    flags = {"dtype": "int8", "noise_mode": "none", "license": "MIT"}
    status, out, err = run_cli(export.main, network=network, dest=dest, **flags)
    assert (status, out) == (0, f"{dest}: 0.002 MB, difference to PyTorch max 1.5e-06, mean 2e-07\n") and "8x8" in err
    assert seen == [("Generator", dest, exporter.Settings(**flags))]


def test_a_program_is_written(network, run_cli, tmp_path):
    status, out, err = run_cli(export.main, network=network, dest=tmp_path / "net.pt2")
    assert status == 0 and "difference to PyTorch max" in out and "Comparing 4/4 img" in err
    assert re.search(r"^Tracing, \d+s\nPacking, \d+s\n", err, re.MULTILINE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.pkl", "net.pt2"]


def test_flags_of_programs_are_refused_for_safetensors(network, run_cli, tmp_path):
    dest = tmp_path / "x.safetensors"
    for flag, value in (("dtype", "fp32"), ("license", "MIT"), ("noise_mode", "const")):
        words = f"--{flag.replace('_', '-')}"
        refused(run_cli(export.main, network=network, dest=dest, **{flag: value}), words, ".safetensors")
    assert not dest.exists()


def test_generate_takes_the_hugging_face_folder(network, run_cli, tmp_path):
    dest = tmp_path / "model"
    status, out, _ = run_cli(export.main, network=network, dest=dest, format="hf", license="mit")
    wanted = f"{dest}: README.md, config.json, model.safetensors\nTo publish it: hf upload USER/NAME {dest}\n"
    assert (status, out) == (0, wanted)
    for source, outdir in ((network, "a"), (dest, "b")):
        flags = {"seeds": "5", "class": 1, "outdir": tmp_path / outdir, "device": "cpu"}
        assert run_cli(generate.main, network=source, **flags)[0] == 0
    assert (tmp_path / "a" / "seed0005.png").read_bytes() == (tmp_path / "b" / "seed0005.png").read_bytes()
    refused(run_cli(export.main, network=network, dest=dest, format="hf"), "--dest", "exists already")
    flags = {"format": "hf", "license": "mit", "dtype": "fp32"}
    refused(run_cli(export.main, network=network, dest=tmp_path / "x", **flags), "--dtype has no effect", "--format=hf")


def test_bad_input_is_refused(network, run_cli, tmp_path):
    refused(run_cli(export.main, network=network, dest=tmp_path / "x.pkl"), "--dest", ".safetensors, .onnx or .pt2")
    refused(run_cli(export.main, network=network, dest=tmp_path / "x.pt"), "deprecated TorchScript", ".pt2")
    refused(run_cli(export.main, network=network, dest=tmp_path / "no" / "x.pt2"), "--dest", "folder")
    refused(run_cli(export.main, network=tmp_path / "no.pkl", dest=tmp_path / "x.pt2"), "no.pkl")
    refused(run_cli(export.main, network=network, dest=tmp_path / "x.pt2", noise_mode="random"), "--noise-mode")
    refused(run_cli(export.main, network=network, dest=tmp_path / "x.pt2", dtype="fp8"), "--dtype")
    refused(run_cli(export.main, network=network, dest=tmp_path / "x.pt2", dtype="int8"), "--dtype=int8", ".onnx")
    (tmp_path / "full.safetensors").mkdir()
    refused(run_cli(export.main, network=network, dest=tmp_path / "full.safetensors"), "--dest", "cannot be written")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full.safetensors", "net.pkl"]


def test_a_file_without_g_ema_is_refused(run_cli, tmp_path):
    G = stand_ins.tiny_generator()
    save_snapshot(tmp_path / "net.pkl", {"G": G, "D": None, "G_ema": None, "training_set_kwargs": {}})
    refused(run_cli(export.main, network=tmp_path / "net.pkl", dest=tmp_path / "x.pt2"), "G_ema")
