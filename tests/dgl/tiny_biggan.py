# SPDX-License-Identifier: Apache-2.0
"""BigGANs of a few thousand weights, as after some training, and network files of them."""

import pathlib

import torch

from tests.support import rnd
from tests.training.test_training_loop import options
from torch_utils import misc
from training.files.snapshot import save_snapshot
from training.networks_biggan import Discriminator, Generator

RESOLUTION, CHANNELS, C_DIM, Z_DIM, BATCH = 32, 3, 3, 8, 4
# Three kinds of condition: tables, a shared class vector, and that with parts of z.
CONDITIONS = {
    "tables": {"shared_dim": 0, "hierarchical": False},
    "shared": {"shared_dim": 6, "hierarchical": False},
    "hierarchical": {"shared_dim": 6, "hierarchical": True},
}


def make_G(
    seed: int, ch: int = 2, resolution: int = RESOLUTION, condition: str = "tables", attn_res=(), channels=CHANNELS
) -> Generator:
    z_dim = Z_DIM if condition != "hierarchical" else 2 * (resolution.bit_length() - 2)
    kwargs = {**CONDITIONS[condition], "attn_res": list(attn_res), "init": "N02", "ch": ch}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return used(Generator(z_dim, C_DIM, resolution, channels, **kwargs), seed)


def make_D(seed: int, ch: int = 2, resolution: int = RESOLUTION, attn_res=(), channels=CHANNELS) -> Discriminator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return used(Discriminator(C_DIM, resolution, channels, ch=ch, attn_res=list(attn_res), init="N02"), seed)


def used(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    """`network` with statistics, gains and biases of their own, all frozen."""
    for name, tensor in misc.named_params_and_buffers(network.requires_grad_(False)):
        noise = rnd(f"{seed}{name}", tuple(tensor.shape))
        if name.endswith("stored_var"):
            tensor.copy_(0.5 + noise.abs())
        elif name.endswith(("stored_mean", ".gain", ".bias", "gamma")):
            tensor.add_(0.3 * noise)
    return network


def labels(count: int) -> torch.Tensor:
    return torch.eye(C_DIM)[torch.arange(count) % C_DIM]


@torch.no_grad()
def images(G: torch.nn.Module, count: int = BATCH) -> torch.Tensor:
    """What `G` makes in evaluation of fixed latents."""
    training = G.training
    made = G.eval()(rnd("z", (count, G.z_dim)), labels(count))
    G.train(training)
    return made


def save_teacher(
    folder: pathlib.Path,
    name: str = "biggan.pkl",
    ch: int = 4,
    seed: int = 100,
    has_G: bool = True,
    condition: str = "tables",
    **shape,
) -> str:
    """Path of a network file, twice as wide as the student's. D scores some images of noise as real and some not."""
    networks = {"D": make_D(seed + 1, ch=ch, **shape), "augment_pipe": None, "training_set_kwargs": {}}
    networks["D"].linear.bias -= 22
    if has_G:
        networks["G"] = networks["G_ema"] = make_G(seed, ch=ch, condition=condition, **shape)
    save_snapshot(str(folder / name), networks)
    return str(folder / name)


def run_options(run_dir: pathlib.Path, data: pathlib.Path, iterations: int = 5, **changes) -> dict:
    """A run with two steps of D, each on 8 reals in passes of 4, and a step of G on 4; attention; ticks of two."""
    adam = {"class_name": "torch.optim.Adam", "lr": 0.002, "betas": [0.0, 0.999], "eps": 1e-8}
    G = {"z_dim": Z_DIM, "ch": 2, **CONDITIONS["shared"], "attn_res": [8], "init": "N02"}
    D = {"ch": 2, "attn_res": [8], "init": "N02"}
    settings = options(run_dir, data)
    settings["training_set_kwargs"]["use_labels"] = True
    return {
        **settings,
        "G_kwargs": {"class_name": "training.networks_biggan.BigGANGenerator", **G},
        "D_kwargs": {"class_name": "training.networks_biggan.BigGANDiscriminator", **D},
        "G_opt_kwargs": dict(adam),
        "D_opt_kwargs": dict(adam),
        "loss_kwargs": {"class_name": "training.loss_biggan.BigGANLoss"},
        "family_kwargs": {"d_steps": 2, "G_batch": 4, "ortho": 0.01, "ema_decay": 0.9, "ema_start": 3, "sync_bn": True},
        "G_reg_interval": None,
        "D_reg_interval": None,
        "total_kimg": iterations * 0.016,
        "kimg_per_tick": 0.032,
        "image_snapshot_ticks": None,
        "network_snapshot_ticks": None,
        **changes,
    }
