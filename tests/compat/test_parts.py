# SPDX-License-Identifier: Apache-2.0
"""Parts of networks used alone, as in notebooks and forks, and other names that no other test calls."""

import pytest
import torch

from metrics import metric_utils
from tests.metrics import stand_ins
from tests.support import rnd
from torch_utils import misc, persistence, training_stats
from training import networks

W = rnd("w", (2, 6))
X = rnd("x", (2, 4, 8, 8))

# Class, constructor arguments by position, inputs, shapes of the outputs.
PARTS = {
    "FullyConnectedLayer": ((4, 6, True, "lrelu", 0.1, 1), (rnd("x", (2, 4)),), [(2, 6)]),
    "Conv2dLayer": ((4, 6, 3, True, "relu", 2), (X, 0.5), [(2, 6, 16, 16)]),
    "MappingNetwork": ((4, 3, 6, 5, 2), (rnd("z", (2, 4)), torch.eye(3)[:2], 0.5, 2), [(2, 5, 6)]),
    "SynthesisLayer": ((4, 6, 6, 16, 3, 2), (X, W, "const", False), [(2, 6, 16, 16)]),
    "ToRGBLayer": ((4, 3, 6), (X, W, False), [(2, 3, 8, 8)]),
    "SynthesisBlock": (
        (4, 6, 6, 16, 3, True, "skip"),
        (X, rnd("img", (2, 3, 8, 8)), rnd("ws", (2, 3, 6)), True, True),
        [(2, 6, 16, 16), (2, 3, 16, 16)],
    ),
    "SynthesisNetwork": ((6, 16, 3, 64, 8), (rnd("ws", (2, 6, 6)),), [(2, 3, 16, 16)]),
    "Generator": (
        (4, 3, 6, 16, 3, {}, {"channel_max": 4}),
        (rnd("z", (2, 4)), torch.eye(3)[:2], 0.7),
        [(2, 3, 16, 16)],
    ),
    "DiscriminatorBlock": ((4, 4, 6, 8, 3, 0, "skip"), (X, rnd("img", (2, 3, 8, 8))), [(2, 6, 4, 4), (2, 3, 4, 4)]),
    "MinibatchStdLayer": ((2, 2), (X,), [(2, 6, 8, 8)]),
    "DiscriminatorEpilogue": ((4, 6, 8, 3), (X, None, W), [(2, 1)]),
    "Discriminator": ((3, 16, 3, "orig", 64, 4), (rnd("img", (2, 3, 16, 16)), torch.eye(3)[:2], True), [(2, 1)]),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_by_itself(name):
    arguments, inputs, shapes = PARTS[name]
    part = getattr(networks, name)(*arguments)
    outputs = part(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert [tuple(output.shape) for output in outputs] == shapes
    assert all(output.isfinite().all() and output.dtype == torch.float32 for output in outputs)
    assert persistence.is_persistent(part) and part.init_args == arguments


@pytest.mark.parametrize("architecture", networks.ARCHITECTURES)
def test_blocks_of_D_know_the_index_of_their_first_layer(architecture):
    """The layers below an index are those that Freeze-D freezes."""
    D = networks.Discriminator(0, 16, 3, architecture, 64, 4)
    assert (D.b16.first_layer_idx, D.b8.first_layer_idx) == (0, D.b16.num_layers)
    kwargs = {**D.init_kwargs, "block_kwargs": {"freeze_layers": D.b8.first_layer_idx}}
    frozen = networks.Discriminator(*D.init_args, **kwargs)
    assert not list(frozen.b16.parameters())
    assert len(list(frozen.b8.parameters())) == len(list(D.b8.parameters())) > 0


def test_normalize_2nd_moment():
    x = rnd("x", (3, 5)) * 7
    torch.testing.assert_close(networks.normalize_2nd_moment(x), x / x.square().mean(1, keepdim=True).sqrt())
    torch.testing.assert_close(networks.normalize_2nd_moment(x, dim=0).square().mean(0), torch.ones(5))
    assert networks.normalize_2nd_moment(torch.zeros(1, 4)).eq(0).all()


def test_modulated_conv2d_scales_inputs_and_normalises_outputs():
    x, weight, styles = rnd("x", (2, 4, 8, 8)), rnd("weight", (6, 4, 3, 3)), rnd("styles", (2, 4))
    scaled = weight * styles[:, None, :, None, None]
    scaled = scaled / scaled.square().sum([2, 3, 4], keepdim=True).sqrt()
    expected = torch.cat([torch.nn.functional.conv2d(x[i : i + 1], scaled[i], padding=1) for i in range(2)])
    for fused in (False, True):
        actual = networks.modulated_conv2d(x, weight, styles, padding=1, fused_modconv=fused)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_parameters_and_buffers_in_order():
    mapping = networks.MappingNetwork(4, 0, 4, 2, num_layers=1)
    names = [name for name, _tensor in misc.named_params_and_buffers(mapping)]
    assert names == ["fc0.weight", "fc0.bias", "w_avg"]
    assert all(a is b for a, (_, b) in zip(misc.params_and_buffers(mapping), misc.named_params_and_buffers(mapping)))


def test_statistics_of_one_process_need_no_group():
    training_stats.init_multiprocessing(rank=0, sync_device=None)
    collector = training_stats.Collector(regex="compat/.*")
    training_stats.report("compat/one_process", [1.0, 3.0])
    collector.update()
    assert (collector["compat/one_process"], collector.num("compat/one_process")) == (2, 2)


def test_feature_detectors_come_from_a_path(tmp_path):
    path = stand_ins.save_detector(stand_ins.Inception(d=8), tmp_path / "inception.pt")
    detector = metric_utils.get_feature_detector(path, torch.device("cpu"), num_gpus=1, rank=0, verbose=False)
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    assert detector(images, return_features=True).shape == (2, 8) and detector(images).shape == (2, 5)
