# SPDX-License-Identifier: Apache-2.0
"""Selection of cases, and the reference: it is plain, and its results are those of the fast path."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks import measure
from benchmarks.cases import (
    CASES,
    LOOP_WEIGHTS,
    OP_CASES,
    TRAINING_WEIGHTS,
    Case,
    Part,
    Setting,
    Variant,
    auto_choice,
    available,
    build_all,
    phase_flops,
    update_ema_by_tensor,
)
from dnnlib.util import UserError
from torch_utils.ops.backend import is_reference
from training.ema import update_ema
from training.phases import run_phase

CPU = torch.device("cpu")
REFERENCE, FP32, BF16 = available(CPU)


@pytest.fixture
def setting(tmp_path) -> Setting:
    return Setting(CPU, resolution=8, batch=2, cbase=64, folder=tmp_path)


def find_case(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def jobs_of(setting, **flags) -> dict[tuple[str, int], list]:
    """Variants by case and resolution, at 64 and 128, for flags of the command line."""

    def make_setting(resolution):
        return Setting(CPU, resolution, 4, None, setting.folder)

    chosen = measure.select("cpu", make_setting, [REFERENCE, FP32, BF16], "fp32", **{"res": [64, 128], **flags})
    return {(job.case.name, job.setting.resolution): [variant.name for variant in job.variants] for job in chosen}


def test_variants_of_a_cpu():
    assert [variant.name for variant in (REFERENCE, FP32, BF16)] == ["reference", "fp32", "bf16"]
    assert [variant.plain for variant in (REFERENCE, FP32, BF16)] == [True, False, False]
    assert REFERENCE.precision == "fp32"
    assert [variant.name for variant in available(CPU, ["bf16", "bf16"])] == ["reference", "bf16"]


def test_auto_is_bf16_where_the_cpu_is_fast_at_it(monkeypatch):
    for fast, name in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("torch_utils.precision.cpu_has_fast_bf16", lambda fast=fast: fast)
        assert auto_choice(CPU) == name
        assert BF16.is_emulated(CPU) is not fast
        assert not FP32.is_emulated(CPU)


@pytest.mark.parametrize("name", ["fp8", "fp16"])
def test_a_precision_that_the_cpu_lacks_is_refused(name):
    with pytest.raises(UserError, match=name):
        available(CPU, [name])


def test_the_reference_is_built_on_the_reference_path():
    def build(setting, variant):
        return {f"{variant.name} {is_reference()}": Part(lambda: None)}

    parts = build_all(Case("x", build, plan=1), None, [REFERENCE, FP32])
    assert list(parts) == ["reference True", "fp32 False"]


@pytest.mark.parametrize("case", OP_CASES, ids=lambda case: case.name)
def test_operations_have_three_passes_in_every_precision(case, setting):
    parts = build_all(case, setting, [REFERENCE, FP32, BF16])
    assert list(parts) == ["forward", "backward", "double backward"]
    for versions in parts.values():
        for variant in (REFERENCE, FP32, BF16):
            with variant.path():
                versions[variant.name].run()


def test_memory_bound_operations_state_the_bytes_that_they_transfer(setting):
    case = find_case("op/bias_act")
    moved = {name: part.moved for name, part in build_all(case, setting, [REFERENCE, BF16])["forward"].items()}
    elements = 2 * (2 * 8 * 8 * 8) + 8  # x and y of 2 images, 8 channels, 8x8, and the bias
    assert moved == {"reference": elements * 4, "bf16": elements * 2}
    assert build_all(find_case("op/conv2d_resample/plain"), setting, [FP32])["forward"]["fp32"].moved is None


class DenseFlops(TorchDispatchMode):
    """Counts operations by PyTorch's formulas, except those of depthwise convolutions, as all filters are."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        op = func.overloadpacket
        weight = {"convolution": 1, "convolution_backward": 2}.get(op.__name__)
        if op in flop_registry and (weight is None or args[weight].shape[1] > 1):
            self.total += flop_registry[op](*args, **(kwargs or {}), out_val=out)
        return out


