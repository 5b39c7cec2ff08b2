# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from dgl.student import count_macs, count_params, size_table
from tests.dgl.tiny import make_D, make_G
from tests.support import golden_json
from training.networks import Discriminator, Generator

# name: resolution, labels, mapping layers, channel_base, channel_max of the golden networks
GOLDEN_NETS = {
    "stylegan2-1024": (1024, 0, 8, 32768, 512),
    "paper256": (256, 0, 8, 16384, 512),
    "paper512": (512, 0, 8, 32768, 512),
    "cifar": (32, 10, 2, 32768, 512),
    "auto64": (64, 0, 2, 16384, 512),
    "1024-half-both": (1024, 0, 8, 16384, 256),
    "1024-half-base-only": (1024, 0, 8, 16384, 512),
    "1024-quarter-both": (1024, 0, 8, 8192, 128),
}


def outline_G(resolution, c_dim=0, layers=8, channel_base=32768, channel_max=512) -> Generator:
    widths = {"channel_base": channel_base, "channel_max": channel_max}
    with torch.device("meta"):
        return Generator(512, c_dim, 512, resolution, 3, {"num_layers": layers}, widths)


@pytest.mark.parametrize("name, expected", golden_json("param_counts").items())
def test_parameters_of_published_networks(name, expected):
    resolution, c_dim, layers, base, top = GOLDEN_NETS[name]
    G = outline_G(resolution, c_dim, layers, base, top)
    with torch.device("meta"):
        D = Discriminator(c_dim, resolution, 3, channel_base=base, channel_max=top)
    nets = {"G": G, "G_mapping": G.mapping, "G_synthesis": G.synthesis, "D": D}
    assert {key: count_params(net) for key, net in nets.items()} == expected


def test_counting_leaves_out_noise_and_average():
    G = make_G(0)
    assert count_params(G) == sum(p.numel() for p in G.parameters()) < sum(t.numel() for t in G.state_dict().values())


@pytest.mark.parametrize(
    "resolution, divisor, params, macs",
    [
        (1024, 1, 30_370_060, 74_266_894_336),
        (256, 1, 30_034_338, 45_124_673_536),
        (256, 2, 10_206_434, None),
        (256, 4, 4_688_514, None),
        (256, 8, 3_028_562, None),
    ],
)
def test_size_of_config_f(resolution, divisor, params, macs):
    G = outline_G(resolution, channel_base=32768 // divisor, channel_max=512 // divisor)
    assert count_params(G) == params
    assert macs is None or count_macs(G) == macs


@pytest.mark.parametrize("divisor, gigamacs", [(2, 18.619), (4, 4.681), (8, 1.185)])
def test_macs_of_narrow_students(divisor, gigamacs):
    G = outline_G(1024, channel_base=32768 // divisor, channel_max=512 // divisor)
    assert round(count_macs(G) / 1e9, 3) == gigamacs


@pytest.mark.parametrize("divisor, gigamacs", [(2, 22.226), (4, 6.473), (8, 1.841)])
def test_macs_with_narrow_base_alone(divisor, gigamacs):
    assert round(count_macs(outline_G(1024, channel_base=32768 // divisor)) / 1e9, 3) == gigamacs


def test_macs_of_other_architectures_and_labels():
    # Skip connections of 'resnet' are 1x1 convolutions at their input's resolution; 'orig' has ToRGB at the end only.
    widths = {8: 8, 16: 4}
    skip, resnet, orig = (count_macs(make_G(0, architecture=name)) for name in ("skip", "resnet", "orig"))
    torgb = {res: 3 * c * res**2 + c * 8 for res, c in {4: 8, **widths}.items()}
    assert skip - orig == torgb[4] + torgb[8]
    assert resnet - orig == 8 * widths[8] * 4**2 + widths[8] * widths[16] * 8**2
    # A label enters through an embedding, and doubles the width of the first mapping layer.
    assert count_macs(make_G(0, c_dim=3)) - count_macs(make_G(0, c_dim=0)) == 3 * 8 + 8 * 8


def test_macs_of_discriminators():
    # 16x16, 4 and then 8 channels, 8 in the head, whose convolution also reads the minibatch-stddev channel.
    common = 4 * 4 * 9 * 16**2 + 4 * 8 * 9 * 8**2  # conv0, and conv1 at its output resolution
    common += 8 * 8 * 9 * 8**2 + 8 * 8 * 9 * 4**2
    common += 9 * 8 * 9 * 4**2 + (8 * 16) * 8
    first, shortcuts, lower = 3 * 4 * 16**2, 4 * 8 * 8**2 + 8 * 8 * 4**2, 3 * 8 * 8**2 + 3 * 8 * 4**2
    found = {name: count_macs(make_D(0, c_dim=0, architecture=name)) for name in ("resnet", "skip", "orig")}
    assert found["orig"] == common + first + 8
    assert found["resnet"] == common + first + 8 + shortcuts
    assert found["skip"] == common + first + 8 + lower
    # Labels: an embedding and eight mapping layers of the head's width; as many outputs.
    assert count_macs(make_D(0, c_dim=3)) - found["resnet"] == 3 * 8 + 8 * 8 * 8 + 8 * 8 - 8


def test_table_of_teacher_and_student():
    table = size_table(outline_G(1024), outline_G(1024, channel_base=16384, channel_max=256))
    _head, teacher, student, ratio = (line.split() for line in table.splitlines())
    assert teacher == ["teacher", "G", "30,370,060", "74,266,894,336"]
    assert student == ["student", "G", "10,339,740", "18,618,740,736"]
    assert ratio == ["ratio", "0.340", "0.251"]


def test_table_without_a_teachers_generator():
    lines = size_table(None, make_G(0)).splitlines()
    assert len(lines) == 2 and lines[1].startswith("student G")


def test_table_with_a_generator_of_another_family():
    other = torch.nn.Linear(3, 4)
    _head, teacher, _student, ratio = (line.split() for line in size_table(other, make_G(0)).splitlines())
    assert teacher == ["teacher", "G", "16", "unknown"] and ratio[2] == "unknown"
