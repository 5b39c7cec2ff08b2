# SPDX-License-Identifier: Apache-2.0
"""Everything about several processes. With a single process, each function does nothing or the obvious thing."""

import contextlib
import importlib
import os
import pathlib
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from dnnlib.files import full_disk_is_a_user_error
from dnnlib.util import UserError
from torch_utils import precision, training_stats

_init_file: str | None = None  # through which the processes of launch() find each other


def init(
    rank: int = 0, world_size: int = 1, device: torch.device | str | None = None, init_file: str | None = None
) -> None:
    """Join the group of `world_size` processes, with NCCL if `device` is CUDA, else gloo. No-op with one process.

    `init_file` is a path on a disk that all processes share, where no file exists yet; functions started by `launch`
    need none. From here on, statistics are summed over the group.
    """
    device = torch.device("cpu" if device is None else device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size == 1:
        return
    init_file = init_file or _init_file
    if init_file is None:
        raise ValueError("distributed.init: several processes outside launch() need init_file")
    # Its functions keep the group that exists when it is imported, which PyTorch's optimisers do later: the threads of
    # the group would then outlive destroy_process_group, and now and then abort a process that ends.
    importlib.import_module("torch.distributed.nn.functional")
    torch.distributed.init_process_group(
        backend="nccl" if device.type == "cuda" else "gloo",
        # Not a file:// address, in which a space in the path would be escaped but not unescaped.
        store=torch.distributed.FileStore(os.path.abspath(init_file), world_size),
        rank=rank,
        world_size=world_size,
        device_id=device if device.type == "cuda" else None,
    )
    training_stats.init_multiprocessing(rank, device)


def _active() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def rank() -> int:
    """Number of this process, from 0."""
    return torch.distributed.get_rank() if _active() else 0


def world_size() -> int:
    """Number of processes."""
    return torch.distributed.get_world_size() if _active() else 1


def is_main() -> bool:
    """Whether this is process 0, which prints and writes files."""
    return rank() == 0


def barrier() -> None:
    """Wait until all processes have reached this point."""
    if _active():
        torch.distributed.barrier()


def print0(*args: Any) -> None:
    """Print in process 0 only, without buffering."""
    if is_main():
        print(*args, flush=True)


def all_reduce_(tensor: torch.Tensor) -> torch.Tensor:
    """Replace `tensor` in place by its sum over the processes, and return it."""
    if _active():
        torch.distributed.all_reduce(tensor)
    return tensor


def broadcast_(tensor: torch.Tensor, src: int = 0) -> torch.Tensor:
    """Replace `tensor` in place by that of process `src`, and return it."""
    if _active():
        torch.distributed.broadcast(tensor, src=src)
    return tensor


def gather(value: Any) -> list[Any]:
    """The `value` of every process, by rank, in process 0; an empty list in the others. Every process must call it.

    Values are pickled: only data of the run's own processes.
    """
    if not _active():
        return [value]
    values = [None] * world_size() if is_main() else None
    torch.distributed.gather_object(value, values)
    return values or []


def launch(fn: Callable, num_processes: int, *args: Any) -> Any:
    """Run `fn(rank, *args)` in `num_processes` processes and wait for all of them; one process is a direct call.

    `fn` must be importable (at the top level of a module) and call `init` itself. Signals that ask to stop reach all
    processes. Returns what `fn` returns, or None with several processes. If it fails with a UserError in any process,
    that UserError is raised here; a process that exits with a status ends this one with it; other failures are raised
    as torch's ProcessRaisedException.
    """
    if num_processes == 1:
        return fn(0, *args)
    with tempfile.TemporaryDirectory() as folder:
        arguments = (fn, num_processes, folder, args)
        context = torch.multiprocessing.spawn(_worker, args=arguments, nprocs=num_processes, join=False)
        try:
            with _forwarded_signals(context.pids()) as received:
                while not context.join():
                    pass
        except (torch.multiprocessing.ProcessExitedException, torch.multiprocessing.ProcessRaisedException) as error:
            sentences = sorted(pathlib.Path(folder).glob("error-*"))
            if sentences:
                raise UserError(sentences[0].read_text(encoding="utf-8")) from error
            if isinstance(error, torch.multiprocessing.ProcessRaisedException):
                raise
            if error.signal_name is not None:
                raise UserError(
                    f"process {error.error_index} of {num_processes} was ended by {error.signal_name}, as happens "
                    f"where memory runs out; the others were stopped"
                ) from error
            sys.exit(128 + received[0] if received else error.exit_code)
    return None


@contextlib.contextmanager
def _forwarded_signals(pids: list[int]) -> Iterator[list[int]]:
    """Inside, signals that ask this process to end go to the processes `pids`; yields the list of those received.

    A second SIGINT kills them. Python can handle signals in the main thread only; in another, nothing is forwarded.
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

    if threading.current_thread() is not threading.main_thread() or os.name == "nt":
        yield received
        return
    before = {signum: signal.signal(signum, forward) for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _worker(rank: int, fn: Callable, num_processes: int, folder: str, args: tuple) -> None:
    global _init_file
    _init_file = os.path.join(folder, "init")
    # Processes that share the CPU also share its cores.
    torch.set_num_threads(max(1, torch.get_num_threads() // num_processes))
    try:
        with full_disk_is_a_user_error():
            fn(rank, *args)
    except UserError as error:
        # The type of an exception does not reach the parent process, so the message is passed in a file.
        pathlib.Path(folder, f"error-{rank}").write_text(str(error), encoding="utf-8")
        sys.exit(2)
    finally:
        if _active():
            torch.distributed.destroy_process_group()


def resolve_device(name: str, rank: int = 0) -> torch.device:
    """The device for process `rank` that `name` ('auto', 'cpu', 'cuda' or 'mps') stands for.

    'auto' is CUDA if there is a CUDA device, else the CPU. Changes no settings: see `configure_device`.

    Raises UserError naming --device (or --gpus, if there are fewer GPUs than processes) if the device is unavailable.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if name == "cuda":
        if not torch.cuda.is_available():
            raise UserError("--device=cuda: this machine has no usable CUDA device; try --device=auto")
        if rank >= torch.cuda.device_count():
            raise UserError(f"--gpus={rank + 1} or more: this machine has {torch.cuda.device_count()} CUDA device(s)")
        return torch.device("cuda", rank)
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise UserError("--device=mps: this machine has no usable Apple GPU; try --device=auto")
        if rank > 0:
            raise UserError("--device=mps: there is one Apple GPU at most, so use --gpus=1")
        return torch.device("mps")
    raise UserError(f"--device={name} is not one of auto, cpu, cuda, mps")


def configure_device(device: torch.device) -> torch.device:
    """Set PyTorch up for computing on `device`, and return it: on CUDA, float32 is exact from then on.

    PyTorch rounds convolutions to TF32 by default. Training has its own switch, --allow-tf32.
    """
    if device.type == "cuda":
        precision.allow_tf32(False)
    return device
