# SPDX-License-Identifier: Apache-2.0
"""The training loop: set up a run, then train until `total_kimg` thousand images have been shown."""

import io
import math
import os
import sys
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import dnnlib
from dnnlib.progress import Progress
from metrics import detectors, in_training, metric_main, metric_utils
from metrics.reports.run_page import RunPage
from torch_utils import distributed, misc, precision
from training import families, guards, initial, randomness, run_networks, run_state
from training.ada import AdaController
from training.data import class_names
from training.ema import ema_beta, update_ema
from training.files import snapshot
from training.phases import PhaseTimes, average_over_processes, phases_of_terms, run_due
from training.reals import Reals
from training.run_log import Forecast, RunLog
from training.sample_grid import SampleGrid, save_image_grid, setup_snapshot_image_grid  # noqa: F401 (for others)
from training.settings import TrainingOptions
from training.stopping import Agreement, stop_request

PROGRESS_INTERVAL = 30.0  # seconds between progress lines inside a tick where the output is not a terminal


def training_loop(
    rank: int = 0,
    abort_fn: Callable[[], bool] | None = None,
    progress_fn: Callable[[float, int], Any] | None = None,
    opened=None,
    resume: bool = False,
    about: dict[str, Any] | None = None,
    **options,
) -> int | None:
    """Train up to `total_kimg`. In a multi-process run every process calls this with its `rank`, in an open group.

    `options` are the fields of TrainingOptions. `abort_fn()` is called once per tick and ends the run, with a snapshot,
    if it returns true; `progress_fn(cur_nimg / 1000, total_kimg)` is called once per tick. `opened` is a
    `training.options.Opened` with files that this process has already opened; None opens them here. `resume`: go on
    from the state in `run_dir`. `about`: plain values to save with the state.

    Returns the number of the signal that has ended the run early, with its state saved, or None.
    Raises UserError, training.guards.Diverged where weights or losses are not finite any more.
    """
    with guards.memory_is_a_user_error(), guards.lost_folder_is_a_user_error(options.get("run_dir", ".")):
        trainer = Trainer(TrainingOptions(**options), rank, opened, about, resume)
        try:
            return trainer.run(abort_fn, progress_fn)
        finally:
            trainer.reals.close()  # after a failure too: its workers would outlive this process for a while


