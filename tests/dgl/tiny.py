# SPDX-License-Identifier: Apache-2.0
"""Networks of a few thousand weights, snapshots of them, and short training with or without teachers."""

import copy
import pathlib

import torch

from dgl.loss import DGLLoss
from tests.support import rnd
from torch_utils import precision
from training.files.snapshot import save_snapshot
from training.loss import StyleGAN2Loss
from training.networks import Discriminator, Generator
from training.phases import build_phases, run_phase

RESOLUTION, CHANNELS, C_DIM, Z_DIM, BATCH = 16, 3, 3, 8, 4
WIDTHS = {"channel_base": 64, "channel_max": 8}
ADAM = {"class_name": "torch.optim.Adam", "lr": 0.01, "betas": [0, 0.99], "eps": 1e-8}


def make_G(seed: int, c_dim: int = C_DIM, **synthesis_kwargs) -> Generator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Generator(
            Z_DIM,
            c_dim,
            Z_DIM,
            RESOLUTION,
            CHANNELS,
            mapping_kwargs={"num_layers": 2},
            synthesis_kwargs={**WIDTHS, **synthesis_kwargs},
        ).requires_grad_(False)


def make_D(seed: int, **overrides) -> Discriminator:
    shape = {"c_dim": C_DIM, "img_resolution": RESOLUTION, "img_channels": CHANNELS}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Discriminator(**{**shape, **WIDTHS, **overrides}).requires_grad_(False)


def save_teacher(folder: pathlib.Path, seed: int = 100, name: str = "teacher.pkl", **D_overrides) -> str:
    """Path of a network pickle with a D of `seed`, twice as wide as the student's, and a matching G."""
    wide = {"channel_base": 128, "channel_max": 16}
    G = make_G(seed, **wide)
    D = make_D(seed, **{**wide, **D_overrides})
    data = {"G": G, "D": D, "G_ema": G, "augment_pipe": None, "training_set_kwargs": {}}
    save_snapshot(str(folder / name), data)
    return str(folder / name)


class NoisyPipe(torch.nn.Module):
    """An augmentation that draws random numbers and halves the image, so that its use shows."""

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        return img * 0.5 + torch.randn_like(img) * 0.1


class Student:
    """A G and a D from fixed weights, their loss, and inputs from fixed random numbers.

    `teachers` None takes the plain StyleGAN2 loss, otherwise the guided one with those paths. `half_dtype` is the
    precision of the run.
    """

    def __init__(
        self, teachers: list[str] | None = None, augment_pipe=None, D_overrides={}, half_dtype=None, **loss_kwargs
    ):
        self.G, self.D = make_G(1).train(), make_D(2, **D_overrides).train()
        precision.set_half_dtype(self.D, half_dtype)
        torch.manual_seed(3)
        modules = (torch.device("cpu"), self.G.mapping, self.G.synthesis, self.D, augment_pipe)
        if teachers is None:
            self.loss = StyleGAN2Loss(*modules, **loss_kwargs)
        else:
            self.loss = DGLLoss(*modules, teachers=[{"path": path} for path in teachers], **loss_kwargs)

    def inputs(self, step: int = 0) -> dict[str, torch.Tensor]:
        labels = torch.eye(C_DIM)[[0, 1, 2, 0]]
        return {
            "real_img": rnd(f"real{step}", (BATCH, CHANNELS, RESOLUTION, RESOLUTION)) * 0.5,
            "real_c": labels.roll(1, 0),
            "gen_z": rnd(f"z{step}", (BATCH, Z_DIM)),
            "gen_c": labels,
        }

    def gradients(self, phase: str, gain: float = 1) -> dict[str, torch.Tensor | None]:
        """Gradient of every parameter of G and D after `phase` on the first inputs, from a fixed random state."""
        module = {"G": self.G, "D": self.D}[phase[0]].requires_grad_(True)
        self.G.zero_grad(set_to_none=True)
        self.D.zero_grad(set_to_none=True)
        torch.manual_seed(4)
        self.loss.accumulate_gradients(phase, sync=True, gain=gain, **self.inputs())
        module.requires_grad_(False)
        names = [*((f"G.{n}", p) for n, p in self.G.named_parameters())]
        names += [*((f"D.{n}", p) for n, p in self.D.named_parameters())]
        return {name: copy.deepcopy(p.grad) for name, p in names}

    def images(self, phase: str) -> list[torch.Tensor]:
        """What G makes in `phase` on the first inputs, call by call."""
        made = []
        hook = self.G.synthesis.register_forward_hook(lambda _module, _inputs, img: made.append(img.detach().clone()))
        self.gradients(phase)
        hook.remove()
        return made

    def train(self, steps: int = 3, new_tick: bool = True) -> dict[str, torch.Tensor]:
        """Weights and random state after `steps` iterations with lazy phases every second, from kimg 0 at 4 a step."""
        phases = build_phases("G", self.G, ADAM, 2) + build_phases("D", self.D, ADAM, 2)
        for step in range(steps):
            self.loss.begin_iteration(cur_nimg=step * BATCH, new_tick=new_tick and step == 0)
            for phase in phases:
                if step % phase.interval == 0:
                    run_phase(phase, self.loss, [self.inputs(step)])
        state = {f"G.{name}": tensor for name, tensor in self.G.state_dict().items()}
        state |= {f"D.{name}": tensor for name, tensor in self.D.state_dict().items()}
        return {**state, "rng": torch.get_rng_state(), "pl_mean": self.loss.state_dict()["pl_mean"]}


def same(a: dict, b: dict) -> bool:
    """Whether two dicts of tensors (or None) are equal, bit for bit."""
    return a.keys() == b.keys() and all(
        (x is None and b[name] is None) or (x is not None and b[name] is not None and torch.equal(x, b[name]))
        for name, x in a.items()
    )
