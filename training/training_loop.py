# SPDX-License-Identifier: Apache-2.0
"""The training loop: set up a run, then train until `total_kimg` thousand images have been shown."""

import copy
import dataclasses
import io
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import dnnlib
from dnnlib.progress import Progress
from dnnlib.util import UserError
from metrics import detectors, metric_main, metric_utils
from torch_utils import distributed, misc, precision
from torch_utils.images import from_uint8
from torch_utils.ops import layout
from training import families, initial
from training.ada import AdaController
from training.ema import ema_beta, update_ema
from training.files import snapshot
from training.phases import phases_of_terms, run_due
from training.run_log import RunLog
from training.sample_grid import SampleGrid

PROGRESS_INTERVAL = 30.0  # seconds between progress lines inside a tick where the output is not a terminal


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """All settings of a run; the names are the keys of `training_options.json`."""

    run_dir: str = "."
    training_set_kwargs: dict = dataclasses.field(default_factory=dict)  # for the dataset's constructor
    data_loader_kwargs: dict = dataclasses.field(default_factory=dict)  # for torch.utils.data.DataLoader
    G_kwargs: dict = dataclasses.field(default_factory=dict)
    D_kwargs: dict = dataclasses.field(default_factory=dict)
    G_opt_kwargs: dict = dataclasses.field(default_factory=dict)
    D_opt_kwargs: dict = dataclasses.field(default_factory=dict)
    augment_kwargs: dict | None = None  # None: no augmentation
    loss_kwargs: dict = dataclasses.field(default_factory=dict)
    metrics: list = dataclasses.field(default_factory=list)  # names, evaluated with each network snapshot
    random_seed: int = 0
    num_gpus: int = 1  # number of processes
    batch_size: int = 4  # images per iteration, over all processes
    batch_gpu: int = 4  # images per process and forward pass; the rest accumulates
    ema_kimg: float = 10  # half-life of the generator's moving average, in thousand images
    ema_rampup: float | None = None  # bound on that half-life, as a multiple of the images seen
    G_reg_interval: int | None = 4
    D_reg_interval: int | None = 16
    augment_p: float = 0  # initial augmentation probability
    ada_target: float | None = None  # None: p is fixed
    ada_interval: int = 4  # iterations
    ada_kimg: float = 500
    total_kimg: int = 25000
    kimg_per_tick: float = 4
    image_snapshot_ticks: int | None = 50
    network_snapshot_ticks: int | None = 50
    snapshots_keep: int | None = None  # newest network snapshots to keep; None: all
    resume_pkl: str | None = None
    init_kwargs: dict | None = None  # start from a teacher: see training.initial.from_teacher
    trust_pickle: bool = False
    cudnn_benchmark: bool = True
    allow_tf32: bool = False
    device: str = "auto"
    precision: str = "auto"  # of the `num_fp16_res` highest resolutions; snapshots do not depend on it
    detector: str | None = None  # feature network for the metrics; None: the published ones
    trust_detector: bool = False


def training_loop(
    rank: int = 0,
    abort_fn: Callable[[], bool] | None = None,
    progress_fn: Callable[[float, int], Any] | None = None,
    opened=None,
    **options,
) -> None:
    """Train up to `total_kimg`. In a multi-process run every process calls this with its `rank`, in an open group.

    `options` are the fields of TrainingOptions. `abort_fn()` is called once per tick and ends the run, with a snapshot,
    if it returns true; `progress_fn(cur_nimg / 1000, total_kimg)` is called once per tick. `opened` is a
    `training.options.Opened` with files that this process has already opened; None opens them here.
    """
    trainer = Trainer(TrainingOptions(**options), rank, opened)
    trainer.run(abort_fn, progress_fn)


