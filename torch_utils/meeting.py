# SPDX-License-Identifier: Apache-2.0
"""How the processes of a launcher such as torchrun find each other, also when it starts them again."""

import datetime
import os
import secrets
import time

import torch

from dnnlib.launcher import Place

_POLL = 0.05  # seconds


def meet(place: Place, timeout: datetime.timedelta) -> torch.distributed.Store:
    """A store that belongs to those processes alone that are there now. Every process must call it.

    The store of the launcher may outlive the processes: after a restart it has the addresses of those that are gone,
    and the launchers of several machines need not agree on how many restarts there were. So process 0 chooses a new
    prefix, and tells it to each of the others under a name that only that process can have asked with.

    Raises torch.distributed.DistStoreError, or RuntimeError, if the others do not come within `timeout`.
    """
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # by the launcher, not by process 0
    store = torch.distributed.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=place.rank == 0 and not hosted,
        timeout=timeout,
        wait_for_workers=False,
    )
    store = torch.distributed.PrefixStore("meeting", store)
    prefix = _invite(store, place.size, timeout) if place.rank == 0 else _ask(store, place.rank, timeout)
    return torch.distributed.PrefixStore(prefix, store)


def _ask(store: torch.distributed.Store, rank: int, timeout: datetime.timedelta) -> str:
    question = secrets.token_hex(8)
    store.set(f"question-{rank}", question)
    store.wait([question], timeout)
    prefix = store.get(question).decode()
    store.set(f"{prefix}-{rank}", "here")
    return prefix


def _invite(store: torch.distributed.Store, size: int, timeout: datetime.timedelta) -> str:
    prefix = secrets.token_hex(8)
    missing = set(range(1, size))
    deadline = time.monotonic() + timeout.total_seconds()
    answered: dict[int, bytes] = {}
    while missing:
        for rank in sorted(missing):
            if store.check([f"{prefix}-{rank}"]):
                missing.discard(rank)
            elif store.check([f"question-{rank}"]):
                question = store.get(f"question-{rank}")  # of an earlier process, until the present one asks
                if answered.get(rank) != question:
                    store.set(question.decode(), prefix)
                    answered[rank] = question
        if missing and time.monotonic() > deadline:
            raise RuntimeError(f"processes {', '.join(map(str, sorted(missing)[:8]))} did not come")
        time.sleep(_POLL)
    return prefix
