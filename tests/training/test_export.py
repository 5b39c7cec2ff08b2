# SPDX-License-Identifier: Apache-2.0
"""Exported generators: they run without this project and give the same images as PyTorch."""

import json
import subprocess
import sys
import zipfile

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
    "grey, conditional": ({"channels": 1, "c_dim": 2}, export.Settings(noise_mode="none", license="MIT")),
    "colour": ({"channels": 3, "c_dim": 0}, export.Settings()),
}


def make_generator(**kwargs):
    """A generator whose mean w is not zero."""
    G = stand_ins.tiny_generator(**kwargs)
    G.mapping.w_avg.copy_(rnd("w_avg", (4,)))
    return G


@pytest.fixture(
    scope="module", params=[pytest.param("grey, conditional", marks=pytest.mark.slow), "colour"], ids=list(CASES)
)
def exported(request, tmp_path_factory):
    """(generator, settings, {extension: (path, reported difference)}) of one case."""
    kwargs, settings = CASES[request.param]
    G, folder = make_generator(**kwargs), tmp_path_factory.mktemp("exported")
    paths = {ending: folder / f"x{ending}" for ending in (".onnx", ".pt2")}
    return G, settings, {e: (path, export.export(G, path, settings)[str(path)]) for e, path in paths.items()}


def inputs_and_images(G, settings, batch, psi):
    """Inputs that the export did not use, and their images in PyTorch."""
    inputs = {"z": rnd("fresh", (batch, G.z_dim)), "psi": torch.tensor([psi])}
    c = torch.zeros(batch, 0)
    if G.c_dim:
        inputs["c"] = c = torch.eye(2)[[1, 0, 1, 1, 0][:batch]]
    return inputs, G(inputs["z"], c, truncation_psi=psi, noise_mode=settings.noise_mode)


def run_onnx(path, inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {name: x.numpy() for name, x in inputs.items()})[0]


@pytest.mark.parametrize(("batch", "psi"), [(1, 1.0), (5, 0.6), (3, 0.0)])
def test_onnxruntime_gives_the_images(exported, batch, psi):
    G, settings, files = exported
    path, reported = files[".onnx"]
    inputs, images = inputs_and_images(G, settings, batch, psi)
    img = run_onnx(path, inputs)
    assert np.array_equal(export.load(path)(inputs).numpy(), img)
    assert img.dtype == np.float32 and img.shape == (batch, G.img_channels, 8, 8)
    assert np.abs(img - images.numpy()).max() < tolerances.EXPORTED
    assert 0 <= reported.mean <= reported.largest < tolerances.EXPORTED


def test_onnx_is_standard_says_what_it_is_and_has_no_paths_of_this_machine(exported):
    G, settings, files = exported
    path = files[".onnx"][0]
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
    assert [(entry.domain, entry.version >= 17) for entry in model.opset_import] == [("", True)]
    shapes = {x.name: [d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim] for x in model.graph.input}
    assert shapes == {"z": ["batch", 4], "psi": [1], **({"c": ["batch", 2]} if G.c_dim else {})}
    assert b"training/networks.py" not in path.read_bytes()
    stored = {entry.key: entry.value for entry in model.metadata_props}
    assert stored["range"] == "-1 1" and stored["classes"] == str(G.c_dim) and stored["resolution"] == "8"
    assert stored["license"] == (settings.license or "unknown") and stored["noise_mode"] == settings.noise_mode


@pytest.mark.slow
def test_pt2_gives_the_images_without_this_project(exported, tmp_path):
    G, settings, files = exported
    path, reported = files[".pt2"]
    inputs, images = inputs_and_images(G, settings, 3, 0.6)
    torch.save((inputs, images), tmp_path / "expected.pt")
    code = (
        "import sys, torch; inputs, images = torch.load('expected.pt', weights_only=True);"
        "img = torch.export.load(sys.argv[1]).module()(**inputs);"
        f"assert img.shape == images.shape and (img - images).abs().max() < {tolerances.EXPORTED};"
        "assert 'training' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code, path], cwd=tmp_path, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "") and 0 <= reported.largest < tolerances.EXPORTED
    assert (export.load(path)(inputs) - images).abs().max() < tolerances.EXPORTED
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("metadata.json"))
        assert json.loads(archive.read(name)) == export.metadata(G, "generator", settings)


