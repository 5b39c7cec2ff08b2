# SPDX-License-Identifier: Apache-2.0
"""Bias, activation, gain and clamp as one operation."""

import torch

from torch_utils.ops import backend, bias_act_cuda, bias_act_torch
from torch_utils.ops.bias_act_ref import activation_funcs, bias_act_ref


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
    """clamp(act(x + b) * gain, ±clamp), differentiable with respect to `x` and `b`.

    The CUDA kernels (`impl='cuda'`, a CUDA tensor, and a compiler to build them once) are differentiable twice, all
    other implementations to any order.

    Args:
        x: Input of any rank and floating-point type.
        b: Bias [x.shape[dim]], or None.
        dim: The axis of `x` that `b` lies along.
        act: A key of `activation_funcs`.
        alpha: Slope of 'lrelu' below zero; None = the activation's default. Other activations ignore it.
        gain: Factor after the activation; None = the activation's default.
        clamp: Bound on the output's magnitude, at least 0; None = unbounded.
        impl: 'cuda' (the fastest available) or 'ref' (plain PyTorch).

    Returns:
        A new tensor of `x`'s shape, type and memory format. Autograd may need its values: with 'relu', 'lrelu', 'tanh'
        and 'sigmoid', and on CUDA with a clamp, changing it in place before a backward pass can raise RuntimeError.

    Raises:
        ValueError: unknown `act` or `impl`, negative `clamp`, or a bias that does not fit.
    """
    _check(x, b, dim, act, clamp, impl)
    spec = activation_funcs[act]
    alpha = float(spec.def_alpha if alpha is None else alpha)
    gain = float(spec.def_gain if gain is None else gain)
    clamp = None if clamp is None else float(clamp)
    b = None if b is None else b.to(x.dtype)
    if b is None and act == "linear" and gain == 1 and clamp is None:
        return x.clone()  # not `x` itself: callers may change the result in place
    arguments = (x, b, dim % max(x.ndim, 1), act, alpha, gain, clamp)
    implementation = backend.choose(x, impl, has_kernels=bias_act_cuda.supports(act, alpha))
    if implementation == backend.REFERENCE:
        return bias_act_ref(*arguments)
    if implementation == backend.KERNELS:
        return bias_act_cuda.bias_act(*arguments)
    return bias_act_torch.bias_act(*arguments, on_cpu=implementation == backend.CPU)


def _check(x, b, dim, act, clamp, impl) -> None:
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
