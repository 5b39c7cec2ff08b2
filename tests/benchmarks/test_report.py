# SPDX-License-Identifier: Apache-2.0
"""Targets, verdicts and tables."""

import dataclasses

import pytest

from benchmarks import report
from benchmarks.results import Change, Result, Run

CPU = {"device": "cpu", "cpu": "a processor", "cores": 2, "threads": 2, "torch": "2.13.0", "load": 0.1}
CPU |= {"fast_bf16": True, "cpu_flags": ["avx2", "amx_bf16"]}
GPU = {**CPU, "device": "cuda", "gpu": "NVIDIA H100 80GB HBM3"}


def training(resolution=128, batch=4, **ratios: float) -> Result:
    """A training iteration of 12 s on the reference path, and faster by the factors `ratios`."""
    samples = {"reference": [12.0] * 3, **{name: [12.0 / ratio] * 3 for name, ratio in ratios.items()}}
    return Result("training", "iteration", resolution, batch, "s", samples)


def run_of(*results: Result, machine=CPU, auto="fp32", **changes) -> Run:
    return Run("python -m benchmarks", "2026-01-01", {**machine, **changes}, auto, results=list(results))


@pytest.mark.parametrize(
    ("variant", "ratio", "word"),
    [("fp32", 1.41, "met"), ("fp32", 1.39, "missed"), ("bf16", 3.01, "met"), ("bf16", 2.99, "missed")],
)
def test_the_headline_is_compared_with_its_target(variant, ratio, word):
    result = training(**{variant: ratio})
    assert report.verdict(run_of(result), result, variant).startswith(f"{word} (target")


def test_bf16_without_instructions_has_no_verdict_but_a_figure():
    result = training(fp32=1.5, bf16=0.3)
    run = run_of(result, fast_bf16=False)
    assert report.verdict(run, result, "bf16") == "no bf16 instructions on this CPU"
    lines = {line.split("  ")[0]: line for line in report.targets(run).splitlines()}
    line = lines["training iteration, 128x128, batch 4, bf16"]
    assert "0.30x" in line
    assert line.endswith("not applicable: no bf16 instructions on this CPU")
    assert lines["training iteration, 128x128, batch 4, fp32"].endswith("met")
    assert lines["never slower"].endswith("met")


def test_a_target_that_was_not_measured_says_so():
    text = report.targets(run_of(training(fp32=1.5)))
    assert [line for line in text.splitlines() if line.startswith("generator, 1 image") and "not measured" in line]


def test_parts_without_a_target_must_not_be_slower():
    slow, equal = training(resolution=64, fp32=0.9), training(resolution=256, fp32=0.97)
    run = run_of(slow, equal)
    assert report.verdict(run, slow, "fp32") == "slower"
    assert report.verdict(run, equal, "fp32") == ""  # within the noise
    last = next(line for line in report.targets(run).splitlines() if line.startswith("never slower"))
    assert "missed by 1 of 2; least: training iteration, 64x64, batch 4 (fp32)" in last


@pytest.mark.parametrize(
    ("seconds", "verdict"),
    [([1.0, 1.0, 1.0, 3.0], ""), ([1.0, 1.0, 1.3, 1.3], "unclear"), ([1.0, 1.3, 1.3, 1.3, 1.3], "slower")],
)
def test_the_number_of_slower_rounds_decides(seconds, verdict):
    result = Result("loop", "iteration", 64, 4, "s", {"reference": [1.0] * len(seconds), "fp32": seconds})
    assert report.verdict(run_of(result), result, "fp32") == verdict
    expected = {"": "met", "unclear": "unclear for 1 of 1", "slower": "missed by 1 of 1"}[verdict]
    line = next(line for line in report.targets(run_of(result)).splitlines() if line.startswith("never slower"))
    assert expected in line


def test_memory_must_not_be_higher():
    def memory(fast: float) -> Result:
        return Result("memory/training", "peak", 128, 4, "bytes", {"reference": [1e9], "fp32": [fast]})

    assert report.verdict(run_of(memory(1.2e9)), memory(1.2e9), "fp32") == "more"
    assert report.verdict(run_of(memory(1.01e9)), memory(1.01e9), "fp32") == ""
    lines = report.targets(run_of(memory(1.2e9))).splitlines()
    assert any(line.startswith("memory no higher") and "missed by 1 of 1" in line for line in lines)


def test_cpu_targets_are_not_applied_to_gpus():
    result = training(fp32=1.1)
    assert report.verdict(run_of(result, machine=GPU), result, "fp32") == ""
    assert "training iteration" not in report.targets(run_of(result, machine=GPU))


