# SPDX-License-Identifier: Apache-2.0
import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests import tolerances
from tests.support import golden_arrays, golden_json, rnd
from torch_utils.ops import upfirdn2d
from training.augment import AugmentPipe

BLIT = dict.fromkeys(["xflip", "rotate90", "xint"], 1)
GEOMETRY = dict.fromkeys(["scale", "rotate", "aniso", "xfrac"], 1)
COLOUR = dict.fromkeys(["brightness", "contrast", "lumaflip", "hue", "saturation"], 1)
CORRUPTION = dict.fromkeys(["imgfilter", "noise", "cutout"], 1)
EVERYTHING = {**BLIT, **GEOMETRY, **COLOUR, **CORRUPTION}


@pytest.fixture(scope="module")
def arrays():
    return golden_arrays("augment")


def pipe(p=1.0, **kwargs):
    made = AugmentPipe(**kwargs)
    made.p.copy_(torch.as_tensor(p))
    return made


def changed(before, after):
    """Which samples differ."""
    return (before - after).abs().flatten(1).amax(1) > 1e-3


@pytest.mark.parametrize("case", golden_json("augment"), ids=lambda case: case["key"])
def test_golden(case, arrays):
    images = rnd("img", (2, case["channels"], 32, 32)) * 0.4
    augmented = AugmentPipe(**case["kwargs"])(images, debug_percentile=case["debug_percentile"])
    torch.testing.assert_close(augmented, torch.as_tensor(arrays[case["key"]]), **tolerances.AUGMENT_GOLDEN)


def test_golden_buffers(arrays):
    buffers = dict(AugmentPipe().named_buffers())
    assert set(buffers) == {"p", "Hz_geom", "Hz_fbank"}
    for name in ("Hz_geom", "Hz_fbank"):
        torch.testing.assert_close(buffers[name], torch.as_tensor(arrays[name]), rtol=0, atol=1e-7)
    assert buffers["p"].item() == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_at_p_0_images_stay_as_they_are(channels):
    torch.manual_seed(0)
    images = rnd("img", (4, channels, 16, 16))
    torch.testing.assert_close(pipe(p=0, **EVERYTHING)(images), images, **tolerances.AUGMENT_IDENTITY)


@pytest.mark.parametrize("multiplier, p", [(1, 0.5), (0.4, 0.5), (2, 0.3), (1, 1)])
@pytest.mark.parametrize("effect", [*BLIT, *GEOMETRY, *COLOUR, *CORRUPTION])
def test_each_effect_fires_with_its_probability(effect, multiplier, p):
    torch.manual_seed(1)
    samples = 1000
    images = rnd("img", (1, 3, 4, 4)).repeat(samples, 1, 1, 1)
    augmented = pipe(p, xint_max=2, **{effect: multiplier})(images)
    share = changed(images, augmented).float().mean().item()
    # The other draws have no effect: one flip of two, one turn of four, shifts by 0 and ±6 (a mirrored period).
    visible = {"xflip": 0.5, "rotate90": 0.75, "lumaflip": 0.5, "xint": 1 - (3 / 16) ** 2}.get(effect, 1)
    expected = multiplier * p * visible
    if effect == "imgfilter":
        expected = 1 - (1 - multiplier * p) ** 4  # Any of four bands.
    assert share == pytest.approx(expected, abs=4 * math.sqrt(0.25 / samples) + 0.01)


def test_xint_moves_by_whole_pixels_up_to_its_bound():
    torch.manual_seed(2)
    images = torch.zeros(400, 1, 16, 16)
    images[:, :, 8, 8] = 1
    augmented = pipe(xint=1, xint_max=0.125)(images)
    spots = augmented.flatten(1)
    torch.testing.assert_close(spots.amax(1), torch.ones(400), rtol=0, atol=1e-4)
    rows, columns = spots.argmax(1) // 16 - 8, spots.argmax(1) % 16 - 8
    for shift in (rows, columns):
        assert set(shift.tolist()) == {-2, -1, 0, 1, 2}
    assert (rows != columns).any()


def test_xflip_is_a_mirror_image():
    torch.manual_seed(3)
    images = rnd("img", (64, 1, 8, 8))
    images = F.interpolate(images, size=(32, 32), mode="bicubic")  # Smooth: the wavelet is not quite symmetric.
    augmented = pipe(xflip=1)(images)
    flips = changed(images, augmented)
    assert 15 < flips.sum() < 49
    error = (augmented[flips] - images[flips].flip(3)).abs().mean()
    assert error < 0.05 * (images - images.flip(3)).abs().mean()