@pytest.mark.parametrize(("dtype", "stored"), [("fp16", "FLOAT16"), ("int8", "INT8")])
def test_smaller_types_state_their_loss(tmp_path, dtype, stored):
    """Images in fp32 from weights in a smaller type; filters and layers that write images are not quantised."""
    G = make_generator(channels=3)
    if dtype == "fp16":  # beyond its range, without the demodulation that follows
        G.synthesis.b8.conv1.weight.mul_(1e6)
    path = str(tmp_path / "x.onnx")
    reported = export.export(G, path, export.Settings(dtype=dtype))[path]
    inputs, images = inputs_and_images(G, export.Settings(), 5, 0.9)
    img = run_onnx(path, inputs)
    assert img.dtype == np.float32
    largest = np.abs(img - images.numpy()).max()
    assert 1e-5 < reported.mean < reported.largest < 0.3 and 0.1 * reported.largest < largest < 10 * reported.largest
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    of_type = [list(t.dims) for t in weights.values() if t.data_type == getattr(onnx.TensorProto, stored) and t.dims]
    if dtype == "int8":
        assert [4, 4, 3, 3] in of_type and not [dims for dims in of_type if dims[:2] in ([3, 4], [4, 1], [3, 1])]
        assert {e.key: e.value for e in model.metadata_props}["calibration_seeds"] == "2000000-2000063"
    else:
        assert {(4, 4, 3, 3), (3, 4, 1, 1)} <= {tuple(dims) for dims in of_type}


@pytest.mark.slow
def test_mapping_and_synthesis_as_two_programs(tmp_path):
    G = make_generator(c_dim=2)
    found = export.export(G, tmp_path / "x.onnx", export.Settings(parts=True, noise_mode="none"))
    paths = [str(tmp_path / f"x.{part}.onnx") for part in ("mapping", "synthesis")]
    assert list(found) == paths and sorted(map(str, tmp_path.iterdir())) == paths
    inputs, images = inputs_and_images(G, export.Settings(noise_mode="none"), 3, 0.6)
    ws = run_onnx(paths[0], inputs)
    assert np.abs(ws - G.mapping(inputs["z"], inputs["c"], truncation_psi=0.6).numpy()).max() < tolerances.EXPORTED
    assert np.abs(run_onnx(paths[1], {"ws": torch.from_numpy(ws)}) - images.numpy()).max() < tolerances.EXPORTED


@pytest.mark.parametrize("wrong", [0.01, float("nan")])
def test_a_program_that_gives_other_images_is_not_written(tmp_path, wrong):
    class Unsteady(networks.SynthesisNetwork):
        """Its images differ from those recorded with fake tensors."""

        def forward(self, ws, **kwargs):
            return super().forward(ws, **kwargs) + (wrong if type(ws) is torch.Tensor else 0)

    G = networks.Generator(4, 0, 4, 4, 3, {"num_layers": 1}, {"channel_base": 16}).eval().requires_grad_(False)
    G.synthesis.__class__ = Unsteady
    with pytest.raises(UserError, match=r"x\.pt2 is not written.*(0\.01|nan)"):
        export.export(G, tmp_path / "x.pt2", export.Settings())
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_without_a_mean_w_there_is_no_truncation(tmp_path):
    G = networks.Generator(4, 0, 4, 4, 3, {"num_layers": 1, "w_avg_beta": None}, {"channel_base": 16}).eval()
    export.export(G.requires_grad_(False), tmp_path / "x.onnx", export.Settings())
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx", providers=["CPUExecutionProvider"])
    assert [x.name for x in session.get_inputs()] == ["z"]


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named_first(tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(torch.export, "export", lambda *args, **kwargs: pytest.fail("long work before a check"))
    with pytest.raises(UserError, match=f"needs the package {missing}: pip install"):
        export.export(make_generator(resolution=4), tmp_path / "x.onnx", export.Settings())


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_other_types_are_for_onnx(tmp_path, dtype):
    with pytest.raises(UserError, match=rf"--dtype={dtype} is for \.onnx"):
        export.export(make_generator(resolution=4), tmp_path / "x.pt2", export.Settings(dtype=dtype))


def test_foreign_code_that_cannot_be_exported_is_refused(tmp_path):
    class Foreign(torch.nn.Module):
        z_dim, c_dim = 4, 0

        def forward(self, z, c, **kwargs):
            raise RuntimeError("too clever")

    with pytest.raises(UserError, match=r"too clever.*--trust-pickle"):
        export.export(Foreign(), tmp_path / "x.pt2", export.Settings())
