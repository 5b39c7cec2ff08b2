# SPDX-License-Identifier: Apache-2.0
"""The projection: schedules, regulariser, and whether it finds known images."""

import copy
import math

import numpy as np
import pytest
import torch

from dnnlib.progress import Progress
from dnnlib.util import UserError
from metrics import detectors, lpips
from tests.metrics import stand_ins
from tests.support import rnd
from torch_utils import images
from training import projection


@pytest.fixture
def G():
    return stand_ins.tiny_generator(resolution=16)


@pytest.fixture
def features(tmp_path):
    """Features are the pixels in [0, 1], so distances are mean squares."""
    detector = stand_ins.save_detector(stand_ins.VGG16(), tmp_path / "vgg16.pt")
    find = lpips.open_features(detector, torch.device("cpu"))
    return lambda img: find(img) / 255


def random_targets(count, channels=3, resolution=16):
    pixels = stand_ins.make_images(count, resolution, channels, seed=7)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def drawn_by(G, w):
    """uint8 images of `w` [N, D] with the network's own noise."""
    return images.to_uint8(G.synthesis(w.unsqueeze(1).repeat(1, G.num_ws, 1), noise_mode="const"))


@pytest.mark.parametrize(
    ("t", "expected"),
    [
        (0, 0),
        (0.025, 0.05),
        (0.05, 0.1),
        (0.5, 0.1),
        (0.75, 0.1),
        (0.875, 0.05),
        (0.75 + 0.25 / 3, 0.075),
        (1, 0),
    ],
)
def test_learning_rate(t, expected):
    assert projection.learning_rate(t) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("t", "expected"), [(0, 0.05), (0.375, 0.0125), (0.6, 0.002), (0.75, 0), (0.9, 0)])
def test_exploring_noise(t, expected):
    assert projection.w_noise_scale(t) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("c_dim", [0, 2])
