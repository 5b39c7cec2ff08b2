# SPDX-License-Identifier: Apache-2.0
"""What a launcher such as torchrun tells each process that it starts, in the environment."""

import os
from typing import NamedTuple

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class Place(NamedTuple):
    """Which of several processes this one is."""

    rank: int  # among all, from 0
    size: int  # number of processes, on all machines
    local_rank: int  # on this machine, from 0


def place() -> Place | None:
    """The place of this process among those of a launcher; None without a launcher, or if it started only one."""
    if any(name not in os.environ for name in _NAMES):
        return None
    found = Place(*(int(os.environ[name]) for name in _NAMES[:3]))
    return found if found.size > 1 else None
