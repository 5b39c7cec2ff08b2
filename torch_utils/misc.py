# SPDX-License-Identifier: Apache-2.0
"""Small torch helpers: cached constants, shape checks, copying weights, sampling, module tables."""

import collections
import contextlib
import functools
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from dnnlib.text import aligned
from torch_utils import exchange

_CONSTANTS_KEPT = 256
_constants: collections.OrderedDict[tuple, torch.Tensor] = collections.OrderedDict()

nan_to_num = torch.nan_to_num


def constant(
    value: Any,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    memory_format: torch.memory_format | None = None,
) -> torch.Tensor:
    """A cached constant tensor, so that no use has to wait for a copy to the GPU.

    `value` (number, nested list or array) is broadcast to `shape`. Defaults: the shape of `value`, torch's default
    dtype, the CPU, contiguous. The tensor is shared: do not write to it.
    """
    array = np.asarray(value)
    shape = None if shape is None else tuple(shape)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    device = torch.device("cpu" if device is None else device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    memory_format = torch.contiguous_format if memory_format is None else memory_format

    key = (array.shape, array.dtype.str, array.tobytes(), shape, dtype, device, memory_format)
    tensor = _constants.get(key)
    if tensor is None:
        # A tensor created in inference mode could never take part in a gradient later.
        with torch.inference_mode(False):
            tensor = torch.as_tensor(array.copy(), dtype=dtype, device=device)
            if shape is not None:
                tensor = tensor.expand(shape)
            tensor = tensor.contiguous(memory_format=memory_format)
        _constants[key] = tensor
        if len(_constants) > _CONSTANTS_KEPT:
            _constants.popitem(last=False)
    else:
        _constants.move_to_end(key)
    return tensor


def symbolic_assert(condition: bool | torch.Tensor, message: str = "") -> None:
    """Raise AssertionError(message) unless `condition` is true; not evaluated while a graph is traced."""
    if not torch.jit.is_tracing() and not bool(condition):
        raise AssertionError(message)


@contextlib.contextmanager
def suppress_tracer_warnings() -> Iterator[None]:
    """Inside, torch.jit.trace does not warn about Python values taken from tensors."""
    if not torch.jit.is_tracing():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=torch.jit.TracerWarning)
        yield


def assert_shape(tensor: torch.Tensor, ref_shape: Sequence[int | None]) -> None:
    """Raise AssertionError unless `tensor` has the shape `ref_shape`, in which None stands for any size."""
    if tensor.ndim != len(ref_shape):
        raise AssertionError(
            f"expected {len(ref_shape)} dimensions {tuple(ref_shape)}, got shape {tuple(tensor.shape)}"
        )
    with suppress_tracer_warnings():
        for dim, (size, wanted) in enumerate(zip(tensor.shape, ref_shape)):
            if wanted is not None and size != wanted:
                raise AssertionError(f"expected size {wanted} in dimension {dim}, got shape {tuple(tensor.shape)}")


def profiled_function(fn: Callable) -> Callable:
    """Decorator: calls of `fn` appear in the profiler under its name."""

    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        with torch.profiler.record_function(fn.__name__):
            return fn(*args, **kwargs)

    return wrapper


class InfiniteSampler(torch.utils.data.Sampler):
    """Endless dataset indices: a walk around a shuffled order, which is reshuffled behind the current position.

    Process `rank` of `num_replicas` gets every `num_replicas`-th index. Each visited item changes places with a random
    one behind it, within a window of `window_size`, a fraction of the dataset.
    """

    def __init__(
        self,
        dataset: Any,
        rank: int = 0,
        num_replicas: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        window_size: float = 0.5,
    ):
        super().__init__()
        if len(dataset) == 0:
            raise ValueError("InfiniteSampler needs a dataset with at least one item")
        if not 0 <= rank < num_replicas:
            raise ValueError(f"rank {rank} is not one of {num_replicas} replicas")
        if not 0 <= window_size <= 1:
            raise ValueError(f"window_size {window_size} is not between 0 and 1")
        self.dataset = dataset
        self.rank = rank
        self.num_replicas = num_replicas
        self.shuffle = shuffle
        self.seed = seed
        self.window_size = window_size

    def __iter__(self) -> Iterator[int]:
        size = len(self.dataset)
        order = np.arange(size)
        rng = np.random.RandomState(self.seed)
        window = 0
        if self.shuffle:
            rng.shuffle(order)
            window = round(size * self.window_size)
        step = 0
        while True:
            here = step % size
            if step % self.num_replicas == self.rank:
                yield int(order[here])
            if window >= 2:
                behind = (here - rng.randint(window)) % size
                order[here], order[behind] = order[behind], order[here]
            step += 1


def params_and_buffers(module: torch.nn.Module) -> list[torch.Tensor]:
    """All parameters, then all buffers."""
    return [tensor for _name, tensor in named_params_and_buffers(module)]