def test_samples_are_drawn_independently():
    torch.manual_seed(4)
    images = rnd("img", (1, 3, 8, 8)).repeat(16, 1, 1, 1)
    augmented = pipe(**EVERYTHING)(images)
    for i in range(15):
        assert changed(augmented[i : i + 1], augmented[i + 1 : i + 2]).all()


def test_brightness_has_the_papers_spread():
    torch.manual_seed(5)
    levels = pipe(brightness=1)(torch.zeros(4000, 1, 4, 4))[:, 0, 0, 0]
    assert levels.mean().item() == pytest.approx(0, abs=0.015)
    assert levels.std().item() == pytest.approx(0.2, rel=0.06)


def test_xfrac_has_its_spread_on_both_axes():
    torch.manual_seed(5)
    ramp = torch.arange(33.0).expand(2000, 1, 5, 33)
    for images in (ramp, ramp.transpose(2, 3)):
        centre = pipe(xfrac=1, xfrac_std=0.03)(images)[:, 0, images.shape[2] // 2, images.shape[3] // 2]
        shift = (centre - 16) / 33
        assert shift.mean().item() == pytest.approx(0, abs=0.003)
        assert shift.std().item() == pytest.approx(0.03, rel=0.08)


def test_noise_has_half_normal_strength():
    torch.manual_seed(6)
    images = torch.zeros(2000, 1, 8, 8)
    sigma = pipe(noise=1, noise_std=0.1)(images).flatten(1).std(1)
    assert sigma.mean().item() == pytest.approx(0.1 * math.sqrt(2 / math.pi), rel=0.06)
    assert sigma.square().mean().sqrt().item() == pytest.approx(0.1, rel=0.06)
    assert not pipe(p=0, noise=1)(images).any()


def test_cutout_blanks_a_square_of_its_size():
    torch.manual_seed(7)
    images = torch.ones(500, 3, 16, 16)
    augmented = pipe(cutout=1, cutout_size=0.25)(images)
    blank = augmented == 0
    assert torch.equal(blank | (augmented == 1), torch.ones_like(blank))
    assert (blank == blank[:, :1]).all()
    rows, columns = blank[:, 0].any(2).sum(1), blank[:, 0].any(1).sum(1)
    assert max(rows.max(), columns.max()) == 4
    assert torch.equal(blank[:, 0].sum((1, 2)), rows * columns)


def test_imgfilter_keeps_the_expected_power_and_other_bands_out():
    torch.manual_seed(8)
    images = torch.ones(64, 1, 32, 32)
    assert not changed(images, pipe(imgfilter=1, imgfilter_bands=[0, 0, 0, 0])(images)).any()
    # A constant image is in the lowest band; another band's gain changes it by at most sqrt(13/12) along each axis.
    levels = pipe(imgfilter=1, imgfilter_bands=[0, 0, 0, 1])(images)[:, 0, 16, 16]
    assert levels.max() < 13 / 12 + 1e-4
    assert levels.min() < 0.5


def mirrored_by_hand(images, G_inv, zoom):
    """Geometry spelled out: mirror far beyond any need, upsample, sample, downsample, in float64."""
    H, W = images.shape[2:]
    far = math.ceil(zoom * max(H, W)) + 30
    f = AugmentPipe().Hz_geom
    x = np.pad(images.double().numpy(), [(0, 0), (0, 0), (far, far), (far, far)], mode="reflect")
    x = upfirdn2d.upsample2d(torch.as_tensor(x), f)
    border = 5
    q_y, q_x = torch.meshgrid(
        (torch.arange(2 * H + 2 * border, dtype=torch.float64) - border) / 2 - (H - 1) / 2,
        (torch.arange(2 * W + 2 * border, dtype=torch.float64) - border) / 2 - (W - 1) / 2,
        indexing="ij",
    )
    u = torch.stack([q_x, q_y, torch.ones_like(q_x)], dim=2) @ G_inv.double().transpose(1, 2)[:, None]
    index = (u[..., :2] + torch.tensor([(W - 1) / 2 + far, (H - 1) / 2 + far])) * 2
    grid = (index * 2 + 1) / torch.tensor([x.shape[3], x.shape[2]]) - 1
    y = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return upfirdn2d.downsample2d(y, f, padding=-border, flip_filter=True).float()


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (32, 32), (2, 6), (5, 9)], ids=str)
@pytest.mark.parametrize("zoom", [1, 2.5, 6, 0.3])
def test_geometry_mirrors_the_image_as_often_as_needed(size, zoom):
    images = rnd("img", (3, 2, *size))
    angle = torch.tensor([0.0, 0.7, 2.0])
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    zeros, ones = torch.zeros(3), torch.ones(3)
    G_inv = torch.stack([cos, -sin, ones * 1.3, sin, cos, ones * -2.2, zeros, zeros, ones], dim=1).reshape(3, 3, 3)
    augmented = AugmentPipe(scale=1)._warp(images, G_inv)
    torch.testing.assert_close(augmented, mirrored_by_hand(images, G_inv, zoom), **tolerances.AUGMENT_REFLECTION)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_small_images(size, channels):
    torch.manual_seed(9)
    images = torch.full((8, channels, size, size), 0.5)
    augmented = pipe(**BLIT, **GEOMETRY, imgfilter=1, imgfilter_bands=[0, 1, 1, 1])(images)
    assert augmented.shape == images.shape
    # Endless mirroring has no edges: a constant image stays constant (the filters scale it).
    spread = augmented.flatten(1).amax(1) - augmented.flatten(1).amin(1)
    assert spread.max() < 1e-4
    assert pipe(**EVERYTHING)(images).isfinite().all()
    for percentile in (0.0, 0.01, 0.99, 1.0):
        assert AugmentPipe(**EVERYTHING)(images, debug_percentile=percentile).isfinite().all()


