# SPDX-License-Identifier: Apache-2.0
"""Everything about several processes. With a single process, each function does nothing or the obvious thing."""

import contextlib
import datetime
import functools
import importlib
import multiprocessing.connection
import os
import pathlib
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from dnnlib import launcher, signals
from dnnlib.files import full_disk_is_a_user_error
from dnnlib.util import UserError
from torch_utils import exchange, meeting, memory, precision, training_stats

GRACE = 10.0  # seconds that processes have to end when one of them has failed
_init_file: str | None = None  # through which the processes of launch() find each other


def init(
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str | None = None,
    init_file: str | None = None,
    timeout: float = 30,
) -> None:
    """Join the group of `world_size` processes, with NCCL if `device` is CUDA, else gloo. No-op with one process.

    `init_file` is a path on a disk that all processes share, where no file exists yet; functions started by `launch`,
    and processes of a launcher such as torchrun, need none. An exchange fails after `timeout` minutes. From here on,
    statistics are summed over the group. In a group already, it does nothing.

    Raises exchange.ProcessLost if the others do not come.
    """
    device = torch.device("cpu" if device is None else device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size == 1 or exchange.active():
        return
    init_file = init_file or _init_file
    place = launcher.place()
    if init_file is None and place is None:
        raise ValueError("distributed.init: several processes outside launch() and torchrun need init_file")
    # Its functions keep the group that exists when it is imported, which PyTorch's optimisers do later: the threads of
    # the group would then outlive destroy_process_group, and now and then abort a process that ends.
    importlib.import_module("torch.distributed.nn.functional")
    exchange.timeout = timeout
    wait = datetime.timedelta(minutes=timeout)
    with exchange.exchange():
        # FileStore is not a file:// address, in which a space in the path would be escaped but not unescaped.
        file = None if init_file is None else torch.distributed.FileStore(os.path.abspath(init_file), world_size)
        torch.distributed.init_process_group(
            backend="nccl" if device.type == "cuda" else "gloo",
            store=meeting.meet(place, wait) if file is None else file,
            rank=rank,
            world_size=world_size,
            timeout=wait,
            device_id=device if device.type == "cuda" else None,
        )
    training_stats.init_multiprocessing(rank, device)


@contextlib.contextmanager
def joined(device_name: str = "auto", timeout: float = 30) -> Iterator[None]:
    """Inside, the processes of a launcher such as torchrun are one group; otherwise this does nothing.

    Arguments as for `resolve_device` and `init`. Raises UserError as they do.
    """
    place = launcher.place()
    if place is None:
        yield
        return
    try:
        device = resolve_device(device_name, place.local_rank)
    except UserError:
        if place.local_rank and not _available(device_name, place.local_rank - 1):
            sys.exit(2)  # the first process of this machine that has no device speaks for the others
        raise
    init(place.rank, place.size, device, timeout=timeout)
    with _left_at_the_end():
        yield


def _available(device_name: str, local_rank: int) -> bool:
    try:
        resolve_device(device_name, local_rank)
    except UserError:
        return False
    return True


@contextlib.contextmanager
def _left_at_the_end() -> Iterator[None]:
    """After the block, this process is in no group."""
    try:
        yield
    except exchange.ProcessLost:
        if exchange.active() and torch.distributed.get_backend() != "nccl":  # which would wait for the lost process
            torch.distributed.destroy_process_group()
        raise
    except BaseException:
        _leave()
        raise
    _leave()


def _leave() -> None:
    if exchange.active():
        torch.distributed.destroy_process_group()


def decide(fn: Callable, *args: Any) -> Any:
    """What `fn(*args)` returns in process 0, in every process; only process 0 calls it.

    It must return plain values. If it raises an exception, the other processes end with status 2, without a word.
    """
    if not exchange.active():
        return fn(*args)
    message: list[Any] = [None, None]
    try:
        if is_main():
            message = [True, fn(*args)]
    except exchange.ProcessLost:
        raise
    except BaseException:
        _share([False, None])
        raise
    decided, value = _share(message)
    if not decided:
        sys.exit(2)
    return value


def _share(values: list[Any]) -> list[Any]:
    with exchange.exchange():
        torch.distributed.broadcast_object_list(values, src=0)
    return values


def rank() -> int:
    """Number of this process, from 0."""
    return torch.distributed.get_rank() if exchange.active() else 0


def world_size() -> int:
    """Number of processes."""
    return torch.distributed.get_world_size() if exchange.active() else 1


def is_main() -> bool:
    """Whether this is process 0, which prints and writes files."""
    return rank() == 0


def barrier() -> None:
    """Wait until all processes have reached this point."""
    if exchange.active():
        with exchange.exchange():
            torch.distributed.barrier()


def print0(*args: Any) -> None:
    """Print in process 0 only, without buffering."""
    if is_main():
        print(*args, flush=True)


def all_reduce_(tensor: torch.Tensor) -> torch.Tensor:
    """Replace `tensor` in place by its sum over the processes, and return it."""
    if exchange.active():
        with exchange.exchange():
            torch.distributed.all_reduce(tensor)
    return tensor


class _Sum(torch.autograd.Function):
    """Sum over the processes; as each process's result depends on every input, so does the gradient."""

    @staticmethod
    def forward(ctx, tensor):
        return all_reduce_(tensor.clone())

    @staticmethod
    def backward(ctx, grad):
        return _Sum.apply(grad)


def differentiable_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of `tensor` over the processes, differentiable to any order; all of them pass back a gradient, too."""
    return _Sum.apply(tensor)


def maximum_(tensor: torch.Tensor) -> torch.Tensor:
    """Replace `tensor` in place by its maximum over the processes, and return it."""
    if exchange.active():
        with exchange.exchange():
            torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
    return tensor


def broadcast_(tensor: torch.Tensor, src: int = 0) -> torch.Tensor:
    """Replace `tensor` in place by that of process `src`, and return it."""
    if exchange.active():
        with exchange.exchange():
            torch.distributed.broadcast(tensor, src=src)
    return tensor


def gather(value: Any) -> list[Any]:
    """The `value` of every process, by rank, in process 0; an empty list in the others. Every process must call it.

    Values are pickled: only data of the run's own processes.
    """
    if not exchange.active():
        return [value]
    values = [None] * world_size() if is_main() else None
    with exchange.exchange():
        torch.distributed.gather_object(value, values)
    return values or []


def local_rank(rank: int) -> int:
    """Number of process `rank`, this one, among those of its machine: that of its GPU."""
    place = launcher.place()
    return rank if place is None else place.local_rank


def launch(fn: Callable, num_processes: int, *args: Any) -> Any:
    """Run `fn(rank, *args)` in `num_processes` processes and wait for all of them; one process is a direct call.

    In a process of a launcher such as torchrun it is a direct call too: the others are there already. `fn` must be
    importable (at the top level of a module) and call `init` itself. Signals that ask to stop reach all processes.

    Returns what `fn` returns, or None with several processes. If it fails with a UserError in any process, that
    UserError is raised here; a process that exits with a status ends this one with it; other failures are raised as
    torch's ProcessRaisedException.
    """
    if exchange.active():
        return fn(rank(), *args)
    if num_processes == 1:
        return fn(0, *args)
    with tempfile.TemporaryDirectory() as folder:
        arguments = (fn, num_processes, folder, args)
        context = torch.multiprocessing.spawn(_worker, args=arguments, nprocs=num_processes, join=False)
        killed: dict[int, int] = {}
        try:
            with _forwarded_signals(context.pids()) as received:
                killed = _end_all_if_one_fails(context.processes)
                while not context.join():
                    pass
        except (torch.multiprocessing.ProcessExitedException, torch.multiprocessing.ProcessRaisedException) as error:
            reasons, losses = (sorted(pathlib.Path(folder).glob(f"{kind}-*")) for kind in ("error", "lost"))
            if reasons:
                raise UserError(reasons[0].read_text(encoding="utf-8")) from error
            if killed and not received:
                index, signum = next(iter(killed.items()))
                raise UserError(
                    f"process {index} of {num_processes} was ended by {signal.Signals(signum).name}, as happens where "
                    f"memory runs out; the others were stopped"
                ) from error
            if isinstance(error, torch.multiprocessing.ProcessRaisedException):
                raise
            if losses:
                raise exchange.ProcessLost(losses[0].read_text(encoding="utf-8")) from error
            stopped = [128 + signum for signum in received]  # or one process alone had a signal, and stopped all
            stopped += [process.exitcode for process in context.processes if process.exitcode > 128]
            sys.exit(stopped[0] if stopped else error.exit_code)
    return None


def _end_all_if_one_fails(processes: list) -> dict[int, int]:
    """Wait until all `processes` have ended, or one has failed: then end the others, even if they hang.

    Returns the signals, by process, of those that a signal had ended before.
    """
    while not any(process.exitcode for process in processes):
        running = [process.sentinel for process in processes if process.exitcode is None]
        if not running:
            return {}
        multiprocessing.connection.wait(running)
    time.sleep(0.2)  # one that was killed and those that notice it end at about the same time
    killed = {i: -process.exitcode for i, process in enumerate(processes) if (process.exitcode or 0) < 0}
    if any((process.exitcode or 0) > 128 for process in processes):  # all stop in good order
        multiprocessing.connection.wait([process.sentinel for process in processes if process.is_alive()], GRACE)
    for process in processes:
        if process.is_alive():
            process.terminate()
    deadline = time.monotonic() + GRACE
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
    return killed


@contextlib.contextmanager
def _forwarded_signals(pids: list[int]) -> Iterator[list[int]]:
    """Inside, signals that ask this process to end go to the processes `pids`; yields the list of those received.

    A second SIGINT kills them. Outside the main thread, and on Windows, nothing is forwarded.
    """
    received: list[int] = []

    def forward(signum: int, _frame) -> None:
        again = signum == signal.SIGINT and signal.SIGINT in received
        received.append(signum)
        # A terminal sends SIGINT to all processes, and two of them would not let them end in good order.
        sent = signal.SIGKILL if again else signal.SIGTERM if signum == signal.SIGINT else signum
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sent)
        if again:
            raise KeyboardInterrupt

    with contextlib.nullcontext() if os.name == "nt" else signals.handled(forward):
        yield received


def _worker(rank: int, fn: Callable, num_processes: int, folder: str, args: tuple) -> None:
    global _init_file
    _init_file = os.path.join(folder, "init")
    # Processes that share the CPU also share its cores.
    torch.set_num_threads(max(1, torch.get_num_threads() // num_processes))
    try:
        with _left_at_the_end():
            try:
                with full_disk_is_a_user_error():
                    fn(rank, *args)
            except UserError as error:
                # The type of an exception does not reach the parent process, so the message is passed in a file,
                # before the others can notice that this process is gone.
                kind = "lost" if isinstance(error, exchange.ProcessLost) else "error"
                pathlib.Path(folder, f"{kind}-{rank}").write_text(str(error), encoding="utf-8")
                raise
    except UserError:
        sys.exit(2)


def resolve_device(name: str, rank: int = 0) -> torch.device:
    """The device that `name` ('auto', 'cpu', 'cuda' or 'mps') stands for, for process `rank` of a machine.

    See `local_rank`. 'auto' is CUDA if there is a CUDA device, else the CPU; a note says if that leaves an Apple GPU
    unused. Changes no settings: see `configure_device`.

    Raises UserError naming --device (or --gpus, if there are fewer GPUs than processes) if the device is unavailable.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cpu" and rank == 0 and torch.backends.mps.is_available():
            _note_unused_mps()
    if name == "cpu":
        return torch.device("cpu")
    if name == "cuda":
        if not torch.cuda.is_available():
            raise UserError("--device=cuda: this machine has no usable CUDA device; try --device=auto")
        if rank >= torch.cuda.device_count():
            flag = "--gpus" if launcher.place() is None else "--nproc-per-node"
            raise UserError(f"{flag}={rank + 1} or more: this machine has {torch.cuda.device_count()} CUDA device(s)")
        return torch.device("cuda", rank)
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise UserError("--device=mps: this machine has no usable Apple GPU; try --device=auto")
        if rank > 0:
            raise UserError("--device=mps: there is one Apple GPU at most, so use --gpus=1")
        return torch.device("mps")
    raise UserError(f"--device={name} is not one of auto, cpu, cuda, mps")


@functools.cache
def _note_unused_mps() -> None:
    """Once per process."""
    if is_main():
        print(
            "Note: --device=auto uses the CPU, because this project has not been tested on an Apple GPU; --device=mps "
            "uses it.",
            file=sys.stderr,
        )


def configure_device(device: torch.device) -> torch.device:
    """Set this process up for computing on `device`, and return it: on a CPU it keeps the memory that it frees.

    On CUDA, float32 is exact from then on: PyTorch rounds convolutions to TF32 by default. Training has its own switch,
    --allow-tf32.
    """
    if device.type == "cuda":
        precision.allow_tf32(False)
    elif device.type == "cpu":
        memory.keep_freed()
    return device
