# SPDX-License-Identifier: Apache-2.0
"""Teachers: open their networks, check that they fit the run, and freeze them.

Shapes: N images in a batch on one device, C image channels, H = W resolution, K label dimensions (`c_dim`).
Source: DGL-GAN (arXiv 2112.06502), section 3.
"""

import functools
import inspect
from collections.abc import Callable

import torch

from dnnlib.util import UserError
from torch_utils import distributed, misc, precision
from torch_utils.ops import layout
from training import families
from training.files.snapshot import Snapshot, load_snapshot
from training.loss import Fakes

ANOTHER = "name another pickle with --dgl-teacher"


class Teacher:
    """A frozen discriminator that guides the student's generator.

    `D` is in eval mode with `requires_grad` off, so gradients reach the images it scores and nothing else, unless
    `dgl.live` trains it. `path` and `sha256` identify its file. `G` is the generator of the same file, rebuilt on first
    access, or None if the file has none that can be read.
    """

    def __init__(self, D: torch.nn.Module, snapshot: Snapshot):
        self.D = D.eval().requires_grad_(False)
        self.path = str(snapshot.path)
        self.sha256 = snapshot.sha256
        self._snapshot: Snapshot | None = snapshot

    @functools.cached_property
    def G(self) -> torch.nn.Module | None:
        """See `generator_of`."""
        return None if self._snapshot is None else generator_of(self._snapshot)

    @property
    def group_size(self) -> int | None:
        """Images that share a statistic in D, by its own setting; None where any batch size will do."""
        return families.of(self.D).batch_group(self.D)

    def to(self, device: torch.device) -> "Teacher":
        """Moves `D` to `device`, and returns this teacher."""
        self.D = layout.prepare(self.D, device)
        return self

    def without_G(self) -> "Teacher":
        """Frees all but `D`, which is all that scores need, and returns this teacher; `G` is None from then on."""
        self._snapshot = None
        vars(self).pop("G", None)
        return self

    def match_precision(self, student_D: torch.nn.Module) -> None:
        """Runs `D` in the precision of `student_D`: as many half-precision resolutions, in the same type.

        A teacher trained in full precision takes over the activation clamp of `student_D` with half precision. A D
        whose own class supports fp16 only (from a trusted pickle) runs in fp32 where the run has another type.
        """
        dtype = precision.get_half_dtype(student_D)
        like = getattr(student_D, "init_kwargs", {})
        if not precision.is_supported(self.D) and not self._is_fp16(dtype):
            if dtype == torch.bfloat16 and precision.has_half_blocks(student_D):
                distributed.print0(f"The teacher {self.path} runs in fp32: its class does not support bf16.")
            like = {}
        self._rebuild(families.of(self.D).half_precision(type(self.D).__name__, self.D.init_kwargs, like))
        precision.set_half_dtype(self.D, dtype)

    @property
    def _device(self) -> torch.device:
        return misc.params_and_buffers(self.D)[0].device

    def _is_fp16(self, dtype: torch.dtype | None) -> bool:
        return self._device.type == "cuda" if dtype is None else dtype == torch.float16

    def _rebuild(self, kwargs: dict) -> None:
        """Build D with other constructor arguments, unless they are what it has or its class does not take them."""
        own = self.D.init_kwargs
        if kwargs == own or not kwargs.keys() - own.keys() <= inspect.signature(type(self.D)).parameters.keys():
            return
        with _rng_untouched():
            D = type(self.D)(*self.D.init_args, **kwargs)
        misc.copy_params_and_buffers(self.D, D, require_all=True)
        self.D = layout.prepare(D, self._device).eval().requires_grad_(False)

    def matching_images(self, fakes: Fakes, share_ws: bool = True) -> torch.Tensor:
        """Images [N, C, H, W] of this teacher's G for the latents and labels of `fakes`, without gradient.

        They are made from the student's own ws where these fit G, which makes sense for a student whose mapping network
        started as a copy of the teacher's. Without `share_ws`, or where they do not fit, G maps z and c itself, without
        style mixing. The noise is that of the student's images where the loss has recorded it, else constant; no random
        number is drawn. Raises UserError if the file has no usable G.
        """
        if self.G is None:
            raise UserError(f"--dgl-teacher: {self.path} holds no generator to draw images with; {ANOTHER}")
        G = layout.prepare(self.G, self._device)
        family = families.of(G)
        with torch.no_grad():
            if not family.has_w:
                return family.sample(G, fakes.z, fakes.c)
            ws = fakes.ws
            if not share_ws or ws is None or ws.shape[1:] != (G.num_ws, G.w_dim):
                ws = G.mapping(fakes.z, fakes.c)
            if fakes.noise_state is None:
                return G.synthesis(ws, noise_mode="const")
            with misc.random_replayed(fakes.noise_state, ws.device):
                return G.synthesis(ws, noise_mode="random")

    def scores(self, img: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """Scores s̄ [N, 1] of images [N, C, H, W] in [-1, 1] with labels [N, K]; higher is more real."""
        return self.D(img, c)

    def scores_and_features(self, img: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Scores as from `scores`, and the features of `scores_and_features`."""
        return scores_and_features(self.D, img, c)


def scores_and_features(
    D: torch.nn.Module, img: torch.Tensor, c: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits [N, 1] of D, and the outputs [N, C_l, H_l, W_l] of its blocks, from high to low resolution."""
    features: list[torch.Tensor] = []

    def keep(_module, _inputs, output):
        features.append(output[0] if isinstance(output, tuple) else output)

    hooks = [block.register_forward_hook(keep) for block in families.of(D).feature_blocks(D)]
    try:
        return D(img, c), features
    finally:
        for hook in hooks:
            hook.remove()


def generator_of(snapshot: Snapshot) -> torch.nn.Module | None:
    """The moving average if the file has a usable one, else the trained generator, else None.

    A generator that cannot be rebuilt, or with NaN or infinite values, is not usable. Draws no random numbers.
    """
    for key in ("G_ema", "G"):
        if key in snapshot:
            try:
                with _rng_untouched():
                    G = snapshot[key]
            except UserError:
                continue  # D alone makes a teacher; without G the size table is shorter
            if misc.first_nonfinite(G) is None:
                return G
    return None


def open_teacher(
    path: str,
    trust: bool = False,
    device: torch.device | str | None = None,
    load: Callable[[str, bool], Snapshot] = load_snapshot,
) -> Teacher:
    """Opens the network pickle at `path` (file or URL) and returns its discriminator as a frozen teacher.

    `trust` runs the code in the pickle, for --trust-pickle; `load` opens the file. Draws no random numbers from the
    global generators. Raises UserError if the file cannot be read or is unsafe, has no discriminator of a known family,
    or one with NaN or infinite weights.
    """
    try:
        with _rng_untouched():
            snapshot = load(path, trust)
            if "D" not in snapshot:
                raise UserError(f"{path} holds no discriminator D to learn from; {ANOTHER}")
            D = snapshot["D"]
    except UserError as err:
        raise UserError(f"--dgl-teacher: {err}") from err
    family = families.find(type(D).__name__)
    if family is None or type(D).__name__ not in family.discriminators or not hasattr(D, "init_kwargs"):
        raise UserError(f"--dgl-teacher: D in {path} is a {type(D).__name__}, not a known discriminator; {ANOTHER}")
    damaged = misc.first_nonfinite(D)
    if damaged is not None:
        raise UserError(f"--dgl-teacher: {damaged} of D in {path} holds NaN or infinite values; {ANOTHER}")
    teacher = Teacher(D, snapshot)
    return teacher if device is None else teacher.to(torch.device(device))


def check_teacher(teacher: Teacher, resolution: int, channels: int, c_dim: int, batch_gpu: int) -> None:
    """Raises UserError unless `teacher` can score the run's fakes.

    `resolution` (pixels), `channels` and `c_dim` are those of the data; `batch_gpu` is the number of images in one pass
    on one device, which must be a multiple of the teacher's minibatch-stddev group.
    """
    D, name = teacher.D, f"--dgl-teacher: the D of {teacher.path}"
    if D.img_resolution != resolution:
        raise UserError(
            f"{name} takes {D.img_resolution}x{D.img_resolution} images but --data has {resolution}x{resolution}; "
            f"{ANOTHER}, or resize the data with dataset_tool.py --width and --height"
        )
    if D.img_channels != channels:
        raise UserError(
            f"{name} takes {D.img_channels} channels but --data has images of {channels}; {ANOTHER} or convert the data"
        )
    if D.c_dim != c_dim:
        raise UserError(
            f"{name} takes labels of {D.c_dim} dimensions but the run has {c_dim} (0 is none); {ANOTHER}, or "
            f"{'train with --cond=1 on data with these labels' if D.c_dim > 0 else 'train with --cond=0'}"
        )
    group = teacher.group_size
    if group is not None and batch_gpu % group != 0:
        raise UserError(
            f"{name} compares images in groups of {group} (minibatch stddev) but each GPU takes {batch_gpu} at a time; "
            f"set --batch, --gpus or --batch-gpu so that this is a multiple of {group}"
        )


def _rng_untouched():
    """Building a network draws initial weights; a run must make the same draws with a teacher as without."""
    return torch.random.fork_rng(devices=[])
