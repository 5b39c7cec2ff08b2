# SPDX-License-Identifier: Apache-2.0
"""Exported generators: they run without this project and give the same images as PyTorch."""

import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from dnnlib.util import UserError
from tests import tolerances
from tests.metrics import stand_ins
from tests.support import rnd
from training import export, networks

# Name: generator, settings.
CASES = {
    "grey, conditional": ({"channels": 1, "c_dim": 2}, export.Settings(psi=0.6, batch=3, noise_mode="none")),
    "colour": ({"channels": 3, "c_dim": 0}, export.Settings(batch=2)),
}


def make_generator(**kwargs):
    """A generator whose mean w is not zero."""
    G = stand_ins.tiny_generator(**kwargs)
    G.mapping.w_avg.copy_(rnd("w_avg", (4,)))
    return G


@pytest.fixture(scope="module", params=CASES)
def exported(request, tmp_path_factory):
    """(generator, settings, {extension: (path, reported difference)}) of one case."""
    kwargs, settings = CASES[request.param]
    G, folder = make_generator(**kwargs), tmp_path_factory.mktemp("exported")
    paths = {ending: folder / f"x{ending}" for ending in (".onnx", ".pt")}
    return G, settings, {ending: (path, export.export(G, path, settings)) for ending, path in paths.items()}


def inputs_and_images(G, settings):
    """Inputs that the export did not use, and their images in PyTorch."""
    z = rnd("fresh", (settings.batch, G.z_dim))
    c = torch.eye(2)[[1, 0, 1]][: settings.batch] if G.c_dim else torch.zeros(settings.batch, 0)
    images = G(z, c, truncation_psi=1 if settings.psi is None else settings.psi, noise_mode=settings.noise_mode)
    return ((z, c) if G.c_dim else (z,)), images


def test_onnxruntime_gives_the_images(exported):
    G, settings, files = exported
    path, reported = files[".onnx"]
    inputs, images = inputs_and_images(G, settings)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (img,) = session.run(["img"], {name: x.numpy() for name, x in zip("zc", inputs)})
    assert img.dtype == np.float32 and img.shape == (settings.batch, G.img_channels, 8, 8)
    assert np.abs(img - images.numpy()).max() < tolerances.EXPORTED and 0 <= reported < tolerances.EXPORTED


def test_onnx_is_standard_and_has_no_paths_of_this_machine(exported):
    G, settings, files = exported
    path = files[".onnx"][0]
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
    assert [(entry.domain, entry.version >= 17) for entry in model.opset_import] == [("", True)]
    shapes = {x.name: [d.dim_value for d in x.type.tensor_type.shape.dim] for x in model.graph.input}
    assert shapes == {"z": [settings.batch, 4], **({"c": [settings.batch, 2]} if G.c_dim else {})}
    assert b"training/networks.py" not in path.read_bytes()


def test_torchscript_gives_the_images_without_this_project(exported, tmp_path):
    G, settings, files = exported
    path, reported = files[".pt"]
    inputs, images = inputs_and_images(G, settings)
    torch.save((inputs, images), tmp_path / "expected.pt")
    code = (
        "import sys, torch; inputs, images = torch.load('expected.pt', weights_only=True);"
        "img = torch.jit.load(sys.argv[1])(*inputs);"
        f"assert img.shape == images.shape and (img - images).abs().max() < {tolerances.EXPORTED};"
        "assert 'training' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code, path], cwd=tmp_path, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "") and 0 <= reported < tolerances.EXPORTED


@pytest.mark.parametrize("wrong", [0.01, float("nan")])
def test_a_program_that_gives_other_images_is_not_written(tmp_path, wrong):
    class Unsteady(networks.Generator):
        """Its images differ from those recorded with fake tensors."""

        def forward(self, z, c, **kwargs):
            return super().forward(z, c, **kwargs) + (wrong if type(z) is torch.Tensor else 0)

    G = Unsteady(4, 0, 4, 4, 3, {"num_layers": 1}, {"channel_base": 16}).eval().requires_grad_(False)
    with pytest.raises(UserError, match=r"x\.pt is not written.*(0\.01|nan)"):
        export.export(G, tmp_path / "x.pt", export.Settings())
    assert not list(tmp_path.iterdir())


def test_truncation_needs_a_mean_w(tmp_path):
    G = networks.Generator(4, 0, 4, 4, 3, {"num_layers": 1, "w_avg_beta": None}, {"channel_base": 16}).eval()
    with pytest.raises(UserError, match=r"--trunc=1"):
        export.export(G, tmp_path / "x.pt", export.Settings(psi=0.5))


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named_first(tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(torch.export, "export", lambda *args, **kwargs: pytest.fail("long work before a check"))
    with pytest.raises(UserError, match=f"needs the package {missing}: pip install"):
        export.export(make_generator(resolution=4), tmp_path / "x.onnx", export.Settings())


def test_foreign_code_that_cannot_be_exported_is_refused(tmp_path):
    class Foreign(torch.nn.Module):
        z_dim, c_dim = 4, 0

        def forward(self, z, c, **kwargs):
            raise RuntimeError("too clever")

    with pytest.raises(UserError, match=r"too clever.*--trust-pickle"):
        export.export(Foreign(), tmp_path / "x.pt", export.Settings())
