# SPDX-License-Identifier: Apache-2.0
"""Which implementation is chosen for which tensor."""

import types

import pytest
import torch

from torch_utils.ops import _plugin, backend


def on(device: str, dtype=torch.float32):
    """A stand-in for a tensor on a device that this machine may lack."""
    return types.SimpleNamespace(device=torch.device(device), dtype=dtype)


@pytest.fixture
def kernels(monkeypatch):
    """As if the kernels had been built; collects the requests for them."""
    requests = []
    monkeypatch.setattr(_plugin, "load", lambda: requests.append(1) or types.ModuleType("kernels"))
    return requests


def test_kernels_are_chosen_for_cuda_tensors_of_their_types(kernels):
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert backend.choose(on("cuda", dtype), has_kernels=True) == backend.KERNELS
    assert len(kernels) == 4


@pytest.mark.parametrize(
    ("x", "has_kernels", "expected"),
    [
        (on("cuda", torch.int32), True, backend.GENERIC),
        (on("cuda"), False, backend.GENERIC),
        (on("mps"), True, backend.GENERIC),
        (on("cpu"), True, backend.CPU),
        (on("cpu", torch.bfloat16), False, backend.CPU),
    ],
)
def test_nothing_is_built_for_what_has_no_kernel(x, has_kernels, expected, kernels):
    assert backend.choose(x, has_kernels=has_kernels) == expected
    assert not kernels


def test_without_kernels_cuda_tensors_take_the_generic_way(monkeypatch):
    monkeypatch.setattr(_plugin, "load", lambda: None)
    assert backend.choose(on("cuda"), has_kernels=True) == backend.GENERIC


@pytest.mark.parametrize("device", ["cuda", "cpu", "mps"])
def test_switches_come_before_devices(device, kernels):
    x = on(device)
    assert backend.choose(x, "ref", has_kernels=True) == backend.REFERENCE
    with backend.reference_path():
        assert backend.choose(x, has_kernels=True) == backend.REFERENCE
        assert backend.choose_convolution(x, enabled=True) == backend.REFERENCE
    assert backend.choose_convolution(x, enabled=False) == backend.REFERENCE
    assert not kernels


def test_autocast_leaves_convolutions_to_pytorch():
    assert backend.choose_convolution(on("cpu"), enabled=True) == backend.CPU
    with torch.autocast("cpu", torch.bfloat16):
        assert backend.choose_convolution(on("cpu"), enabled=True) == backend.REFERENCE
        assert backend.choose(on("cpu")) == backend.CPU


def test_the_reference_path_ends_with_its_block_also_after_an_error():
    with pytest.raises(KeyError), backend.reference_path():
        assert backend.is_reference()
        with backend.reference_path():
            pass
        assert backend.is_reference()
        raise KeyError
    assert not backend.is_reference()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_only_a_cpu_convolves_half_precision_in_fp32(dtype):
    half = dtype in (torch.float16, torch.bfloat16)
    assert backend.transposed_depthwise_type(on("cpu", dtype)) == (torch.float32 if half else dtype)
    assert backend.transposed_depthwise_type(on("cuda", dtype)) == dtype