class Trainer:
    """The state of a run: data, networks, loss, phases, counters."""

    def __init__(self, options: TrainingOptions, rank: int = 0, opened=None, about: dict | None = None, resume=False):
        start = time.time()
        self.options = options
        self.rank = rank
        self.about = about or {}
        self.device = distributed.resolve_device(options.device, distributed.local_rank(rank))
        self.half_dtype = precision.run_dtype(options.precision, self.device)
        if options.trust_detector and options.metrics:
            detectors.trust(options.detector)
        self.cur_nimg = self.cur_tick = self.iteration = 0
        self.tick_start_nimg, self.new_tick = 0, True  # new_tick: the next iteration is the first of a tick
        self.attempt = 0  # how often the run was rolled back
        self.resumed, self.saved_networks = resume, False
        self.metric_values: dict[str, float] = {}
        self._configure_torch()
        self._open_data(None if opened is None else opened.training_set)
        self._build_networks(opened)
        self._build_loss({} if opened is None else opened.loss_arguments())
        if opened is not None:
            opened.release()
        self.log = RunLog(options.run_dir, write=rank == 0, device=self.device, start=start)
        self.page = RunPage(options, write=rank == 0)
        small = self.device.type == "cpu"
        self.grid = SampleGrid(self.training_set, self.G.z_dim, options.random_seed, small) if rank == 0 else None
        self.keeper = run_state.Keeper(self)
        if resume:
            self.keeper.load()

    def _seed(self, *place: int) -> None:
        randomness.seed(self.options.random_seed, self.attempt, *place)

    def _configure_torch(self) -> None:
        self._seed(randomness.SETUP, 0, 0, 0)
        distributed.configure_device(self.device)
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = self.options.cudnn_benchmark
            precision.allow_tf32(self.options.allow_tf32)

    def _open_data(self, training_set) -> None:
        opt = self.options
        if training_set is None:
            training_set = dnnlib.util.construct_class_by_name(**opt.training_set_kwargs)
        self.training_set = training_set
        self.reset_reals(0)
        shape = f"{self.training_set.image_shape}, labels {self.training_set.label_shape}"
        distributed.print0(f"Training set: {len(self.training_set)} images {shape}")
        self.class_names = class_names.of(self.training_set)
        if self.class_names:
            distributed.print0(f"Classes: {', '.join(class_names.listing(self.class_names))}")

    def reset_reals(self, start: int) -> None:
        """Begin with batch `start` of the reals."""
        opt, of_run = self.options, (self.training_set, self.device, self.options.random_seed)
        self.reals = Reals(*of_run, opt.batch_size, self.rank, opt.num_gpus, opt.data_loader_kwargs, start)
        # A loader collected in a cycle cannot tell its workers to end and waits 20 s for them.
        weakref.finalize(self, self.reals.close)

    def _build_networks(self, opened) -> None:
        opt = self.options
        load = snapshot.load_snapshot if opened is None else opened.snapshot
        self.networks = run_networks.build(
            opt, self.training_set, self.device, self.rank, None if self.resumed else load
        )
        self.G, self.D, self.G_ema = (self.networks[name] for name in ("G", "D", "G_ema"))
        self.family = families.of(self.G)
        self.own_statistics = run_networks.own_statistics(self.G, self.family)
        if not self.resumed and opt.init_kwargs is not None and "fit" in opt.init_kwargs:
            teacher = load(opt.init_kwargs["path"], opt.trust_pickle)
            self._seed(randomness.SETUP, 1, self.rank, 0)
            initial.fit_to_teacher(opt.init_kwargs["fit"], teacher, self.networks, self._draw)
        for module in (self.G, self.D):  # not G_ema, which keeps the precision of generate.py and the metrics
            precision.set_half_dtype(module, self.half_dtype)

    def _draw(self, count: int, share: slice = slice(None)) -> tuple[torch.Tensor, torch.Tensor]:
        """The `share` of `count` latents [*, Z] and labels [*, K], distributed as those of the reals."""
        z = torch.randn([count, self.G.z_dim], device=self.device)[share]
        picks = np.random.randint(len(self.training_set), size=count)[share]
        return z, self._to_device(np.stack([self.training_set.get_label(i) for i in picks]))

    def _build_loss(self, opened_arguments: dict) -> None:
        """`opened_arguments` replace the arguments of the loss that name files to open."""
        opt = self.options
        self.augment_pipe = self.ada = None
        if opt.augment_kwargs is not None and (opt.augment_p > 0 or opt.ada_target is not None):
            self.augment_pipe = dnnlib.util.construct_class_by_name(**opt.augment_kwargs).train().requires_grad_(False)
            self.augment_pipe.to(self.device).p.copy_(torch.as_tensor(opt.augment_p))
        self.loss = dnnlib.util.construct_class_by_name(
            device=self.device,
            **self.family.loss_arguments(self.G, self.D),
            augment_pipe=self.augment_pipe,
            **{**opt.loss_kwargs, **opened_arguments},
        )
        if self.rank == 0 and hasattr(self.loss, "describe_teachers"):
            for line in self.loss.describe_teachers(self.training_set, opt.batch_gpu):
                distributed.print0(line)
        self.phases = [*self.family.phases(self.G, self.D, opt), *phases_of_terms(self.loss)]
        self.times = PhaseTimes(self.device)
        first = self.phases[0]
        if first.interval != 1 or not first.fresh_reals:
            raise ValueError(f"the first phase of the family {self.family.name} must take fresh reals every iteration")
        # Reals shown to D in an iteration, by which time is counted
        self.nimg_per_iteration = opt.batch_size * sum(phase.fresh_reals for phase in self.phases)
        if self.augment_pipe is not None and opt.ada_target is not None:
            schedule = {"interval": opt.ada_interval, "kimg": opt.ada_kimg}
            self.ada = AdaController(self.augment_pipe, opt.ada_target, self.nimg_per_iteration, **schedule)

    def run(self, abort_fn=None, progress_fn=None) -> int | None:
        """Train until `total_kimg` is reached, `abort_fn` returns true, or a signal arrives, which is returned."""
        opt = self.options
        total_nimg = round(opt.total_kimg * 1000)
        self._begin()
        progress = self._progress(total_nimg)
        agreement = Agreement(self.device, self.iteration)
        self.forecast = Forecast(self.iteration, self.nimg_per_iteration, self.device)
        with stop_request() as request:
            while True:
                self.step(self.new_tick)
                self.forecast.after(self.iteration, total_nimg - self.cur_nimg)
                progress.update(min(self.cur_nimg, total_nimg) - progress.count)  # the last batch may be beyond it
                done, aborted = self.cur_nimg >= total_nimg, False
                self.new_tick = done or self.cur_tick == 0 or self._in_tick() >= opt.kimg_per_tick
                try:
                    if self.new_tick:
                        aborted = abort_fn is not None and abort_fn()
                        progress.clear()
                        self.tick(done or aborted)
                        if progress_fn is not None:
                            progress_fn(self.cur_nimg / 1000, opt.total_kimg)
                    signum, due = agreement.reach(self.iteration, request.signum, self.keeper.is_due())
                    ends = done or aborted or signum is not None
                    if ends or due or (self.new_tick and self.saved_networks):
                        self.keeper.save()
                except guards.Diverged as error:
                    self.keeper.roll_back(error)
                    agreement = Agreement(self.device, self.iteration)
                    continue
                if ends:
                    break
            self.keeper.wait()
        self.reals.close()
        self.log.close()
        progress.close()
        if done:
            signum = None
        distributed.print0("Done." if done else "Aborted." if signum is None else self.keeper.how_to_continue(signum))
        distributed.barrier()  # the first process that exits may end the others
        return signum

    def _begin(self) -> None:
        """Say what follows, and write what a new run begins with."""
        types = "in fp32"
        if "precision" in self.family.flags:
            types = precision.describe({"G": self.G, "D": self.D}, self.half_dtype)
        if self.resumed:
            distributed.print0(f"Continuing at kimg {self.cur_nimg / 1000:g}")
        elif self.rank == 0:
            self.grid.save_reals(os.path.join(self.options.run_dir, "reals.png"))
            self._save_fakes("fakes_init.png")
        self.page.announce()
        distributed.print0(f"Training for {self.options.total_kimg} kimg on {self.device} {types}...")
        if not self.resumed:
            self.log.tick_start = time.time()
            self.keeper.save()

    def _in_tick(self) -> float:
        """Thousand images since the tick began."""
        return (self.cur_nimg - self.tick_start_nimg) / 1000

    def _progress(self, total_nimg: int) -> Progress:
        stream = sys.stderr if self.rank == 0 else io.StringIO()
        interval = None if stream.isatty() else PROGRESS_INTERVAL
        return Progress(total_nimg, "training", "img", stream, interval, start=self.cur_nimg)

    def step(self, new_tick: bool) -> None:
        """One iteration: every due phase, the moving average, and the augmentation strength."""
        opt, iteration = self.options, self.iteration
        fetched = [self.reals.fetch() for phase in self.phases if phase.fresh_reals and phase.is_due(iteration)]

        def draw(phase: int) -> tuple[torch.Tensor, torch.Tensor]:
            self._seed(randomness.PHASE, iteration, phase, 0)
            return self._draw(*self._share(self.phases[phase].batch_size or opt.batch_size))

        def seed(phase: int, piece: int) -> None:
            local = (self.phases[phase].batch_size or opt.batch_size) // opt.num_gpus
            first = self.rank * math.ceil(local / opt.batch_gpu)  # number of this process's first micro-batch
            self._seed(randomness.PIECE, iteration, phase, first + piece)

        self._seed(randomness.ITERATION, iteration, 0, 0)
        if hasattr(self.loss, "begin_iteration"):  # other projects' losses only have `accumulate_gradients`
            self.loss.begin_iteration(self.cur_nimg, new_tick)
        reals = map(self.reals.to_device, fetched)
        run_due(self.phases, iteration, self.loss, reals, draw, opt.batch_gpu, seed, self.times.of)
        average_over_processes([*self.own_statistics, *getattr(self.loss, "own_statistics", ())])
        beta = ema_beta(self.nimg_per_iteration, opt.ema_kimg, self.cur_nimg, opt.ema_rampup)
        self.iteration += 1
        if self.family.average is None:
            update_ema(self.G_ema, self.G, beta)
        else:
            self.family.average(self.G_ema, self.G, beta, self.iteration, opt)
        self.cur_nimg += self.nimg_per_iteration
        if self.ada is not None:
            self.ada.update(self.iteration)

    def _share(self, batch_size: int) -> tuple[int, slice]:
        """`batch_size`, and this process's part of it."""
        local = batch_size // self.options.num_gpus
        return batch_size, slice(self.rank * local, (self.rank + 1) * local)

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()  # copies from pageable memory make the host wait for the GPU
        return tensor.to(self.device, non_blocking=True)

    def tick(self, done: bool) -> None:
        """End a tick: report, and write images, snapshot and metrics if they are due.

        Raises Diverged, before anything is written, where weights or losses are not finite any more.
        """
        opt = self.options
        augment_p = float(self.augment_pipe.p) if self.augment_pipe is not None else 0.0
        left = 0 if done else opt.total_kimg - self.cur_nimg / 1000
        self.times.report()
        self.log.tick(self.cur_tick, self.cur_nimg / 1000, self._in_tick(), augment_p, left)
        try:
            self.keeper.check(self.log.means())
        except guards.Diverged:
            self.log.flush(self.cur_nimg, self.metric_values)
            raise
        kimg = f"{self.cur_nimg // 1000:06d}"
        if self.rank == 0 and self._due(opt.image_snapshot_ticks, done):
            self._save_fakes(f"fakes{kimg}.png")
        self.saved_networks = self._due(opt.network_snapshot_ticks, done)
        if self.saved_networks:
            name = f"network-snapshot-{kimg}.pkl"
            self._save_networks(name)
            if self.cur_tick > 0 or done or opt.metrics_at_start:
                self._evaluate(name)
            if self.rank == 0:
                self._keep_snapshots()
        self.log.flush(self.cur_nimg, self.metric_values)
        if self.saved_networks:
            self.page.update(done)
        self.cur_tick += 1
        self.tick_start_nimg = self.cur_nimg
        self.log.start_tick()

    def _due(self, every: int | None, done: bool) -> bool:
        return every is not None and (done or self.cur_tick % every == 0)

    def _save_fakes(self, name: str) -> None:
        path = os.path.join(self.options.run_dir, name)
        self.grid.save_fakes(path, self.G_ema, self.options.batch_gpu, self.device)
        self.log.picture("fakes", path, self.cur_nimg)

    def _save_networks(self, name: str) -> None:
        misc.check_ddp_consistency(self.G)
        misc.check_ddp_consistency(self.D)
        if self.rank != 0:
            return
        data = {"training_set_kwargs": dict(self.options.training_set_kwargs)}
        data.update(G=self.G, D=self.D, G_ema=self.G_ema, augment_pipe=self.augment_pipe)
        if self.class_names:
            data[class_names.KEY] = self.class_names
        snapshot.save_snapshot(os.path.join(self.options.run_dir, name), data)

    def _keep_snapshots(self) -> None:
        """Delete old network snapshots if that is wanted, never the best by the first metric."""
        opt = self.options
        best = metric_main.best_snapshot(opt.run_dir, opt.metrics[0], opt.detector) if opt.metrics else None
        if best is not None:
            print(f"Best so far: {best[0]} ({opt.metrics[0]} {best[1]:.4g})")
        if opt.snapshots_keep is not None:
            snapshot.keep_newest(opt.run_dir, opt.snapshots_keep, besides=best and best[0])

    def _evaluate(self, snapshot_name: str) -> None:
        opt = self.options
        common = {
            "G": self.G_ema,
            "dataset_kwargs": opt.training_set_kwargs,
            "num_gpus": opt.num_gpus,
            "rank": self.rank,
            "device": self.device,
            "progress": metric_utils.ProgressMonitor(verbose=True),
            "detector": opt.detector,
        }
        for metric in opt.metrics:
            with in_training.failure_reported(metric, self.device):
                result = metric_main.calc_metric(metric, **common)
                if self.rank == 0:
                    path = os.path.join(opt.run_dir, snapshot_name)
                    metric_main.report_metric(result, run_dir=opt.run_dir, snapshot_pkl=path)
                self.metric_values.update(result.results)
