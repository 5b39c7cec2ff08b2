# SPDX-License-Identifier: Apache-2.0
"""train.py --resume=DIR|auto, signals and kills, as separate processes: the same command line again and again."""

import hashlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.support import ROOT, make_image_zip
from training import checkpoint
from training.files.snapshot import load_snapshot

SMALL = ["--cfg=cifar", "--cbase=64", "--z-dim=8", "--w-dim=8", "--batch=8", "--snap=1", "--device=cpu"]
SMALL += ["--metrics=none", "--workers=1", "--precision=fp32", "--target=0.6", "--kimg=1"]
OTHERS = (signal.SIGUSR1, signal.SIGINT)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_image_zip(tmp_path_factory.mktemp("data") / "toy.zip", resolution=16, num_images=20)


def start(outdir: pathlib.Path, data: pathlib.Path, *flags: str) -> subprocess.Popen:
    command = [sys.executable, "train.py", f"--outdir={outdir}", f"--data={data}", *SMALL, "--resume=auto", *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, start_new_session=True, **pipes)


def images_done(outdir: pathlib.Path) -> int:
    """Images of the newest saved state of the only run, -1 without."""
    found = list(outdir.glob("*/training-state.pt"))
    return checkpoint.peek(found[0].parent)["cur_nimg"] if found else -1


def wait_for(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0][-2000:]
        time.sleep(0.05)


def weights_digest(run_dir: pathlib.Path) -> str:
    """SHA-256 of all tensors of the newest G_ema."""
    G = load_snapshot(str(max(run_dir.glob("network-snapshot-*.pkl"))))["G_ema"]
    digest = hashlib.sha256()
    for name, tensor in sorted(G.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def ticks(run_dir: pathlib.Path) -> list[float]:
    lines = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    return [line["Progress/tick"]["mean"] for line in lines]


def no_process_of(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("signum", [signal.SIGTERM, *(pytest.param(s, marks=pytest.mark.slow) for s in OTHERS)])
def test_a_signal_saves_the_state_and_says_how_to_go_on(tmp_path, data, signum):
    """Sent to the whole group, as schedulers and terminals do."""
    process = start(tmp_path / "runs", data, "--kimg=1000")
    wait_for(lambda: images_done(tmp_path / "runs") >= 8, process)
    os.killpg(process.pid, signum)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, out
    (run_dir,) = (tmp_path / "runs").iterdir()
    last = out.strip().splitlines()[-1]
    assert last.startswith(f"Stopped by {signal.Signals(signum).name}; the state of kimg ")
    assert last.endswith(f"continue with train.py --resume={run_dir}")
    assert checkpoint.load(run_dir)["cur_nimg"] >= 16 and "Traceback" not in out
    assert no_process_of(process.pid)


def kill_and_restart(tmp_path, data, kills: int, *flags: str) -> tuple[pathlib.Path, pathlib.Path]:
    """Run directories of an undisturbed run, and of one that was killed `kills` times at random moments."""
    straight = start(tmp_path / "straight", data, *flags)
    assert "Done." in straight.communicate(timeout=500)[0]
    outdir, rng, done = tmp_path / "killed", random.Random(0), 0
    for _ in range(kills):
        before, process = images_done(outdir), start(outdir, data, *flags, "--save-every=0")
        wait_for(lambda: images_done(outdir) > before or process.poll() is not None, process)  # noqa: B023
        time.sleep(rng.random() * 0.3)
        if process.poll() is not None:
            break  # it had reached its end
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        done += 1
    assert done >= min(kills, 5) or done == kills
    if process.poll() != 0:
        last = start(outdir, data, *flags, "--save-every=0")
        assert "Done." in last.communicate(timeout=500)[0]
    return tuple(next((tmp_path / name).iterdir()) for name in ("straight", "killed"))


def check_equal(straight: pathlib.Path, killed: pathlib.Path) -> None:
    assert weights_digest(straight) == weights_digest(killed)
    assert ticks(straight) == ticks(killed)
    log = (killed / "log.txt").read_text().splitlines()
    numbers = [line.split()[1] for line in log if line.startswith("tick ")]
    assert numbers == [str(round(tick)) for tick in ticks(straight)]
    assert not list(killed.glob(".*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--gpus=2",)], ids=["one", "two"])
def test_many_kills_at_random_moments(tmp_path, data, flags):
    check_equal(*kill_and_restart(tmp_path, data, 25, "--kimg=3", *flags))


def run(*flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "train.py", *flags]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    """A run directory of a run that reached its end."""
    outdir = tmp_path_factory.mktemp("runs")
    assert "Done." in start(outdir, data, "--batch=64").communicate()[0]
    return next(outdir.iterdir())


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--gamma=5", ["--gamma", "only --kimg, --snap"]),
        ("--batch=16", ["--batch", "has 64 and not 16"]),
        ("--kimg=1", ["is finished at kimg 1", "larger --kimg"]),
    ],
)
def test_what_may_not_change_is_refused_by_name(finished, flag, words):
    before = sorted(os.listdir(finished))
    result = run(f"--resume={finished}", flag)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert all(word in result.stderr for word in words)
    assert sorted(os.listdir(finished)) == before


@pytest.mark.slow
def test_a_finished_run_can_be_made_longer(finished):
    other = finished / "metric-fid5k_full.jsonl"  # of calc_metrics.py
    other.write_text('{"results": {"fid5k_full": 1.0}, "snapshot_pkl": "network-snapshot-000001.pkl"}\n')
    result = run(f"--resume={finished}", "--kimg=2", "--keep=1", "--save-every=15")
    assert result.returncode == 0, result.stderr
    assert other.read_text().count("\n") == 1
    assert json.loads((finished / "training_options.json").read_text())["total_kimg"] == 2
    assert checkpoint.load(finished)["cur_nimg"] == 2048
    assert torch.load(finished / "training-state.pt", weights_only=True)["about"]["flags"]["batch"] == 64


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    result = run(f"--resume={tmp_path}")
    assert result.returncode == 2 and "is no run directory" in result.stderr
