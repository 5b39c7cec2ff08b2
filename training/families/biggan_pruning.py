# SPDX-License-Identifier: Apache-2.0
"""Which axes of a BigGAN's tensors share a width, and what a network estimates anew without some of its channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.families.family import Axis

if TYPE_CHECKING:
    import torch

POWER_STEPS = 50
BATCHES, BATCH = 4, 32  # for running statistics


def prune_plan(network: torch.nn.Module) -> list[list[Axis]]:
    """Widths of G or D: of each block's input, and inside it; of attention's keys and values.

    Norms belong to the width that they read. Nothing is scaled: spectral norm divides each weight by its own size.
    """
    widths: list[list[Axis]] = []
    before: list[Axis] = []
    generates = hasattr(network, "output_layer")
    if generates:
        before = _written_by("linear", entries=16)
    for number, stage in enumerate(network.blocks):
        name = f"blocks.{number}.0"
        block, *attention = stage
        before += [Axis(f"{name}.conv1.weight", 1, ranked=True)]
        inside = [*_written_by(f"{name}.conv1"), Axis(f"{name}.conv2.weight", 1, ranked=True)]
        if generates:
            before += _norm(block.bn1, f"{name}.bn1")
            inside += _norm(block.bn2, f"{name}.bn2")
        after = _written_by(f"{name}.conv2")
        if block.conv_sc is not None:
            before.append(Axis(f"{name}.conv_sc.weight", 1, ranked=True))
            after += _written_by(f"{name}.conv_sc")
        else:
            after, before = [*before, *after], []  # the block adds its input to its output
        if attention:
            widths += _attention(f"blocks.{number}.1", after)
        if before and (generates or number):  # D's first block reads the image
            widths.append(before)
        widths.append(inside)
        before = after
    if generates:
        names = ("gain", "bias", "stored_mean", "stored_var")
        before += [Axis(f"output_layer.0.{name}", 0) for name in names]
        before.append(Axis("output_layer.2.weight", 1, ranked=True))
    else:
        before += [Axis("linear.weight", 1, ranked=True), Axis("embed.weight", 1, ranked=True)]
    return [*widths, before]


def _written_by(layer: str, entries: int = 1, bias: bool = True) -> list[Axis]:
    axes = [Axis(f"{layer}.weight", 0, ranked=True, entries=entries), Axis(f"{layer}.u0", 1, entries=entries)]
    return [*axes, Axis(f"{layer}.bias", 0, entries=entries)] if bias else axes


def _norm(norm: torch.nn.Module, name: str) -> list[Axis]:
    """Statistics, and gain and bias: rows of a projection of the condition, or columns of a table of classes."""
    axes = [Axis(f"{name}.stored_mean", 0), Axis(f"{name}.stored_var", 0)]
    for part in ("gain", "bias"):
        projected = hasattr(getattr(norm, part), "u0")
        axes.append(Axis(f"{name}.{part}.weight", 0 if projected else 1))
        axes += [Axis(f"{name}.{part}.u0", 1)] if projected else []
    return axes


def _attention(name: str, width: list[Axis]) -> list[list[Axis]]:
    """Widths inside an attention layer, whose inputs and outputs join `width`."""
    keys = [*_written_by(f"{name}.theta", bias=False), *_written_by(f"{name}.phi", bias=False)]
    values = [*_written_by(f"{name}.g", bias=False), Axis(f"{name}.o.weight", 1, ranked=True)]
    width += [Axis(f"{name}.{layer}.weight", 1, ranked=True) for layer in ("theta", "phi", "g")]
    width += _written_by(f"{name}.o", bias=False)
    return [keys, values]


def settle(network: torch.nn.Module, seed: int) -> None:
    """Let the vectors of spectral norm converge, and give G the statistics of images of random latents and classes.

    After pruning both are those of the wide network: a vector without some of its entries is not a singular one.
    """
    import torch

    from training import standing_stats

    training = network.training
    network.train()
    with torch.no_grad():
        for layer in network.modules():
            for _ in range(POWER_STEPS if hasattr(layer, "normalised_weight") else 0):
                layer.normalised_weight()
    if hasattr(network, "output_layer"):
        random, device = torch.Generator().manual_seed(seed), network.linear.weight.device
        z = torch.randn([BATCHES * BATCH, network.z_dim], generator=random).to(device)
        classes = torch.randint(network.c_dim, [len(z)], generator=random).to(device)
        c = torch.nn.functional.one_hot(classes, network.c_dim).to(z.dtype)
        standing_stats.accumulate(network, zip(z.split(BATCH), c.split(BATCH)))
    network.train(training)
