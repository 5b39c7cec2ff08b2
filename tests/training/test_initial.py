# SPDX-License-Identifier: Apache-2.0
"""What a --resume file must have before a run starts from it."""

import copy

import pytest
import torch

from dnnlib.util import UserError
from tests.metrics import stand_ins
from torch_utils import misc
from training import initial
from training.files.snapshot import Snapshot
from training.networks import Discriminator


def networks(seed: int, resolution: int = 8, channels: int = 3) -> dict[str, torch.nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        D = Discriminator(0, resolution, channels, channel_base=32, channel_max=4)
    G, G_ema = (stand_ins.tiny_generator(resolution, channels, seed=seed) for _ in range(2))
    return {"G": G, "D": D, "G_ema": G_ema}


def same(a: dict[str, torch.nn.Module], b: dict[str, torch.nn.Module]) -> dict[str, bool]:
    """Which tensors of two sets of networks are equal, by network and name."""
    found = {}
    for key in a:
        there = dict(misc.named_params_and_buffers(b[key]))
        for name, tensor in misc.named_params_and_buffers(a[key]):
            found[f"{key}.{name}"] = name in there and torch.equal(tensor, there[name])
    return found


def test_networks_that_fit_are_copied():
    ours, theirs = networks(0), networks(1)
    assert initial.from_snapshot(Snapshot(theirs, "net.pkl", ""), ours) == []
    assert all(same(ours, theirs).values())


@pytest.mark.parametrize(("theirs", "ours"), [(8, 16), (16, 8)])
def test_networks_for_another_resolution_give_what_fits(theirs, ours):
    """As in the original: all blocks that both have, but for the layers of D that read the image."""
    made, source = networks(0, ours), networks(1, theirs)
    before = copy.deepcopy(made)
    lines = initial.from_snapshot(Snapshot(source, "net.pkl", ""), made)
    equal, untouched = same(made, source), same(made, before)
    for name in ("G.mapping.fc0.weight", "G.synthesis.b8.conv1.weight", "G_ema.mapping.w_avg", "D.b8.conv0.weight"):
        assert equal[name], name
    new = [name for name in equal if not equal[name]]
    assert all(untouched[name] for name in new)
    blocks = ["synthesis.b16", "D.b16"] if ours == 16 else ["D.b8.fromrgb"]
    assert new and all(any(block in name for block in blocks) for name in new)
    for name, line in zip(made, lines):
        total = len(misc.params_and_buffers(made[name]))
        copied = total - sum(key.startswith(f"{name}.") for key in new)
        assert line == (
            f"Notice: --resume: {copied} of {total} tensors of {name} taken over from a {theirs}x{theirs} network."
        )
    assert len(lines) == 3


def test_tensors_of_other_shapes_are_left_and_named():
    """Grey networks for RGB images: all but the layers next to the image."""
    made, source = networks(0), networks(1, channels=1)
    lines = initial.from_snapshot(Snapshot(source, "net.pkl", ""), made)
    left = [name for name, equal in same(made, source).items() if not equal]
    assert left and all("torgb" in name or "fromrgb" in name for name in left)
    assert "of G taken over; 4, such as synthesis.b4.torgb.weight, have other shapes there: see --cfg" in lines[0]
    assert "of D taken over; 1, such as b8.fromrgb.weight, have other shapes" in lines[1]


@pytest.mark.parametrize("widths", [{"channel_base": 64, "channel_max": 16}, None], ids=str)
def test_a_file_of_which_no_weights_would_be_copied_is_refused(widths):
    """Neither names nor shapes fit, but for small things such as filters and single numbers."""
    D = torch.nn.Linear(2, 2) if widths is None else Discriminator(0, 8, 3, **widths)
    made = networks(0)
    with pytest.raises(UserError, match=r"--resume=net\.pkl: none of the weights of its D fit this run's D; use "):
        initial.from_snapshot(Snapshot({**networks(1), "D": D}, "net.pkl", ""), made)
    assert all(same(made, networks(0)).values())


def test_exchanged_networks_are_refused():
    theirs = networks(1)
    theirs["G"], theirs["D"] = theirs["D"], theirs["G"]
    with pytest.raises(UserError, match="of the kind"):
        initial.from_snapshot(Snapshot(theirs, "net.pkl", ""), networks(0))


@pytest.mark.parametrize("name", ["G", "D", "G_ema"])
def test_weights_that_are_not_numbers_are_refused(name):
    theirs = networks(1)
    tensor = dict(theirs[name].named_parameters())
    with torch.no_grad():
        next(iter(tensor.values())).view(-1)[0] = float("nan")
    with pytest.raises(UserError, match=f"of its {name} holds NaN or infinite values"):
        initial.check_snapshot(Snapshot(theirs, "net.pkl", ""), networks(0))
