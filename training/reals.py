# SPDX-License-Identifier: Apache-2.0
"""The endless batches of real images of a run, and this process's share of them."""

import itertools
import os
import signal
from collections.abc import Iterator
from typing import Any

import torch

from dnnlib.util import UserError
from torch_utils import misc
from torch_utils.images import from_uint8

GRACE = 20.0  # seconds for which a worker that was asked to end serves on


class _Shares(torch.utils.data.Sampler):
    """Lists of indices: of each batch of `batch_size`, the `rank`-th of `num_gpus` equal parts.

    The order of the dataset is that of `misc.InfiniteSampler` with `seed`; the first `start` batches are left out.
    """

    def __init__(self, dataset: Any, seed: int, batch_size: int, rank: int, num_gpus: int, start: int):
        self.order = misc.InfiniteSampler(dataset, seed=seed)
        self.batch_size, self.start = batch_size, start
        local = batch_size // num_gpus
        self.share = slice(rank * local, (rank + 1) * local)

    def __iter__(self) -> Iterator[list[int]]:
        order = itertools.islice(self.order, self.start * self.batch_size, None)
        while True:
            yield list(itertools.islice(order, self.batch_size))[self.share]


class Reals:
    """Batches of `batch_size` reals, of which `next` gives this process's part; `taken` counts them.

    The order depends on `seed` only, not on the number of processes or workers. `loader_kwargs` are those of
    `torch.utils.data.DataLoader`. `start` batches are skipped.
    """

    def __init__(
        self,
        dataset: Any,
        device: torch.device,
        seed: int,
        batch_size: int,
        rank: int,
        num_gpus: int,
        loader_kwargs: dict[str, Any],
        start: int = 0,
    ):
        kwargs = {**loader_kwargs, "worker_init_fn": _serve_on}
        if device.type != "cuda":
            kwargs["pin_memory"] = False
        # More workers than processors gain nothing, and PyTorch warns about them.
        kwargs["num_workers"] = min(kwargs.get("num_workers", 0), _num_processors())
        if kwargs["num_workers"] == 0:
            kwargs.pop("prefetch_factor", None)
        shares = _Shares(dataset, seed, batch_size, rank, num_gpus, start)
        self.device, self.taken = device, start
        self._loader = torch.utils.data.DataLoader(dataset, batch_sampler=shares, **kwargs)
        self._batches: Iterator | None = None  # starts the workers, so not before a batch is needed

    def fetch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The next batch as the dataset has it, on the CPU: images [N, C, H, W] in uint8 and labels [N, K].

        Raises UserError if an image cannot be read or a worker has died.
        """
        if self._batches is None:
            self._batches = iter(self._loader)
        try:
            batch = next(self._batches)
        except UserError as error:
            kind = f"{type(error).__module__}.{type(error).__qualname__}: "
            # A data-loader worker puts its traceback before the message.
            raise UserError(str(error).strip().splitlines()[-1].removeprefix(kind)) from error
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UserError(
                "a process that reads the data set has died, as happens where memory runs out: continue with fewer of "
                "them (--workers=1)"
            ) from error
        self.taken += 1
        return batch

    def close(self) -> None:
        """End the workers, if there are any."""
        self._batches = None

    def to_device(self, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """What `fetch` gave, on the device, images in [-1, 1]."""
        img, c = (tensor.to(self.device, non_blocking=True) for tensor in batch)
        return from_uint8(img), c


def _serve_on(_worker: int) -> None:
    """A signal for all processes of a job must not take away the data of the iteration that is still to be finished.

    So a worker ignores it, and SIGTERM, with which it is also asked to end, for a while.
    """
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "setitimer"):
        # Status 0: PyTorch takes any other, or a signal, for a failure, and interrupts the trainer.
        signal.signal(signal.SIGALRM, lambda _signum, _frame: os._exit(0))
        signal.signal(signal.SIGTERM, lambda _signum, _frame: signal.setitimer(signal.ITIMER_REAL, GRACE))


def _num_processors() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
