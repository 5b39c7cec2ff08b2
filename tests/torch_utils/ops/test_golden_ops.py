# SPDX-License-Identifier: Apache-2.0
"""The golden cases of every operation: outputs, first and second gradients (recipe in tests/golden/README.md)."""

import pytest
import torch

from tests import tolerances
from tests.support import golden_arrays, golden_json, rnd
from torch_utils.ops import upfirdn2d
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.conv2d_resample import conv2d_resample

CASES = golden_json("ops")
RESAMPLERS = ("upfirdn2d", "filter2d", "upsample2d", "downsample2d")
NOT_ARGUMENTS = ("op", "id", "shape", "filter", "normalize", "wshape", "wkey")


@pytest.fixture(scope="module")
def arrays():
    return golden_arrays("ops")


def cases(*ops):
    return pytest.mark.parametrize("case", [c for c in CASES if c["op"] in ops], ids=lambda c: f"{c['op']}-{c['id']}")


def golden_input(case):
    shape = tuple(case["shape"])
    return rnd(f"x{shape}", shape, torch.float64).requires_grad_()


def golden_filter(case):
    if case["filter"] is None:
        return None
    return upfirdn2d.setup_filter(case["filter"], normalize=case.get("normalize", True))


def arguments(case):
    return {key: value for key, value in case.items() if key not in NOT_ARGUMENTS}


def check(actual, expected):
    expected, tolerance = torch.as_tensor(expected), tolerances.GOLDEN_OPS
    scale = max(1, expected.abs().max().item())
    torch.testing.assert_close(actual.detach(), expected, rtol=tolerance, atol=tolerance * scale)


def check_output_and_gradients(case, x, y, arrays):
    check(y, arrays[f"{case['id']}.y"])
    (g,) = torch.autograd.grad((y * rnd("ry", y.shape, torch.float64)).sum(), x, create_graph=True)
    if f"{case['id']}.g" in arrays:
        check(g, arrays[f"{case['id']}.g"])
    if f"{case['id']}.h" in arrays:
        h = None
        if g.requires_grad:
            (h,) = torch.autograd.grad((g * rnd("rg", g.shape, torch.float64)).sum(), x, allow_unused=True)
        check(torch.zeros_like(x) if h is None else h, arrays[f"{case['id']}.h"])


@cases("bias_act")
def test_bias_act(case, arrays):
    x = golden_input(case)
    b = rnd("b", (x.shape[case["dim"]],), torch.float64) if case["bias"] else None
    y = bias_act(x, b, **{key: case[key] for key in ("dim", "act", "alpha", "gain", "clamp")})
    check_output_and_gradients(case, x, y, arrays)


@cases(*RESAMPLERS)
def test_resampling(case, arrays):
    x = golden_input(case)
    y = getattr(upfirdn2d, case["op"])(x, golden_filter(case), **arguments(case))
    check_output_and_gradients(case, x, y, arrays)


@cases("conv2d_resample")
def test_conv2d_resample(case, arrays):
    x = golden_input(case)
    w = rnd(case["wkey"], tuple(case["wshape"]), torch.float64).requires_grad_()
    y = conv2d_resample(x, w, golden_filter(case), **arguments(case))
    check(y, arrays[f"{case['id']}.y"])
    gx, gw = torch.autograd.grad((y * rnd("ry", y.shape, torch.float64)).sum(), [x, w])
    check(gx, arrays[f"{case['id']}.gx"])
    check(gw, arrays[f"{case['id']}.gw"])


def test_every_golden_case_is_covered():
    assert {case["op"] for case in CASES} == {"bias_act", "conv2d_resample", *RESAMPLERS}
