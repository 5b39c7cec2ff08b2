# SPDX-License-Identifier: Apache-2.0
"""Narrow generators that start from wide ones: which channels are kept, and what the student makes then."""

import math
import time

import pytest
import torch

from dgl import diversity, prune
from dnnlib.util import UserError
from tests.dgl.tiny import C_DIM, CHANNELS, RESOLUTION, Z_DIM, make_D, make_G
from tests.support import rnd
from torch_utils import misc
from training import families
from training.families.family import Axis
from training.networks import Generator

WIDE = {"channel_base": 256, "channel_max": 16}


@pytest.fixture
def few_samples(monkeypatch):
    """--dgl-prune=diversity with two latents and three directions."""
    monkeypatch.setattr(diversity, "SAMPLES", 2)
    monkeypatch.setattr(diversity, "DIRECTIONS", 3)


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


def test_a_channel_of_several_entries_and_entries_of_no_channel():
    """Channels 0 to 2 have two entries each, and the last entry belongs to none."""
    axis = Axis("w", 1, ranked=True, scaled=True, entries=2, extra=1)
    tensors = {"w": torch.tensor([[1.0, 2, 3, 4, 5, 6, 7], [0, 0, 1, 0, 0, 0, 9]])}
    assert axis.channels(tensors["w"]) == 3 and axis.sums(tensors["w"]).tolist() == [3, 8, 11]
    narrow = prune.slice_channels(tensors, [[axis]], [torch.tensor([0, 2])])["w"]
    torch.testing.assert_close(narrow, torch.tensor([[1.0, 2, 5, 6, 7], [0, 0, 0, 0, 9]]) * math.sqrt(5 / 7))


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
def test_equal_widths_make_the_images_of_the_teacher(architecture, ranking, few_samples):
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


def uneven_G(seed):
    """A G whose channels differ in importance, as training makes them.

    What reads the k-th channel of a width, in a random order, is scaled by 0.75 to the power k.
    """
    G = wide_G(seed)
    tensors = dict(misc.named_params_and_buffers(G))
    for axis in (axis for width in families.of(G).prune_plan(G) for axis in width if axis.axis == 1):
        order = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
        tensors[axis.tensor] *= 0.75 ** order[:, None, None]
    return G


def distance(G, top, **arguments):
    """Mean squared distance to the images of `G` after inheriting at the width `top` of 16."""
    student = make_G(99, channel_base=16 * top, channel_max=top)
    prune.inherit(G, student, **arguments)
    return (images(student) - images(G)).square().mean().item()


def medians(rows):
    return torch.tensor(rows).median(dim=0).values.tolist()


def test_pruned_networks_degrade_with_width():
    """In the median over ten networks, the less of the teacher is kept, the further the images are from its own."""
    found = medians([[distance(uneven_G(seed), top) for top in (16, 12, 8, 4, 2)] for seed in range(10)])
    assert found[0] < 1e-10 and found == sorted(found) and found[1] > 100 * found[0]


@pytest.mark.slow
@pytest.mark.parametrize("ranking", ["l1", "diversity"])
def test_ranked_channels_are_better_than_random_ones(ranking, few_samples):
    """In the median over ten networks, at two widths."""
    widths, by_ranking = (12, 8), {}
    for name in (ranking, "random"):
        rows = [[distance(uneven_G(seed), top, ranking=name, seed=seed) for top in widths] for seed in range(10)]
        by_ranking[name] = medians(rows)
    assert all(ranked < random for ranked, random in zip(by_ranking[ranking], by_ranking["random"]))


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


def scores(D, n=8):
    c = torch.eye(C_DIM)[torch.arange(n) % C_DIM][:, : D.c_dim]
    with torch.no_grad():
        return D.eval()(rnd("img", (n, CHANNELS, RESOLUTION, RESOLUTION)), c)


def wide_D(seed=1, **kwargs):
    D = make_D(seed, **{**WIDE, **kwargs})
    for name, tensor in D.named_parameters():
        if name.endswith("bias"):
            tensor += 0.1 * rnd(f"{seed}{name}", tuple(tensor.shape))
    return D


D_KINDS = [
    {"architecture": "orig"},
    {"architecture": "skip"},
    {"architecture": "resnet"},
    {"c_dim": 0},
    {"epilogue_kwargs": {"mbstd_num_channels": 2}},
    {"epilogue_kwargs": {"mbstd_num_channels": 0}},
    {"block_kwargs": {"freeze_layers": 3}},
]


@pytest.mark.parametrize("kind", D_KINDS, ids=str)
def test_equal_widths_give_the_scores_of_the_teacher(kind):
    D, student = wide_D(**kind), make_D(2, **WIDE, **kind)
    prune.check_source(D, student, "t.pkl", "D")
    prune.inherit(D, student, "D")
    assert (scores(student) - scores(D)).abs().max() < 1e-5 and scores(D).std() > 0.01


@pytest.mark.parametrize("kind", D_KINDS, ids=str)
def test_a_discriminator_without_its_dead_channels_scores_alike(kind):
    """Half of the channels are never written: half the width gives the same scores, whatever the layers' gains.

    Minibatch stddev averages over the channels, so what it appends is half as large with the dead ones.
    """
    D, student = wide_D(**kind, cmap_dim=16), make_D(2, channel_base=128, channel_max=8, **kind, cmap_dim=16)
    tensors = dict(misc.named_params_and_buffers(D))
    dead = torch.tensor([0, 1, 5, 6, 8, 11, 12, 15])
    for axis in (axis for width in families.of(D).prune_plan(D) for axis in width if axis.axis == 0):
        tensors[axis.tensor].index_fill_(0, dead, 0)
    prune.check_source(D, student, "t.pkl", "D")
    prune.inherit(D, student, "D")
    wanted = scores(D)
    tensors["b4.conv.weight"][:, 16:] *= 2
    # The kept channels contribute what they did, except that the stddev's own are scaled by √(n/C) like the others.
    assert (scores(student) - (scores(D) if D.b4.mbstd else wanted)).abs().max() < 0.05 * scores(D).abs().max()


def test_the_mapping_network_of_labels_is_copied():
    D, student = wide_D(), make_D(2, cmap_dim=16)
    prune.inherit(D, student, "D")
    assert all(
        torch.equal(tensor, D.mapping.state_dict()[name]) for name, tensor in student.mapping.state_dict().items()
    )


@pytest.mark.parametrize(
    ("student", "sentence"),
    [
        ({"channel_base": 512, "channel_max": 32, "cmap_dim": 16}, "the student is wider than D of t.pkl"),
        ({"channel_base": 128, "channel_max": 8}, r"b4.out.bias is \(16,\) .* and \(8,\) .*; use --dgl-init-d=0"),
        ({"cmap_dim": 16, "architecture": "skip"}, "b16.skip.resample_filter is .* and missing in the student"),
        ({"cmap_dim": 16, "epilogue_kwargs": {"mbstd_num_channels": 0}}, "b4.conv.weight is"),
    ],
)
def test_a_discriminator_that_cannot_be_inherited_is_refused(student, sentence):
    with pytest.raises(UserError, match=f"--dgl-init-d: .*{sentence}"):
        prune.check_source(wide_D(), make_D(1, **student), "t.pkl", "D")


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


def test_a_1024_network_is_pruned_in_ten_seconds():
    teacher, student = (
        Generator(512, 0, 512, 1024, 3, synthesis_kwargs={"channel_base": base, "channel_max": base // 64})
        for base in (32768, 16384)
    )
    started = time.monotonic()
    prune.inherit(teacher.requires_grad_(False), student.requires_grad_(False))
    assert time.monotonic() - started < 10
