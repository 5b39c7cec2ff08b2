# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch

from metrics import perceptual_path_length as ppl
from metrics.metric_utils import MetricOptions
from tests import tolerances
from tests.metrics import stand_ins
from tests.support import golden_json, rnd


class _LinearG(torch.nn.Module):
    """w = z; the image is w itself as grey values, scaled by `noise_const` when it is not 1."""

    z_dim, c_dim, img_resolution = 16, 0, 4

    def __init__(self):
        super().__init__()
        self.synthesis = _LinearSynthesis()

    def mapping(self, z, c):
        return z.unsqueeze(1)


class _LinearSynthesis(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Module()
        self.layer.register_buffer("noise_const", torch.ones(4, 4))

    def forward(self, ws, noise_mode, force_fp32):
        assert noise_mode == "const" and force_fp32
        return ws.reshape(-1, 1, 4, 4) * self.layer.noise_const


def test_golden_slerp():
    t = torch.linspace(0, 1, 5).unsqueeze(1)
    result = ppl.slerp(rnd("a", (5, 8)), rnd("b2", (5, 8)), t)
    np.testing.assert_allclose(result.numpy(), np.array(golden_json("slerp")), **tolerances.SLERP)


def test_trimmed_mean_drops_one_percent_at_either_end():
    values = np.arange(1000.0)
    values[-1], values[0] = 1e9, -1e9
    assert ppl.trimmed_mean(values) == pytest.approx(499.5)


def test_crop_is_the_lower_middle():
    image = torch.arange(64.0).reshape(1, 1, 8, 8)
    crop = ppl.central_crop(image)
    assert crop.shape == (1, 1, 4, 4)
    assert crop[0, 0, 0, 0] == 3 * 8 + 2 and crop[0, 0, -1, -1] == 6 * 8 + 5


@pytest.mark.parametrize(("resolution", "crop", "side"), [(128, False, 128), (512, False, 256), (1024, True, 128)])
def test_input_of_the_distance_network_is_reduced_rgb_in_0_to_255(resolution, crop, side):
    images = torch.full((1, 1, resolution, resolution), 0.5)
    images[..., ::2] = 1.0
    result = ppl.lpips_input(images, resolution, crop)
    assert result.shape == (1, 3, side, side)
    expected = 1.75 * 127.5 if resolution > 256 else 2 * 127.5
    assert result[0, :, 0, 0].tolist() == pytest.approx([expected] * 3)


@pytest.mark.parametrize("t", [0.0, 0.5])
def test_straight_lines_in_w_have_their_squared_length(t):
    z = rnd("ends", (6, 16))
    lengths = ppl.path_lengths(
        _LinearG(), stand_ins.VGG16(), z, torch.zeros(3, 0), torch.full((3, 1), t), "w", crop=False, G_kwargs={}
    )
    start, end = z.chunk(2)
    expected = 127.5**2 * (end - start).square().mean(dim=1)
    torch.testing.assert_close(lengths, expected, rtol=tolerances.PATH_LENGTH, atol=0)


def test_great_arcs_in_z_have_their_squared_angle():
    z = rnd("ends", (6, 16))
    lengths = ppl.path_lengths(
        _LinearG(), stand_ins.VGG16(), z, torch.zeros(3, 0), torch.full((3, 1), 0.3), "z", crop=False, G_kwargs={}
    )
    start, end = (v / v.norm(dim=1, keepdim=True) for v in z.chunk(2))
    angle = (start * end).sum(dim=1).acos()
    torch.testing.assert_close(lengths, 127.5**2 * angle.square() / 16, rtol=tolerances.PATH_LENGTH, atol=0)


def test_noise_is_redrawn_for_every_batch_in_a_copy(tmp_path):
    detector = stand_ins.save_detector(stand_ins.VGG16(), tmp_path / "d.pt")
    G = _LinearG()
    seen = []
    G.synthesis.register_forward_pre_hook(lambda module, args: seen.append(module.layer.noise_const.clone()))
    opts = MetricOptions(G=G, device="cpu", detector=detector)
    ppl.compute_ppl(opts, num_samples=9, space="w", sampling="end", crop=False, batch_size=3)
    assert len(seen) == 3 and not torch.equal(seen[0], seen[1])
    assert torch.equal(G.synthesis.layer.noise_const, torch.ones(4, 4))


@pytest.mark.parametrize("space", ["z", "w"])
@pytest.mark.parametrize("sampling", ["full", "end"])
def test_compute_ppl_of_a_real_generator(tmp_path, space, sampling):
    detector = stand_ins.save_detector(stand_ins.VGG16(), tmp_path / "d.pt")
    labels = [i % 3 for i in range(6)]
    data = stand_ins.write_zip(tmp_path / "data.zip", stand_ins.make_images(6), labels)
    opts = MetricOptions(
        G=stand_ins.tiny_generator(c_dim=3),
        dataset_kwargs=stand_ins.dataset_options(data, use_labels=True),
        device="cpu",
        detector=detector,
    )

    def compute():
        return ppl.compute_ppl(opts, num_samples=10, space=space, sampling=sampling, crop=True)

    length = compute()
    assert length > 0 and math.isfinite(length)
    assert compute() == length
    assert opts.provenance.num_fakes == 10 and "num_reals" not in opts.provenance
