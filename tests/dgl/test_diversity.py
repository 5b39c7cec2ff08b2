# SPDX-License-Identifier: Apache-2.0
"""Latent sensitivity of channels: the formula, its directions, and what it depends on."""

import pytest
import torch

from dgl import diversity, prune
from dnnlib.util import UserError
from tests.dgl.tiny import make_G
from tests.support import rnd
from tests.training.toy_family import TOY
from torch_utils import misc
from training import families


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    monkeypatch.setattr(diversity, "SAMPLES", 3)
    monkeypatch.setattr(diversity, "DIRECTIONS", 4)


def scores(G, seed=0):
    return diversity.diversity_scores(G, families.of(G).prune_plan(G), seed)


def test_the_formula_by_hand(monkeypatch):
    """Scores of the width between the two layers of the last block, from single gradients."""
    G, (w, steps) = make_G(1), (rnd("w", (3, 1, 8)).expand(3, 6, 8), rnd("steps", (4, 8)))
    monkeypatch.setattr(diversity, "_latents", lambda *args: w)
    monkeypatch.setattr(diversity, "principal_directions", lambda w: steps)
    plan = families.of(G).prune_plan(G)
    index = next(i for i, width in enumerate(plan) if width[0].tensor == "synthesis.b16.conv0.weight")
    block, expected = G.synthesis.b16, torch.zeros(len(G.synthesis.b16.conv0.bias))
    for weight, others in ((block.conv0.weight, (1, 2, 3)), (block.conv1.weight, (0, 2, 3))):
        weight.requires_grad_(True)
        total = 0
        for each in w:
            of_direction = []
            for step in steps:
                weight.grad = None
                pair = [G.synthesis(x[None], noise_mode="const") for x in (each, each + step)]
                (pair[1] - pair[0]).abs().sum().backward()
                of_direction.append(weight.grad.abs().mean(dim=others))
            total = total + len(steps) * torch.stack(of_direction).var(dim=0, unbiased=False)
        expected += total / total.mean()
        weight.requires_grad_(False)
    torch.testing.assert_close(diversity.diversity_scores(G, plan)[index], expected, rtol=1e-3, atol=1e-4)


def test_scores_follow_the_seed_alone():
    G = make_G(1)
    before = {name: tensor.clone() for name, tensor in misc.named_params_and_buffers(G)}
    torch.manual_seed(3)
    state, first = torch.get_rng_state(), scores(G)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    assert all(torch.equal(a, b) for a, b in zip(first, scores(G)))
    assert not all(torch.equal(a, b) for a, b in zip(first, scores(G, seed=1)))
    for name, tensor in misc.named_params_and_buffers(G):
        assert torch.equal(tensor, before[name]) and not tensor.requires_grad


def test_half_precision_of_the_network_makes_no_difference():
    G, half = make_G(1), make_G(1, num_fp16_res=2, conv_clamp=256)
    torch.testing.assert_close(scores(half), scores(G))


def test_directions_are_principal_components_of_two_standard_deviations():
    w = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5.0, 0.2]) + 7
    directions = diversity.principal_directions(w)
    torch.testing.assert_close(directions, torch.tensor([[0, 10, 0], [2, 0, 0], [0, 0, 0.4]]), rtol=0.05, atol=0.2)
    torch.testing.assert_close(diversity.principal_directions(w.flip(0)), directions, rtol=1e-3, atol=1e-3)


def test_progress_shows_the_time_remaining(capsys):
    scores(make_G(1))
    assert "Ranking channels 12/12 gradients (100%)" in capsys.readouterr().err


def test_a_family_without_w_is_refused():
    families.register(TOY)
    try:
        G = families.class_of("ToyG")(c_dim=0, img_resolution=16, img_channels=3)
        prune.check_source(G, G, "t.pkl")
        with pytest.raises(UserError, match="--dgl-prune=diversity needs a latent space w, which a ToyG"):
            prune.check_source(G, G, "t.pkl", ranking="diversity")
    finally:
        families.unregister(TOY.name)
