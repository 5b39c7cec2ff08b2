# SPDX-License-Identifier: Apache-2.0
"""Networks against the golden numbers, and their other properties."""

import numpy as np
import pytest
import torch

from tests import tolerances
from tests.support import golden_arrays, golden_json, rnd
from training import networks

SPEC = golden_json("networks")
ARRAYS = golden_arrays("networks")


def golden_value(name: str, shape, is_discriminator: bool) -> torch.Tensor:
    """The golden recipe's value of the parameter or buffer `name` (tests/golden/README.md)."""
    value = rnd(name, tuple(shape))
    if name.endswith("noise_strength"):
        return value * 0.1
    if name.endswith("affine.bias"):
        return 1 + 0.1 * value
    if name.endswith(("bias", "w_avg")):
        return value * 0.1
    if name.split(".")[-2].startswith("fc") and name.endswith("weight") and "mapping" in name:
        return value * (10 if is_discriminator else 100)
    return value


def fill(module: torch.nn.Module, is_discriminator: bool = False) -> torch.nn.Module:
    """Give every tensor of `module` its golden value."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if not name.endswith("resample_filter"):
                tensor.copy_(golden_value(name, tensor.shape, is_discriminator))
    return module


def one_hot(c_dim: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.arange(4) % max(c_dim, 1), max(c_dim, 1))[:, :c_dim].float()


def golden_generator(name: str):
    kwargs = SPEC["generators"][name]["kwargs"]
    G = fill(networks.Generator(**kwargs)).eval()
    return G, rnd("z", (4, kwargs["z_dim"])), one_hot(kwargs["c_dim"])


def close(actual: torch.Tensor, key: str, tolerance: float = tolerances.GOLDEN_NETWORKS) -> None:
    expected = ARRAYS[key]
    scale = max(np.abs(expected).max(), 1e-3)
    np.testing.assert_allclose(actual.detach().numpy() / scale, expected / scale, atol=tolerance, rtol=0)


def shapes(module: torch.nn.Module) -> dict:
    return {name: list(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("name", SPEC["generators"])
def test_generator_matches_golden(name):
    G, z, c = golden_generator(name)
    expected = SPEC["generators"][name]
    assert list(shapes(G).items()) == list(expected["state"].items())
    assert sum(p.numel() for p in G.parameters()) == expected["num_params"]
    assert G.num_ws == expected["num_ws"]
    with torch.no_grad():
        close(G.mapping(z, c), f"G.{name}.ws")
        close(G.mapping(z, c, truncation_psi=0.5, truncation_cutoff=3), f"G.{name}.ws_trunc")
        close(G(z, c, noise_mode="const", fused_modconv=False), f"G.{name}.img_const")
        close(G(z, c, noise_mode="none", fused_modconv=False), f"G.{name}.img_none")
        close(G(z, c, noise_mode="const", fused_modconv=True), f"G.{name}.img_fused")
        close(G(z, c, truncation_psi=0.7, noise_mode="const"), f"G.{name}.img_trunc")
        G.train().mapping(z, c)
        close(G.mapping.w_avg, f"G.{name}.w_avg_after")


@pytest.mark.parametrize("name", SPEC["discriminators"])
def test_discriminator_matches_golden(name):
    expected = SPEC["discriminators"][name]
    kwargs = expected["kwargs"]
    D = fill(networks.Discriminator(**kwargs), is_discriminator=True)
    assert list(shapes(D).items()) == list(expected["state"].items())
    assert [n for n, _ in D.named_parameters()] == expected["param_names"]
    assert sum(p.numel() for p in D.parameters()) == expected["num_params"]
    shape = (4, kwargs["img_channels"], kwargs["img_resolution"], kwargs["img_resolution"])
    img = (rnd("img", shape) * 0.5).requires_grad_(True)
    logits = D(img, one_hot(kwargs["c_dim"]))
    close(logits, f"D.{name}.logits")
    (dimg,) = torch.autograd.grad(logits.sum(), [img], create_graph=True)
    close(dimg, f"D.{name}.dimg")
    names, params = zip(*D.named_parameters())
    grads = torch.autograd.grad(dimg.square().sum(dim=[1, 2, 3]).mean() * 5, params, allow_unused=True)
    expected_norms = [ARRAYS[f"D.{name}.r1grad_norm/{param_name}"] for param_name in names]
    norms = [0.0 if grad is None else float(grad.norm()) for grad in grads]
    scaled = np.array(norms) / max(expected_norms), np.array(expected_norms) / max(expected_norms)
    np.testing.assert_allclose(*scaled, **tolerances.GOLDEN_R1_NORMS)


def test_published_sizes():
    sizes = {
        "stylegan2-1024": (1024, 32768, 512, 8, 512, "resnet"),
        "auto64": (64, 16384, 512, 2, 512, "resnet"),
        "1024-half-both": (1024, 16384, 256, 8, 512, "resnet"),
    }
    golden = golden_json("param_counts")
    with torch.device("meta"):
        for name, (res, base, peak, layers, width, _arch) in sizes.items():
            widths = {"channel_base": base, "channel_max": peak}
            G = networks.Generator(width, 0, width, res, 3, {"num_layers": layers}, widths)
            D = networks.Discriminator(0, res, 3, **widths)
            counts = {n: sum(p.numel() for p in m.parameters()) for n, m in (("G", G), ("D", D))}
            assert counts["G"] == golden[name]["G"], name
            assert counts["D"] == golden[name]["D"], name


def test_noise_modes():
    G, z, c = golden_generator("skip")
    with torch.no_grad():
        torch.manual_seed(1)
        first, second = G(z, c), G(z, c)
        torch.manual_seed(1)
        again = G(z, c)
    assert torch.equal(first, again) and not torch.equal(first, second)
    with pytest.raises(ValueError, match="noise_mode"):
        G(z, c, noise_mode="sometimes")


def test_truncation_to_zero_is_the_mean_image():
    G, z, c = golden_generator("skip")
    with torch.no_grad():
        images = G(z, c, truncation_psi=0, noise_mode="const")
        mean = G.synthesis(G.mapping.w_avg.reshape(1, 1, -1).repeat(1, G.num_ws, 1), noise_mode="const")
    torch.testing.assert_close(images, mean.expand_as(images))


def test_w_avg_moves_only_in_training():
    G, z, c = golden_generator("skip")
    before = G.mapping.w_avg.clone()
    G.mapping(z, c)
    G.train().mapping(z, c, skip_w_avg_update=True)
    assert torch.equal(G.mapping.w_avg, before)
    G.mapping(z, c)
    assert not torch.equal(G.mapping.w_avg, before)


def test_half_precision_blocks_run_in_fp32_on_the_cpu():
    kwargs = SPEC["generators"]["skip"]["kwargs"]
    half = fill(networks.Generator(**{**kwargs, "synthesis_kwargs": {**kwargs["synthesis_kwargs"], "num_fp16_res": 4}}))
    G, z, c = golden_generator("skip")
    with torch.no_grad():
        assert torch.equal(half.eval()(z, c, noise_mode="const"), G(z, c, noise_mode="const"))


def test_modulated_conv_in_fp16_stays_finite_for_large_styles():
    x = rnd("x", (2, 64, 8, 8)).half()
    weight, styles = rnd("w", (32, 64, 3, 3)), rnd("s", (2, 64)) * 1e4
    for fused in (False, True):
        y = networks.modulated_conv2d(x, weight, styles, padding=1, fused_modconv=fused)
        reference = networks.modulated_conv2d(x.float(), weight, styles, padding=1, fused_modconv=fused)
        assert y.dtype == torch.float16 and y.isfinite().all()
        torch.testing.assert_close(y.float(), reference, **tolerances.LARGE_STYLES)


def test_minibatch_std_groups_are_strided():
    layer = networks.MinibatchStdLayer(group_size=2)
    x = torch.zeros([4, 1, 2, 2])
    x[0], x[2] = 1, 3  # samples 0 and 2 form one group, 1 and 3 the other
    feature = layer(x)[:, 1, 0, 0]
    torch.testing.assert_close(feature, torch.tensor([1.0, 1e-4, 1.0, 1e-4]))
    with pytest.raises(ValueError, match="batch of 3"):
        layer(torch.zeros([3, 1, 2, 2]))


@pytest.mark.parametrize("resolution", [6, 2, 24])
def test_resolution_must_be_a_power_of_two(resolution):
    with pytest.raises(ValueError, match="power of two"):
        networks.Generator(8, 0, 8, resolution, 3)
