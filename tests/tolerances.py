# SPDX-License-Identifier: Apache-2.0
"""The tolerances that tests allow and docs/numerics.md lists: after a change, run `python -m tests.numerics_page`."""

import torch

# Operations, by type.
GOLDEN_OPS = 1e-6
BIAS_ACT = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}
UPFIRDN2D = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}
CONV2D_RESAMPLE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}
FMA = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}
GRID_SAMPLE = {"rtol": 1e-2, "atol": 2e-2}
CONV2D_GRADFIX = 1e-12
FAST_PATHS = 1e-9
FAST_LAYER = {torch.bfloat16: 0.05, torch.float32: 1e-5}
FAST_NETWORKS = 3e-4
# Results are rounded once, from float32 or better: half a unit of bfloat16's last place is 2^-9.
KERNELS_ON_HOST = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2**-8}
# Norm of the difference over the norm of the result. A result is rounded once, second derivatives a few times.
KERNELS_ON_GPU = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}

# Networks and augmentation.
GOLDEN_NETWORKS = 2e-5
GOLDEN_R1_NORMS = {"rtol": 1e-3, "atol": 1e-5}
# BigGAN, in float64, relative to the largest value.
BIGGAN = {"networks": 1e-7, "grads": 1e-6, "steps": 1e-4, "exact": 1e-9}
LARGE_STYLES = {"rtol": 0.02, "atol": 0.02}
TENSORFLOW = {"rtol": 0, "atol": 1e-4}
READ_BY_OTHERS = 1e-4
EXPORTED = 1e-4
AUGMENT_GOLDEN = {"rtol": 0, "atol": 3e-5}
AUGMENT_IDENTITY = {"rtol": 0, "atol": 5e-5}
AUGMENT_REFLECTION = {"rtol": 0, "atol": 2e-4}
AUGMENT_TYPES = {"rtol": 0.05, "atol": 0.05}

# Losses and gradients.
GOLDEN_GRADIENTS = {"rtol": 1e-3, "atol": 2e-6}
GOLDEN_PATH_LENGTH = 1e-4
# Largest relative error of the loss and of the gradient (norm of the difference over the norm): between 1.2 and 3 times
# the worst of 24 seeds in bf16, of 10 in fp16.
HALF_PRECISION = {
    (torch.bfloat16, "Gmain"): (0.02, 0.3),
    (torch.bfloat16, "Greg"): (0.05, 0.15),
    (torch.bfloat16, "Dmain"): (0.01, 0.3),
    (torch.bfloat16, "Dreg"): (0.1, 0.25),
    (torch.float16, "Gmain"): (0.001, 0.05),
    (torch.float16, "Greg"): (0.02, 0.05),
    (torch.float16, "Dmain"): (0.001, 0.05),
    (torch.float16, "Dreg"): (0.02, 0.06),
}
# The same for the gradient, in the median over seeds: a few weights that D hardly reacts to make the worst case.
HALF_PRECISION_MEDIAN = {torch.bfloat16: 0.1, torch.float16: 0.03}
TEACHER_SLOPES = {"rtol": 1e-12, "atol": 1e-15}
MICRO_BATCHES = {"rtol": 1e-4, "atol": 1e-6}
# Measured: 4e-7 at most between 1, 2 and 4 processes after 1, 4 and 16 iterations, on weights of order 1.
PROCESSES = {"rtol": 0, "atol": 3e-6}

# Metrics.
MEAN_COV = {"rtol": 1e-12, "atol": 1e-15}
FID_GOLDEN = 1e-9
FID_CLOSED_FORM = 1e-12
KID_GOLDEN = 1e-7
KID_DEFINITION = 1e-12
PRECISION_RECALL = 1e-6
INCEPTION_SCORE = (1e-6, 1e-5)
SLERP = {"rtol": 0, "atol": 1e-6}
PATH_LENGTH = 0.02
