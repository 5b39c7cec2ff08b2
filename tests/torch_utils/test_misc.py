# SPDX-License-Identifier: Apache-2.0
import itertools
import math
import time
import warnings

import numpy as np
import pytest
import torch

from tests.support import golden_json
from torch_utils import misc


def test_constant_is_cached_by_value_shape_dtype_and_device():
    a = misc.constant([1.0, 2.0])
    assert a.dtype == torch.get_default_dtype() and a.tolist() == [1, 2]
    assert misc.constant(np.array([1.0, 2.0])) is a
    assert misc.constant([1.0, 3.0]) is not a
    assert misc.constant([1.0, 2.0], dtype=torch.float64).dtype == torch.float64
    wide = misc.constant([1.0, 2.0], shape=[3, 2])
    assert wide.tolist() == [[1, 2]] * 3 and wide.is_contiguous()
    last = misc.constant(1.0, shape=[1, 2, 3, 4], memory_format=torch.channels_last)
    assert last.is_contiguous(memory_format=torch.channels_last)


def test_constant_made_in_inference_mode_takes_part_in_gradients_later():
    with torch.inference_mode():
        made = misc.constant([0.123, 0.456])
    x = torch.ones(2, requires_grad=True)
    (x * made).sum().backward()
    assert torch.equal(x.grad, misc.constant([0.123, 0.456]))


def test_constant_cache_is_bounded():
    for value in range(3 * misc._CONSTANTS_KEPT):
        misc.constant(value)
    assert len(misc._constants) == misc._CONSTANTS_KEPT


def test_nan_to_num():
    x = torch.tensor([math.nan, math.inf, -math.inf, 1.0])
    out = misc.nan_to_num(x, nan=0, posinf=1e5, neginf=-1e5)
    assert out.tolist() == [0, 1e5, -1e5, 1]


def test_symbolic_assert():
    misc.symbolic_assert(torch.tensor(True), "fine")
    with pytest.raises(AssertionError, match="not fine"):
        misc.symbolic_assert(torch.tensor(False), "not fine")


def test_assert_shape():
    x = torch.zeros(2, 3)
    misc.assert_shape(x, [2, 3])
    misc.assert_shape(x, [None, 3])
    for shape in ([2, 3, 1], [2, 4], [None, 2]):
        with pytest.raises(AssertionError):
            misc.assert_shape(x, shape)


def test_suppressed_tracer_warnings():
    def fn(x):
        misc.assert_shape(x, [2, None])
        with misc.suppress_tracer_warnings():
            size = int(x.sum())
        return x * size

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.jit.trace(fn, torch.ones(2, 3), check_trace=False)
    assert not [w for w in caught if issubclass(w.category, torch.jit.TracerWarning)]


def test_profiled_function_keeps_its_name_and_shows_in_the_profile():
    @misc.profiled_function
    def some_work(x, y=1):
        """Says what it does."""
        return x + y

    with torch.autograd.profiler.profile() as profile:
        assert some_work(2, y=3) == 5
    assert some_work.__doc__ == "Says what it does."
    assert "some_work" in {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("case", sorted(golden_json("sampling")["infinite_sampler"]))
def test_infinite_sampler_gives_the_golden_indices(case):
    n, rank, replicas, seed, window = case.split(",")
    sampler = misc.InfiniteSampler(
        range(int(n)), int(rank), int(replicas), shuffle=True, seed=int(seed), window_size=float(window)
    )
    golden = golden_json("sampling")["infinite_sampler"][case]
    assert list(itertools.islice(iter(sampler), len(golden))) == golden


def test_infinite_sampler_without_shuffle_and_bad_arguments():
    assert list(itertools.islice(misc.InfiniteSampler(range(3), shuffle=False, window_size=0), 5)) == [0, 1, 2, 0, 1]
    for arguments in ({"dataset": []}, {"dataset": [1], "rank": 1}, {"dataset": [1], "window_size": 2}):
        with pytest.raises(ValueError):
            misc.InfiniteSampler(**arguments)


def test_copying_by_name():
    src, dst = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    torch.nn.init.normal_(src.weight)
    src.running_mean.fill_(5)
    dst.requires_grad_(False)
    misc.copy_params_and_buffers(src, dst, require_all=True)
    assert torch.equal(dst.weight, src.weight) and torch.equal(dst.running_mean, src.running_mean)
    assert not dst.weight.requires_grad and dst.weight.data_ptr() != src.weight.data_ptr()
    assert [name for name, _ in misc.named_params_and_buffers(src)][:3] == ["weight", "bias", "running_mean"]
    assert len(misc.params_and_buffers(src)) == 5


def test_copying_from_a_different_module():
    src, dst = torch.nn.Linear(2, 3, bias=False), torch.nn.Linear(2, 3)
    bias = dst.bias.clone()
    misc.copy_params_and_buffers(src, dst)
    assert torch.equal(dst.weight, src.weight) and torch.equal(dst.bias, bias)
    with pytest.raises(KeyError, match="bias"):
        misc.copy_params_and_buffers(src, dst, require_all=True)
    with pytest.raises(ValueError, match=r"weight.*\(3, 2\).*\(4, 2\)"):
        misc.copy_params_and_buffers(src, torch.nn.Linear(2, 4))


def test_ddp_sync_leaves_plain_modules_alone():
    with misc.ddp_sync(torch.nn.Linear(1, 1), sync=False):
        pass


class _Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        self.norm = torch.nn.BatchNorm1d(2)

    def forward(self, x):
        return self.norm(self.body(x))


def test_module_summary_counts_every_tensor_once_and_returns_the_outputs(capsys):
    net = _Net().eval()
    x = torch.randn(3, 4)
    outputs = misc.print_module_summary(net, [x])
    assert torch.equal(outputs, net(x))
    table = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    rows = {line[0]: line[1:] for line in table}
    assert rows["body.0"][:2] == ["40", "-"] and "[3," in rows["body.0"]
    assert rows["norm"][:2] == ["4", "5"] and rows["norm"][-1] == "float32"
    assert rows["Total"][:2] == [str(sum(p.numel() for p in net.parameters())), "5"]
    assert not any(module._forward_hooks for module in net.modules())


def test_module_summary_includes_deeper_modules_in_their_parents(capsys):
    net = _Net().eval()
    misc.print_module_summary(net, [torch.randn(3, 4)], max_nesting=1)
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert rows["body"][0] == "58" and "body.0" not in rows and rows["Total"][0] == "62"


def test_module_summary_is_quick(capsys):
    net = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(500)))
    start = time.perf_counter()
    misc.print_module_summary(net, [torch.zeros(1, 4)])
    assert time.perf_counter() - start < 2
    assert len(capsys.readouterr().out.splitlines()) > 500
