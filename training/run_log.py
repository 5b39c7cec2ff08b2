# SPDX-License-Identifier: Apache-2.0
"""The log of a run: tick lines, `stats.jsonl`, and tfevents if TensorBoard is installed."""

import importlib.util
import json
import os
import pathlib
import re
import time

import numpy as np
import PIL.Image
import psutil
import torch

from dnnlib.files import append_line, write_text
from dnnlib.text import format_time
from torch_utils import distributed, training_stats

# Of a loss that reports them, shown at the end of the tick line
_REAL, _FAKE, _PUSH = "Loss/scores/real", "Loss/scores/fake", "Loss/DGL/grad_ratio"
_R1 = "Loss/r1_penalty"
_TEACHER = r"Loss/DGL/scores\d+"
_SHOWN = f"{_REAL}|{_FAKE}|{_R1}|{_PUSH}|{_TEACHER}"
_STATS = "stats.jsonl"
_MOST_PIXELS = 1024  # width of a picture in the event file


def _remove_later_snapshots(path: pathlib.Path, kimg: int) -> None:
    """Take the results of snapshots that will be made again, after `kimg`, out of a file of metrics."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    numbers = (re.search(r'"network-snapshot-(\d+)\.pkl"', line) for line in lines)
    kept = [line for line, number in zip(lines, numbers) if number is None or int(number[1]) <= kimg]
    if len(kept) < len(lines):
        write_text(path, "".join(kept))


class RunLog:
    """Collects and writes statistics per tick. Only the main process writes (`write`).

    The total time counts from `start` (as `time.time`), so that it includes what was done before the first tick.
    """

    def __init__(self, run_dir: str, write: bool, device: torch.device, start: float | None = None):
        self.run_dir = run_dir
        self.write = write
        self.device = device
        self.tick_start = time.time()
        self.start_time = self.tick_start if start is None else start
        self.maintenance = 0.0
        self._stats = training_stats.Collector(regex=".*")
        self._scores = training_stats.Collector(regex=_SHOWN, keep_previous=False)
        self._tfevents = None  # False: TensorBoard is unusable
        self._purge_step: int | None = None  # where the events of an interrupted run end

    def means(self) -> dict[str, float]:
        """Means of the losses and scores in the tick that has ended, by name."""
        values = self._stats.as_dict()
        return {name: value.mean for name, value in values.items() if value.num and name.startswith("Loss/")}

    def state_dict(self) -> dict:
        """The times, the statistics of the unfinished tick, and the length of the file of statistics."""
        now = time.time()
        stats = pathlib.Path(self.run_dir, _STATS)
        return {
            "elapsed": now - self.start_time,
            "in_tick": now - self.tick_start,
            "maintenance": self.maintenance,
            "collectors": [collector.state_dict() for collector in (self._stats, self._scores)],
            "stats_size": stats.stat().st_size if self.write and stats.is_file() else 0,
        }

    def load_state_dict(self, state: dict, kimg: int) -> None:
        """Continue the log of a run that was interrupted after `kimg` thousand images.

        Lines that were written after the state was saved are cut off.
        """
        now = time.time()
        self.start_time, self.tick_start = now - state["elapsed"], now - state["in_tick"]
        self.maintenance, self._purge_step = state["maintenance"], kimg + 1
        for collector, saved in zip((self._stats, self._scores), state["collectors"]):
            collector.load_state_dict(saved)
        if self.write:
            if self._tfevents:
                self._tfevents.close()
            self._tfevents = None  # the next one begins where the events are to end
            stats = pathlib.Path(self.run_dir, _STATS)
            if stats.is_file():
                os.truncate(stats, min(state["stats_size"], stats.stat().st_size))
            for path in pathlib.Path(self.run_dir).glob("metric-*.jsonl"):
                _remove_later_snapshots(path, kimg)

    def tick(self, tick: int, kimg: float, tick_kimg: float, augment_p: float, left: float = 0) -> None:
        """End a tick of `tick_kimg` thousand images: report and print the tick line. Every process must call it.

        `left`: thousand images to the end of the run; from the second tick on, the line says how long they will take.
        """
        now = time.time()
        total, seconds = now - self.start_time, now - self.tick_start
        cpu_mem = psutil.Process().memory_info().rss / 2**30
        fields = [
            f"tick {training_stats.report0('Progress/tick', tick):<5d}",
            f"kimg {training_stats.report0('Progress/kimg', kimg):<8.1f}",
            f"time {format_time(training_stats.report0('Timing/total_sec', total)):<12s}",
            f"sec/tick {training_stats.report0('Timing/sec_per_tick', seconds):<7.1f}",
            f"sec/kimg {training_stats.report0('Timing/sec_per_kimg', seconds / max(tick_kimg, 1e-9)):<7.2f}",
            f"maintenance {training_stats.report0('Timing/maintenance_sec', self.maintenance):<6.1f}",
            f"cpumem {training_stats.report0('Resources/cpu_mem_gb', cpu_mem):<6.2f}",
            f"gpumem {training_stats.report0('Resources/peak_gpu_mem_gb', self._peak_gpu_gb()):<6.2f}",
            f"augment {training_stats.report0('Progress/augment', augment_p):.3f}",
        ]
        fields += self._score_fields()
        if tick > 0 and left > 0:
            fields.append(f"eta {format_time(left * (seconds + self.maintenance) / max(tick_kimg, 1e-9))}")
        training_stats.report0("Timing/total_hours", total / 3600)
        training_stats.report0("Timing/total_days", total / 86400)
        if self.write:
            print(" ".join(fields).rstrip(), flush=True)
        self._stats.update()
        self.tick_end = now

    def _score_fields(self) -> list[str]:
        """Mean scores that D gave to reals and fakes in the tick, that the teachers gave to fakes, and their push."""
        self._scores.update()
        means = {name: value.mean for name, value in self._scores.as_dict().items() if value.num}
        fields = []
        if _REAL in means and _FAKE in means:
            both = f"{means[_REAL]:.2f}/{means[_FAKE]:.2f}"
            fields.append(f"scores {both:<12s}")
        if _R1 in means:
            fields.append(f"r1 {means[_R1]:<8.3g}")
        teachers = [mean for name, mean in means.items() if re.fullmatch(_TEACHER, name)]
        if teachers:
            fields.append(f"teacher {sum(teachers) / len(teachers):<7.2f}")
        if _PUSH in means:
            fields.append(f"push {means[_PUSH]:<5.2f}")
        return fields

    def _peak_gpu_gb(self) -> float:
        if self.device.type != "cuda":
            return 0.0
        peak = torch.cuda.max_memory_allocated(self.device) / 2**30
        torch.cuda.reset_peak_memory_stats(self.device)
        return peak

    def flush(self, step: int, metrics: dict[str, float]) -> None:
        """Write the values of the tick that has ended, and the newest metrics."""
        if self.write:
            timestamp = time.time()
            values = self._stats.as_dict()
            append_line(os.path.join(self.run_dir, _STATS), json.dumps({**values, "timestamp": timestamp}))
            self._write_tfevents(values, metrics, step, timestamp)

    def _write_tfevents(self, values: dict, metrics: dict[str, float], step: int, timestamp: float) -> None:
        writer = self._event_writer()
        if writer is None:
            return
        scalars = {name: value["mean"] for name, value in values.items()}
        scalars.update({f"Metrics/{name}": value for name, value in metrics.items()})
        for name, value in scalars.items():
            writer.add_scalar(name, value, global_step=step // 1000, walltime=timestamp)
        writer.flush()

    def picture(self, name: str, path: str, step: int) -> None:
        """Add a picture file to the event file, if there is one, reduced to a size that a page of them can take."""
        writer = self._event_writer() if self.write else None
        if writer is not None:
            with PIL.Image.open(path, formats=["PNG"]) as picture:
                picture.thumbnail((_MOST_PIXELS, _MOST_PIXELS))
                writer.add_image(name, np.atleast_3d(np.asarray(picture)), step // 1000, dataformats="HWC")

    def _event_writer(self):
        """TensorBoard's writer, or None without TensorBoard. It is a slow import, so not before there is something."""
        if self._tfevents is None and importlib.util.find_spec("tensorboard") is not None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except (ImportError, TypeError, AttributeError) as error:  # what mismatched packages raise
                print(f"No tfevents: TensorBoard is installed but does not start ({error}).")
                self._tfevents = False
            else:
                self._tfevents = SummaryWriter(self.run_dir, purge_step=self._purge_step)
        return self._tfevents or None

    def start_tick(self) -> None:
        """Begin the next tick; the time since the last tick line counts as maintenance."""
        self.tick_start = time.time()
        self.maintenance = self.tick_start - self.tick_end

    def close(self) -> None:
        """Close the event file, if there is one."""
        if self._tfevents:
            self._tfevents.close()


class Forecast:
    """Says once, in process 0, how long the run will take, from the pace of iterations after the first.

    The first one, in which PyTorch prepares much, does not count; `ITERATIONS` cover all regularisers of the presets.
    """

    ITERATIONS = 16

    def __init__(self, iteration: int, images: int, device: torch.device):
        self._first, self._images, self._device = iteration + 1, images, device
        self._start = time.monotonic()

    def after(self, iteration: int, images_left: int) -> None:
        """Call when `iteration` iterations are done and so many images remain."""
        if iteration == self._first:
            self._start = time.monotonic()
        if iteration != self._first + self.ITERATIONS or images_left <= 0:
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        pace = (time.monotonic() - self._start) / (self.ITERATIONS * self._images)
        text = f"Expected to train for {format_time(pace * images_left)} more ({pace * 1000:.3g} sec/kimg"
        if self._device.type == "cuda":
            peak, total = torch.cuda.max_memory_allocated(self._device), torch.cuda.mem_get_info(self._device)[1]
            text += f", {peak / 2**30:.1f} of {total / 2**30:.1f} GB of the GPU's memory"
        distributed.print0(f"{text}), without metrics and snapshots.")
