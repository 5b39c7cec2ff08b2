# SPDX-License-Identifier: Apache-2.0
"""Networks for another resolution, number of channels or of classes start where the old ones were."""

import pytest
import torch

from dnnlib.util import UserError
from tests.metrics import stand_ins
from tests.support import rnd
from torch_utils import misc
from torch_utils.ops import upfirdn2d
from training import networks_biggan, transfer
from training.networks import Discriminator, Generator

WIDTHS = {"channel_base": 128, "channel_max": 8}


def filled(network: torch.nn.Module) -> torch.nn.Module:
    """`network` in eval mode, with values other than its initial ones everywhere but in filters."""
    for name, tensor in misc.named_params_and_buffers(network):
        if not name.endswith("resample_filter"):
            tensor.data.add_(0.3 * rnd(name, tuple(tensor.shape)))
    return network.eval().requires_grad_(False)


def generator(resolution=16, channels=3, c_dim=0, **synthesis) -> Generator:
    return filled(Generator(4, c_dim, 8, resolution, channels, {"num_layers": 2}, {**WIDTHS, **synthesis}))


def discriminator(resolution=16, channels=3, c_dim=0, **kwargs) -> Discriminator:
    return filled(Discriminator(c_dim, resolution, channels, **WIDTHS, **kwargs))


def images(G: torch.nn.Module, labels: torch.Tensor | None = None) -> torch.Tensor:
    z = rnd("z", (5, G.z_dim))
    return G(z, torch.zeros(5, 0) if labels is None else labels, noise_mode="const")


def transferred(network: torch.nn.Module, **changes) -> tuple[torch.nn.Module, transfer.Account]:
    state = torch.get_rng_state()
    made, account = transfer.transferred(network, "G in x.pkl", changes)
    assert torch.equal(torch.get_rng_state(), state), "the global random state stays"
    assert not made.training and not any(tensor.requires_grad for tensor in made.parameters())
    assert all(made.init_kwargs[name] == value for name, value in changes.items())
    assert all(tensor.isfinite().all() for tensor in misc.params_and_buffers(made))
    return made, account


def test_a_higher_resolution_starts_with_the_images_enlarged():
    G = generator()
    made, account = transferred(G, img_resolution=64)
    expected = images(G)
    for _ in range(2):
        expected = upfirdn2d.upsample2d(expected, G.synthesis.b16.resample_filter)
    assert torch.allclose(images(made), expected, rtol=0, atol=1e-5)
    assert account == (len(misc.params_and_buffers(G)), (), ("synthesis.b32", "synthesis.b64"), ())
    assert made.synthesis.b64.conv1.weight.std() > 0.5, "new convolutions are not 0: they could not learn"


def test_a_lower_resolution_drops_blocks():
    G = generator()
    made, account = transferred(G, img_resolution=8)
    lower = G.synthesis.b8(*G.synthesis.b4(None, None, G.mapping(rnd("z", (5, 4)), None)[:, :2], noise_mode="const"),
                           G.mapping(rnd("z", (5, 4)), None)[:, 1:4], noise_mode="const")[1]  # fmt: skip
    assert torch.allclose(images(made), lower, rtol=0, atol=1e-5)
    assert account.new == account.fitted == () and account.dropped == ("synthesis.b16",)


def test_the_new_blocks_of_g_and_its_average_are_equal():
    first, second = (transferred(generator(), img_resolution=32)[0].synthesis for _ in range(2))
    assert not torch.equal(first.b16.conv1.weight, second.b16.conv1.weight)
    assert all(map(torch.equal, misc.params_and_buffers(first.b32), misc.params_and_buffers(second.b32)))


def test_a_discriminator_keeps_all_but_its_first_layer():
    D = discriminator()
    for resolution, new, dropped in ((32, ("b32",), ("b16.fromrgb",)), (8, ("b8.fromrgb",), ("b16",))):
        made, account = transferred(D, img_resolution=resolution)
        assert (account.new, account.fitted, account.dropped) == (new, (), dropped)
        assert torch.equal(made.b4.fc.weight, D.b4.fc.weight) and torch.equal(made.b8.conv0.weight, D.b8.conv0.weight)
        assert made(rnd("img", (4, 3, resolution, resolution)), None).shape == (4, 1)


@pytest.mark.parametrize("architecture", ["resnet", "orig"])
def test_other_architectures(architecture):
    made, account = transferred(generator(architecture=architecture), img_resolution=32)
    assert account.new == ("synthesis.b32",) and account.dropped == ("synthesis.b16.torgb",)
    assert images(made).std() > 0.01


def test_grey_and_rgb():
    rgb, grey = generator(), generator(channels=1)
    made, account = transferred(rgb, img_channels=1)
    assert torch.allclose(images(made), images(rgb).mean(dim=1, keepdim=True), rtol=0, atol=1e-5)
    assert account.fitted[:2] == ("synthesis.b4.torgb", "synthesis.b8.torgb") and account.new == ()
    assert torch.allclose(images(transferred(grey, img_channels=3)[0]), images(grey).expand(5, 3, 16, 16), atol=1e-5)
    for architecture in ("resnet", "skip"):
        for before, after in ((1, 3), (3, 1)):
            D = discriminator(channels=before, architecture=architecture)
            pictures = rnd("img", (4, 1, 16, 16))
            expected = D(pictures.expand(4, before, 16, 16), None)
            found = transferred(D, img_channels=after)[0](pictures.expand(4, after, 16, 16), None)
            assert torch.allclose(found, expected, rtol=0, atol=1e-5)


