# SPDX-License-Identifier: Apache-2.0
"""The CUDA operations with an implementation for CPU tensors, which production does not have.

Importing this module registers formulas in plain PyTorch, so that everything around the kernels (derivatives, fake
tensors, tracing) can be tested without a GPU. Inside `launched`, the code that launches the kernels runs instead.
"""

import contextlib
import math
from collections.abc import Callable, Iterator

import torch

from torch_utils.ops import bias_act_cuda, layout, upfirdn2d_cuda
from torch_utils.ops.bias_act_ref import activation_funcs, along, bias_act_ref
from torch_utils.ops.upfirdn2d_ref import resample_ref

OPS = torch.ops.stylegan2_ada
_SELU_SCALE = 1.0507009873554804934193349852946
_SELU_ALPHA = 1.6732632423543772848170429916717

_launched = False


@contextlib.contextmanager
def launched() -> Iterator[None]:
    """Inside, CPU tensors reach the kernels of `_plugin.load()`, which a test has replaced."""
    global _launched
    _launched = True
    try:
        yield
    finally:
        _launched = False


def sigmoid_slope(u: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(u) * torch.sigmoid(-u)


# First and second derivatives of the activations that have a second one.
SMOOTH: dict[str, tuple[Callable, Callable]] = {
    "tanh": (lambda u: 1 - u.tanh() ** 2, lambda u: -2 * u.tanh() * (1 - u.tanh() ** 2)),
    "sigmoid": (sigmoid_slope, lambda u: sigmoid_slope(u) * (1 - 2 * u.sigmoid())),
    "elu": (lambda u: torch.where(u > 0, 1.0, u.exp()), lambda u: torch.where(u < 0, u.exp(), 0.0)),
    "selu": (
        lambda u: _SELU_SCALE * torch.where(u > 0, 1.0, _SELU_ALPHA * u.exp()),
        lambda u: _SELU_SCALE * torch.where(u < 0, _SELU_ALPHA * u.exp(), 0.0),
    ),
    "softplus": (torch.sigmoid, sigmoid_slope),
    "swish": (
        lambda u: u.sigmoid() + u * sigmoid_slope(u),
        lambda u: sigmoid_slope(u) * (2 + u * (1 - 2 * u.sigmoid())),
    ),
}


def _like(x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """`values` in new memory of the type and layout that the kernels give."""
    return torch.empty_like(x).copy_(values)


@bias_act_cuda.bias_act.register_kernel("cpu")
def _(x, b, dim, act, alpha, gain, clamp):
    if _launched:
        return bias_act_cuda.launch(0, x, b, None, None, dim, act, alpha, gain, clamp)
    return _like(x, bias_act_ref(x, b, dim, act, alpha, gain, clamp))


@bias_act_cuda.bias_act_grad.register_kernel("cpu")
def _(g, saved, b, dim, act, alpha, gain, clamp):
    if _launched:
        return bias_act_cuda.launch(1, saved, b, g, None, dim, act, alpha, gain, clamp)
    if act in SMOOTH:
        u = saved if b is None else saved + along(b, dim, saved.ndim)
        return _like(saved, g * SMOOTH[act][0](u) * gain * _inside(u, act, alpha, gain, clamp))
    slope = torch.where(saved * math.copysign(1, gain) > 0, 1.0, {"linear": 1.0, "relu": 0.0, "lrelu": alpha}[act])
    inside = True if clamp is None else saved.abs() < torch.tensor(clamp, dtype=saved.dtype)  # as outputs hold it
    return _like(saved, g * slope * gain * inside)


@bias_act_cuda.bias_act_grad2.register_kernel("cpu")
def _(g, dy, x, b, dim, act, alpha, gain, clamp):
    if _launched:
        return bias_act_cuda.launch(2, x, b, g, dy, dim, act, alpha, gain, clamp)
    u = x if b is None else x + along(b, dim, x.ndim)
    return _like(x, g * dy * SMOOTH[act][1](u) * gain * _inside(u, act, alpha, gain, clamp))


def _inside(u: torch.Tensor, act: str, alpha: float, gain: float, clamp: float | None) -> torch.Tensor | bool:
    return True if clamp is None else (activation_funcs[act].func(u, alpha) * gain).abs() <= clamp


@upfirdn2d_cuda.resample.register_kernel("cpu")
def _(x, f, up, down, pad, size, flip, gain):
    if _launched:
        return upfirdn2d_cuda.launch(x, f, up, down, pad, size, flip, gain)
    y = resample_ref(x, f, tuple(up), tuple(down), tuple(pad), tuple(size), flip, gain)
    return layout.new_images(x, size).copy_(y)
