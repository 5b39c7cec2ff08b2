# SPDX-License-Identifier: Apache-2.0
import concurrent.futures
import datetime
import errno
import json
import os
import pathlib
import signal

import psutil
import pytest
import torch

from dnnlib import launcher
from dnnlib.util import UserError
from torch_utils import distributed, exchange, meeting, memory, misc, precision, training_stats
from torch_utils.ops import layout


def _everything_at_once(rank, folder):
    """All checks in two processes at once, because starting them is slow."""
    distributed.init(rank, 2, device="cpu")
    seen = {"rank": distributed.rank(), "world_size": distributed.world_size(), "main": distributed.is_main()}
    seen["sum"] = distributed.all_reduce_(torch.tensor([1.0, rank])).tolist()
    seen["from_1"] = distributed.broadcast_(torch.tensor(10 * rank), src=1).item()
    distributed.barrier()
    distributed.print0("printed by", rank)

    collector = training_stats.Collector()
    training_stats.report("a", torch.arange(3) + 3 * rank)
    training_stats.report0("zero", rank + 7)
    training_stats.report("some", [1.0] if rank == 1 else [])
    collector.update()
    seen["stats"] = collector.as_dict()

    net = torch.nn.Linear(2, 2)
    for tensor in misc.params_and_buffers(net):
        distributed.broadcast_(tensor.data)
    misc.check_ddp_consistency(net)
    if rank == 1:
        net.bias.data[0] += 1
    misc.check_ddp_consistency(net, ignore_regex=r".*\.bias")
    try:
        misc.check_ddp_consistency(net)
        seen["differs"] = ""
    except RuntimeError as error:
        seen["differs"] = str(error)
    laid_out = layout.prepare(torch.nn.Conv2d(2, 3, 3), torch.device("cpu"))
    for tensor in misc.params_and_buffers(laid_out):
        distributed.broadcast_(tensor.data)
    misc.check_ddp_consistency(laid_out)
    pathlib.Path(folder, f"{rank}.json").write_text(json.dumps(seen))
    distributed.barrier()
    if rank == 1:
        raise UserError("--data=x: no such file")


def test_two_processes(tmp_path):
    with pytest.raises(UserError, match=r"^--data=x: no such file$"):
        distributed.launch(_everything_at_once, 2, str(tmp_path))
    zero, one = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert (zero["rank"], zero["world_size"], zero["main"]) == (0, 2, True)
    assert (one["rank"], one["world_size"], one["main"]) == (1, 2, False)
    assert zero["sum"] == one["sum"] == [2, 1]
    assert zero["from_1"] == one["from_1"] == 10
    assert zero["stats"] == one["stats"]
    assert zero["stats"]["a"] == {"num": 6, "mean": 2.5, "std": pytest.approx(35**0.5 / 12**0.5)}
    assert zero["stats"]["zero"] == {"num": 1, "mean": 7, "std": 0}
    assert zero["stats"]["some"]["num"] == 1
    assert zero["differs"] == "" and "Linear.bias" in one["differs"]


def test_one_process_is_a_direct_call(capsys):
    seen = []
    distributed.launch(lambda rank, word: seen.append((rank, word, os.getpid())), 1, "hello")
    assert seen == [(0, "hello", os.getpid())]
    distributed.init()
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    distributed.barrier()
    distributed.print0("once")
    assert capsys.readouterr().out == "once\n"
    x = torch.ones(2)
    assert distributed.all_reduce_(x) is x and distributed.broadcast_(x) is x and x.tolist() == [1, 1]


def test_several_processes_need_a_meeting_point():
    with pytest.raises(ValueError, match="init_file"):
        distributed.init(0, 2)


