# SPDX-License-Identifier: Apache-2.0
"""The losses against the golden numbers, and what each phase does."""

import math

import numpy as np
import pytest
import torch

from tests import tolerances
from tests.support import golden_arrays, golden_json, rnd
from tests.training.test_networks import fill
from torch_utils import precision, training_stats
from training import loss as losses
from training import networks

SPEC = golden_json("networks")["loss"]
ARRAYS = golden_arrays("networks")


def make(half=False, **changes):
    """G, D and their loss; `half`: the highest resolution in half precision."""
    fp16 = {"num_fp16_res": 1} if half else {}
    G_kwargs = {**SPEC["G"], "synthesis_kwargs": {**SPEC["G"].get("synthesis_kwargs", {}), **fp16}}
    G = fill(networks.Generator(**G_kwargs)).requires_grad_(False)
    D = fill(networks.Discriminator(**{**SPEC["D"], **fp16}), is_discriminator=True).requires_grad_(False)
    options = {"r1_gamma": SPEC["r1_gamma"], "pl_weight": SPEC["pl_weight"], "style_mixing_prob": 0, **changes}
    loss = losses.StyleGAN2Loss(torch.device("cpu"), G.mapping, G.synthesis, D, **options)
    return G, D, loss


def one_hot(labels):
    return torch.nn.functional.one_hot(torch.tensor(labels), 3).float()


def run(loss, module, phase):
    module.requires_grad_(True)
    torch.manual_seed(SPEC["seed"])
    loss.accumulate_gradients(
        phase=phase,
        real_img=rnd("real", (4, 3, 16, 16)) * 0.5,
        real_c=one_hot([1, 2, 0, 1]),
        gen_z=rnd("z", (4, 16)),
        gen_c=one_hot([0, 1, 2, 0]),
        sync=True,
        gain=SPEC["gain"],
    )
    module.requires_grad_(False)
    return {name: p.grad for name, p in module.named_parameters()}


@pytest.mark.parametrize("phase", ["Gmain", "Greg", "Gboth", "Dmain", "Dreg", "Dboth"])
def test_gradients_match_golden(phase):
    G, D, loss = make()
    grads = run(loss, G if phase.startswith("G") else D, phase)
    golden = {k.split("/")[1]: v for k, v in ARRAYS.items() if k.startswith(f"L.{phase}.grad/")}
    assert set(golden) == {name for name, grad in grads.items() if grad is not None}
    scale = max(np.abs(v).max() for v in golden.values())
    for name, expected in golden.items():
        allowed = tolerances.GOLDEN_GRADIENTS
        np.testing.assert_allclose(grads[name].numpy() / scale, expected / scale, **allowed, err_msg=name)
    np.testing.assert_allclose(loss.pl_mean.numpy(), ARRAYS[f"L.{phase}.pl_mean"], rtol=tolerances.GOLDEN_PATH_LENGTH)


def test_gain_scales_gradients():
    for phase in ("Gmain", "Dreg"):
        G, D, loss = make()
        module = G if phase.startswith("G") else D
        once = {k: v.clone() for k, v in run(loss, module, phase).items()}
        twice = run(loss, module, phase)
        for name, grad in once.items():
            torch.testing.assert_close(twice[name], grad * 2, rtol=1e-3, atol=1e-6)


def test_weights_of_zero_switch_regularisation_off():
    G, _, loss = make(pl_weight=0)
    assert all(grad is None for grad in run(loss, G, "Greg").values())
    _, D, loss = make(r1_gamma=0)
    assert all(grad is None for grad in run(loss, D, "Dreg").values())


def test_discriminator_phases_leave_the_generator_alone():
    G, D, loss = make()
    run(loss, D, "Dboth")
    assert all(p.grad is None for p in G.parameters())


def test_style_mixing_replaces_only_later_ws():
    G, _, loss = make(style_mixing_prob=1)
    z, c = rnd("z", (4, 16)), one_hot([0, 1, 2, 0])
    plain = G.mapping(z, c, skip_w_avg_update=True)
    torch.manual_seed(0)
    w_avg = []
    for _ in range(20):
        w_avg.append(G.mapping.w_avg.clone())
        _img, ws = loss.run_G(z, c, sync=True)
        same = (ws == plain).flatten(2).all(dim=2).all(dim=0)
        first_mixed = int(same.long().sum())
        assert 1 <= first_mixed < G.num_ws
        assert same[:first_mixed].all() and not same[first_mixed:].any()
    expected = plain.mean(dim=(0, 1)).lerp(w_avg[0], 0.995)  # the mixed-in latents do not move w_avg
    torch.testing.assert_close(w_avg[1], expected)


def test_style_mixing_probability():
    _, _, loss = make(style_mixing_prob=0.25)
    loss.G_synthesis = lambda ws: ws
    z, c = rnd("z", (1, 16)), one_hot([0])
    plain = loss.G_mapping(z, c)
    torch.manual_seed(3)
    mixed = [not torch.equal(loss.run_G(z, c, sync=True)[1], plain) for _ in range(400)]
    assert abs(np.mean(mixed) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 400)


def test_statistics_are_reported():
    collector = training_stats.Collector()
    collector.update()
    G, D, loss = make()
    run(loss, G, "Gboth")
    run(loss, D, "Dboth")
    collector.update()
    names = {name for name in collector.names() if collector.num(name)}
    assert {
        "Loss/scores/fake", "Loss/signs/fake", "Loss/scores/real", "Loss/signs/real", "Loss/G/loss", "Loss/D/loss",
        "Loss/pl_penalty", "Loss/G/reg", "Loss/r1_penalty", "Loss/D/reg",
    } <= names  # fmt: skip


def test_pure_losses():
    logits = torch.tensor([[-3.0], [0.0], [2.0]])
    torch.testing.assert_close(losses.g_nonsaturating(logits), -torch.log(torch.sigmoid(logits)))
    torch.testing.assert_close(losses.d_logistic_fake(logits), -torch.log(1 - torch.sigmoid(logits)))
    torch.testing.assert_close(losses.d_logistic_real(logits), -torch.log(torch.sigmoid(logits)))
    assert losses.r1_penalty(torch.full([2, 3, 2, 2], 2.0)).tolist() == [48.0, 48.0]
    assert losses.path_lengths(torch.full([2, 5, 4], 3.0)).tolist() == [6.0, 6.0]


def test_state_round_trip():
    G, _, loss = make()
    run(loss, G, "Greg")
    _, _, other = make()
    other.load_state_dict(loss.state_dict())
    assert other.pl_mean == loss.pl_mean != 0


def test_both_networks_run_in_the_precision_of_the_run():
    seen = []
    G, D, loss = make(half=True)
    for network, block in ((G, G.synthesis.b16), (D, D.b16)):
        precision.set_half_dtype(network, torch.bfloat16)
        block.conv1.register_forward_hook(lambda _module, _inputs, out: seen.append(out.dtype))
    for phase, calls in (("Gmain", 2), ("Greg", 1), ("Dmain", 3), ("Dreg", 1)):
        seen.clear()
        run(loss, G if phase.startswith("G") else D, phase)
        assert seen == [torch.bfloat16] * calls


def test_unknown_phase():
    G, _, loss = make()
    with pytest.raises(ValueError, match="phase"):
        run(loss, G, "Gsometimes")
