# SPDX-License-Identifier: Apache-2.0
"""Bilinear image sampling with differentiable gradients, which PyTorch's own sampler does not have.

Letters: N batch, C channels, H W input image, h w sampled image.
"""

import torch
import torch.nn.functional as F

enabled = True  # False: the plain function, differentiable once.


def grid_sample(input: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Sample images at the points of a grid, bilinearly, with zeros outside; differentiable to any order.

    Args:
        input: Images [N, C, H, W], floating-point.
        grid: Points (x, y) [N, h, w, 2]; -1 and 1 are the image's outer edges (`align_corners=False`).

    Returns:
        [N, C, h, w], of `input`'s type.

    Raises:
        ValueError: shapes that do not fit.
    """
    if input.ndim != 4 or grid.ndim != 4 or grid.shape[3] != 2 or grid.shape[0] != input.shape[0]:
        raise ValueError(
            "grid_sample: input must have shape [N, C, H, W] and grid [N, h, w, 2], "
            f"got {list(input.shape)} and {list(grid.shape)}"
        )
    if enabled and torch.is_grad_enabled():
        if grid.requires_grad:
            return _sample_by_gathering(input, grid)
        if input.requires_grad:
            return _GridSample.apply(input, grid)
    return _sample(input, grid)


def _sample_by_gathering(input: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """The weighted sum of each point's four neighbours, by elementary operations: also differentiable in the grid."""
    N, C, H, W = input.shape
    h, w = grid.shape[1:3]
    x = ((grid[..., 0] + 1) * W - 1) / 2
    y = ((grid[..., 1] + 1) * H - 1) / 2
    x0, y0 = x.detach().floor(), y.detach().floor()
    pixels = input.reshape(N, C, H * W)
    total = 0
    for ix, wx in ((x0, x0 + 1 - x), (x0 + 1, x - x0)):
        for iy, wy in ((y0, y0 + 1 - y), (y0 + 1, y - y0)):
            inside = (ix >= 0) & (ix < W) & (iy >= 0) & (iy < H)
            index = iy.clamp(0, H - 1).long() * W + ix.clamp(0, W - 1).long()
            index = index.reshape(N, 1, h * w).expand(-1, C, -1)
            weight = torch.where(inside, wx * wy, 0).to(input.dtype)
            total = total + pixels.gather(2, index).reshape(N, C, h, w) * weight.unsqueeze(1)
    return total


def _sample(input: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """PyTorch's sampler, in a precision that can represent pixel positions and that every device supports."""
    dtype = torch.promote_types(torch.promote_types(input.dtype, grid.dtype), torch.float32)
    sampled = F.grid_sample(input.to(dtype), grid.to(dtype), mode="bilinear", padding_mode="zeros", align_corners=False)
    return sampled.to(input.dtype)


class _GridSample(torch.autograd.Function):
    """Sampling is linear in the image, so its gradient is its adjoint and does not depend on the image."""

    @staticmethod
    def forward(ctx, input: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(grid)
        ctx.input_shape = input.shape
        return _sample(input, grid)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (grid,) = ctx.saved_tensors
        return _GridSampleAdjoint.apply(grad, grid, ctx.input_shape), None


class _GridSampleAdjoint(torch.autograd.Function):
    """Spread each sampled value over the pixels it came from. The adjoint of that is sampling again."""

    @staticmethod
    def forward(ctx, grad: torch.Tensor, grid: torch.Tensor, input_shape: torch.Size) -> torch.Tensor:
        ctx.save_for_backward(grid)
        with torch.enable_grad():
            # The values of the image do not matter, so they take no memory.
            image = grad.new_zeros(()).expand(input_shape).requires_grad_()
            (adjoint,) = torch.autograd.grad(_sample(image, grid), image, grad)
        return adjoint

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (grid,) = ctx.saved_tensors
        return _GridSample.apply(grad, grid), None, None