def test_w_statistics(c_dim):
    G = stand_ins.tiny_generator(c_dim=c_dim)
    c = torch.eye(2)[1:] if c_dim else torch.zeros(1, 0)
    mean, std = projection.w_statistics(G, c)
    z = torch.from_numpy(np.random.RandomState(123).randn(10000, G.z_dim)).float()
    w = G.mapping(z, c.repeat(10000, 1))[:, 0].double().numpy()
    np.testing.assert_allclose(mean, w.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(std, math.sqrt(np.mean(np.linalg.norm(w - w.mean(axis=0), axis=1) ** 2)), rtol=1e-5)


def naive_regularizer(noise):
    """The regulariser of one map, float64 [H, H], pixel by pixel."""
    total = 0.0
    while True:
        side = len(noise)
        for dy, dx in [(0, 1), (1, 0)]:
            products = [noise[y, x] * noise[(y + dy) % side, (x + dx) % side] for y in range(side) for x in range(side)]
            total += (sum(products) / side**2) ** 2
        if side <= 8:
            return total
        half = np.zeros([side // 2, side // 2])
        for y in range(side):
            for x in range(side):
                half[y // 2, x // 2] += noise[y, x] / 4
        noise = half


@pytest.mark.parametrize("side", [4, 8, 16, 32])
def test_noise_regularizer(side):
    noise = rnd(f"projection/{side}", [2, 1, side, side]) + 0.3
    expected = [naive_regularizer(maps[0].double().numpy()) for maps in noise]
    np.testing.assert_allclose(projection.noise_regularizer(noise), expected, rtol=1e-4)


def test_renormalized_noise_has_no_mean_and_unit_variance():
    noise = rnd("projection/renormalize", [2, 1, 8, 8]) * torch.tensor([3.0, 0.1]).reshape(2, 1, 1, 1) + 2
    direction = noise[0] - noise[0].mean()
    projection.renormalize_(noise)
    torch.testing.assert_close(noise.mean(dim=(1, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(noise.square().mean(dim=(1, 2, 3)), torch.ones(2), atol=1e-5, rtol=0)
    assert torch.cosine_similarity(direction.flatten(), noise[0].flatten(), dim=0) > 0.9999


def test_the_first_steps_against_a_manual_computation(G, features):
    """Adam written out for one w and its noise maps, with the losses of the paper."""
    target = random_targets(1)
    found = projection.project(G, target, features, num_steps=4, seed=9)

    random = torch.Generator().manual_seed(9)
    mean, std = projection.w_statistics(G, torch.zeros(1, 0))
    layers = [module for module in G.synthesis.modules() if hasattr(module, "noise_const")]
    values = [mean.clone(), *(torch.randn([1, 1, *layer.noise_const.shape], generator=random) for layer in layers)]
    moments = [(torch.zeros_like(value), torch.zeros_like(value)) for value in values]
    for step in range(4):
        t = step / 4
        values = [value.requires_grad_() for value in values]
        for layer, noise in zip(layers, values[1:]):
            layer.noise_const = noise
        w = values[0] + torch.randn([1, G.w_dim], generator=random) * std * 0.05 * max(0, 1 - t / 0.75) ** 2
        img = G.synthesis(w.unsqueeze(1).repeat(1, G.num_ws, 1), noise_mode="const")
        distance = (features(img) - features(images.from_uint8(target))).square().sum()
        assert found.distance[0, step].item() == pytest.approx(distance.item(), rel=1e-3)
        loss = distance + 1e5 * sum(projection.noise_regularizer(noise).sum() for noise in values[1:])
        for i, gradient in enumerate(torch.autograd.grad(loss, values)):
            first, second = (b * m + (1 - b) * gradient**p for b, m, p in zip((0.9, 0.999), moments[i], (1, 2)))
            moments[i] = first, second
            change = first / (1 - 0.9 ** (step + 1)) / ((second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
            values[i] = (values[i] - [0, 0.1, 0.1, 0.1][step] * change).detach()
        values[1:] = [(noise - noise.mean()) / noise.std(unbiased=False) for noise in values[1:]]
        torch.testing.assert_close(found.w[0, step], values[0], atol=2e-3, rtol=0)
    for noise, expected in zip(found.noise.values(), values[1:]):
        assert (noise - expected).abs().mean() < 1e-2


def test_distance_falls(G, features):
    found = projection.project(G, random_targets(1), features, num_steps=30)
    first, last = found.distance[0, [0, -1]]
    assert last < 0.5 * first


def test_noise_is_renormalized_at_each_step_and_optimised(G, features):
    starts, after = ([projection.project(G, random_targets(1), features, num_steps=n).noise] for n in (1, 5))
    names = [name for name, _ in G.synthesis.named_buffers() if name.endswith("noise_const")]
    assert names and list(after[0]) == names
    for name in names:
        maps = after[0][name]
        assert maps.shape == (1, 1, *dict(G.synthesis.named_buffers())[name].shape)
        assert abs(maps.mean()) < 1e-4 and abs(maps.square().mean() - 1) < 1e-4
        assert not torch.equal(maps, starts[0][name])


def test_an_image_of_the_network_is_found_again(G, features):
    for name, parameter in G.named_parameters():
        if name.endswith("noise_strength"):
            parameter.fill_(0.02)  # the projection does not know the noise maps of the target
        elif "torgb" in name and "affine" not in name:
            parameter.mul_(0.2)  # colours inside the range of uint8
    mean, std = projection.w_statistics(G, torch.zeros(1, 0))
    offset = rnd("projection/offset", [1, G.w_dim])
    w = mean + 0.5 * std * offset / offset.norm()
    target = drawn_by(G, w)
    found = projection.project(G, target, features, num_steps=60).w[:, -1]

    def distance(latent):
        return (features(images.from_uint8(drawn_by(G, latent))) - features(images.from_uint8(target))).square().sum()

    assert (found - w).norm() < 0.2 * (mean - w).norm()
    assert distance(found) < 0.1 * distance(mean.unsqueeze(0))


def test_the_first_step_starts_at_the_mean(G, features):
    mean, _ = projection.w_statistics(G, torch.zeros(1, 0))
    found = projection.project(G, random_targets(2), features, num_steps=1)
    torch.testing.assert_close(found.w, mean.expand(2, 1, -1))


def test_results_have_the_shapes_that_the_network_takes(G, features):
    found = projection.project(G, random_targets(2), features, num_steps=3)
    assert found.w.shape == (2, 3, G.w_dim) and found.distance.shape == (2, 3)
    assert found.ws.shape == (2, G.num_ws, G.w_dim)
    for i in range(G.num_ws):
        assert torch.equal(found.ws[:, i], found.w[:, -1])


def test_a_batch_gives_the_results_of_single_images(G, features):
    targets = random_targets(2)
    together = projection.project(G, targets, features, num_steps=15, seed=5)
    for i in range(2):
        alone = projection.project(G, targets[i : i + 1], features, num_steps=15, seed=5)
        torch.testing.assert_close(together.w[i], alone.w[0], atol=2e-3, rtol=2e-3)
        for name, maps in alone.noise.items():
            torch.testing.assert_close(together.noise[name][i], maps[0], atol=2e-2, rtol=0)
    assert (together.w[0, -1] - together.w[1, -1]).abs().max() > 0.05


def test_the_result_depends_on_the_seed(G, features):
    runs = [projection.project(G, random_targets(1), features, num_steps=8, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(runs[0].w, runs[1].w) and torch.equal(runs[0].distance, runs[1].distance)
    assert not torch.equal(runs[0].w, runs[2].w)


def test_network_and_global_random_state_do_not_change(G, features):
    G.train().requires_grad_(True)
    before = copy.deepcopy(G.state_dict())
    state = torch.get_rng_state()
    projection.project(G, random_targets(1), features, num_steps=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert G.training and all(p.requires_grad and p.grad is None for p in G.parameters())
    for name, value in G.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("channels", [1, 3])
def test_channels(features, channels):
    G = stand_ins.tiny_generator(resolution=8, channels=channels)
    found = projection.project(G, random_targets(1, channels, 8), features, num_steps=20)
    assert found.distance[0, -1] < found.distance[0, 0]


def test_networks_without_noise(features):
    G = stand_ins.tiny_generator(resolution=8)
    plain = type(G)(4, 0, 4, 8, 3, {"num_layers": 2}, {"channel_base": 32, "channel_max": 4, "use_noise": False})
    found = projection.project(plain, random_targets(1, resolution=8), features, num_steps=20)
    assert found.noise == {} and found.distance[0, -1] < found.distance[0, 0]


def test_the_label_affects_the_mean(features):
    G = stand_ins.tiny_generator(c_dim=2)
    target = random_targets(1, resolution=8)
    means = [projection.project(G, target, features, c=c.unsqueeze(0), num_steps=1).w for c in torch.eye(2)]
    assert not torch.allclose(means[0], means[1])
    with pytest.raises(UserError, match="--class, 0 to 1"):
        projection.project(G, target, features, num_steps=1)


def test_progress_counts_each_step(G, features, capsys):
    with Progress(4, "Projecting", "step") as progress:
        projection.project(G, random_targets(1), features, num_steps=4, progress=progress)
    assert progress.count == 4


def test_refusals(G, features):
    with pytest.raises(UserError, match="--num-steps=0"):
        projection.project(G, random_targets(1), features, num_steps=0)
    with pytest.raises(ValueError, match="uint8"):
        projection.project(G, random_targets(1).float(), features)
    with pytest.raises(ValueError, match="16, 16"):
        projection.project(G, random_targets(1, resolution=8), features)
    with pytest.raises(UserError, match=r"16x16.*--detector"):
        projection.project(G, random_targets(1), torch.nn.MaxPool2d(32))


def test_large_images_are_compared_at_256(tmp_path):
    find = lpips.open_features(stand_ins.save_detector(stand_ins.VGG16(), tmp_path / "v.pt"), torch.device("cpu"))
    img = rnd("projection/large", [1, 1, 512, 512])
    area = img.reshape(1, 1, 256, 2, 256, 2).mean(dim=(3, 5))
    expected = ((area + 1) * 127.5).repeat(1, 3, 1, 1).flatten(1) / math.sqrt(3 * 256 * 256)
    torch.testing.assert_close(find(img), expected, atol=1e-4, rtol=1e-4)


def test_a_detector_of_another_kind_is_refused(tmp_path):
    path = stand_ins.save_detector(stand_ins.PlainClassifier(), tmp_path / "plain.pt")
    with pytest.raises(UserError, match=r"'plain'.*resize_images or return_lpips.*--detector"):
        lpips.open_features(path, torch.device("cpu"))


def test_distance_of_pixels_is_the_mean_square_over_scales():
    find = lpips.open_features("pixels", torch.device("cpu"))
    a, b = rnd("projection/pixels/a", [2, 3, 16, 16]), rnd("projection/pixels/b", [2, 3, 16, 16])
    found = (find(a) - find(b)).square().sum(1)
    scales = [(a - b).reshape(2, 3, 16 // k, k, 16 // k, k).mean(dim=(3, 5)) for k in (1, 2, 4)]
    expected = torch.stack([x.square().mean(dim=(1, 2, 3)) for x in scales]).mean(0)
    torch.testing.assert_close(found, expected)
    assert find(a[:, :1, :4, :4]).shape == (2, 16)


def test_pixels_find_the_w_of_an_image(G):
    w = G.mapping(rnd("projection/pixels/z", [1, G.z_dim]), None)[:, 0]
    targets = drawn_by(G, w)
    find = lpips.open_features("pixels", torch.device("cpu"))
    found = projection.project(G, targets, find, num_steps=60)
    assert found.distance[0, -1] < 0.5 * found.distance[0, 0]


def test_default_detector_is_vgg16(tmp_path, monkeypatch):
    stand_ins.save_detector(stand_ins.VGG16(), tmp_path / "served" / "vgg16.pt")
    monkeypatch.setattr(detectors, "BASE_URL", str(tmp_path / "served"))
    assert lpips.open_features(None, torch.device("cpu"))(torch.zeros(1, 3, 8, 8)).shape == (1, 192)
