# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F

from tests import tolerances
from tests.support import rnd
from torch_utils.ops import grid_sample_gradfix
from torch_utils.ops.grid_sample_gradfix import grid_sample


def tensors(dtype=torch.float64):
    """Points inside, on the edge and outside of the image."""
    return rnd("image", (2, 3, 5, 7)).to(dtype), rnd("grid", (2, 4, 6, 2)).to(dtype)


def plain(x, grid):
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


@pytest.mark.parametrize("x_grad", [False, True])
@pytest.mark.parametrize("grid_grad", [False, True])
def test_equals_torch(x_grad, grid_grad):
    x, grid = tensors()
    y = grid_sample(x.requires_grad_(x_grad), grid.requires_grad_(grid_grad))
    assert y.requires_grad == (x_grad or grid_grad)
    torch.testing.assert_close(y, plain(x, grid), check_layout=False)


def test_first_gradients_equal_torch():
    x, grid = tensors()
    x.requires_grad_()
    weight = rnd("weight", (2, 3, 4, 6), torch.float64)
    (expected,) = torch.autograd.grad((plain(x, grid) * weight).sum(), x)
    torch.testing.assert_close(torch.autograd.grad((grid_sample(x, grid) * weight).sum(), x)[0], expected)
    grid.requires_grad_()
    expected = torch.autograd.grad((plain(x, grid) * weight).sum(), [x, grid])
    torch.testing.assert_close(torch.autograd.grad((grid_sample(x, grid) * weight).sum(), [x, grid]), expected)


@pytest.mark.parametrize("grid_grad", [False, True])
def test_derivatives(grid_grad):
    x, grid = tensors()
    x, grid = x[:, :1, 1:4, 1:5].clone().requires_grad_(), grid[:, :2, :3].clone().requires_grad_(grid_grad)
    assert torch.autograd.gradcheck(grid_sample, (x, grid))
    assert torch.autograd.gradgradcheck(grid_sample, (x, grid))
    assert torch.autograd.gradgradcheck(lambda x, grid: grid_sample(x, grid) ** 3, (x, grid))


def test_third_derivative():
    """Through PyTorch's sampler, and from elementary operations where the grid needs a gradient as well."""
    x, grid = tensors()
    x = x.clone().requires_grad_()

    def third(grid):
        g = grid_sample(x, grid).pow(4).sum()
        for _ in range(3):
            g = torch.autograd.grad(g, x, create_graph=True)[0].sum()
        return g

    torch.testing.assert_close(third(grid), third(grid.clone().requires_grad_()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_other_types(dtype):
    x, grid = tensors(torch.float32)
    x = x.to(dtype).requires_grad_()
    y = grid_sample(x, grid)
    (g,) = torch.autograd.grad(y.sum(), x)
    assert y.dtype == g.dtype == dtype
    torch.testing.assert_close(y.float(), plain(x.float(), grid), **tolerances.GRID_SAMPLE)


def test_channels_last_and_views():
    x, grid = tensors()
    for view in (x.to(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)):
        torch.testing.assert_close(grid_sample(view.requires_grad_(), grid).contiguous(), plain(x, grid))


def test_disabled_means_plain_torch(monkeypatch):
    monkeypatch.setattr(grid_sample_gradfix, "enabled", False)
    x, grid = tensors()
    assert "GridSampler" in type(grid_sample(x.requires_grad_(), grid).grad_fn).__name__


@pytest.mark.parametrize("grid_shape", [(2, 4, 6, 3), (1, 4, 6, 2), (2, 24, 2)], ids=str)
def test_refuses_what_does_not_fit(grid_shape):
    with pytest.raises(ValueError, match="grid_sample"):
        grid_sample(torch.zeros(2, 3, 5, 7), torch.zeros(grid_shape))
