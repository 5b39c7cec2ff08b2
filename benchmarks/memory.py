# SPDX-License-Identifier: Apache-2.0
"""Peak memory of a case, measured in a process of its own, where nothing that ran before has left its traces."""

import dataclasses
import gc
import json
import pathlib
import subprocess
import sys
import threading

import psutil
import torch

from benchmarks.cases import Case, Setting, build_all
from benchmarks.variants import Variant
from dnnlib.util import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
SAMPLING_INTERVAL = 0.002  # seconds


def peak_in_subprocess(case: Case, setting: Setting, variant: Variant) -> int:
    """Bytes that running every part of `case` once adds to what building it took. Raises UserError if that fails."""
    command = [sys.executable, "-m", "benchmarks.memory", order(case, setting, variant)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"measuring the memory of {case.name} ({variant.name}) failed: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def order(case: Case, setting: Setting, variant: Variant) -> str:
    """What another process is to measure, as JSON for `carry_out`."""
    where = {**dataclasses.asdict(setting), "device": str(setting.device), "folder": str(setting.folder)}
    what = {"case": case.name, "variant": dataclasses.asdict(variant), "threads": torch.get_num_threads()}
    return json.dumps({**what, "setting": where})


def carry_out(text: str) -> int:
    """`peak` for an `order`."""
    from benchmarks.measure import find_case

    wanted = json.loads(text)
    torch.set_num_threads(wanted["threads"])
    where = wanted["setting"]
    where.update(device=torch.device(where["device"]), folder=pathlib.Path(where["folder"]))
    return peak(find_case(wanted["case"]), Setting(**where), Variant(**wanted["variant"]))


def peak(case: Case, setting: Setting, variant: Variant) -> int:
    """As `peak_in_subprocess`, in this process."""
    parts = [works[variant.name].run for works in build_all(case, setting, [variant]).values()]
    gc.collect()
    watch = _AllocatedPeak() if setting.device.type == "cuda" else _ResidentPeak()
    with variant.path(), watch:
        for run in parts:
            run()
    return watch.growth


class _AllocatedPeak:
    """Watches what tensors on the GPU take; `growth` is its peak over the start."""

    def __enter__(self) -> None:
        torch.cuda.reset_peak_memory_stats()
        self._start = torch.cuda.memory_allocated()

    def __exit__(self, *exc_info) -> None:
        self.growth = torch.cuda.max_memory_allocated() - self._start


class _ResidentPeak:
    """Watches the resident memory of this process from a thread; `growth` is its peak over the start."""

    def __enter__(self) -> None:
        self._process = psutil.Process()
        self._start = self._peak = self._process.memory_info().rss
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLING_INTERVAL):
            self._peak = max(self._peak, self._process.memory_info().rss)

    def __exit__(self, *exc_info) -> None:
        self._stop.set()
        self._thread.join()
        self.growth = max(self._peak, self._process.memory_info().rss) - self._start


if __name__ == "__main__":
    print(carry_out(sys.argv[1]))
