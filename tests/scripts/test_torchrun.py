# SPDX-License-Identifier: Apache-2.0
"""train.py and calc_metrics.py as processes of torchrun: one machine, two machines, processes that die."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from tests.metrics import stand_ins
from tests.support import ROOT, make_image_zip
from training import checkpoint

SMALL = ["--cfg=paper256", "--batch=8", "--cbase=512", "--workers=1", "--device=cpu", "--metrics=none", "--snap=100"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_image_zip(tmp_path_factory.mktemp("data") / "toy.zip", resolution=16, num_images=20)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def torchrun(*args, script="train.py", before=(), **popen) -> subprocess.Popen:
    """Start a script with two processes, or as `args` for torchrun before '--' say."""
    args = list(map(str, args))
    own, flags = (args[: args.index("--")], args[args.index("--") + 1 :]) if "--" in args else ([], args)
    own = own or ["--nproc-per-node=2", f"--master-port={free_port()}"]
    command = [*before, sys.executable, "-m", "torch.distributed.run", *own, script, *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes, **popen)


def ended(process: subprocess.Popen, seconds: float = 300) -> tuple[int, str]:
    """Exit status and output of a process that has to end within `seconds`."""
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, output


def wait_for(outdir: pathlib.Path, text: str, seconds: float = 180) -> pathlib.Path:
    """The run directory whose log has `text`, as soon as there is one."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for log in outdir.glob("*/log.txt"):
            if text in log.read_text():
                return log.parent
        time.sleep(0.2)
    raise AssertionError(f"no {text!r} in a log")


def process_of_rank(launcher: subprocess.Popen, rank: int) -> psutil.Process:
    children = psutil.Process(launcher.pid).children()
    (found,) = (child for child in children if child.environ().get("RANK") == str(rank))
    return found


@pytest.mark.slow
def test_a_mistake_is_one_sentence_and_ends_all_processes(tmp_path, data):
    process = torchrun(f"--outdir={tmp_path / 'runs'}", f"--data={data}", *SMALL, "--gpus=4")
    status, output = ended(process)
    assert status != 0 and not (tmp_path / "runs").exists()
    assert output.count("Error: --gpus=4: the launcher has started 2 processes; drop the flag") == 1
    assert (
        output.count("\nError: ") + output.startswith("Error: ") == 1 and "Traceback" not in output.split("torch/")[0]
    )


@pytest.mark.slow
def test_a_process_that_dies_is_started_again_and_the_run_goes_on(tmp_path, data):
    outdir = tmp_path / "runs"
    restarting = ["--nproc-per-node=2", f"--master-port={free_port()}", "--max-restarts=1", "--"]
    flags = [f"--outdir={outdir}", f"--data={data}", *SMALL, "--kimg=10", "--resume=auto"]
    process = torchrun(*restarting, *flags)
    run_dir = wait_for(outdir, "tick 0")
    process_of_rank(process, 1).kill()
    wait_for(outdir, "Continuing at kimg")
    time.sleep(3)
    process.terminate()
    status, output = ended(process)
    log = (run_dir / "log.txt").read_text()
    assert status != 0 and list(outdir.iterdir()) == [run_dir]
    assert "of 2 processes has ended or cannot be reached" in log and log.count("Run directory:") == 1
    assert "Stopped by SIGTERM" in log and len(checkpoint.load(run_dir)["ranks"]) == 2
    assert log.count("Stopped by SIGTERM") == output.count("Stopped by SIGTERM") == 1


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_run(tmp_path, data):
    process = torchrun(f"--outdir={tmp_path}", f"--data={data}", *SMALL, "--kimg=10", "--timeout=0.1", "--save-every=0")
    run_dir = wait_for(tmp_path, "tick 0")
    time.sleep(2)  # some states
    process_of_rank(process, 1).send_signal(signal.SIGSTOP)
    status, output = ended(process)  # torchrun waits 30 s for the stopped process before it kills it
    assert status != 0 and "Error: one of 2 processes has not answered for --timeout=0.1 minutes" in output
    assert checkpoint.load(run_dir)["iteration"] >= 1


@contextlib.contextmanager
def two_machines():
    """Two network namespaces with a link between them: how to run a command in each, and their addresses."""
    names = [f"sg2-{os.getpid()}-{i}" for i in range(2)]
    ends = [f"sg{os.getpid() % 10**7}{end}" for end in "ab"]

    def ip(*args):
        subprocess.run(["ip", *args], check=True, capture_output=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for i, (name, end) in enumerate(zip(names, ends)):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "addr", "add", f"10.213.77.{i + 1}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield [
            (["ip", "netns", "exec", name], f"10.213.77.{i + 1}", end) for i, (name, end) in enumerate(zip(names, ends))
        ]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@contextlib.contextmanager
def loopback():
    """What stands for two machines where namespaces cannot be made."""
    yield [([], "127.0.0.1", "lo")] * 2


def may_make_namespaces() -> bool:
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    name = f"sg2-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
    return made and subprocess.run(["ip", "netns", "del", name], capture_output=True).returncode == 0


@pytest.mark.slow
def test_two_machines_train_and_measure_together(tmp_path, data, monkeypatch):
    with two_machines() if may_make_namespaces() else loopback() as machines:
        port = free_port()

        def everywhere(script, *flags):
            processes = []
            for node, (before, _address, link) in enumerate(machines):
                monkeypatch.setenv("GLOO_SOCKET_IFNAME", link)
                own = ["--nnodes=2", "--nproc-per-node=1", f"--node-rank={node}", f"--master-addr={machines[0][1]}"]
                processes.append(torchrun(*own, f"--master-port={port}", "--", *flags, script=script, before=before))
            return [ended(process) for process in processes]

        first, second = everywhere("train.py", f"--outdir={tmp_path}", f"--data={data}", *SMALL, "--kimg=1")
        (run_dir,) = tmp_path.glob("0*")
        assert first[0] == second[0] == 0 and "Done." in first[1] and "tick" not in second[1]
        assert checkpoint.load(run_dir)["cur_nimg"] == 1000 and len(checkpoint.load(run_dir)["ranks"]) == 2

        monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
        detector = stand_ins.save_detector(stand_ins.Inception(), tmp_path / "small.pt", trusted=False)
        flags = ["--metrics=fid1k_full", f"--detector={detector}", "--trust-detector", "--device=cpu", "--verbose=0"]
        (network,) = run_dir.glob("network-snapshot-000001.pkl")
        first, second = everywhere("calc_metrics.py", f"--network={network}", *flags)
        assert first[0] == second[0] == 0
        (line,) = (line for line in first[1].splitlines() if line.startswith("{"))
        assert json.loads(line)["num_gpus"] == 2 and "{" not in second[1]
