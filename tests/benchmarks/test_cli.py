# SPDX-License-Identifier: Apache-2.0
"""The command line: a tiny benchmark from end to end, a comparison with it, and refused arguments."""

import json

import pytest

from benchmarks.__main__ import main
from benchmarks.cases import CASES
from benchmarks.results import load
from dnnlib import cli
from tests.support import ROOT

TINY = ["--device=cpu", "--cbase=64", "--batch=2", "--res=8", "--budget=0", "--precisions=fp32"]
INTERVALS = {"Gmain": 1, "Greg": 4, "Dmain": 1, "Dreg": 16}


@pytest.fixture
def bench(monkeypatch, capsys):
    """Runs the command with arguments; returns status, standard output and standard error."""
    monkeypatch.setattr("torch.set_num_threads", lambda threads: None)  # all tests share this process
    monkeypatch.setattr("benchmarks.limits.dense_arithmetic", lambda device, dtype, clock: 1e11)  # it takes seconds

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["benchmarks", *arguments])
        with pytest.raises(SystemExit) as exit:
            cli.run(main)
        captured = capsys.readouterr()
        return exit.value.code or 0, captured.out, captured.err

    return run


@pytest.mark.slow
def test_a_tiny_benchmark_and_a_comparison_with_it(bench, tmp_path):
    cases = "--only=training,inference/b1,op/bias_act"
    status, out, err = bench(f"--out={tmp_path}", cases, *TINY)
    assert (status, "Error" in err) == (0, False)
    for line in ("training Dreg, 8x8, batch 2", "op/bias_act double backward", "never slower"):
        assert line in out
    found = load(tmp_path / "benchmark.json")
    assert {result.case for result in found.results} == {"training", "inference/b1", "op/bias_act"}
    assert all(len(times) >= 3 for result in found.results for times in result.samples.values())
    assert found.copy_bytes_per_s > 0
    flops = {result.part: result.flops for result in found.results if result.case == "training"}
    assert flops["iteration"] == round(sum(flops[name] / interval for name, interval in INTERVALS.items()))
    assert "dense arithmetic" in out
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")

    text = (tmp_path / "benchmark.json").read_text()
    assert str(tmp_path) not in text
    assert str(ROOT) not in text

    # As if the old run had been a thousand times better, and then a thousand times worse.
    old = tmp_path / "old.json"
    for factor, expected in ((1e-3, 1), (1e3, 0)):
        content = json.loads(text)
        for result in content["results"]:
            result["samples"]["fp32"] = [seconds * factor for seconds in result["samples"]["fp32"]]
        old.write_text(json.dumps(content))
        status, out, _err = bench(f"--out={tmp_path / 'new'}", "--only=inference/b1", f"--compare={old}", *TINY)
        assert status == expected
        assert f"{expected} of 1 ratios fell by more than 10%." in out


@pytest.mark.slow
def test_every_case_runs_in_every_precision(bench, tmp_path):
    status, out, _err = bench(f"--out={tmp_path}", "--full", "--device=cpu", "--cbase=64", "--batch=2", "--res=8",
                              "--budget=0")  # fmt: skip
    assert status == 0
    found = load(tmp_path / "benchmark.json")
    assert {(result.case, result.resolution) for result in found.results} == {(case.name, 8) for case in CASES}
    peaks = [result.of(name).median for result in found.results if result.unit == "bytes" for name in result.samples]
    assert len(peaks) == 2 * 3
    assert min(peaks) > 0
    assert "bandwidth" in out


@pytest.mark.gpu
def test_a_tiny_benchmark_on_a_gpu(bench, tmp_path):
    gpu = ["--device=cuda", "--cbase=64", "--batch=4", "--res=16", "--budget=0"]
    cases = "--only=training,inference/b1,loop,op/bias_act,op/upfirdn2d,memory"
    status, out, _err = bench(f"--out={tmp_path}", cases, *gpu)
    assert status == 0
    found = load(tmp_path / "benchmark.json")
    assert (found.machine["device"], found.auto) == ("cuda", "fp16")
    assert "fp16 (auto)" in out
    assert "of a copy" in out


def test_a_comparison_of_runs_with_nothing_in_common_is_refused(bench, tmp_path):
    assert bench(f"--out={tmp_path}", "--only=inference/b1", *TINY)[0] == 0
    old, new = tmp_path / "benchmark.json", tmp_path / "new"
    status, _out, err = bench(f"--out={new}", "--only=op/grid_sample", f"--compare={old}", *TINY)
    assert list(load(old).flops_per_s) == ["fp32"]
    assert load(new / "benchmark.json").flops_per_s == {}  # nothing to compare with a limit
    assert status == 2
    assert "has no measurement in common" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--res=12"], "--res"),
        (["--res=4"], "--res"),
        (["--quick", "--full"], "--quick contradicts --full"),
        (["--only=nothing"], "--only"),
        (["--precisions=fp8"], "--precisions"),
        (["--precisions=fp16", "--device=cpu"], "fp16 needs a CUDA device"),
        (["--compare=no-such-file.json"], "--compare=no-such-file.json"),
        (["--cbase=32.5", "--res=8"], "--cbase=32.5"),
        (["--batch=6", "--res=8"], "--batch"),
    ],
)
def test_wrong_flags_are_refused_in_one_sentence(bench, tmp_path, arguments, words):
    status, out, err = bench(f"--out={tmp_path / 'out'}", *arguments)
    assert status == 2
    assert out == ""
    assert err.startswith("Error: ")
    assert words in err
    assert len(err.splitlines()) == 1


def test_a_file_in_place_of_the_folder_is_refused(bench, tmp_path):
    (tmp_path / "file").write_text("")
    status, _out, err = bench(f"--out={tmp_path / 'file'}", *TINY)
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("Error: --out=")


def test_the_recorded_command_names_no_files(bench, tmp_path):
    out = tmp_path / "new"
    assert bench("--out", str(out), "--only=inference/b1", *TINY)[0] == 0
    old = out / "benchmark.json"
    assert bench(f"--out={out}", "--compare", str(old), "--only=inference/b1", *TINY)[0] in (0, 1)
    assert load(old).command == " ".join(["python -m benchmarks --only=inference/b1", *TINY])
