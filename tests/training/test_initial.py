# SPDX-License-Identifier: Apache-2.0
"""What a --resume file must have before a run starts from it."""

import pytest
import torch

from dnnlib.util import UserError
from tests.metrics import stand_ins
from training import initial
from training.files.snapshot import Snapshot
from training.networks import Discriminator


def networks(seed: int) -> dict[str, torch.nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        D = Discriminator(0, 8, 3, channel_base=32, channel_max=4)
    return {"G": stand_ins.tiny_generator(seed=seed), "D": D, "G_ema": stand_ins.tiny_generator(seed=seed)}


def test_networks_that_fit_are_copied():
    ours, theirs = networks(0), networks(1)
    initial.from_snapshot(Snapshot(theirs, "net.pkl", ""), ours)
    assert torch.equal(ours["D"].b4.out.weight, theirs["D"].b4.out.weight)


def test_a_file_of_which_nothing_would_be_copied_is_refused():
    foreign = {**networks(1), "D": torch.nn.Linear(2, 2)}
    with pytest.raises(UserError, match=r"--resume=net\.pkl: its D has none of the tensors of this run's D"):
        initial.from_snapshot(Snapshot(foreign, "net.pkl", ""), networks(0))


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