@pytest.mark.parametrize("variant", [REFERENCE, FP32], ids=lambda variant: variant.name)
@pytest.mark.parametrize("name", ["training", "inference/b1", "inference/b16", "forward/G", "forward/D"])
def test_parts_do_the_arithmetic_that_they_state(name, variant, tmp_path):
    # So large that little is done outside convolutions: the mapping twice for mixed styles, and not by the regulariser.
    setting = Setting(CPU, resolution=32, batch=4, cbase=1 / 16, folder=tmp_path)
    assert name.startswith(measure.DENSE)
    for part, versions in build_all(find_case(name), setting, [variant]).items():
        with variant.path(), DenseFlops() as counted:
            versions[variant.name].run()
        assert counted.total == pytest.approx(versions[variant.name].flops or 0, rel=0.03), part


def test_path_lengths_are_those_of_half_a_micro_batch_but_of_one_image_at_least(setting):
    trainer = setting.trainer(FP32, reads_data=False)
    halved, whole = phase_flops(trainer, [4, 4]), phase_flops(trainer, [1] * 4)
    assert halved["Greg"] == whole["Greg"]
    assert halved["Dreg"] == 2 * whole["Dreg"]


def test_an_iteration_weighs_phases_by_their_intervals(setting):
    assert TRAINING_WEIGHTS == {"Gmain": 1, "Greg": 1 / 4, "Dmain": 1, "Dreg": 1 / 16, "EMA": 1}
    assert LOOP_WEIGHTS == {"with Greg, Dreg": 1 / 16, "with Greg": 3 / 16, "main phases": 12 / 16}
    samples = {"a": {"x": [1.0, 2.0], "y": [10.0, 20.0]}, "b": {"x": [4.0, 8.0], "y": [0.0, 4.0]}}
    assert measure.weighted_sum(samples, {"a": 1, "b": 0.25}) == {"x": [2.0, 4.0], "y": [10.0, 21.0]}


@pytest.mark.parametrize("case", [case for case in CASES if case.total], ids=lambda case: case.name)
def test_totals_have_a_weight_for_each_part(case, setting):
    parts = build_all(case, setting, [FP32])
    assert set(parts) == set(case.weights)


def test_the_loop_runs_the_phases_that_its_parts_name(setting, monkeypatch):
    phases = []
    monkeypatch.setattr("training.phases.run_phase", lambda phase, *_: phases.append(phase.name))
    expected = {
        "with Greg, Dreg": ["Gmain", "Greg", "Dmain", "Dreg"],
        "with Greg": ["Gmain", "Greg", "Dmain"],
        "main phases": ["Gmain", "Dmain"],
    }
    for name, versions in build_all(find_case("loop"), setting, [FP32]).items():
        phases.clear()
        versions["fp32"].run()
        assert phases == expected[name]


def test_the_reference_makes_the_same_images_as_the_fast_path(setting, monkeypatch):
    calls = {}
    for variant in (REFERENCE, FP32):
        G = setting.network("G", variant).eval()
        monkeypatch.setattr(Setting, "network", lambda *_args, G=G: G)
        seen = calls.setdefault(variant.name, [])

        def note(module, args, kwargs, img, seen=seen):
            seen.append((kwargs, is_reference(), img))

        G.register_forward_hook(note, with_kwargs=True)
        torch.manual_seed(0)
        part = find_case("inference/b1").build(setting, variant)["images"]
        with variant.path():
            part.run()
        monkeypatch.undo()
    ((plain_kwargs, plain_path, plain_img),), ((_kwargs, path, img),) = calls.values()
    assert plain_kwargs == {"fused_modconv": True, "noise_mode": "const"}
    assert (plain_path, path) == (True, False)
    torch.testing.assert_close(img, plain_img, rtol=1e-4, atol=1e-4)


