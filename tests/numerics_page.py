# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/numerics.md, made from the tolerances that tests use: `python -m tests.numerics_page`."""

import pathlib
import re

from tests import tolerances
from tests.numerics_row import Row, both, code, types
from tests.torch_utils.ops import sweep

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "numerics.md"
HEADER = ("what", "type", "compared with", "tolerance", "test")


SCALED = "relative and absolute (times the largest value) "
LOSS_TESTS = "training/test_loss_precision.py::test_phase_in_half_precision::test_phase_in_half_precision_on_a_gpu"


def half_precision_rows() -> list[Row]:
    rows = []
    for dtype, median in tolerances.HALF_PRECISION_MEDIAN.items():
        name = str(dtype).removeprefix("torch.")
        for (other, phase), allowed in tolerances.HALF_PRECISION.items():
            if other == dtype:
                rows.append(Row(f"{phase}: loss, gradient", name, "float32, same draws", code(*allowed), LOSS_TESTS))
        what = "each phase: gradient, median over seeds"
        rows.append(Row(what, name, "float32, same draws", code(median), LOSS_TESTS))
    return rows


TABLES = {
    "Operations": [
        Row(
            "all operations, y, first and second gradients",
            "float64",
            "golden numbers",
            SCALED + code(tolerances.GOLDEN_OPS),
            "torch_utils/ops/test_golden_ops.py::test_bias_act::test_resampling::test_conv2d_resample",
        ),
        Row(
            "`bias_act`",
            types(tolerances.BIAS_ACT),
            "its definition, in float64",
            f"relative {code(*tolerances.BIAS_ACT.values())}; absolute twice that",
            "torch_utils/ops/test_bias_act.py::test_equals_its_definition",
        ),
        Row(
            "`upfirdn2d`",
            types(tolerances.UPFIRDN2D),
            "its definition by scipy, in float64",
            SCALED + code(*tolerances.UPFIRDN2D.values()),
            "torch_utils/ops/test_upfirdn2d.py::test_equals_its_definition::test_types_and_layouts",
        ),
        Row(
            "`conv2d_resample`",
            types(tolerances.CONV2D_RESAMPLE),
            "its definition, in float64",
            SCALED + code(*tolerances.CONV2D_RESAMPLE.values()),
            "torch_utils/ops/test_conv2d_resample.py::test_equals_its_definition::test_types_and_layouts",
        ),
        Row(
            "`fma`",
            types(tolerances.FMA),
            "its definition, in float64",
            f"relative {code(*tolerances.FMA.values())}; absolute twice that",
            "torch_utils/ops/test_fma.py::test_equals_its_definition",
        ),
        Row(
            "`grid_sample`",
            "float16, bfloat16, float32",
            "PyTorch's own, in float32",
            both(tolerances.GRID_SAMPLE),
            "torch_utils/ops/test_grid_sample_gradfix.py::test_other_types",
        ),
        Row(
            "`conv2d`, `conv_transpose2d` of `conv2d_gradfix`",
            "float64",
            "PyTorch's own",
            f"relative and absolute {code(tolerances.CONV2D_GRADFIX)}",
            "torch_utils/ops/test_conv2d_gradfix.py::test_equals_torch",
        ),
        Row(
            "fast paths in PyTorch, for a CPU and for any device: y, first and second derivatives",
            "float64",
            "the reference path",
            f"relative and absolute {code(tolerances.FAST_PATHS)}",
            "torch_utils/ops/test_fast_paths.py::test_bias_act::test_upfirdn2d::test_conv2d_resample"
            "::test_convolutions_of_every_geometry",
        ),
        Row(
            "`grid_sample`: y, first and second derivatives",
            "float64",
            "elementary operations",
            f"relative and absolute {code(tolerances.FAST_PATHS)}",
            "torch_utils/ops/test_fast_paths.py::test_grid_sample",
        ),
        Row(
            "fast path on a CPU, a layer",
            types(tolerances.FAST_LAYER),
            "the reference path in the same type",
            f"{code(*tolerances.FAST_LAYER.values())} of the largest value",
            "torch_utils/ops/test_fast_paths.py::test_low_precision_stays_near_the_reference",
        ),
        Row(
            "fast path on a CPU, G and D: gradients",
            "float32",
            "the reference path",
            f"{code(tolerances.FAST_NETWORKS)} of the largest gradient",
            "torch_utils/ops/test_layout.py::test_networks_agree_whatever_the_layout_of_their_weights",
        ),
        Row(
            "CUDA kernels, run on the host: y, first and second derivatives",
            types(tolerances.KERNELS_ON_HOST),
            "the reference path",
            code(*tolerances.KERNELS_ON_HOST.values()),
            "torch_utils/ops/test_cuda_host.py::test_bias_act::test_upfirdn2d",
        ),
        Row(
            "CUDA kernels on a GPU (not yet run on one)",
            types(tolerances.KERNELS_ON_GPU),
            "the reference path, in float64",
            f"relative (norms) {code(*tolerances.KERNELS_ON_GPU.values())}, times 1 + order of the derivative",
            "torch_utils/ops/test_cuda_gpu.py::test_bias_act::test_upfirdn2d",
        ),
        Row(
            "operations of G and D, y, first and second gradients; on a GPU by `scripts/gpu_check.sh`",
            "float32, float16, bfloat16",
            "the reference path, in float64",
            f"relative (norms) {code(*sweep.TOLERANCE.values())}",
            "scripts/test_gpu_report.py::test_sweep_of_small_shapes_on_the_cpu",
        ),
        Row(
            "first and second derivatives of every operation",
            "float64",
            "finite differences",
            "those of `torch.autograd.gradcheck`",
            (
                "torch_utils/ops/test_bias_act.py::test_first_and_second_derivatives"
                " torch_utils/ops/test_upfirdn2d.py::test_derivatives"
                " torch_utils/ops/test_conv2d_resample.py::test_derivatives"
                " torch_utils/ops/test_conv2d_gradfix.py::test_derivatives"
                " torch_utils/ops/test_grid_sample_gradfix.py::test_derivatives"
                " torch_utils/ops/test_fma.py::test_derivatives"
            ),
        ),
    ],
    "Networks and augmentation": [
        Row(
            "mapping, G: every output",
            "float32",
            "golden numbers",
            f"{code(tolerances.GOLDEN_NETWORKS)} of the largest value",
            "training/test_networks.py::test_generator_matches_golden",
        ),
        Row(
            "D: logits, gradient in the image",
            "float32",
            "golden numbers",
            f"{code(tolerances.GOLDEN_NETWORKS)} of the largest value",
            "training/test_networks.py::test_discriminator_matches_golden",
        ),
        Row(
            "D: norms of the R1 gradient, weight by weight",
            "float32",
            "golden numbers",
            both(tolerances.GOLDEN_R1_NORMS, " of the largest"),
            "training/test_networks.py::test_discriminator_matches_golden",
        ),
        Row(
            "BigGAN's G and D: outputs, buffers, gradients",
            "float64",
            "golden numbers",
            f"{code(tolerances.BIGGAN['networks'], tolerances.BIGGAN['grads'])} of the largest value",
            "training/test_biggan_golden.py::test_generator::test_discriminator",
        ),
        Row(
            "networks in rosinality's layout: w, images, logits",
            "float32",
            "golden numbers",
            f"{code(tolerances.GOLDEN_NETWORKS)} of the largest value",
            "training/files/test_rosinality.py::test_outputs_are_the_golden_ones",
        ),
        Row(
            "modulated convolution, styles up to 10⁴",
            "float16",
            "float32",
            both(tolerances.LARGE_STYLES),
            "training/test_networks.py::test_modulated_conv_in_fp16_stays_finite_for_large_styles",
        ),
        Row(
            "networks from TensorFlow pickles: images, scores",
            "float32",
            "golden numbers",
            both(tolerances.TENSORFLOW),
            "training/files/test_tf_import.py::test_golden_images::test_golden_scores",
        ),
        Row(
            "our snapshots in another program",
            "float32",
            "the networks that were saved",
            f"{code(tolerances.READ_BY_OTHERS)} of the largest value",
            "compat/test_read_by_others.py::test_a_tree_with_only_the_agreed_names_gets_equal_outputs",
        ),
        Row(
            "exported ONNX, PyTorch program",
            "float32",
            "the network that was exported",
            f"absolute {code(tolerances.EXPORTED)}",
            (
                "training/test_export.py::test_onnxruntime_gives_the_images"
                "::test_pt2_gives_the_images_without_this_project"
            ),
        ),
        Row(
            "augmentation, every effect",
            "float32",
            "golden numbers",
            both(tolerances.AUGMENT_GOLDEN),
            "training/test_augment.py::test_golden",
        ),
        Row(
            "augmentation at p = 0",
            "float32",
            "the images themselves",
            both(tolerances.AUGMENT_IDENTITY),
            "training/test_augment.py::test_at_p_0_images_stay_as_they_are",
        ),
        Row(
            "augmentation, reflection",
            "float32",
            "reflecting as often as needed",
            both(tolerances.AUGMENT_REFLECTION),
            "training/test_augment.py::test_geometry_mirrors_the_image_as_often_as_needed",
        ),
        Row(
            "augmentation",
            "float16, bfloat16",
            "float32",
            both(tolerances.AUGMENT_TYPES),
            "training/test_augment.py::test_keeps_the_type",
        ),
    ],
    "Losses and gradients": [
        Row(
            "BigGAN: phases; whole iterations; orthogonal term and moving average",
            "float64",
            "golden numbers",
            f"{code(*(tolerances.BIGGAN[key] for key in ('grads', 'steps', 'exact')))} of the largest value",
            "training/test_biggan_golden.py::test_phase::test_iterations::test_orthogonal_gradient"
            "::test_moving_average",
        ),
        Row(
            "gradients of all six phases, weight by weight",
            "float32",
            "golden numbers",
            both(tolerances.GOLDEN_GRADIENTS, " of the largest"),
            "training/test_loss.py::test_gradients_match_golden",
        ),
        Row(
            "running mean of path lengths",
            "float32",
            "golden numbers",
            f"relative {code(tolerances.GOLDEN_PATH_LENGTH)}",
            "training/test_loss.py::test_gradients_match_golden",
        ),
        *half_precision_rows(),
        Row(
            "slopes of the teachers' terms",
            "float64",
            "DGL-GAN's formulas",
            both(tolerances.TEACHER_SLOPES),
            "dgl/test_loss.py::test_slope_of_each_term",
        ),
        Row(
            "accumulated micro-batches, one step",
            "float32",
            "one batch",
            both(tolerances.MICRO_BATCHES),
            "training/test_training_loop.py::test_micro_batches_give_the_same_losses_as_one_batch",
        ),
        Row(
            "2 processes, 4 iterations, nothing that depends on the split",
            "float32",
            "1 process",
            both(tolerances.PROCESSES),
            "training/test_several_processes.py::test_two_processes_equal_one_up_to_rounding",
        ),
        Row(
            "training with teachers of weight 0; training repeated",
            "float32",
            "training without teachers; the first run",
            "none: equal bit for bit",
            (
                "dgl/test_loss.py::test_zero_weight_trains_bit_for_bit_as_no_teacher"
                " training/test_training_loop.py::test_same_seed_same_weights"
            ),
        ),
    ],
    "Metrics": [
        Row(
            "mean and covariance",
            "float64",
            "numpy, in float64",
            both(tolerances.MEAN_COV),
            "metrics/test_feature_stats.py::test_mean_and_covariance_do_not_depend_on_the_batches",
        ),
        Row(
            "Fréchet distance",
            "float64",
            "golden number",
            f"relative {code(tolerances.FID_GOLDEN)}",
            "metrics/test_frechet_inception_distance.py::test_golden_fid",
        ),
        Row(
            "Fréchet distance",
            "float64",
            "closed forms",
            f"relative {code(tolerances.FID_CLOSED_FORM)}",
            "metrics/test_frechet_inception_distance.py::test_diagonal_gaussians_have_a_closed_form"
            "::test_few_items_against_many_agree_with_the_data_themselves",
        ),
        Row(
            "kernel distance (KID)",
            "float64",
            "golden number",
            f"relative {code(tolerances.KID_GOLDEN)}",
            "metrics/test_kernel_inception_distance.py::test_golden_kid",
        ),
        Row(
            "kernel distance (KID)",
            "float64",
            "its definition",
            f"relative {code(tolerances.KID_DEFINITION)}",
            "metrics/test_kernel_inception_distance.py::test_squared_mmd_is_the_sum_over_distinct_pairs",
        ),
        Row(
            "precision and recall",
            "float16 features",
            "golden numbers",
            f"relative {code(tolerances.PRECISION_RECALL)}",
            "metrics/test_precision_recall.py::test_golden_precision_and_recall",
        ),
        Row(
            "Inception score: mean, deviation",
            "float32",
            "golden numbers",
            f"relative {code(*tolerances.INCEPTION_SCORE)}",
            "metrics/test_inception_score.py::test_golden_inception_score",
        ),
        Row(
            "spherical interpolation",
            "float32",
            "golden numbers",
            both(tolerances.SLERP),
            "metrics/test_perceptual_path_length.py::test_golden_slerp",
        ),
        Row(
            "perceptual path length",
            "float32",
            "closed forms",
            f"relative {code(tolerances.PATH_LENGTH)} (differences over a step of 10⁻⁴)",
            "metrics/test_perceptual_path_length.py::test_straight_lines_in_w_have_their_squared_length"
            "::test_great_arcs_in_z_have_their_squared_angle",
        ),
    ],
}


def table(rows: list[Row]) -> str:
    lines = [HEADER, ["---"] * len(HEADER), *(row.cells() for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def with_tables(page: str) -> str:
    """The Markdown `page` with the table below each heading of `TABLES` replaced."""
    for heading, rows in TABLES.items():
        start = page.index(f"\n## {heading}\n")
        first = page.index("\n|", start) + 1
        last = re.compile(r"(?:\|.*\n)+").match(page, first).end()
        page = page[:first] + table(rows) + page[last:]
    return page


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
