# SPDX-License-Identifier: Apache-2.0
"""Narrow generators that start from wide ones: which channels are kept, and what the student makes then."""

import math
import time

import pytest
import torch

from dgl import prune
from dnnlib.util import UserError
from tests.dgl.tiny import C_DIM, Z_DIM, make_G
from tests.support import rnd
from torch_utils import misc
from training import families
from training.families.family import Axis
from training.networks import Generator

WIDE = {"channel_base": 256, "channel_max": 16}


def images(G, n=4):
    c = torch.eye(C_DIM)[torch.arange(n) % C_DIM]
    with torch.no_grad():
        return G.eval()(rnd("z", (n, Z_DIM)), c, noise_mode="const")


def wide_G(seed=1, **kwargs):
    """With noise and biases that are not zero, as after training."""
    G = make_G(seed, **{**WIDE, **kwargs})
    for name, tensor in G.named_parameters():
        if name.endswith(("bias", "noise_strength")):
            tensor += 0.1 * rnd(f"{seed}{name}", tuple(tensor.shape))
    G.mapping.w_avg.copy_(rnd("w_avg", (Z_DIM,)))
    return G


def test_l1_scores_by_hand():
    tensors = {"a": torch.tensor([[1.0, -3.0], [0.0, 2.0]]), "b": torch.tensor([[2.0, 2.0, -2.0], [1.0, 0.0, 1.0]])}
    width = [Axis("a", 1, ranked=True), Axis("b", 0, ranked=True), Axis("a", 1)]
    expected = torch.tensor([1.0, 5.0]) / 3 + torch.tensor([6.0, 2.0]) / 4
    torch.testing.assert_close(prune.l1_scores(tensors, width), expected)


def test_slicing_by_hand():
    tensors = {"w": torch.arange(12.0).reshape(3, 4), "b": torch.arange(3.0), "other": torch.ones(2)}
    plan = [[Axis("w", 0), Axis("b", 0)], [Axis("w", 1, scaled=True)]]
    sliced = prune.slice_channels(tensors, plan, [torch.tensor([0, 2]), torch.tensor([3])])
    torch.testing.assert_close(sliced["w"], torch.tensor([[3.0], [11.0]]) * math.sqrt(1 / 4))
    assert sliced["b"].tolist() == [0, 2] and sliced["other"] is tensors["other"]
    assert tensors["w"].shape == (3, 4)


@pytest.mark.parametrize("architecture", ["skip", "resnet", "orig"])
def test_the_plan_covers_every_channel(architecture):
    """Pruned to any sizes, the tensors fit a network of those sizes: no axis is forgotten, none is in two widths."""
    G = wide_G(architecture=architecture)
    narrow = make_G(2, channel_base=64, channel_max=5, architecture=architecture)
    axes = [(axis.tensor, axis.axis) for width in families.of(G).prune_plan(G) for axis in width]
    assert len(axes) == len(set(axes))
    prune.inherit(G, narrow)
    here, there = (dict(misc.named_params_and_buffers(net)) for net in (narrow, G))
    differing = {
        (name, dim) for name, t in here.items() for dim in range(t.ndim) if t.shape[dim] != there[name].shape[dim]
    }
    assert differing <= set(axes)


@pytest.mark.parametrize("architecture", ["skip", "resnet", "orig"])
@pytest.mark.parametrize("ranking", prune.RANKINGS)
def test_equal_widths_make_the_images_of_the_teacher(architecture, ranking):
    G, student = wide_G(architecture=architecture), make_G(2, **WIDE, architecture=architecture)
    prune.inherit(G, student, ranking=ranking)
    assert (images(student) - images(G)).abs().max() < 1e-5
    assert torch.equal(student.mapping.w_avg, G.mapping.w_avg)


@pytest.mark.parametrize("architecture", ["skip", "resnet"])
def test_channels_without_effect_are_the_first_to_go(architecture):
    """A teacher half of whose channels write and read zeros: half the width makes the same images."""
    G, student = (
        wide_G(architecture=architecture),
        make_G(2, channel_base=128, channel_max=8, architecture=architecture),
    )
    tensors = dict(misc.named_params_and_buffers(G))
    for width in families.of(G).prune_plan(G):
        for axis in width:
            tensor = tensors[axis.tensor]
            dead = torch.randperm(16, generator=torch.Generator().manual_seed(5))[:8]
            if not axis.tensor.endswith(("affine.weight", "affine.bias")):
                tensor.index_fill_(axis.axis, dead, 0)
    prune.inherit(G, student)
    assert (images(student) - images(G)).abs().max() < 1e-4


