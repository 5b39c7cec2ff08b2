# SPDX-License-Identifier: Apache-2.0
"""Narrow BigGANs that start from wide ones: which axes share a width, what stays exactly, what is estimated anew."""

import copy

import pytest
import torch

from dgl import prune
from dnnlib.util import UserError
from tests.dgl import tiny
from tests.dgl.tiny import same
from tests.dgl.tiny_biggan import images, labels, make_D, make_G
from tests.support import rnd
from torch_utils import misc
from training import families, standing_stats
from training.families import biggan_pruning

# Resolution, attention, widths of a wide and a narrow network, condition.
GENERATORS = [
    (32, (), 2, 1, "tables"),
    (32, (8, 16), 4, 2, "shared"),
    (64, (16, 64), 8, 4, "tables"),
    (64, (16, 64), 8, 4, "hierarchical"),
    (128, (64,), 8, 4, "hierarchical"),
    (256, (32,), 8, 4, "hierarchical"),
]
DISCRIMINATORS = [(32, (), 2, 1), (32, (8, 16), 4, 2), (64, (16, 4), 8, 4), (128, (32,), 8, 4), (256, (32, 8), 8, 4)]
CASES = [*(("G", *case) for case in GENERATORS), *(("D", *case) for case in DISCRIMINATORS)]


def wide_and_narrow(letter, resolution, attn_res, wide, narrow, *condition):
    make = {"G": make_G, "D": make_D}[letter]
    return (make(i, ch, resolution, *condition, attn_res=attn_res) for i, ch in enumerate((wide, narrow)))


@pytest.fixture
def unsettled(monkeypatch):
    """Pruned networks keep the vectors and statistics of the wide ones."""
    monkeypatch.setattr(biggan_pruning, "POWER_STEPS", 0)
    monkeypatch.setattr(standing_stats, "accumulate", lambda *args: None)


def result(network):
    """Images of a generator, scores of a discriminator, in evaluation."""
    if hasattr(network, "z_dim"):
        return images(network, 2)
    with torch.no_grad():
        return copy.deepcopy(network).eval()(rnd("img", (4, 3, *[network.img_resolution] * 2)), labels(4))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_plan_covers_every_channel(case, unsettled):
    """Exactly the axes whose size depends on the width are in the plan, each once. Pruned, all tensors fit."""
    wide, narrow = wide_and_narrow(*case)
    there, here = (dict(misc.named_params_and_buffers(net)) for net in (wide, narrow))
    axes = [(axis.tensor, axis.axis) for width in families.of(wide).prune_plan(wide) for axis in width]
    differing = [
        (name, dim) for name, t in there.items() for dim in range(t.ndim) if t.shape[dim] != here[name].shape[dim]
    ]
    assert sorted(axes) == sorted(differing)
    prune.check_source(wide, narrow, "t.pkl", "D" if case[0] == "D" else "teacher")
    prune.inherit(wide, narrow, case[0].replace("G", "teacher"))
    assert result(narrow).isfinite().all()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_channels_without_effect_are_the_first_to_go_exactly(case, unsettled):
    """Rows and columns of zeros change no singular value, so without them the network computes the same."""
    wide, narrow = wide_and_narrow(*case)
    tensors, small = (dict(misc.named_params_and_buffers(net)) for net in (wide, narrow))
    plan = families.of(wide).prune_plan(wide)
    for number, width in enumerate(plan):
        C, n = (width[0].channels(net[width[0].tensor]) for net in (tensors, small))
        dead = torch.randperm(C, generator=torch.Generator().manual_seed(number))[n:]
        for axis in width:
            if not axis.tensor.endswith(("u0", "stored_mean", "stored_var")):
                entries = (dead[:, None] * axis.entries + torch.arange(axis.entries)).flatten()
                tensors[axis.tensor].index_fill_(axis.axis, entries, 0)
    wanted = result(wide)
    prune.inherit(wide, narrow, case[0].replace("G", "teacher"))
    torch.testing.assert_close(result(narrow), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", [CASES[1], CASES[3], CASES[7]], ids=str)
def test_equal_widths_are_copies_bit_for_bit(case):
    wide, _narrow = wide_and_narrow(*case)
    twin = copy.deepcopy(wide)
    for tensor in misc.params_and_buffers(twin):
        tensor.zero_()
    prune.inherit(wide, twin, case[0].replace("G", "teacher"), ranking="random")
    assert same(wide.state_dict(), twin.state_dict())


def uneven(network, seed=7):
    """`network` with weights whose singular values fall, so that the largest is well defined, as after training."""
    for name, tensor in network.named_parameters():
        if tensor.ndim > 1:
            U, S, Vh = torch.linalg.svd(rnd(f"{seed}{name}", tuple(tensor.shape)).flatten(1), full_matrices=False)
            tensor.copy_((U * S * 0.8 ** torch.arange(len(S)) @ Vh).reshape(tensor.shape))
    return network


@pytest.mark.parametrize("letter", ["G", "D"])
def test_spectral_norms_are_those_of_the_narrow_weights(letter, monkeypatch):
    monkeypatch.setattr(biggan_pruning, "BATCHES", 1)
    monkeypatch.setattr(biggan_pruning, "BATCH", 2)
    wide, narrow = wide_and_narrow(*CASES[3 if letter == "G" else 8])
    prune.inherit(uneven(wide), narrow, "D" if letter == "D" else "teacher")
    layers = [layer for layer in narrow.modules() if hasattr(layer, "normalised_weight")]
    assert len(layers) > 10
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.normalised_weight().flatten(1), 2).item() == pytest.approx(1, abs=1e-3)


