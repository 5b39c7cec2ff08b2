# SPDX-License-Identifier: Apache-2.0
"""Losses of BigGAN (arXiv 1809.11096): hinge (arXiv 1705.02894), and orthogonal regularisation of the weights.

The formulas come first, then the loss by phases. Letters: N batch, C channels, H W image, Z latent width, K classes.
Images are in [-1, 1]; logits [N, 1], high means real.
"""

import torch

from torch_utils.training_stats import report
from training.loss import Fakes, Loss


def d_hinge_real(logits: torch.Tensor) -> torch.Tensor:
    """max(0, 1 - D(x)), the discriminator's loss per real sample."""
    return (1 - logits).relu()


def d_hinge_fake(logits: torch.Tensor) -> torch.Tensor:
    """max(0, 1 + D(G(z))), the discriminator's loss per generated sample."""
    return (1 + logits).relu()


def g_hinge(logits: torch.Tensor) -> torch.Tensor:
    """-D(G(z)), the generator's loss per sample."""
    return -logits


def orthogonal_gradient(weight: torch.Tensor) -> torch.Tensor:
    """2 ((M Mᵀ) ⊙ (1 - I)) M for a weight as a matrix M [out, rest]; the result has the weight's shape.

    It is half the derivative of ‖M Mᵀ ⊙ (1 - I)‖² (arXiv 1809.11096, section 3.1), as the public implementation has it.
    """
    matrix = weight.flatten(1)
    gram = matrix @ matrix.t()
    gram.fill_diagonal_(0)
    return (2 * gram @ matrix).reshape(weight.shape)


@torch.no_grad()
def add_orthogonal_gradients(module: torch.nn.Module, strength: float) -> None:
    """Add `strength` times the orthogonal gradient to that of every weight that has one and two axes or more.

    The class vector that G's blocks share is left out.
    """
    for name, parameter in module.named_parameters():
        if parameter.ndim >= 2 and parameter.grad is not None and name != "shared.weight":
            parameter.grad.add_(orthogonal_gradient(parameter), alpha=strength)


class BigGANLoss(Loss):
    """Phases Dmain, on one batch of fakes and reals together, and Gmain.

    Both networks stay in training mode: G's batch statistics and all singular vectors advance with every pass.
    `augment_pipe` changes all that D sees.
    """

    takes_terms = True

    def __init__(self, device, G, D, augment_pipe=None):
        self.device = device
        self.G = G
        self.D = D
        self.augment_pipe = augment_pipe

    def run_G(self, z, c, sync=True):
        """Images [N, C, H, W] of latents z [N, Z] and classes c [N, K]; None for the ws, which BigGAN does not have."""
        return self.G(z, c), None

    def accumulate_gradients(self, phase, real_img, real_c, gen_z, gen_c, sync, gain):
        if phase == "Dmain":
            self._d_main(real_img, real_c, gen_z, gen_c, gain)
        elif phase == "Gmain":
            self._g_main(gen_z, gen_c, gain)
        else:
            self.train_term(phase, real_img, real_c, gen_z, gen_c, gain)

    def _d_main(self, real_img, real_c, gen_z, gen_c, gain):
        with torch.no_grad():
            fake_img, _ws = self.run_G(gen_z, gen_c)
        # One pass: spectral norm takes a step with each, so that the logits of two passes would differ.
        logits = self.D(self.augment(torch.cat([fake_img, real_img])), torch.cat([gen_c, real_c]))
        fake, real = logits.split([len(fake_img), len(real_img)])
        fake_loss, real_loss = d_hinge_fake(fake), d_hinge_real(real)
        for name, scores, loss in (("fake", fake, fake_loss), ("real", real, real_loss)):
            report(f"Loss/scores/{name}", scores)
            report(f"Loss/signs/{name}", scores.sign())
            report(f"Loss/hinge/{name}", (loss > 0).float())  # share of samples that still train D
        report("Loss/D/loss", fake_loss.mean() + real_loss.mean())
        (fake_loss.mean() + real_loss.mean()).mul(gain).backward()

    def _g_main(self, gen_z, gen_c, gain):
        img, _ws = self.run_G(gen_z, gen_c)
        logits = self.D(self.augment(img), gen_c)
        report("Loss/scores/fake", logits)
        report("Loss/signs/fake", logits.sign())
        loss = self.with_terms(Fakes(gen_z, gen_c, None, img, logits, g_hinge(logits)))
        report("Loss/G/loss", loss)
        loss.mean().mul(gain).backward()