@pytest.mark.parametrize("channels", [1, 3])
def test_first_and_second_derivatives(channels):
    augment = AugmentPipe(**BLIT, **GEOMETRY, **COLOUR, imgfilter=1, cutout=1).double()
    images = rnd("img", (1, channels, 4, 4), torch.float64).requires_grad_()

    def func(images):
        return augment(images, debug_percentile=0.7).square()

    assert torch.autograd.gradcheck(func, images, fast_mode=True)
    assert torch.autograd.gradgradcheck(func, images, fast_mode=True)


def test_gradient_penalty_through_the_pipe():
    torch.manual_seed(10)
    augment = pipe(**EVERYTHING)
    images = rnd("img", (4, 3, 16, 16)).requires_grad_()
    layer = torch.nn.Conv2d(3, 4, 3)
    (g,) = torch.autograd.grad(layer(augment(images)).square().sum(), images, create_graph=True)
    g.square().sum().backward()
    assert layer.weight.grad.abs().sum() > 0
    assert images.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_keeps_the_type(dtype):
    images = rnd("img", (2, 3, 8, 8))
    augment = AugmentPipe(**EVERYTHING | {"noise": 0})
    augmented = augment(images.to(dtype), debug_percentile=0.3)
    assert augmented.dtype == dtype
    exact = augment(images, debug_percentile=0.3)
    torch.testing.assert_close(augmented.float(), exact, **tolerances.AUGMENT_TYPES)


def test_same_seed_same_images():
    images = rnd("img", (4, 3, 16, 16))
    augment = pipe(0.6, **EVERYTHING)
    results = []
    for _ in range(2):
        torch.manual_seed(11)
        results.append(augment(images))
    assert torch.equal(*results)


def test_colour_of_rgba_is_that_of_rgb_and_leaves_alpha_alone():
    images = rnd("img", (4, 4, 8, 8))
    changed = []
    for x in (images, images[:, :3]):
        torch.manual_seed(3)
        changed.append(pipe(**COLOUR)(x))
    assert torch.equal(changed[0][:, :3], changed[1]) and not torch.equal(changed[1], images[:, :3])
    assert torch.equal(changed[0][:, 3], images[:, 3])


def test_other_channel_counts_lack_only_colour():
    images = rnd("img", (2, 5, 8, 8))
    assert pipe(**BLIT, **GEOMETRY, **CORRUPTION)(images).shape == images.shape
    for effect in COLOUR:
        with pytest.raises(ValueError, match="1, 3 or 4 channels, these have 5"):
            pipe(**{effect: 1})(images)


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"\[N, C, H, W\]"):
        AugmentPipe()(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match="debug_percentile"):
        AugmentPipe()(torch.zeros(1, 3, 8, 8), debug_percentile=5)


def test_without_effects_it_is_the_identity():
    images = rnd("img", (2, 5, 8, 8))
    assert torch.equal(AugmentPipe()(images), images)


def test_pickles_with_its_source():
    augment = pipe(0.25, **EVERYTHING | {"noise": 0})
    copy = pickle.loads(pickle.dumps(augment))
    images = rnd("img", (2, 3, 8, 8))
    assert copy.p.item() == 0.25
    assert torch.equal(copy(images, debug_percentile=0.6), augment(images, debug_percentile=0.6))
