# SPDX-License-Identifier: Apache-2.0
"""export.py --check-fid: the FID of a program beside PyTorch's."""

import re
import sys

import pytest
import torch

import dnnlib.cli
import export as script
from metrics import catalogue, exported, metric_main
from metrics.metric_utils import MetricOptions
from tests.metrics import stand_ins
from training import export
from training.files.snapshot import save_snapshot


@pytest.fixture
def run(options, tmp_path, monkeypatch, capsys):
    """Run export.py with a network, data and a detector: `run(dest, flag=value)` -> (exit status, stdout, stderr)."""
    notes = {"G": None, "D": None, "augment_pipe": None, "training_set_kwargs": None}
    save_snapshot(tmp_path / "net.pkl", {"G_ema": options["G"], **notes})
    given = {"check_fid": 40, "data": options["dataset_kwargs"]["path"], "detector": options["detector"]}

    def run(dest, **flags):
        flags = {"network": tmp_path / "net.pkl", "dest": tmp_path / dest, **given, **flags}
        argv = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items() if value is not None]
        monkeypatch.setattr(sys, "argv", ["export.py", *argv])
        with pytest.raises(SystemExit) as exit_info:
            dnnlib.cli.run(script.main)
        return (exit_info.value.code, *capsys.readouterr())

    return run


def test_both_are_measured_on_the_same_latents_and_labels(options):
    """As a metric measures PyTorch's; a program with other images has another FID."""
    opts, G = MetricOptions(**options), options["G"]
    seen = []

    def program(z, c):
        seen.append((z, c))
        return G(z, c, noise_mode="const")

    same, pytorch = exported.fids(opts, program, "const", 70)
    z, c = (torch.cat(tensors) for tensors in zip(*seen))
    assert [len(z) for z, _ in seen] == [64, 6] and len(z.unique(dim=0)) == 70 and set(c.argmax(1).tolist()) == {0, 1}
    assert same == pytorch > 0 and opts.provenance["num_reals"] == 40
    dark, again = exported.fids(opts, lambda z, c: program(z, c) - 0.5, "const", 70)
    assert again == pytorch != dark
    assert exported.fids(opts, program, "none", 70)[1] != pytorch


def test_pytorchs_figure_is_that_of_the_metric(options, monkeypatch):
    opts = MetricOptions(**options)
    opts.dataset_kwargs.update(exported._METRIC.dataset)
    monkeypatch.setitem(catalogue.METRICS, "fid1k_full", stand_ins.smaller("fid1k_full", num_fakes=70))
    wanted = metric_main.calc_metric("fid1k_full", G_kwargs={"noise_mode": "const"}, **options)
    found = exported.fids(opts, options["G"], "const", 70)[1]
    assert found == pytest.approx(wanted.results["fid1k_full-digits"], rel=1e-6)


@pytest.mark.parametrize("parts", [False, True])
def test_programs_in_one_and_two_files_are_run(options, monkeypatch, parts):
    """Stand-ins for the programs of a network, from files."""
    G = options["G"]
    programs = {
        "x.pt2": lambda z, c, psi: G(z, c, truncation_psi=psi.item(), noise_mode="const"),
        "m.pt2": lambda z, c, psi: G.mapping(z, c, truncation_psi=psi.item()),
        "s.pt2": lambda ws: G.synthesis(ws, noise_mode="const"),
    }
    monkeypatch.setattr(export, "load", lambda path: lambda inputs: programs[path](**inputs))
    sample = exported._generator(G, ["m.pt2", "s.pt2"] if parts else ["x.pt2"])
    z, c = torch.ones(3, 4), torch.eye(2)[[0, 1, 0]]
    torch.testing.assert_close(sample(z, c), G(z, c, noise_mode="const"))


@pytest.mark.slow
@pytest.mark.parametrize("flags", [{"dest": "net.pt2"}, {"dest": "net.onnx", "dtype": "int8", "parts": None}])
def test_the_figures_of_a_file_are_printed(run, tmp_path, flags):
    status, out, err = run(**flags)
    assert status == 0, err
    line = out.splitlines()[-1]
    assert line.startswith(f"{tmp_path / flags['dest']}: FID ")
    figures = re.search(
        r"FID (\S+), PyTorch (\S+), change (\S+) \(40 images of the same seeds against 30 reals, detector digits\)$",
        line,
    )
    program, pytorch, change = map(float, figures.groups())
    assert pytorch > 0 and abs(change) < 0.1 * pytorch and program == pytest.approx(pytorch + change, rel=1e-2)
    assert "Images of the program and of PyTorch 40/40 img (100%)" in err and "Tracing" in err


def refused(result, *words):
    status, out, err = result
    message = err[err.index("Error: ") :]
    assert status == 2 and not out and message.count("\n") == 1 and all(word in message for word in words), message


def test_what_cannot_be_measured_is_refused_before_the_export(run, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "export", lambda *args: pytest.fail("long work before a check"))
    refused(run("net.pt2", data=None), "--data")
    refused(run("net.pt2", data=tmp_path / "none.zip"), "none.zip", "--data")
    refused(run("net.pt2", detector="none.pt"), "none.pt")
    refused(run("none/net.pt2"), "--dest", "folder")
    refused(run("net.pt2", check_fid=1), "--check-fid", "1")
    for dest, format in (("net.safetensors", None), ("hub", "hf"), ("web", "web")):
        refused(run(dest, format=format), "--check-fid", ".onnx or .pt2")
    refused(run("net.pt2", check_fid=None, detector=None), "--data has no effect without --check-fid")


def test_the_number_of_images_may_be_left_out():
    context = script.main.make_context("export.py", ["--network=x.pkl", "--dest=x.onnx", "--check-fid", "--data=y.zip"])
    assert context.params["check_fid"] == 5000 and context.params["data"] == "y.zip"