def test_running_statistics_are_those_of_the_narrow_generator(monkeypatch):
    """After pruning, images in evaluation are like those with the statistics of a batch."""
    wide, narrow = make_G(1, ch=4, condition="shared"), make_G(2, ch=2, condition="shared")
    states = torch.get_rng_state()
    prune.inherit(wide, narrow, ranking="random")
    assert torch.equal(torch.get_rng_state(), states) and narrow.training
    again = make_G(3, ch=2, condition="shared")
    prune.inherit(wide, again, ranking="random")
    assert same(narrow.state_dict(), again.state_dict())

    def error(G):
        z, c = rnd("many", (300, G.z_dim)), labels(300)
        with torch.no_grad():
            ours, of_batch = G.eval()(z, c), copy.deepcopy(G).train()(z, c)
        return (ours - of_batch).square().mean() / of_batch.var()

    assert error(narrow) < 0.02
    monkeypatch.setattr(standing_stats, "accumulate", lambda *args: None)
    prune.inherit(wide, again, ranking="random")
    assert error(again) > 0.1


def test_a_network_in_evaluation_stays_so():
    narrow = make_G(2, ch=1).eval()
    prune.inherit(make_G(1, ch=2), narrow)
    assert not narrow.training


def test_the_class_vector_alone_is_inherited():
    wide, narrow = make_G(1, ch=4, condition="shared"), make_G(2, ch=2, condition="shared")
    before = copy.deepcopy(narrow.state_dict())
    prune.check_source(wide, narrow, "t.pkl", "mapping")
    prune.inherit(wide, narrow, "mapping")
    assert torch.equal(narrow.shared.weight, wide.shared.weight)
    assert same({**narrow.state_dict(), "shared.weight": 0 * before["shared.weight"]},
                {**before, "shared.weight": 0 * before["shared.weight"]})  # fmt: skip


@pytest.mark.parametrize(
    ("student", "parts", "sentence"),
    [
        (lambda: make_G(1, ch=8), "teacher", r"--dgl-init: the student is wider than G of t.pkl \(32 channels of 16"),
        (lambda: make_G(1, condition="shared"), "teacher", "--dgl-init: blocks.0.0.bn1.bias.sv0 is missing in G of"),
        (lambda: make_G(1), "mapping", "--dgl-init=mapping: G of t.pkl has no mapping network; use --dgl-init=teacher"),
        (lambda: tiny.make_G(1), "teacher", "is of the family biggan, not stylegan2; leave --cfg to the teacher"),
        (lambda: make_D(1, ch=8), "D", r"--dgl-init-d: the student is wider than D of t.pkl \(32 channels of 16"),
        (lambda: make_D(1, attn_res=(8,)), "D", "--dgl-init-d: blocks.1.1.g.sv0 is missing in D of t.pkl"),
    ],
)
def test_what_cannot_be_inherited_is_refused(student, parts, sentence):
    source = make_D(1, ch=4) if parts == "D" else make_G(1, ch=4)
    with pytest.raises(UserError, match=sentence):
        prune.check_source(source, student(), "t.pkl", parts)