@pytest.mark.parametrize(("cuda", "device"), [(False, "cpu"), (True, "cuda:1")])
def test_auto_device(monkeypatch, cuda, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert distributed.resolve_device("auto", rank=1) == torch.device(device)
    assert distributed.resolve_device("cpu", rank=1) == torch.device("cpu")


def test_auto_says_once_why_it_leaves_an_apple_gpu_unused(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    distributed._note_unused_mps.cache_clear()
    assert distributed.resolve_device("cpu").type == "cpu" and capsys.readouterr().err == ""
    assert [distributed.resolve_device("auto").type for _ in range(2)] == ["cpu", "cpu"]
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and "--device=mps" in captured.err


def test_unavailable_devices_name_the_flag(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name in ("cuda", "mps", "tpu"):
        with pytest.raises(UserError, match=f"--device={name}"):
            distributed.resolve_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="--gpus"):
        distributed.resolve_device("cuda", rank=2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert distributed.resolve_device("mps").type == "mps"
    with pytest.raises(UserError, match="--gpus=1"):
        distributed.resolve_device("mps", rank=1)


def test_asking_for_a_device_changes_no_settings_and_configuring_it_does(monkeypatch):
    """On CUDA float32 becomes exact; on a CPU the process keeps freed memory."""
    calls = []
    monkeypatch.setattr(precision, "allow_tf32", calls.append)
    monkeypatch.setattr(memory, "keep_freed", lambda: calls.append("kept"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    device = distributed.resolve_device("cuda")
    assert calls == []
    assert distributed.configure_device(device) == device and calls == [False]
    cpu = distributed.resolve_device("cpu")
    assert calls == [False]
    assert distributed.configure_device(cpu) == cpu and calls == [False, "kept"]


def _gradients_with_and_without_sync(rank, folder):
    distributed.init(rank, 2)
    seen = {}
    net = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1, bias=False))
    for sync in (False, True):
        with misc.ddp_sync(net, sync=sync):
            net.zero_grad()
            net(torch.full([1, 1], float(rank))).sum().backward()
        seen[f"sync={sync}"] = net.module.weight.grad.item()
    pathlib.Path(folder, f"{rank}.json").write_text(json.dumps(seen))


@pytest.mark.slow
def test_ddp_averages_gradients_only_with_sync(tmp_path):
    distributed.launch(_gradients_with_and_without_sync, 2, str(tmp_path))
    zero, one = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert zero == {"sync=False": 0, "sync=True": 0.5}
    assert one == {"sync=False": 1, "sync=True": 0.5}


def fill_the_disk(rank):
    if rank == 1:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "network.pkl")


@pytest.mark.slow
def test_a_full_disk_in_a_process_is_a_user_error_of_the_parent():
    with pytest.raises(UserError, match=r"network\.pkl"):
        distributed.launch(fill_the_disk, 2)


def _threads_of_a_group(rank, folder):
    distributed.init(rank, 2)
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([weight])  # imports the parts of PyTorch that could keep the group
    weight.grad = distributed.all_reduce_(torch.ones(2))
    optimizer.step()
    within = psutil.Process().num_threads()
    torch.distributed.destroy_process_group()
    pathlib.Path(folder, f"{rank}.json").write_text(json.dumps([within, psutil.Process().num_threads()]))


@pytest.mark.slow
def test_no_thread_of_a_group_outlives_it(tmp_path):
    """A thread left to the end of the interpreter aborts the process now and then."""
    distributed.launch(_threads_of_a_group, 2, str(tmp_path))
    within, after = json.loads((tmp_path / "1.json").read_text())
    assert within - after >= 2


def _without(rank, signum, minutes):
    distributed.init(rank, 2, timeout=minutes)
    distributed.barrier()
    if rank == 1:
        os.kill(os.getpid(), signum)
    distributed.barrier()


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_others(monkeypatch):
    monkeypatch.setattr(distributed, "GRACE", 0.5)
    with pytest.raises(exchange.ProcessLost, match=r"one of 2 processes has not answered for --timeout=0\.03 minutes"):
        distributed.launch(_without, 2, signal.SIGSTOP, 0.03)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others():
    with pytest.raises(UserError, match="process 1 of 2 was ended by SIGKILL"):
        distributed.launch(_without, 2, signal.SIGKILL, 5)


def _round(port, size, places):
    """The values that processes which meet exchange through their store, by rank."""
    with concurrent.futures.ThreadPoolExecutor(size) as pool:
        wait = datetime.timedelta(seconds=10)
        stores = list(pool.map(lambda rank: meeting.meet(launcher.Place(rank, size, rank), wait), places))
    stores[0].set("value", f"of {port}")
    return [store.get("value") for store in stores]


def test_processes_that_are_started_again_meet_only_each_other(monkeypatch):
    """The store of torchrun outlives the processes, with all that earlier ones have written."""
    server = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": server.port}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert _round("first", 3, (0, 1, 2)) == [b"of first"] * 3
    left = torch.distributed.PrefixStore("meeting", server)
    left.set("question-1", "nobody waits for this answer")
    assert _round("second", 2, (0, 1)) == [b"of second"] * 2
    with pytest.raises(RuntimeError, match="processes 1 did not come"):
        meeting.meet(launcher.Place(0, 2, 0), datetime.timedelta(seconds=0.2))
