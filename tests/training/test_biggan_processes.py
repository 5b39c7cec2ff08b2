# SPDX-License-Identifier: Apache-2.0
"""BigGAN in two processes: batch norm over the images of both trains what one process does, to the second gradient."""

import functools
import pathlib

import pytest
import torch

from dgl import prune
from tests import tolerances
from tests.dgl.tiny_biggan import labels, make_G, run_options, save_teacher
from tests.support import make_image_zip, rnd
from tests.training.test_run_state import differences, interrupted
from torch_utils import distributed, misc
from training import checkpoint
from training.files.snapshot import load_snapshot
from training.networks_biggan import BatchNorm
from training.settings import TrainingOptions
from training.training_loop import Trainer, training_loop

ITERATIONS = 4

pytestmark = pytest.mark.slow


def made(path: pathlib.Path, data, processes: int, sync_bn: bool = True) -> dict:
    """A run in which only rounding depends on how a batch is split: each step is a single pass."""
    settings = run_options(path, data, ITERATIONS, num_gpus=processes, batch_gpu=8 // processes)
    settings["network_snapshot_ticks"] = 1  # where processes are compared
    settings["family_kwargs"].update(sync_bn=sync_bn, G_batch=4)
    for name in ("G_opt_kwargs", "D_opt_kwargs"):
        # A smaller eps takes whole steps along gradients that are zero but for rounding; a larger rate is chaotic.
        settings[name].update(eps=0.01, lr=2e-4)
    return settings


def gradients(rank: int, processes: int) -> dict[str, torch.Tensor]:
    """First and second gradients through a generator's norms, summed over processes that share a batch of 6.

    The loss is a sum over images, each of which has an influence on all the others through the statistics.
    """
    G = make_G(1, condition="hierarchical").double().train()
    sum_ = distributed.differentiable_sum if processes > 1 else lambda tensor: tensor
    for module in G.modules():
        if isinstance(module, BatchNorm) and processes > 1:
            module.sum_processes = distributed.differentiable_sum
    share = slice(rank * 6 // processes, (rank + 1) * 6 // processes)
    z = rnd("z", (6, G.z_dim), torch.float64)[share].requires_grad_(True)
    weights = [parameter.requires_grad_(True) for parameter in G.parameters()]
    img = G(z, labels(6)[share].double())
    loss = (img * rnd("y", (6, *img.shape[1:]), torch.float64)[share]).sum()
    of_z, *first = torch.autograd.grad(loss, [z, *weights], create_graph=True)
    penalty = sum_(of_z.square().sum()) ** 2 / processes
    second = torch.autograd.grad(penalty, weights, allow_unused=True)
    found = {"z": of_z.detach()}
    for order, grads in (("first", first), ("second", second)):
        for (name, _), grad in zip(G.named_parameters(), grads):
            found[f"{order} {name}"] = distributed.all_reduce_(torch.zeros([]) if grad is None else grad.detach())
    found.update({f"buffer {name}": buffer for name, buffer in G.named_buffers()})
    return found


def compressed(path: pathlib.Path, data: str, teacher: str) -> dict:
    """A run that starts from a teacher, pruned and fitted."""
    settings = made(path, data, 2, sync_bn=False)
    fit = {"kimg": 0.032, "lr": 0.002, "batch": 4, "batch_gpu": 4}
    start = {"parts": "teacher", "ranking": "l1", "svs": False, "seed": 0, "D": True, "fit": fit}
    return {**settings, "init_kwargs": {"path": teacher, "sha256": load_snapshot(teacher).sha256, **start}}


def in_group(rank: int, folder: str, data: str, teacher: str) -> None:
    """All that needs two processes, at once, because starting them is slow."""
    folder = pathlib.Path(folder)
    distributed.init(rank, 2, torch.device("cpu"))
    torch.save(gradients(rank, 2), folder / f"gradients{rank}.pt")
    make = functools.partial(made, data=data, processes=2)
    training_loop(rank=rank, **make(folder / "two"))
    stopped = interrupted(make(folder / "stopped"), 1)
    training_loop(rank=rank, **stopped)
    if rank == 0:
        (folder / "iteration").write_text(str(checkpoint.load(folder / "stopped")["iteration"]))
    distributed.barrier()
    training_loop(rank=rank, resume=True, **stopped)
    training_loop(rank=rank, **make(folder / "own", sync_bn=False))
    run = Trainer(TrainingOptions(**compressed(folder / "compressed", data, teacher)), rank)
    for network in run.networks.values():
        misc.check_ddp_consistency(network)
    if rank == 0:
        torch.save(run.G_ema.state_dict(), folder / "compressed.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("processes")
    data = make_image_zip(path / "toy.zip", resolution=32, num_images=20, num_labels=3)
    teacher = save_teacher(path, ch=4, condition="shared", attn_res=(8,))
    distributed.launch(in_group, 2, str(path), str(data), teacher)
    training_loop(**made(path / "one", data, 1))
    return path


def networks(path: pathlib.Path) -> dict[str, torch.Tensor]:
    state = checkpoint.load(path)
    assert state["iteration"] == ITERATIONS
    return {f"{name}.{key}": t for name, network in state["networks"].items() for key, t in network.items()}


def test_gradients_of_two_processes_are_those_of_one(folder):
    one = gradients(0, 1)
    two = [torch.load(folder / f"gradients{rank}.pt") for rank in range(2)]
    torch.testing.assert_close(torch.cat([part["z"] for part in two]), one.pop("z"), rtol=1e-7, atol=1e-9)
    assert sum(name.startswith("second") and grad.abs().max() > 0 for name, grad in one.items()) > 20
    for kind in ("first", "second", "buffer"):
        expected = {name: tensor for name, tensor in one.items() if name.startswith(kind)}
        largest = max(tensor.abs().max().item() for tensor in expected.values())
        for name, tensor in expected.items():  # of biases before a norm it is zero but for rounding
            for part in two:
                torch.testing.assert_close(part[name], tensor, rtol=1e-7, atol=1e-12 * largest, msg=name)


def test_two_processes_equal_one_up_to_rounding(folder):
    one, two = networks(folder / "one"), networks(folder / "two")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, **tolerances.PROCESSES, msg=name)


def test_two_processes_go_on_exactly(folder):
    assert int((folder / "iteration").read_text()) < ITERATIONS
    assert differences(folder / "two", folder / "stopped") == []


def test_norms_over_own_images_train_another_network_that_is_equal_in_all_processes(folder):
    """Snapshots raise an error if networks of two processes differ. Files do not say how many there were."""
    own, both = networks(folder / "own"), networks(folder / "two")
    assert (own["G.linear.weight"] - both["G.linear.weight"]).abs().max() > 1e-5
    saved = load_snapshot(sorted((folder / "own").glob("*.pkl"))[-1])["G"]
    assert b"differentiable_sum" not in next((folder / "two").glob("*.pkl")).read_bytes()
    assert torch.equal(saved.linear.u0, own["G.linear.u0"])
    assert torch.equal(saved.blocks.get_submodule("0.0").bn1.stored_mean, own["G.blocks.0.0.bn1.stored_mean"])


def test_a_compressed_student_is_equal_in_all_processes(folder):
    """Its running statistics too, by the comparison in the processes themselves; and it was fitted."""
    fitted = torch.load(folder / "compressed.pt")
    student = make_G(3, condition="shared", attn_res=(8,))
    prune.inherit(load_snapshot(folder / "biggan.pkl")["G_ema"], student)
    moved = fitted["blocks.0.0.conv1.weight"] - student.blocks.get_submodule("0.0").conv1.weight
    assert 1e-4 < moved.abs().max() < 0.1
