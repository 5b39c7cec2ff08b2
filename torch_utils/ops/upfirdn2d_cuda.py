# SPDX-License-Identifier: Apache-2.0
"""`upfirdn2d` as an operation of the dispatcher, so that autograd, `torch.compile` and `torch.export` see through it.

    upfirdn2d(x, f, up, down, pad, size, flip, gain)     each of the four pairs is y then x

takes the padding before the first pixel and the size of the result, which tells the padding after the last. Its
derivative is the operation itself: factors exchanged, filter turned round, padded by what the taps leave,
to the size of x. On CUDA it is a kernel of csrc/upfirdn2d.cu; elsewhere plain PyTorch, by which tests hold it to the
reference in upfirdn2d.py.
"""

import torch

from torch_utils.ops import _plugin
from torch_utils.ops.upfirdn2d import _upfirdn2d_ref


def upfirdn2d(
    x: torch.Tensor,
    f: torch.Tensor,
    up: tuple[int, int],
    down: tuple[int, int],
    padding: tuple[int, int, int, int],
    flip_filter: bool,
    gain: float,
) -> torch.Tensor:
    """`torch_utils.ops.upfirdn2d.upfirdn2d` through the operation above, on arguments that it has checked.

    `up` and `down` are (x, y), `padding` is (x0, x1, y0, y1). Differentiable with respect to `x` to any order, and not
    with respect to `f`.
    """
    f = f.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    if f.ndim == 2:
        return _along_axes(x, f, up, down, padding, flip_filter, float(gain))
    x0, x1, y0, y1 = padding
    x = _along_axes(x, f[None, :], (up[0], 1), (down[0], 1), (x0, x1, 0, 0), flip_filter, float(gain))
    return _along_axes(x, f[:, None], (1, up[1]), (1, down[1]), (0, 0, y0, y1), flip_filter, 1.0)


def _along_axes(x, f, up, down, padding, flip_filter, gain):
    x0, x1, y0, y1 = padding
    height = (x.shape[2] * up[1] + y0 + y1 - f.shape[0]) // down[1] + 1
    width = (x.shape[3] * up[0] + x0 + x1 - f.shape[1]) // down[0] + 1
    return _resample(x, f, up[::-1], down[::-1], [y0, x0], [height, width], flip_filter, gain)


@torch.library.custom_op(
    "stylegan2_ada::upfirdn2d",
    mutates_args=(),
    schema="(Tensor x, Tensor f, int[] up, int[] down, SymInt[] pad, SymInt[] size, bool flip, float gain) -> Tensor",
)
def _resample(x, f, up, down, pad, size, flip, gain):
    after = [(size[a] - 1) * down[a] + f.shape[a] - x.shape[2 + a] * up[a] - pad[a] for a in (0, 1)]
    padding = (pad[1], after[1], pad[0], after[0])
    return _new_result(x, size).copy_(_upfirdn2d_ref(x, f, up[::-1], down[::-1], padding, flip, gain))


@_resample.register_fake
def _(x, f, up, down, pad, size, flip, gain):
    return _new_result(x, size)


def _new_result(x: torch.Tensor, size) -> torch.Tensor:
    """Room for the result: channels last where `x` is, or is cut from what is; otherwise contiguous."""
    last = x.shape[1] > 1 and x.stride(1) == 1 and not x.is_contiguous()
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty([*x.shape[:2], *size], dtype=x.dtype, device=x.device, memory_format=layout)


@_resample.register_kernel("cuda")
def _launch(x, f, up, down, pad, size, flip, gain):
    if f.device != x.device:
        raise RuntimeError(f"upfirdn2d: the image is on {x.device}, its filter on {f.device}")
    y = _new_result(x, size)
    if y.numel() == 0:
        return y
    f = f.contiguous()
    with torch.cuda.device(x.device):
        _plugin.load().upfirdn2d(
            _plugin.TYPES[x.dtype],
            *(tensor.data_ptr() for tensor in (x, f, y)),
            *(x.shape, x.stride(), y.shape, y.stride()),
            *(f.shape[::-1], up[::-1], down[::-1], pad[::-1]),
            *(flip, gain, torch.cuda.current_stream().cuda_stream),
        )
    return y


def _keep(ctx, inputs, output) -> None:
    x, f, *ctx.attributes = inputs
    ctx.size = x.shape[2:]
    ctx.save_for_backward(f)


def _backward(ctx, dy):
    (f,) = ctx.saved_tensors
    up, down, pad, _, flip, gain = ctx.attributes
    around = [taps - 1 - before for taps, before in zip(f.shape, pad)]
    return _resample(dy, f, down, up, around, ctx.size, not flip, gain), *[None] * 7


_resample.register_autograd(_backward, setup_context=_keep)
