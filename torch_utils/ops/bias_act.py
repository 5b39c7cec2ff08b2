# SPDX-License-Identifier: Apache-2.0
"""Bias, activation, gain and clamp as one operation."""

import dataclasses
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from torch_utils.ops import _plugin, backend


@dataclasses.dataclass(frozen=True)
class Activation:
    """An activation `func(x, alpha)` with its default `alpha` and the default gain that keeps its output's scale."""

    func: Callable[..., torch.Tensor]
    def_alpha: float = 0.0
    def_gain: float = 1.0


activation_funcs: dict[str, Activation] = {
    "linear": Activation(lambda x, alpha=0.0: x),
    "relu": Activation(lambda x, alpha=0.0: F.relu(x), def_gain=math.sqrt(2)),
    "lrelu": Activation(lambda x, alpha=0.2: F.leaky_relu(x, alpha), def_alpha=0.2, def_gain=math.sqrt(2)),
    "tanh": Activation(lambda x, alpha=0.0: torch.tanh(x)),
    "sigmoid": Activation(lambda x, alpha=0.0: torch.sigmoid(x)),
    "elu": Activation(lambda x, alpha=0.0: F.elu(x)),
    "selu": Activation(lambda x, alpha=0.0: F.selu(x)),
    "softplus": Activation(lambda x, alpha=0.0: F.softplus(x)),
    "swish": Activation(lambda x, alpha=0.0: x * torch.sigmoid(x), def_gain=math.sqrt(2)),
}


def bias_act(
    x: torch.Tensor,
    b: torch.Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    impl: str = "cuda",
) -> torch.Tensor:
    """clamp(act(x + b) * gain, ±clamp), differentiable with respect to `x` and `b`: twice where the CUDA kernels serve
    (`impl='cuda'`, CUDA tensors, and a compiler to build them once), otherwise to any order.

    Args:
        x: Input of any rank and floating-point type.
        b: Bias [x.shape[dim]], or None.
        dim: The axis of `x` that `b` lies along.
        act: A key of `activation_funcs`.
        alpha: Slope of 'lrelu' below zero; None = the activation's default, other activations ignore it.
        gain: Factor after the activation; None = the activation's default.
        clamp: Bound on the output's magnitude, at least 0; None = unbounded.
        impl: 'cuda' (the fastest that is available) or 'ref' (plain PyTorch).

    Returns:
        A tensor of `x`'s shape, type and memory format.

    Raises:
        ValueError: unknown `act` or `impl`, negative `clamp`, or a bias that does not fit.
    """
    if impl not in ("ref", "cuda"):
        raise ValueError(f"bias_act: impl must be 'ref' or 'cuda', got {impl!r}")
    if act not in activation_funcs:
        raise ValueError(f"bias_act: act must be one of {', '.join(activation_funcs)}, got {act!r}")
    if clamp is not None and not clamp >= 0:
        raise ValueError(f"bias_act: clamp must be None or at least 0, got {clamp}")
    if b is not None:
        if not -x.ndim <= dim < x.ndim:
            raise ValueError(f"bias_act: dim {dim} is outside x, which has {x.ndim} axes")
        if b.shape != (x.shape[dim],):
            raise ValueError(f"bias_act: b must have shape [{x.shape[dim]}] (axis {dim} of x), got {list(b.shape)}")
    if impl == "cuda" and _plugin.serves(x):
        from torch_utils.ops import bias_act_cuda  # here, because it takes the table above

        return bias_act_cuda.bias_act(x, b, dim, act, alpha, gain, clamp)
    if impl == "cuda" and x.device.type == "cpu" and act in _IN_PLACE and not backend.is_reference():
        return _bias_act_cpu(x, b, dim, act, alpha, gain, clamp)
    return _bias_act_ref(x, b, dim, act, alpha, gain, clamp)


def _bias_act_ref(
    x: torch.Tensor,
    b: torch.Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> torch.Tensor:
    """`bias_act` in plain PyTorch."""
    alpha, gain = _or_default(act, alpha, gain)
    if b is not None:
        x = x + _along(b.to(x.dtype), dim, x.ndim)
    x = activation_funcs[act].func(x, alpha=alpha)
    if gain != 1:
        x = x * gain
    if clamp is not None:
        x = x.clamp(-clamp, clamp)
    return x


def _or_default(act: str, alpha: float | None, gain: float | None) -> tuple[float, float]:
    """`alpha` and `gain`, or those of the activation where they are None."""
    spec = activation_funcs[act]
    return float(spec.def_alpha if alpha is None else alpha), float(spec.def_gain if gain is None else gain)


def _along(b: torch.Tensor, dim: int, ndim: int) -> torch.Tensor:
    """`b` [n] in a shape that broadcasts along axis `dim` of `ndim`."""
    shape = [1] * ndim
    shape[dim] = -1
    return b.reshape(shape)


# f(g·x) = g·f(x) for g >= 0, and the derivative can be told from the result.
_IN_PLACE: dict[str, Callable[..., torch.Tensor]] = {
    "linear": lambda x, alpha: x,
    "relu": lambda x, alpha: F.relu(x, inplace=True),
    "lrelu": lambda x, alpha: F.leaky_relu(x, alpha, inplace=True),
}


def _bias_act_cpu(
    x: torch.Tensor,
    b: torch.Tensor | None,
    dim: int,
    act: str,
    alpha: float | None,
    gain: float | None,
    clamp: float | None,
) -> torch.Tensor:
    """`bias_act` for the activations of `_IN_PLACE` in as few passes over memory as PyTorch's operations allow."""
    alpha, gain = _or_default(act, alpha, gain)
    nothing_to_fuse = b is None and act == "linear" and gain == 1
    if nothing_to_fuse or gain < 0 or (act == "lrelu" and alpha <= 0):
        return _bias_act_ref(x, b, dim, act, alpha, gain, clamp)
    if b is not None:
        y = torch.add(_along(b.to(x.dtype) * gain, dim, x.ndim), x, alpha=gain)
    else:
        y = x * gain
    y = _IN_PLACE[act](y, alpha)
    if clamp is None or (y.requires_grad and not _traced(y) and _within(y, clamp)):
        return y
    return y.clamp(-clamp, clamp) if y.requires_grad else y.clamp_(-clamp, clamp)


def _within(x: torch.Tensor, bound: float) -> bool:
    """Whether no element of a dense tensor exceeds `bound` in magnitude; NaN counts as exceeding.

    This reads memory once, where clamping takes several passes, most of them in its backward.
    """
    # As one axis, because for any layout but the standard one aminmax would first make a copy.
    low, high = x.detach().as_strided((x.numel(),), (1,)).aminmax()
    return bool((low >= -bound) & (high <= bound))


def _traced(x: torch.Tensor) -> bool:
    """Whether values may not be looked at, because the operations are being recorded or there are none."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or x.numel() == 0