def test_the_table_has_a_row_for_each_result_and_marks_what_users_get():
    results = [training(fp32=1.5, bf16=3.5), training(resolution=64, fp32=0.5)]
    lines = report.table(run_of(*results)).splitlines()
    assert len(lines) == 3
    assert "fp32 (auto)" in lines[0]
    assert "12.00 s" in lines[1]
    assert "1.50x [1.50, 1.50]" in lines[1]
    assert "fp32: met (target 1.4x); bf16: met (target 3x)" in lines[1]
    assert lines[2].endswith("fp32: slower")
    assert lines[0].index("remarks") == lines[1].index("fp32: met")  # aligned


def test_seconds_per_thousand_images_follow_from_the_batch():
    lines = report.sec_per_kimg(run_of(training(fp32=2.0))).splitlines()
    assert "3000" in lines[1]
    assert "fp32 1500" in lines[1]
    assert "published" not in lines[1]


@pytest.mark.parametrize(
    ("gpu", "seconds", "word"),
    [("NVIDIA H100 80GB HBM3", 5.0, "met"), ("NVIDIA H100 80GB HBM3", 7.0, "missed"), ("L4", 5.0, "not applicable")],
)
def test_on_gpus_published_figures_and_the_goal_are_shown(gpu, seconds, word):
    samples = {"reference": [1.0], "fp16": [seconds * 16 / 1000]}
    run = run_of(Result("loop", "iteration", 256, 16, "s", samples), machine={**GPU, "gpu": gpu}, auto="fp16")
    line = report.sec_per_kimg(run).splitlines()[1]
    assert "published: V100 21.6, A100 12.5" in line
    assert line.endswith(f"goal on an H100 6: {word}")


def test_bandwidth_is_a_share_of_a_copy():
    samples = {"reference": [0.02], "fp16": [0.01]}
    result = Result("op/bias_act", "forward", 256, 16, "s", samples, moved={"reference": 10**9, "fp16": 5 * 10**8})
    run = run_of(result, machine=GPU, auto="fp16")
    run.copy_bytes_per_s = 1e11
    reference, fast = report.bandwidth(run).splitlines()[1:]
    assert reference.split()[-2:] == ["50.0", "50%"]
    assert fast.endswith("50% (goal 70%)")


def test_dense_arithmetic_is_a_share_of_the_limit_of_its_precision():
    dense = training(fp32=2.0, bf16=4.0)
    dense.samples["fp32"] = [7.0, 6.0, 1.0]
    run = run_of(dataclasses.replace(dense, flops=12 * 10**11), training(resolution=64, fp32=1.0))
    run.flops_per_s = {"fp32": 4e11, "bf16": 16e11}
    head, limit, line = report.arithmetic(run).splitlines()
    assert head.split() == ["dense", "arithmetic", "GFLOP", "reference", "fp32", "(auto)", "bf16"]
    assert limit.split() == ["limit", "400", "GFLOP/s", "400", "GFLOP/s", "1600", "GFLOP/s"]
    assert line.startswith("training iteration, 128x128, batch 4")
    assert line.split()[-10:] == ["1200", "100", "GFLOP/s", "25%", "200", "GFLOP/s", "50%", "400", "GFLOP/s", "25%"]
    assert report.arithmetic(run) in report.page(run)


def test_without_counted_operations_there_is_no_table_of_arithmetic():
    assert report.arithmetic(run_of(training(fp32=2.0))) == ""


def test_a_precision_without_a_limit_has_no_share():
    run = run_of(dataclasses.replace(training(fp32=2.0), flops=12 * 10**8), training(resolution=64, bf16=1.0))
    run.flops_per_s = {"fp32": 4e8}
    _head, limit, line = report.arithmetic(run).splitlines()
    assert limit.split() == ["limit", "0.4", "GFLOP/s", "0.4", "GFLOP/s"]
    assert line.split()[-7:] == ["1.2", "0.1", "GFLOP/s", "25%", "0.2", "GFLOP/s", "50%"]


def test_the_comparison_marks_and_counts_regressions():
    changes = [Change("a case", "fp32", 2.0, 1.0, True), Change("another", "bf16", 1.0, 1.5, False)]
    text = report.comparison(changes, 10, ["threads"])
    _head, fell, rose, count = text.splitlines()
    assert fell.split() == ["a", "case", "fp32", "2.00x", "1.00x", "-50%", "regression"]
    assert rose.endswith("+50%")
    assert count == "1 of 2 ratios fell by more than 10%. The two runs differ in threads."


def test_the_plot_is_a_png(tmp_path):
    report.save_plot(run_of(training(fp32=1.5, bf16=3.5), training(resolution=64, fp32=0.5)), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
