# SPDX-License-Identifier: Apache-2.0
"""BigGAN in other formats: safetensors, ONNX, PyTorch programs."""

import os

import onnx
import onnxruntime
import pytest
import torch

from dnnlib.util import UserError
from tests import tolerances
from tests.metrics import stand_ins
from tests.support import rnd
from training import export, export_onnx, sampling
from training.files.safetensors_io import write
from training.files.snapshot import load_snapshot
from training.networks_biggan import BigGANDiscriminator

# Kind: arguments of the generator, images per call.
CASES = {
    "tables": ({"channels": 1, "c_dim": 3, "ch": 8}, 2),
    "hierarchical, with attention": (
        {"resolution": 64, "tables": False, "c_dim": 3, "ch": 2, "attn_res": (16,)},
        1,
    ),
}


@pytest.fixture(
    scope="module",
    params=[pytest.param("tables", marks=pytest.mark.slow), "hierarchical, with attention"],
    ids=list(CASES),
)
def generator(request):
    """(generator, images per call) of one case."""
    kwargs, batch = CASES[request.param]
    return stand_ins.tiny_biggan(**kwargs), batch


def inputs_of(G, batch):
    return rnd("fresh", (batch, G.z_dim)), torch.eye(G.c_dim)[[1, 2][:batch]]


@pytest.mark.slow
def test_onnxruntime_gives_the_images(generator, tmp_path):
    G, batch = generator
    (found,) = export.export(G, tmp_path / "x.onnx", export.Settings()).values()
    assert found.largest < tolerances.EXPORTED
    z, c = inputs_of(G, batch)
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx", providers=["CPUExecutionProvider"])
    assert {x.name: x.shape for x in session.get_inputs()} == {"z": ["batch", G.z_dim], "c": ["batch", 3]}
    (img,) = session.run(["img"], {"z": z.numpy(), "c": c.numpy()})
    assert (torch.from_numpy(img) - G(z, c)).abs().max() < tolerances.EXPORTED
    half = export_onnx.load(export_onnx.to_fp16(onnx.load(tmp_path / "x.onnx")).SerializeToString())
    assert 1e-6 < (half({"z": z, "c": c}) - G(z, c)).abs().max() < 1e-2
    # Weights are divided by their norms once, here: the program makes no power steps.
    names = {node.op_type for node in onnx.load(tmp_path / "x.onnx").graph.node}
    assert "Conv" in names and not names & {"ReduceL2", "Sqrt", "ReduceSum"}


@pytest.mark.slow
def test_pt2_gives_the_images_and_has_each_weight_once(tmp_path):
    G = stand_ins.tiny_biggan(ch=16, c_dim=3)
    (found,) = export.export(G, tmp_path / "x.pt2", export.Settings()).values()
    assert found.largest < tolerances.EXPORTED
    weights = sum(parameter.numel() * 4 for parameter in G.parameters())
    assert weights < os.path.getsize(tmp_path / "x.pt2") < 1.5 * weights


@pytest.mark.slow
def test_int8_states_its_loss(tmp_path):
    (found,) = export.export(stand_ins.tiny_biggan(), tmp_path / "x.onnx", export.Settings(dtype="int8")).values()
    assert 1e-5 < found.mean < found.largest < 0.3


def test_safetensors_hold_networks_that_go_on_training(generator, tmp_path):
    """Weights, statistics and singular vectors as they are, in networks of the same arguments."""
    G, batch = generator
    D = BigGANDiscriminator(3, G.img_resolution, G.img_channels, ch=4, attn_res=(16,))
    write(tmp_path / "x.safetensors", {"G_ema": G, "D": D, "training_set_kwargs": {"path": "x.zip"}})
    found = load_snapshot(tmp_path / "x.safetensors")
    for name, network in (("G_ema", G), ("D", D)):
        assert type(found[name]) is type(network)
        tensors = network.state_dict()
        assert found[name].state_dict().keys() == tensors.keys()
        assert all(torch.equal(tensor, tensors[key]) for key, tensor in found[name].state_dict().items())
    z, c = inputs_of(G, batch)
    images = G(z, c)
    assert torch.equal(found["G_ema"](z, c), images)
    assert torch.equal(found["D"](images, c), D.eval()(images, c))


@pytest.mark.slow
def test_export_leaves_the_generator_as_it_is(tmp_path):
    G = stand_ins.tiny_biggan()
    export.export(G, tmp_path / "x.pt2", export.Settings())
    (vector,) = (buffer for name, buffer in G.named_buffers() if name == "linear.u0")
    z, c = torch.randn(1, 4), torch.eye(2)[:1]
    before = G(z, c)
    vector.fill_(1)
    assert not torch.equal(G(z, c), before) and not torch.equal(sampling.freeze(G)(z, c), before)


def test_parts_need_a_latent_space_w(tmp_path):
    with pytest.raises(UserError, match=r"--parts needs a latent space w.*BigGANGenerator \(biggan\)"):
        export.export(stand_ins.tiny_biggan(), tmp_path / "x.onnx", export.Settings(parts=True))
    assert not list(tmp_path.iterdir())