def test_pruned_networks_degrade_with_width():
    """In the median over ten networks, the less of the teacher is kept, the further the images are from its own.

    The channels differ in importance, as training makes them: what reads the k-th of them in a random order is scaled
    by 0.75 to the power k.
    """
    distances = []
    for seed in range(10):
        G = wide_G(seed)
        tensors = dict(misc.named_params_and_buffers(G))
        for axis in (axis for width in families.of(G).prune_plan(G) for axis in width if axis.axis == 1):
            order = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
            tensors[axis.tensor] *= 0.75 ** order[:, None, None]
        wanted, row = images(G), []
        for top in (12, 8, 4, 2):
            student = make_G(99, channel_base=16 * top, channel_max=top)
            prune.inherit(G, student)
            row.append((images(student) - wanted).square().mean().item())
        distances.append(row)
    medians = torch.tensor(distances).median(dim=0).values.tolist()
    assert medians == sorted(medians) and medians[0] > 0


def test_mapping_alone_leaves_the_synthesis_network():
    G, student = wide_G(), make_G(2)
    before = {name: tensor.clone() for name, tensor in misc.named_params_and_buffers(student)}
    prune.inherit(G, student, parts="mapping")
    for name, tensor in misc.named_params_and_buffers(student):
        same_as_before = torch.equal(tensor, before[name])
        assert same_as_before == (not name.startswith("mapping.")) or torch.equal(
            dict(G.named_parameters()).get(name, tensor), tensor
        )


def test_random_ranking_follows_the_seed():
    G = wide_G()
    weights = []
    for seed in (0, 0, 1):
        student = make_G(2)
        prune.inherit(G, student, ranking="random", seed=seed)
        weights.append(student.synthesis.b8.conv0.weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    with pytest.raises(UserError, match="--dgl-prune must be one of"):
        prune.inherit(G, make_G(2), ranking="best")


def test_singular_values_become_their_roots():
    weight = rnd("w", (6, 4, 3, 3))
    singular = torch.linalg.svdvals(weight.flatten(1))
    torch.testing.assert_close(torch.linalg.svdvals(prune.scale_singular_values(weight).flatten(1)), singular.sqrt())
    torch.testing.assert_close(prune.scale_bias(torch.tensor([3.0, 4.0])), torch.tensor([3.0, 4.0]) / math.sqrt(5))


def test_singular_value_scaling_reaches_the_synthesis_network_only():
    G, plain, scaled = wide_G(), make_G(2), make_G(2)
    prune.inherit(G, plain)
    prune.inherit(G, scaled, svs=True)
    changed = {
        n for (n, a), (_, b) in zip(plain.named_parameters(), scaled.named_parameters()) if not torch.equal(a, b)
    }
    weights = {
        name for name, _ in plain.named_parameters() if name.startswith("synthesis.") and name.endswith(".weight")
    }
    assert weights <= changed and not any(name.startswith("mapping.") for name in changed)


LAYERS = {"mapping_kwargs": {"num_layers": 2}}


@pytest.mark.parametrize(
    ("student", "sentence"),
    [
        (lambda: make_G(1, channel_base=512, channel_max=32), "wider than G of t.pkl"),
        (lambda: make_G(1, c_dim=0), "mapping.embed.bias is .* and missing in the student"),
        (lambda: Generator(5, C_DIM, Z_DIM, 16, 3, **LAYERS), r"mapping.fc0.weight is \(8, 16\) .* and \(8, 13\)"),
        (lambda: Generator(Z_DIM, C_DIM, 9, 16, 3, **LAYERS), r"mapping.embed.bias is \(8,\) .* and \(9,\)"),
        (lambda: Generator(Z_DIM, C_DIM, Z_DIM, 16, 3, {"num_layers": 3}), "mapping.fc2.bias is missing in G of"),
        (lambda: Generator(Z_DIM, C_DIM, Z_DIM, 32, 3, **LAYERS), "synthesis.b32.conv0.affine.bias is missing"),
    ],
)
def test_what_cannot_be_inherited_is_refused(student, sentence):
    with pytest.raises(UserError, match=f"--dgl-init: .*{sentence}"):
        prune.check_source(wide_G(), student(), "t.pkl")


def test_what_can_be_inherited():
    prune.check_source(wide_G(), make_G(2), "t.pkl")
    prune.check_source(wide_G(), make_G(1, channel_base=512, channel_max=32), "t.pkl", parts="mapping")
    with pytest.raises(UserError, match=r"t\.pkl has no generator to start from"):
        prune.check_source(None, make_G(2), "t.pkl")


@pytest.mark.slow
def test_a_1024_network_is_pruned_in_ten_seconds():
    teacher, student = (
        Generator(512, 0, 512, 1024, 3, synthesis_kwargs={"channel_base": base, "channel_max": base // 64})
        for base in (32768, 16384)
    )
    started = time.monotonic()
    prune.inherit(teacher.requires_grad_(False), student.requires_grad_(False))
    assert time.monotonic() - started < 10
