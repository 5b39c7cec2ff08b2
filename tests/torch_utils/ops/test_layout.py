# SPDX-License-Identifier: Apache-2.0
"""Channels-last on a CPU: weights when a network is prepared, images while operations run."""

import pytest
import torch

from tests import tolerances
from tests.support import rnd
from torch_utils.ops import backend, conv2d_gradfix, layout
from training.networks import Discriminator, Generator

CPU = torch.device("cpu")
LAST = torch.channels_last


def conv():
    return torch.nn.Conv2d(4, 4, 3)


def test_prepare_lays_out_weights_except_on_the_reference_path():
    assert layout.prepare(conv(), CPU).weight.is_contiguous(memory_format=LAST)
    with backend.reference_path():
        assert layout.prepare(conv(), CPU).weight.is_contiguous()


def test_prepare_gives_each_convolution_the_layout_that_it_reads():
    G = layout.prepare(Generator(8, 0, 8, 16, 3, synthesis_kwargs={"channel_base": 256}), CPU)
    block = G.synthesis.b16
    assert block.conv1.weight.is_contiguous(memory_format=LAST)
    assert block.conv0.weight.transpose(0, 1).is_contiguous(memory_format=LAST)  # upsamples


def test_prepare_keeps_the_network_and_its_values():
    network = conv()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert layout.prepare(network, CPU) is network
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_prepare_takes_any_network():
    class Other(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1, 2, 2, 3, 3))
            self.up = torch.nn.Upsample(scale_factor=2)

    assert layout.prepare(Other(), CPU).weight.is_contiguous()


def test_standard_undoes_prepare():
    G = layout.prepare(Generator(8, 0, 8, 16, 3, synthesis_kwargs={"channel_base": 256}), CPU)
    for weight in (G.synthesis.b16.conv0.weight, G.synthesis.b16.conv1.weight):
        assert not weight.is_contiguous()
        assert layout.standard(weight).is_contiguous() and torch.equal(layout.standard(weight), weight)


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_results_of_convolutions_stay_channels_last(name):
    x, w = rnd("x", (2, 4, 5, 6)).requires_grad_(), rnd("w", (4, 4, 3, 3)).requires_grad_()
    y = getattr(conv2d_gradfix, name)(x, w)
    dx, dw = torch.autograd.grad(y, [x, w], torch.ones_like(y))
    assert all(tensor.is_contiguous(memory_format=LAST) for tensor in (y, dx, dw))


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_images_of_one_channel_start_a_chain_in_channels_last(name):
    x = rnd("x", (2, 1, 5, 6)).requires_grad_()
    w = rnd("w", (4, 1, 1, 1) if name == "conv2d" else (1, 4, 1, 1))
    y = getattr(conv2d_gradfix, name)(x, w)
    assert y.shape == (2, 4, 5, 6) and y.is_contiguous(memory_format=LAST)
    (dx,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(dx, w.sum().expand_as(x))


def test_in_memory_order_is_a_view_of_all_elements():
    x = rnd("x", (2, 3, 4, 5))
    for dense in (x, x.to(memory_format=LAST), x.permute(3, 1, 0, 2)):
        flat = layout.in_memory_order(dense)
        assert flat.data_ptr() == dense.data_ptr() and flat.sort().values.equal(x.flatten().sort().values)


def test_networks_agree_whatever_the_layout_of_their_weights():
    torch.manual_seed(3)
    G = Generator(16, 0, 16, 32, 3, synthesis_kwargs={"channel_base": 1024, "channel_max": 48})
    D = Discriminator(0, 32, 3, channel_base=1024, channel_max=48)
    z = torch.randn(4, 16)

    def gradients():
        logits = D(G(z, None, noise_mode="const"), None)
        return [logits, *torch.autograd.grad(logits.sum(), [*G.synthesis.parameters(), *D.parameters()])]

    with backend.reference_path():
        expected = gradients()
    for prepared in (False, True):
        if prepared:
            layout.prepare(G, CPU), layout.prepare(D, CPU)
        # Of the largest gradient: those of noise strengths nearly cancel, and the reference has two digits of them.
        scale = max(wanted.abs().max() for wanted in expected[1:])
        for actual, wanted in zip(gradients(), expected):
            assert (actual - wanted).abs().max() <= tolerances.FAST_NETWORKS * scale