def test_plain_training_ends_at_the_same_weights(setting):
    trainers = [setting.trainer(variant, reads_data=False) for variant in (REFERENCE, FP32)]
    assert [setting.options(v)["G_opt_kwargs"].get("fused") for v in (REFERENCE, FP32)] == [False, None]
    for trainer, variant, follow in zip(trainers, (REFERENCE, FP32), (update_ema_by_tensor, update_ema)):
        trainer.augment_pipe.p.fill_(0.0)
        torch.manual_seed(1)
        c = torch.zeros([2, 0])
        batch = {"real_img": torch.randn([2, 3, 8, 8]), "real_c": c, "gen_z": torch.randn([2, 512]), "gen_c": c}
        with variant.path():
            for phase in trainer.phases:
                run_phase(phase, trainer.loss, [batch])
            follow(trainer.G_ema, trainer.G, 0.5)
    for name in ("G", "D", "G_ema"):
        ours, theirs = (getattr(trainer, name).state_dict() for trainer in reversed(trainers))
        for key, value in ours.items():
            torch.testing.assert_close(value, theirs[key], rtol=1e-3, atol=5e-4, msg=lambda m, key=key: f"{key}: {m}")


def test_the_moving_average_moves():
    G, G_ema = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    before = copy.deepcopy(G_ema)
    update_ema_by_tensor(G_ema, G, 0.75)
    torch.testing.assert_close(G_ema.weight, 0.75 * before.weight + 0.25 * G.weight)


def test_patterns_name_a_case_a_folder_or_a_wildcard():
    names = [case.name for case in CASES]

    def found(pattern):
        return [name for name in names if measure.matches(name, pattern)]

    assert found("loop") == ["loop"]
    assert found("training") == ["training"]
    assert found("inference") == ["inference/b1", "inference/b16"]
    assert found("op") == [name for name in names if name.startswith("op/")]
    assert found("*/training") == ["memory/training"]
    assert found("*") == names
    assert found("o") == []


def test_slow_cases_are_measured_at_the_headline_resolution(setting):
    jobs = jobs_of(setting)
    assert {name for name, resolution in jobs if resolution == 128} == {case.name for case in CASES}
    assert {name.split("/")[0] for name, resolution in jobs if resolution == 64} == {"training", "inference"}
    assert next(iter(jobs))[1] == 128  # first, so that an interrupted run has it
    everywhere = jobs_of(setting, full=True)
    assert {name for name, resolution in everywhere if resolution == 64} == {case.name for case in CASES}


def test_emulated_bf16_training_is_measured_only_at_the_headline_resolution(setting, monkeypatch):
    monkeypatch.setattr("torch_utils.precision.cpu_has_fast_bf16", lambda: False)
    jobs = jobs_of(setting)
    assert jobs["training", 128] == ["reference", "fp32", "bf16"]
    assert jobs["training", 64] == ["reference", "fp32"]
    assert jobs["inference/b1", 128] == ["reference", "fp32", "bf16"]
    assert jobs["inference/b1", 64] == ["reference", "fp32"]
    quick = jobs_of(setting, quick=True)
    assert quick["training", 128] == ["reference", "fp32"]
    assert quick["inference/b1", 128] == ["reference", "fp32", "bf16"]
    monkeypatch.setattr("torch_utils.precision.cpu_has_fast_bf16", lambda: True)
    assert jobs_of(setting, quick=True)["training", 64] == ["reference", "fp32", "bf16"]


def test_the_loop_is_measured_in_the_precision_that_users_get(setting):
    assert jobs_of(setting)["loop", 128] == ["reference", "fp32"]
    assert jobs_of(setting)["op/grid_sample", 128] == ["reference", "fp32"]


def test_an_empty_selection_is_refused_with_the_names_of_the_cases(setting):
    with pytest.raises(UserError, match=r"--only.*op/bias_act"):
        jobs_of(setting, only=["nothing"])


def test_peak_memory_counts_the_tensors_of_a_run(setting):
    size = 2**29  # more than a training run of another test has freed and kept

    def build(setting, variant):
        return {"part": Part(lambda: torch.ones(size // 4))}

    assert 0.9 * size < measure.peak(Case("x", build, plan=1), setting, FP32) < 1.5 * size


@pytest.mark.slow
def test_peak_memory_is_measured_in_another_process(setting):
    case = find_case("memory/inference")
    assert measure.peak_in_subprocess(case, setting, REFERENCE) >= 0
    impossible = Variant("fp16", "fp16")
    with pytest.raises(UserError, match=r"memory of memory/inference \(fp16\) failed: .*fp16 needs a CUDA device"):
        measure.peak_in_subprocess(case, setting, impossible)
