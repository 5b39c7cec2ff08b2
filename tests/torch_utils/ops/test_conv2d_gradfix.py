# SPDX-License-Identifier: Apache-2.0
import threading

import pytest
import torch
import torch.nn.functional as F

from tests import tolerances
from tests.support import rnd
from torch_utils.ops import conv2d_gradfix

ARGUMENTS = {
    "conv2d": {"stride": 2, "padding": (1, 0), "dilation": 1, "groups": 2},
    "conv_transpose2d": {"stride": (2, 3), "padding": 1, "output_padding": (1, 2), "groups": 2, "dilation": 1},
}


@pytest.fixture(params=ARGUMENTS)
def conv(request):
    def run(x, w, b=None):
        return getattr(conv2d_gradfix, request.param)(x, w, b, **ARGUMENTS[request.param])

    run.plain = lambda x, w, b=None: getattr(F, request.param)(x, w, b, **ARGUMENTS[request.param])
    return run


@pytest.fixture
def tensors():
    x = rnd("x", (1, 4, 4, 5), torch.float64).requires_grad_()
    w = rnd("w", (4, 2, 3, 3), torch.float64).requires_grad_()
    return x, w


def test_equals_torch(conv, tensors):
    x, w = tensors
    b = rnd("b", (conv(x, w).shape[1],), torch.float64)
    tolerance = tolerances.CONV2D_GRADFIX
    torch.testing.assert_close(conv(x, w, b), conv.plain(x, w, b), rtol=tolerance, atol=tolerance)


def test_derivatives(conv, tensors):
    assert torch.autograd.gradcheck(conv, tensors)
    assert torch.autograd.gradgradcheck(conv, tensors)


def test_no_weight_gradients_leaves_out_only_weight_gradients(conv, tensors):
    x, w = tensors
    b = torch.zeros(conv(x, w).shape[1], dtype=torch.float64, requires_grad=True)
    y = conv(x, w, b)
    with conv2d_gradfix.no_weight_gradients():
        y.sum().backward(retain_graph=True)
    assert w.grad is None
    assert b.grad is not None
    torch.testing.assert_close(x.grad, torch.autograd.grad(conv.plain(x, w).sum(), x)[0])
    y.sum().backward()
    torch.testing.assert_close(w.grad, torch.autograd.grad(conv.plain(x, w).sum(), w)[0])


def test_gradient_penalty_still_reaches_the_weights(conv, tensors):
    def penalty(func):
        x, w = tensors
        with conv2d_gradfix.no_weight_gradients():
            (g,) = torch.autograd.grad(func(x, w).square().sum(), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), w)[0]

    torch.testing.assert_close(penalty(conv), penalty(conv.plain))


def test_nothing_before_the_weights_runs_backward_while_active(conv, tensors):
    x, w = tensors
    seen = []
    made = w * 1
    made.register_hook(lambda grad: seen.append(grad is not None))
    y = conv(x, made)
    with conv2d_gradfix.no_weight_gradients():
        torch.autograd.grad(y.sum(), x, create_graph=True)
        assert seen == []
        y.sum().backward(retain_graph=True)
        assert not any(seen)
    y.sum().backward()
    assert seen[-1]


def test_nested_and_after_an_error(conv, tensors):
    x, w = tensors

    def weight_gradient():
        return torch.autograd.grad(conv(x, w).sum(), [x, w], allow_unused=True)[1]

    with conv2d_gradfix.no_weight_gradients():
        with conv2d_gradfix.no_weight_gradients():
            assert weight_gradient() is None
        assert weight_gradient() is None
    assert weight_gradient() is not None
    with pytest.raises(KeyError), conv2d_gradfix.no_weight_gradients():
        raise KeyError
    assert weight_gradient() is not None


def test_the_argument_of_other_projects(conv, tensors):
    x, w = tensors
    for disable in (True, False):
        with conv2d_gradfix.no_weight_gradients(disable):
            assert (torch.autograd.grad(conv(x, w).sum(), [x, w], allow_unused=True)[1] is None) == disable
    with conv2d_gradfix.no_weight_gradients(), conv2d_gradfix.no_weight_gradients(disable=False):
        assert torch.autograd.grad(conv(x, w).sum(), [x, w], allow_unused=True)[1] is None


def test_holds_for_backward_passes_on_other_threads(tensors):
    x, w = tensors
    y = conv2d_gradfix.conv2d(x, w, groups=2)
    with conv2d_gradfix.no_weight_gradients():
        thread = threading.Thread(target=lambda: y.sum().backward())
        thread.start()
        thread.join()
    assert x.grad is not None
    assert w.grad is None


def test_disabled_means_plain_torch(monkeypatch, tensors):
    monkeypatch.setattr(conv2d_gradfix, "enabled", False)
    x, w = tensors
    with conv2d_gradfix.no_weight_gradients():
        conv2d_gradfix.conv2d(x, w, groups=2).sum().backward()
    assert w.grad is not None