def named_params_and_buffers(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """All (dotted name, parameter), then all (dotted name, buffer)."""
    return [*module.named_parameters(), *module.named_buffers()]


def first_nonfinite(module: torch.nn.Module, ignore_ending: str | None = None) -> str | None:
    """Dotted name of a parameter or buffer with NaN or infinite values, not ending in `ignore_ending`; else None."""
    for name, tensor in named_params_and_buffers(module):
        ignored = ignore_ending is not None and name.endswith(ignore_ending)
        if not ignored and not torch.isfinite(tensor).all():
            return name
    return None


def copy_params_and_buffers(
    src_module: torch.nn.Module, dst_module: torch.nn.Module, require_all: bool = False
) -> None:
    """Copy values by name from `src_module` into `dst_module`, whose `requires_grad` flags do not change.

    Names that only one of them has are skipped. Raises KeyError with `require_all` if the source lacks a name, and
    ValueError for a name with different shapes.
    """
    source = dict(named_params_and_buffers(src_module))
    with torch.no_grad():
        for name, target in named_params_and_buffers(dst_module):
            if name not in source:
                if require_all:
                    raise KeyError(f"{type(src_module).__name__} has no tensor named {name}")
                continue
            if source[name].shape != target.shape:
                shapes = f"{tuple(source[name].shape)} in the source, {tuple(target.shape)} in the destination"
                raise ValueError(f"{name} has different shapes: {shapes}")
            target.copy_(source[name])


@contextlib.contextmanager
def ddp_sync(module: torch.nn.Module, sync: bool) -> Iterator[None]:
    """Inside, a backward pass through a DistributedDataParallel `module` averages gradients only if `sync`."""
    if sync or not isinstance(module, torch.nn.parallel.DistributedDataParallel):
        yield
    else:
        with module.no_sync():
            yield


def check_ddp_consistency(module: torch.nn.Module, ignore_regex: str | None = None) -> None:
    """Raise RuntimeError in each process whose tensors differ from those of process 0.

    All processes must call it; with one process it does nothing. Tensors whose full name '<Class>.<dotted name>'
    matches `ignore_regex` are skipped.
    """
    if not exchange.active():
        return
    for name, tensor in named_params_and_buffers(module):
        full_name = f"{type(module).__name__}.{name}"
        if ignore_regex is not None and re.fullmatch(ignore_regex, full_name):
            continue
        ours = tensor.detach()
        theirs = ours.clone()
        with exchange.exchange():
            torch.distributed.broadcast(theirs, src=0)
        if not torch.equal(nan_to_num(ours), nan_to_num(theirs)):
            raise RuntimeError(f"{full_name} differs between process 0 and process {torch.distributed.get_rank()}")


def print_module_summary(
    module: torch.nn.Module, inputs: Sequence[Any], max_nesting: int = 3, skip_redundant: bool = True
) -> Any:
    """Run `module(*inputs)`, print a table of its submodules, and return the outputs.

    Columns: parameters and buffers (numbers of elements that belong to the row), output shape and dtype. Rows are the
    calls down to `max_nesting` levels, in order of completion. `skip_redundant` omits modules without tensors of their
    own whose outputs appear in other rows.
    """
    names = {submodule: name for name, submodule in module.named_modules()}
    calls: list[tuple[torch.nn.Module, list[torch.Tensor]]] = []

    def record(submodule: torch.nn.Module, _inputs: Any, outputs: Any) -> None:
        values = outputs if isinstance(outputs, (tuple, list)) else [outputs]
        calls.append((submodule, [value for value in values if isinstance(value, torch.Tensor)]))

    shown = [m for m, name in names.items() if name.count(".") < max_nesting]
    hooks = [m.register_forward_hook(record) for m in shown]
    try:
        outputs = module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    rows = [[type(module).__name__, "Parameters", "Buffers", "Output shape", "Datatype"]]
    rows += _summary_rows(names, calls, max_nesting, skip_redundant)
    print(f"\n{aligned(rows, rules=(1, len(rows) - 1))}\n")
    return outputs


def _summary_rows(names: dict, calls: list, max_nesting: int, skip_redundant: bool) -> list[list[str]]:
    rows = []
    counted: set[int] = set()
    outputs_shown: set[int] = set()
    totals = [0, 0]
    for submodule, outputs in calls:
        # The deepest rows include everything below them, the others only their own tensors.
        name = names[submodule]
        deepest = name.count(".") == max_nesting - 1
        held = (submodule.parameters(recurse=deepest), submodule.buffers(recurse=deepest))
        sizes = []
        for tensors in held:
            new = {id(t): t.numel() for t in tensors if id(t) not in counted}
            counted.update(new)
            sizes.append(sum(new.values()))
        fresh = [t for t in outputs if id(t) not in outputs_shown]
        outputs_shown.update(id(t) for t in outputs)
        if skip_redundant and not any(sizes) and not fresh:
            continue
        totals = [total + size for total, size in zip(totals, sizes)]
        shape, dtype = "-", "-"
        if outputs:
            shape, dtype = str(list(outputs[0].shape)), str(outputs[0].dtype).removeprefix("torch.")
        rows.append([name or "<top-level>", *(str(size or "-") for size in sizes), shape, dtype])
    rows.append(["Total", *(str(total) for total in totals), "-", "-"])
    return rows


def random_state(device: torch.device) -> torch.Tensor | None:
    """State of the random generator of `device`, for `random_replayed`; None on devices other than CPU and CUDA."""
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.get_rng_state() if device.type == "cpu" else None


@contextlib.contextmanager
def random_replayed(state: torch.Tensor, device: torch.device) -> Iterator[None]:
    """Draw again what followed `random_state`; afterwards the random generator is as if nothing had been drawn."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        if device.type == "cuda":
            torch.cuda.set_rng_state(state, device)
        else:
            torch.set_rng_state(state)
        yield


@contextlib.contextmanager
def own_random_streams(device: torch.device, seed: int) -> Iterator[None]:
    """Seed PyTorch's default generators with `seed` inside the block and restore their state afterwards."""
    backend = {"cuda": torch.cuda, "mps": torch.mps}.get(device.type)
    where = (device,) if device.type == "cuda" else ()
    cpu_state = torch.get_rng_state()
    device_state = backend.get_rng_state(*where) if backend else None
    torch.default_generator.manual_seed(seed)
    try:
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            if backend:
                backend.manual_seed(seed)
            yield
    finally:
        torch.set_rng_state(cpu_state)
        if backend:
            backend.set_rng_state(device_state, *where)
