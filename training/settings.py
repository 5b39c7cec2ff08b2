# SPDX-License-Identifier: Apache-2.0
"""The settings of the training loop, as OPTIONS_FILE stores them."""

import dataclasses

OPTIONS_FILE = "training_options.json"  # in each run directory


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """All settings of a run; the names are the keys in OPTIONS_FILE."""

    run_dir: str = "."
    training_set_kwargs: dict = dataclasses.field(default_factory=dict)  # for the dataset's constructor
    data_loader_kwargs: dict = dataclasses.field(default_factory=dict)  # for torch.utils.data.DataLoader
    G_kwargs: dict = dataclasses.field(default_factory=dict)
    D_kwargs: dict = dataclasses.field(default_factory=dict)
    G_opt_kwargs: dict = dataclasses.field(default_factory=dict)
    D_opt_kwargs: dict = dataclasses.field(default_factory=dict)
    augment_kwargs: dict | None = None  # None: no augmentation
    loss_kwargs: dict = dataclasses.field(default_factory=dict)
    family_kwargs: dict = dataclasses.field(default_factory=dict)  # of the schedule and average of a family of its own
    metrics: list = dataclasses.field(default_factory=list)  # names, evaluated with each network snapshot
    metrics_at_start: bool = False  # also with that of tick 0
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
    snapshots_keep: int | None = None  # newest network snapshots to keep, and the best; None: all
    save_every: float | None = 15  # minutes between saved states (training.checkpoint); None: with snapshots only
    on_nan: str = "stop"  # or 'rollback': what to do where weights or losses are not finite any more
    resume_pkl: str | None = None
    init_kwargs: dict | None = None  # start from a teacher: see training.initial.from_teacher
    trust_pickle: bool = False
    cudnn_benchmark: bool = True
    allow_tf32: bool = False
    timeout: float = 30  # minutes that a process waits for the others
    device: str = "auto"
    precision: str = "auto"  # of the `num_fp16_res` highest resolutions; snapshots do not depend on it
    detector: str | None = None  # feature network for the metrics; None: the published ones
    trust_detector: bool = False
