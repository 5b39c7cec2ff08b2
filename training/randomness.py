# SPDX-License-Identifier: Apache-2.0
"""Random numbers of a run as a function of its seed and of the place in the run.

The latents of a phase and every micro-batch seed the generators anew. So a run has no generator states that a resume
would have to restore; what is drawn outside training (images, metrics) changes nothing; a batch has the same latents
however it is split; and micro-batches of equal size have the same noise in whichever process they are computed.
"""

import functools
import random

import numpy as np
import torch

# What follows the seed and the attempt (see `seed`): set-up of a process, or the iteration.
SETUP, ITERATION, PHASE, PIECE = range(4)


def seed(*place: int) -> None:
    """Seed the global generators of PyTorch (of all devices), NumPy and Python for `place`, numbers from 0.

    Places of different purposes must differ within equal lengths, for which zeros at the end do not count.
    """
    word = int(np.random.SeedSequence(place).generate_state(1)[0])
    if _has_accelerator():
        torch.manual_seed(word)
    else:  # it takes 0.3 ms to note the seed for devices that are not there, several times in each iteration
        torch.default_generator.manual_seed(word)
    np.random.seed(word)
    random.seed(word)


@functools.cache
def _has_accelerator() -> bool:
    return torch.cuda.is_available() or torch.backends.mps.is_available()