def test_added_labels_are_ignored_at_first():
    G = generator()
    made, account = transferred(G, c_dim=3)
    for label in torch.eye(3):
        assert torch.allclose(images(made, label.expand(5, 3)), images(G), rtol=0, atol=1e-4)
    assert account.new == ("mapping.embed",) and account.fitted == ("mapping.fc0",)
    made.mapping.fc0.weight.requires_grad_(True)
    w = made.mapping(rnd("z", (5, 4)), torch.eye(3)[[0, 1, 2, 0, 1]])
    w.square().sum().backward()
    assert made.mapping.fc0.weight.grad[:, 4:].abs().sum() > 0, "and learned later"
    _, account = transferred(discriminator(), c_dim=3)
    assert account.new == ("mapping", "b4.out") and account.fitted == ()


def test_dropped_labels_leave_their_mean():
    G = generator(c_dim=3)
    made, account = transferred(G, c_dim=0)
    inputs = [G.mapping._inputs(rnd("z", (5, 4)), label.expand(5, 3)) for label in torch.eye(3)]
    layer = G.mapping.fc0
    before = sum(x @ layer.weight.t() * layer.weight_gain + layer.bias * layer.bias_gain for x in inputs) / 3
    layer = made.mapping.fc0
    x = made.mapping._inputs(rnd("z", (5, 4)), None)
    after = x @ layer.weight.t() * layer.weight_gain + layer.bias * layer.bias_gain
    assert torch.allclose(after, before, rtol=0, atol=1e-4)
    assert account.dropped == ("mapping.embed",) and account.fitted == ("mapping.fc0",) and account.new == ()


def test_other_classes_are_new():
    for network in (generator(c_dim=3), discriminator(c_dim=3)):
        made, account = transferred(network, c_dim=5)
        assert account.new == ("mapping.embed",) and account.fitted == account.dropped == ()
        assert made.mapping.embed.weight.shape[1] == 5 and not torch.equal(
            made.mapping.embed.bias, network.mapping.embed.bias
        )


def test_everything_at_once_and_nothing():
    G = generator()
    made, _ = transferred(G, img_resolution=32, img_channels=1, c_dim=2)
    expected = upfirdn2d.upsample2d(images(G).mean(dim=1, keepdim=True), G.synthesis.b16.resample_filter)
    assert torch.allclose(images(made, torch.eye(2)[:1].expand(5, 2)), expected, rtol=0, atol=1e-4)
    made, account = transferred(G, img_resolution=16, img_channels=3, c_dim=0)
    assert torch.equal(images(made), images(G)) and account[1:] == ((), (), ())


def test_arguments_given_by_position_and_frozen_layers():
    D = filled(Discriminator(0, 16, 3, "resnet", *WIDTHS.values(), block_kwargs={"freeze_layers": 2}))
    made, account = transferred(D, img_resolution=32)
    assert account.new == ("b32",) and torch.equal(made.b16.conv0.weight, D.b16.conv0.weight)


def biggan_discriminator() -> torch.nn.Module:
    return networks_biggan.Discriminator(3, 32, 3, ch=2, attn_res=[]).eval()


def test_classes_of_a_biggan():
    for network, parts in ((stand_ins.tiny_biggan(c_dim=3), None), (biggan_discriminator(), ("embed",))):
        made, account = transferred(network, c_dim=5)
        assert made.c_dim == 5 and account.taken > 10 and parts in (None, account.new) and account.new
        assert all("shared" in part or "embed" in part or ".bn" in part for part in account.new)


REFUSED = {
    "resolution of a BigGAN": (biggan_discriminator, {"img_resolution": 64}, "--resolution: .*BigGANDiscriminator"),
    "labels of a BigGAN": (biggan_discriminator, {"c_dim": 0}, "--classes=0: .*c_dim cannot be 0"),
    "RGBA": (lambda: generator(channels=4), {"img_channels": 3}, "--channels=3: .* from 4 to 3 channels, only"),
    "no width left": (
        generator,
        {"img_resolution": 256},
        "--resolution=256: G in x.pkl cannot .* no channels are left",
    ),
    "too large": (generator, {"img_resolution": 8192}, "--resolution=8192: .*img_resolution cannot be 8192"),
    "no network of ours": (lambda: torch.nn.Linear(2, 2), {"c_dim": 3}, "--classes: .* is a Linear"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_impossible_changes_are_refused(name):
    make, changes, reason = REFUSED[name]
    with pytest.raises(UserError, match=reason) as caught:
        transfer.transferred(make(), "G in x.pkl", changes)
    assert "G in x.pkl" in str(caught.value)


def test_table():
    accounts = {"G": transfer.Account(3, (), ("a", "b.c"), ()), "D": transfer.Account(1, ("x",), (), ("y",) * 9)}
    assert transfer.table({**accounts, "G_ema": accounts["G"]}).splitlines() == [
        "network   tensors     parts",
        "--------  ----------  ---------------------",
        "G, G_ema  taken over  3 tensors",
        "          new         a, b.c",
        "D         taken over  1 tensors",
        "          fitted      x",
        "          dropped     y, y, y, y and 5 more",
    ]
