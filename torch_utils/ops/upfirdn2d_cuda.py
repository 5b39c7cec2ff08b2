# SPDX-License-Identifier: Apache-2.0
"""`upfirdn2d` by CUDA kernels, as an operation of the dispatcher: autograd, `torch.compile`, `torch.export` know it.

Its derivative in the image is the operation itself, as in upfirdn2d_torch.py. It has no derivative in the filter.
"""

import torch

from torch_utils.ops import _plugin, layout
from torch_utils.ops.upfirdn2d_torch import adjoint_padding


@torch.library.custom_op(
    "stylegan2_ada::upfirdn2d",
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor x, Tensor f, int[] up, int[] down, SymInt[] pad, SymInt[] size, bool flip, float gain) -> Tensor",
)
def resample(x, f, up, down, pad, size, flip, gain):
    """`upfirdn2d_ref.resample_ref`."""
    return launch(x, f, up, down, pad, size, flip, gain)


@resample.register_fake
def _(x, f, up, down, pad, size, flip, gain):
    return layout.new_images(x, size)


def launch(x, f, up, down, pad, size, flip, gain) -> torch.Tensor:
    """Run the kernel."""
    if f.device != x.device:
        raise RuntimeError(f"upfirdn2d: the image is on {x.device}, its filter on {f.device}")
    y = layout.new_images(x, size)
    if y.numel() == 0:
        return y
    f = f.contiguous()
    with torch.cuda.device(x.device):
        _plugin.load().upfirdn2d(
            _plugin.TYPES[x.dtype],
            *(tensor.data_ptr() for tensor in (x, f, y)),
            *(x.shape, x.stride(), y.shape, y.stride()),
            *(f.shape, up, down, pad),
            *(flip, gain, torch.cuda.current_stream().cuda_stream),
        )
    return y


def _save(ctx, inputs, output) -> None:
    x, f, *ctx.attributes = inputs
    ctx.size = x.shape[2:]
    ctx.save_for_backward(f)


def _backward(ctx, dy):
    (f,) = ctx.saved_tensors
    up, down, pad, _, flip, gain = ctx.attributes
    return resample(dy, f, down, up, adjoint_padding(f, pad), ctx.size, not flip, gain), *[None] * 7


resample.register_autograd(_backward, setup_context=_save)