def _num_processors() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Trainer:
    """The state of a run: data, networks, loss, phases, counters."""

    def __init__(self, options: TrainingOptions, rank: int = 0, opened=None):
        start = time.time()
        self.options = options
        self.rank = rank
        self.device = distributed.resolve_device(options.device, rank=rank)
        self.half_dtype = precision.run_dtype(options.precision, self.device)
        if options.trust_detector and options.metrics:
            detectors.trust(options.detector)
        self.cur_nimg = self.cur_tick = self.iteration = 0
        self.metric_values: dict[str, float] = {}
        self._configure_torch()
        self._open_data(None if opened is None else opened.training_set)
        self._build_networks(opened)
        self._build_loss({} if opened is None else opened.loss_arguments())
        if opened is not None:
            opened.release()
        self.log = RunLog(options.run_dir, write=rank == 0, device=self.device, start=start)
        self.grid = SampleGrid(self.training_set, self.G.z_dim, options.random_seed) if rank == 0 else None

    def _configure_torch(self) -> None:
        seed = self.options.random_seed * self.options.num_gpus + self.rank
        np.random.seed(seed)
        torch.manual_seed(seed)
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = self.options.cudnn_benchmark
            precision.allow_tf32(self.options.allow_tf32)

    def _open_data(self, training_set) -> None:
        opt = self.options
        if training_set is None:
            training_set = dnnlib.util.construct_class_by_name(**opt.training_set_kwargs)
        self.training_set = training_set
        sampler = misc.InfiniteSampler(
            self.training_set, rank=self.rank, num_replicas=opt.num_gpus, seed=opt.random_seed
        )
        loader_kwargs = dict(opt.data_loader_kwargs)
        if self.device.type != "cuda":
            loader_kwargs["pin_memory"] = False
        # More workers than processors gain nothing, and PyTorch warns about them.
        loader_kwargs["num_workers"] = min(loader_kwargs.get("num_workers", 0), _num_processors())
        loader = torch.utils.data.DataLoader(
            dataset=self.training_set, sampler=sampler, batch_size=opt.batch_size // opt.num_gpus, **loader_kwargs
        )
        self.batches = iter(loader)
        shape = f"{self.training_set.image_shape}, labels {self.training_set.label_shape}"
        distributed.print0(f"Training set: {len(self.training_set)} images {shape}")

    def _build_networks(self, opened) -> None:
        opt, shape = self.options, initial.network_shape(self.training_set)
        self.G = dnnlib.util.construct_class_by_name(**opt.G_kwargs, **shape).train().requires_grad_(False)
        self.D = dnnlib.util.construct_class_by_name(**opt.D_kwargs, **shape).train().requires_grad_(False)
        self.family = families.of(self.G)
        layout.prepare(self.G, self.device)
        layout.prepare(self.D, self.device)
        self.G_ema = copy.deepcopy(self.G).eval()
        networks = {"G": self.G, "D": self.D, "G_ema": self.G_ema}
        load = snapshot.load_snapshot if opened is None else opened.snapshot
        if opt.resume_pkl is not None and self.rank == 0:
            distributed.print0(f"Resuming from {opt.resume_pkl}")
            initial.from_snapshot(load(opt.resume_pkl, opt.trust_pickle), networks)
        if opt.init_kwargs is not None and self.rank == 0:
            distributed.print0(f"Starting from the weights of {opt.init_kwargs['path']}")
            initial.from_teacher(opt.init_kwargs, load(opt.init_kwargs["path"], opt.trust_pickle), networks)
        for module in networks.values():  # every process starts from the weights of the first
            for tensor in misc.params_and_buffers(module):
                distributed.broadcast_(tensor)
        if opt.init_kwargs is not None and "fit" in opt.init_kwargs:
            snap = load(opt.init_kwargs["path"], opt.trust_pickle)
            initial.fit_to_teacher(opt.init_kwargs["fit"], snap, networks, self._draw)
        if self.rank == 0:
            self._print_networks()
        for module in (self.G, self.D):  # not G_ema, which keeps the precision of generate.py and the metrics
            precision.set_half_dtype(module, self.half_dtype)

    def _draw(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents [count, Z] and labels [count, K], distributed as those of the reals."""
        z = torch.randn([count, self.G.z_dim], device=self.device)
        picks = np.random.randint(len(self.training_set), size=count)
        return z, self._to_device(np.stack([self.training_set.get_label(i) for i in picks]))

    def _print_networks(self) -> None:
        z = torch.zeros([1, self.G.z_dim], device=self.device)
        c = torch.zeros([1, self.G.c_dim], device=self.device)
        # The networks draw noise, which must not change training's random sequence.
        with torch.no_grad(), torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            img = misc.print_module_summary(self.G_ema, [z, c])
            misc.print_module_summary(self.D, [img, c])

    def _build_loss(self, opened_arguments: dict) -> None:
        """`opened_arguments` replace the arguments of the loss that name files to open."""
        opt = self.options
        self.augment_pipe = self.ada = None
        if opt.augment_kwargs is not None and (opt.augment_p > 0 or opt.ada_target is not None):
            self.augment_pipe = dnnlib.util.construct_class_by_name(**opt.augment_kwargs).train().requires_grad_(False)
            self.augment_pipe.to(self.device).p.copy_(torch.as_tensor(opt.augment_p))
            if opt.ada_target is not None:
                self.ada = AdaController(
                    self.augment_pipe, opt.ada_target, opt.batch_size, interval=opt.ada_interval, kimg=opt.ada_kimg
                )
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
        first = self.phases[0]
        if first.interval != 1 or not first.fresh_reals:
            raise ValueError(f"the first phase of the family {self.family.name} must take fresh reals every iteration")

    def run(self, abort_fn=None, progress_fn=None) -> None:
        """Train until `total_kimg` is reached or `abort_fn` returns true."""
        opt = self.options
        total_nimg = round(opt.total_kimg * 1000)
        if self.rank == 0:
            self.grid.save_reals(os.path.join(opt.run_dir, "reals.png"))
            self._save_fakes("fakes_init.png")
        types = precision.describe({"G": self.G, "D": self.D}, self.half_dtype)
        distributed.print0(f"Training for {opt.total_kimg} kimg on {self.device} {types}...")
        progress = self._progress(total_nimg)
        self.log.tick_start = time.time()
        tick_start_nimg, new_tick = self.cur_nimg, True
        while True:
            self.step(new_tick)
            progress.update(opt.batch_size)
            done = self.cur_nimg >= total_nimg
            new_tick = done or self.cur_tick == 0 or self.cur_nimg >= tick_start_nimg + opt.kimg_per_tick * 1000
            if not new_tick:
                continue
            aborted = abort_fn is not None and abort_fn()
            progress.clear()
            self.tick(done or aborted, (self.cur_nimg - tick_start_nimg) / 1000)
            tick_start_nimg = self.cur_nimg
            if progress_fn is not None:
                progress_fn(self.cur_nimg / 1000, opt.total_kimg)
            if done or aborted:
                break
        self.log.close()
        progress.close()
        distributed.print0("Aborted." if aborted and not done else "Done.")

    def _progress(self, total_nimg: int) -> Progress:
        stream = sys.stderr if self.rank == 0 else io.StringIO()
        return Progress(total_nimg, "training", "img", stream, None if stream.isatty() else PROGRESS_INTERVAL)

    def step(self, new_tick: bool) -> None:
        """One iteration: every due phase, the moving average, and the augmentation strength."""
        opt = self.options
        local = opt.batch_size // opt.num_gpus
        reals = [self._next_reals() for phase in self.phases if phase.fresh_reals and phase.is_due(self.iteration)]
        all_z, all_c = self._draw(len(self.phases) * local)
        if hasattr(self.loss, "begin_iteration"):  # other projects' losses only have `accumulate_gradients`
            self.loss.begin_iteration(self.cur_nimg, new_tick)
        batches = map(self._reals_to_device, reals)
        run_due(self.phases, self.iteration, self.loss, batches, all_z.split(local), all_c.split(local), opt.batch_gpu)
        update_ema(self.G_ema, self.G, ema_beta(opt.batch_size, opt.ema_kimg, self.cur_nimg, opt.ema_rampup))
        self.cur_nimg += opt.batch_size
        self.iteration += 1
        if self.ada is not None:
            self.ada.update(self.iteration)

    def _reals_to_device(self, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        img, c = (tensor.to(self.device, non_blocking=True) for tensor in batch)
        return from_uint8(img), c

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()  # copies from pageable memory make the host wait for the GPU
        return tensor.to(self.device, non_blocking=True)

    def _next_reals(self) -> tuple[torch.Tensor, torch.Tensor]:
        try:
            return next(self.batches)
        except UserError as error:
            kind = f"{type(error).__module__}.{type(error).__qualname__}: "
            # A data-loader worker puts its traceback before the message.
            raise UserError(str(error).strip().splitlines()[-1].removeprefix(kind)) from error

    def tick(self, done: bool, tick_kimg: float) -> None:
        """End a tick: report, and write images, snapshot and metrics if they are due."""
        opt = self.options
        augment_p = float(self.augment_pipe.p) if self.augment_pipe is not None else 0.0
        self.log.tick(self.cur_tick, self.cur_nimg / 1000, tick_kimg, augment_p)
        kimg = f"{self.cur_nimg // 1000:06d}"
        if self.rank == 0 and self._due(opt.image_snapshot_ticks, done):
            self._save_fakes(f"fakes{kimg}.png")
        if self._due(opt.network_snapshot_ticks, done):
            name = f"network-snapshot-{kimg}.pkl"
            self._save_networks(name)
            self._evaluate(name)
        self.log.flush(self.cur_nimg, self.metric_values)
        self.cur_tick += 1
        self.log.start_tick()

    def _due(self, every: int | None, done: bool) -> bool:
        return every is not None and (done or self.cur_tick % every == 0)

    def _save_fakes(self, name: str) -> None:
        self.grid.save_fakes(os.path.join(self.options.run_dir, name), self.G_ema, self.options.batch_gpu, self.device)

    def _save_networks(self, name: str) -> None:
        misc.check_ddp_consistency(self.G, ignore_regex=self.family.differs_by_process)
        misc.check_ddp_consistency(self.D)
        if self.rank != 0:
            return
        data = {"training_set_kwargs": dict(self.options.training_set_kwargs)}
        data.update(G=self.G, D=self.D, G_ema=self.G_ema, augment_pipe=self.augment_pipe)
        snapshot.save_snapshot(os.path.join(self.options.run_dir, name), data)
        if self.options.snapshots_keep is not None:
            snapshot.keep_newest(self.options.run_dir, self.options.snapshots_keep)

    def _evaluate(self, snapshot_name: str) -> None:
        opt = self.options
        for metric in opt.metrics:
            result = metric_main.calc_metric(
                metric=metric,
                G=self.G_ema,
                dataset_kwargs=opt.training_set_kwargs,
                num_gpus=opt.num_gpus,
                rank=self.rank,
                device=self.device,
                progress=metric_utils.ProgressMonitor(verbose=True),
                detector=opt.detector,
            )
            if self.rank == 0:
                metric_main.report_metric(
                    result, run_dir=opt.run_dir, snapshot_pkl=os.path.join(opt.run_dir, snapshot_name)
                )
            self.metric_values.update(result.results)
