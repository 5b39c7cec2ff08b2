# SPDX-License-Identifier: Apache-2.0
"""Cases that run networks: forward passes, the latency of a generator, the phases of training, the whole loop."""

import torch

from benchmarks import plain
from benchmarks.cases import Case, Part, Setting
from benchmarks.variants import Variant
from torch_utils.precision import run_dtype
from training.ema import update_ema
from training.phases import run_phase
from training.training_loop import TrainingOptions

G_INTERVAL, D_INTERVAL = TrainingOptions.G_reg_interval, TrainingOptions.D_reg_interval
AUGMENT_P = 0.5  # The work does not depend on it.


def network_forward(name: str):
    """The builder of a forward pass of 'G' or 'D' as in training, keeping what backward will need."""

    def build(setting: Setting, variant: Variant) -> dict[str, Part]:
        net = setting.network(name, variant).train()
        kwargs = {"half_dtype": run_dtype(variant.precision, setting.device)}
        shape = [setting.batch_size, net.z_dim] if name == "G" else [setting.batch_size, 3, *[setting.resolution] * 2]
        x = torch.randn(shape, device=setting.device)
        c = torch.zeros([setting.batch_size, 0], device=setting.device)
        return {"forward": Part(lambda: net(x, c, **kwargs))}

    return build


def inference(batch: int):
    """The builder of a generator making `batch` images, as in generate.py.

    The reference folds the styles into one weight per sample, which is what networks in fp32 have always done.
    """

    def build(setting: Setting, variant: Variant) -> dict[str, Part]:
        G = setting.network("G", variant).eval().requires_grad_(False)
        kwargs = {"half_dtype": run_dtype(variant.precision, setting.device), "noise_mode": "const"}
        if variant.plain:
            kwargs["fused_modconv"] = True
        z = torch.randn([batch, G.z_dim], device=setting.device)
        c = torch.zeros([batch, 0], device=setting.device)

        @torch.no_grad()
        def run():
            G(z, c, **kwargs)

        return {"images": Part(run)}

    return build


def training(setting: Setting, variant: Variant) -> dict[str, Part]:
    """The four phases and the moving average, on data that is there already."""
    trainer = setting.trainer(variant, reads_data=False)
    trainer.augment_pipe.p.fill_(AUGMENT_P)
    size, device = setting.batch_size, setting.device
    c = torch.zeros([size, 0], device=device)
    whole = {
        "real_img": torch.rand([size, 3, *[setting.resolution] * 2], device=device) * 2 - 1,
        "real_c": c,
        "gen_z": torch.randn([size, trainer.G.z_dim], device=device),
        "gen_c": c,
    }
    pieces = zip(*(tensor.split(trainer.opt.batch_gpu) for tensor in whole.values()))
    micro_batches = [dict(zip(whole, piece)) for piece in pieces]
    step, follow = (plain.run_phase, plain.update_ema) if variant.plain else (run_phase, update_ema)

    def phase_part(phase):
        return Part(lambda: step(phase, trainer.loss, micro_batches))

    parts = {phase.name: phase_part(phase) for phase in trainer.phases}
    parts["EMA"] = Part(lambda: follow(trainer.G_ema, trainer.G, 0.999))
    return parts


def loop(setting: Setting, variant: Variant) -> dict[str, Part]:
    """Iterations of the training loop, each kind by itself: with both regularisers, with one, with none."""
    trainer = setting.trainer(variant, reads_data=True)
    trainer.augment_pipe.p.fill_(AUGMENT_P)

    def step(iteration):
        trainer.iteration = iteration
        trainer.step(new_tick=False)

    kinds = {"with Greg, Dreg": 0, "with Greg": G_INTERVAL, "main phases": 1}
    return {kind: Part(lambda iteration=iteration: step(iteration)) for kind, iteration in kinds.items()}


LOOP_WEIGHTS = {
    "with Greg, Dreg": 1 / D_INTERVAL,
    "with Greg": 1 / G_INTERVAL - 1 / D_INTERVAL,
    "main phases": 1 - 1 / G_INTERVAL,
}
TRAINING_WEIGHTS = {"Gmain": 1, "Greg": 1 / G_INTERVAL, "Dmain": 1, "Dreg": 1 / D_INTERVAL, "EMA": 1}

NETWORK_CASES = [
    Case("training", training, plan=280, total="iteration", weights=TRAINING_WEIGHTS),
    Case("inference/b1", inference(1), plan=20, batch=1),
    Case("inference/b16", inference(16), plan=60, batch=16),
    Case("forward/G", network_forward("G"), plan=25),
    Case("forward/D", network_forward("D"), plan=25),
    Case("loop", loop, plan=280, total="iteration", weights=LOOP_WEIGHTS),
    Case("memory/training", training, plan=90, kind="memory"),
    Case("memory/inference", inference(16), plan=25, batch=16, kind="memory"),
]
