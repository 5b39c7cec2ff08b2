# SPDX-License-Identifier: Apache-2.0
"""Every phase in half precision against fp32, with the same weights, images and random draws."""

import statistics

import pytest
import torch

from tests import tolerances
from torch_utils import precision, training_stats
from training import networks
from training.loss import StyleGAN2Loss

HALF = {"channel_base": 512, "channel_max": 32, "num_fp16_res": 4, "conv_clamp": 256}
LOSS = {"Gmain": "Loss/G/loss", "Greg": "Loss/G/reg", "Dmain": "Loss/D/loss", "Dreg": "Loss/D/reg"}


def make_networks(seed: int) -> tuple[networks.Generator, networks.Discriminator]:
    """G and D for 32x32 images, with noise and biases as large as after some training."""
    torch.manual_seed(seed)
    G = networks.Generator(16, 0, 16, 32, 3, mapping_kwargs={"num_layers": 2}, synthesis_kwargs=HALF)
    D = networks.Discriminator(0, 32, 3, **HALF)
    for net in (G, D):
        net.train().requires_grad_(False)
        for name, parameter in net.named_parameters():
            if name.endswith("noise_strength"):
                parameter.fill_(0.1)
            elif name.endswith("bias") and "affine" not in name:
                parameter.normal_().mul_(10 if "mapping" in name else 0.1)  # a mapping layer scales it by 0.01
    return G, D


def loss_and_gradient(seed: int, phase: str, device: torch.device, dtype: torch.dtype) -> tuple[float, torch.Tensor]:
    """Mean loss of `phase` on a batch of 8 in `dtype`, and its gradient in all weights as one vector."""
    G, D = (net.to(device) for net in make_networks(seed))
    for net in (G, D):
        precision.set_half_dtype(net, dtype)
    loss = StyleGAN2Loss(device, G.mapping, G.synthesis, D, r1_gamma=1)
    module = (G if phase.startswith("G") else D).requires_grad_(True)
    real = (torch.randn(8, 3, 32, 32) * 0.5).to(device)
    z, c = torch.randn(8, 16).to(device), torch.zeros(8, 0, device=device)
    torch.manual_seed(seed)
    collector = training_stats.Collector(LOSS[phase])
    loss.accumulate_gradients(phase, real, c, z, c, sync=True, gain=1)
    collector.update()
    gradients = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
    return collector[LOSS[phase]], torch.cat(gradients).cpu().double()


def errors(seed: int, phase: str, device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Relative error of the loss and of the gradient in `dtype`."""
    loss, gradient = loss_and_gradient(seed, phase, device, dtype)
    exact_loss, exact = loss_and_gradient(seed, phase, device, torch.float32)
    return abs(loss - exact_loss) / exact_loss, float((gradient - exact).norm() / exact.norm())


def check(phase: str, dtype: torch.dtype, device: torch.device, seeds: range) -> None:
    found = [errors(seed, phase, device, dtype) for seed in seeds]
    worst = tuple(max(column) for column in zip(*found))
    print(f"{phase} in {dtype} on {device.type}: loss off by {worst[0]:.4f}, gradient by {worst[1]:.4f}")
    assert all(gradient > 1e-4 for _loss, gradient in found)  # half precision did run
    allowed = tolerances.HALF_PRECISION[dtype, phase]
    assert worst[0] <= allowed[0] and worst[1] <= allowed[1], worst
    assert statistics.median(gradient for _loss, gradient in found) <= tolerances.HALF_PRECISION_MEDIAN[dtype]


@pytest.mark.slow
@pytest.mark.parametrize("phase", LOSS)
@pytest.mark.parametrize(("dtype", "seeds"), [(torch.bfloat16, range(4)), (torch.float16, range(1))], ids=str)
def test_phase_in_half_precision(phase, dtype, seeds):
    check(phase, dtype, torch.device("cpu"), seeds)


@pytest.mark.gpu
@pytest.mark.parametrize("phase", LOSS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_phase_in_half_precision_on_a_gpu(phase, dtype):
    check(phase, dtype, torch.device("cuda"), range(12))
