# SPDX-License-Identifier: Apache-2.0
"""Network snapshots: pickles of G, D, G_ema, augment_pipe and training_set_kwargs that StyleGAN2-ADA's tools open.

Reading runs no code from the file: on first access, our class of the same name is constructed from the recorded
arguments, and the tensors are copied by name.
"""

import copy
import functools
import glob
import hashlib
import math
import os
import pickle
import stat
import sys
from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np
import torch

from dnnlib.text import printable
from dnnlib.util import UserError, is_url, open_atomic, open_url
from torch_utils import distributed, misc, persistence, precision, safe_pickle, torch_files
from torch_utils.ops import layout
from torch_utils.safe_pickle import StoredObject, StoredTFNetwork
from training import families
from training.data import class_names
from training.files import biggan_pth, hf_folder, rosinality, safetensors_io, stored_code, tf_import

_KINDS = {"G": "generator", "D": "discriminator", "G_ema": "generator", "augment_pipe": "augmentation"}
NETWORK_KEYS = tuple(_KINDS)
KEYS = (*NETWORK_KEYS, "training_set_kwargs")

_LARGEST_ARGUMENT = 1 << 20
_MOST_ARGUMENTS = 32  # AugmentPipe takes 28
_SPARE_BYTES = 1 << 26
# Values of a layer for one image: of any file, twice those of the largest published network; more by its size.
_SMALL_LAYER = 1 << 26
_LAYER_VALUES_PER_BYTE = 16
_MOST_FAULTS = 20  # that one message lists
_MOST_DATASET_VALUES = 1000
_LONGEST_DATASET_VALUE = 10_000  # characters
_PICKLE_PROTOCOL = 4  # the newest that Python 3.7 reads, which StyleGAN2-ADA's code runs on


def save_snapshot(path: str | os.PathLike, data: dict[str, Any]) -> None:
    """Write a snapshot file atomically. `data` maps `KEYS` to networks (or None) and to the dataset's arguments.

    It may also have names of classes (`Snapshot.notes`). They are an entry of their own, which other programs leave
    alone, because those that read `training_set_kwargs` call the dataset's class with all of it.

    Networks are stored as copies in eval mode, on the CPU, in the standard layout, without the precision of the run,
    with requires_grad off; the networks in `data` are not changed.
    """
    stored = {}
    for key, value in data.items():
        if isinstance(value, torch.nn.Module):
            value = copy.deepcopy(value).eval().requires_grad_(False).cpu()
            precision.set_half_dtype(value, None)
            for tensor in misc.params_and_buffers(value):
                tensor.data = layout.standard(tensor.data)
        stored[key] = value
    with open_atomic(path) as file:
        pickle.dump(stored, file, protocol=_PICKLE_PROTOCOL)


def keep_newest(run_dir: str | os.PathLike, count: int, besides: str | None = None) -> None:
    """Delete all but the `count` newest network snapshots of a run directory, by the number in their names.

    The one called `besides` stays as well.
    """
    found = sorted(glob.glob(os.path.join(glob.escape(os.fspath(run_dir)), "network-snapshot-*.pkl")))
    for path in found[: max(len(found) - count, 0)]:
        if os.path.basename(path) != besides:
            os.remove(path)


class Snapshot(Mapping):
    """The entries of a snapshot file by key; networks are rebuilt on first access.

    `snapshot["D"]` is an nn.Module in eval mode, on the CPU, with requires_grad off. A key is `in` the snapshot if the
    file has it and it is not None; any other key raises UserError, and so does a network of another kind. `path` is the
    file or URL that was opened, `sha256` the hexadecimal digest of its bytes, or of all files of a checkpoint (see
    `training.files.biggan_pth.read`), `class_names` the names of classes, by number, or None.
    """

    def __init__(self, entries: dict[str, Any], path: str, sha256: str):
        self.path = path
        self.sha256 = sha256
        self._entries = {key: entries[key] for key in KEYS if entries.get(key) is not None}
        names = entries.get(class_names.KEY)
        self.class_names = class_names.checked(names, len(names)) if isinstance(names, list) else None

    @property
    def notes(self) -> dict[str, list[str]]:
        """What a copy of the file must have besides `KEYS`: the names of the classes, if it has them."""
        return {} if self.class_names is None else {class_names.KEY: self.class_names}

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def get(self, key: str, default: Any = None) -> Any:
        """`self[key]`, or `default` if the file does not have it."""
        return self[key] if key in self._entries else default

    def __getitem__(self, key: str) -> Any:
        if key not in self._entries:
            raise UserError(f"{self.path} holds no {key}; it has {', '.join(self._entries)}")
        value, name = self._entries[key], f"{key} in {self.path}"
        if isinstance(value, StoredTFNetwork):
            value = tf_import.to_stored_object(value, "Discriminator" if key == "D" else "Generator", name)
        self._check_kind(key, value, name)
        if isinstance(value, StoredObject):
            network = rebuild(value, name)
            _announce_unknown_code(self.path, stored_code.unknown(value))
            # Replacing the stored network frees its memory.
            value = self._entries[key] = network
        if not isinstance(value, torch.nn.Module if key in NETWORK_KEYS else dict):
            wanted = "a network" if key in NETWORK_KEYS else "a dict of dataset arguments"
            raise UserError(f"{name} is not {wanted}, but of type {type(value).__name__}")
        if isinstance(value, dict):
            _check_dataset_arguments(value, name)
        return value

    @staticmethod
    def _check_kind(key: str, value: Any, name: str) -> None:
        class_name = value.class_name if isinstance(value, StoredObject) else type(value).__name__
        found, wanted = families.kind_of(class_name), _KINDS.get(key)
        if found not in (None, wanted):
            raise UserError(f"{name} is a {class_name}, where a network of the kind {wanted} belongs: use another file")


def load_snapshot(url_or_path: str | os.PathLike, trust: bool = False) -> Snapshot:
    """Open a network pickle (file or URL) of this project or of NVIDIA's TensorFlow and PyTorch repositories.

    Safetensors files written by export.py open the same way, and so do StyleGAN2 checkpoints in rosinality's layout,
    those of BigGAN's public PyTorch implementation and folders of the Hugging Face Hub's layout, by one of their files
    or by their folder; the first bytes tell the formats apart. `trust` uses Python's own unpickler for pickles, which
    runs the code in the file. Raises UserError, naming the file, if it does not exist, holds no networks, is damaged,
    or asks for more than data.
    """
    path = os.fspath(url_or_path)
    local = open_url(path, return_filename=True) if is_url(path, allow_file_urls=True) else path
    try:
        if os.path.isdir(local):
            path = local = hf_folder.file_in(local) or biggan_pth.file_in(local) or local
        return _open(_read(local), path, trust, local)
    except safe_pickle.UnsafePickleError:
        raise
    except UserError as error:
        if is_url(path):
            raise UserError(f"{error}; to download it again, remove {local}") from error
        raise


def read_snapshot(file: IO[bytes]) -> Snapshot:
    """As `load_snapshot`, for an open file."""
    name = getattr(file, "name", None)
    return _open(file.read(), name if isinstance(name, str) else "the network pickle", trust=False)


def _open(data: bytes, path: str, trust: bool, local: str | None = None) -> Snapshot:
    """The snapshot in `data`, of the file `local` if there may be others beside it. Messages call it `path`."""
    if torch_files.starts_like_torch_save(data):
        return _open_tensors(data, path, local)
    sha256 = hashlib.sha256(data).hexdigest()
    if config := hf_folder.config_beside(local):
        described = _read(config)
        entries = hf_folder.read(data, described, path)
        sha256 = hashlib.sha256(described + data).hexdigest()
    elif safetensors_io.starts_like_safetensors(data):
        entries = safetensors_io.read(data, path)
    else:
        entries = _unpickle_trusted(data, path) if trust else safe_pickle.loads(data, path)
    if isinstance(entries, (tuple, list)) and any(isinstance(entry, StoredTFNetwork) for entry in entries):
        entries = tf_import.entries(entries, path)
    if not isinstance(entries, dict) or all(entries.get(key) is None for key in NETWORK_KEYS):
        raise UserError(f"{path} is not a network file: it holds none of {', '.join(NETWORK_KEYS)}")
    return Snapshot(entries, path, sha256)


def _open_tensors(data: bytes, path: str, local: str | None) -> Snapshot:
    """The snapshot in a file of torch.save, which holds tensors and no constructor arguments."""
    biggan_pth.refuse_other_files(path, local)
    found = torch_files.loads(data, path)
    if rosinality.recognises(found):
        return Snapshot(rosinality.entries(found, path), path, hashlib.sha256(data).hexdigest())
    entries, sha256 = biggan_pth.read(data, found, path, local, _read)
    return Snapshot(entries, path, sha256)


def _read(path: str) -> bytes:
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
            raise UserError(f"{path} is a device, which has no end; name a network pickle")
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, ValueError):  # ValueError: no file has such a name
        raise UserError(f"there is no network pickle {path}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name the network pickle in it") from None
    except OSError as error:
        raise UserError(f"the network pickle {path} cannot be read: {error.strerror or error}") from None


@functools.cache  # one notice per file, however often it is opened
def _announce_trust(path: str) -> None:
    if distributed.is_main():
        name = printable(path, 1000)
        print(f"WARNING: --trust-pickle: the code inside {name} is being run with your rights.", file=sys.stderr)


@functools.cache  # one notice per file
def _announce_unknown_code(path: str, difference: str | None) -> None:
    if difference is not None and distributed.is_main():
        what = f" (it {difference})" if difference else ""
        print(
            f"Notice: the networks in {printable(path, 1000)} were stored with code that this project does not know"
            f"{what} and does not run; its own forward may differ, and --trust-pickle runs it.",
            file=sys.stderr,
        )


def _unpickle_trusted(data: bytes, path: str) -> Any:
    _announce_trust(path)
    try:
        return pickle.loads(data)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{error.name}.".startswith("dnnlib.tflib."):
            return safe_pickle.loads(data, path)  # a TensorFlow pickle, whose code is not installed here
        # The file's own code can fail in any way; to the user these are all the same error.
        raise UserError(
            f"{path} cannot be loaded, even with --trust-pickle ({type(error).__name__}: {printable(str(error))})"
        ) from error


def rebuild(stored: StoredObject, name: str) -> torch.nn.Module:
    """Construct our class for a stored network from its arguments, and copy its tensors.

    Messages call the network `name`. The result is in eval mode, on the CPU, with requires_grad off, and shares no
    memory with `stored`. Raises UserError if the class is not one of ours, or if the arguments or tensors do not fit
    it; each such tensor is named with both shapes.
    """
    cls = families.class_of(stored.class_name)
    if cls is None or stored.version != persistence.VERSION:
        raise UserError(
            f"{name} is a '{printable(stored.class_name, 100)}' (format version {stored.version}), which this project "
            f"does not know; it reads {', '.join(families.stored_classes())} of format version {persistence.VERSION}; "
            "use --trust-pickle, which runs the code in it, only if you trust its author with your machine"
        )
    try:
        tensors = stored.tensors()
    except UserError as error:
        raise UserError(f"{name} cannot be read: {error}") from error
    try:
        size = _stored_bytes(tensors)
        args, kwargs = _constructor_arguments(stored, list(tensors), size)
        with Uninitialised(size):
            network = cls(*args, **kwargs)
    except UserError as error:
        raise UserError(f"{name} {error}") from error
    except Exception as error:
        # Constructor arguments from a file can fail in any way; to the user these are all the same error.
        reason = f"{type(error).__name__}: {printable(str(error), 300)}"
        raise UserError(f"{name} has arguments that {cls.__name__} does not take ({reason})") from error
    _check_tensors(tensors, network, name)
    with torch.no_grad():
        for key, target in misc.named_params_and_buffers(network):
            if key in tensors:
                target.copy_(tensors[key])
    return network.eval().requires_grad_(False)


def with_arguments(network: torch.nn.Module, name: str, **changes: Any) -> torch.nn.Module:
    """A copy of one of our networks with some constructor arguments changed and the same tensors.

    `changes` replace recorded keyword arguments; messages call the network `name`. Result and errors are those of
    `rebuild`.
    """
    tensors = dict(misc.named_params_and_buffers(network))
    kwargs = {**network.init_kwargs, **changes}
    return rebuild(StoredObject.of(type(network).__name__, kwargs, tensors, network.init_args), name)


def _stored_bytes(tensors: dict[str, torch.Tensor]) -> int:
    """Size of the storages of `tensors`; shared storages count once."""
    storages = (tensor.untyped_storage() for tensor in tensors.values())
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


class Uninitialised(torch.overrides.TorchFunctionMode):
    """Construct modules without drawing initial values, up to a total size a few times `stored` bytes.

    The global random state does not change. Raises ValueError before allocating a tensor that no intact file of that
    size needs; the factor is generous so that smaller mismatches are reported tensor by tensor. Infinity: any size.
    """

    _random = (torch.rand, torch.randn)
    _by_size = (torch.empty, torch.full, torch.ones, torch.zeros, *_random)

    def __init__(self, stored: float):
        super().__init__()
        self.budget = 4 * stored + _SPARE_BYTES

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Intercept the functions of torch that allocate tensors."""
        if func in self._by_size:
            size = args[0] if isinstance(args[0], (tuple, list)) else args
            self.budget -= math.prod(size) * ((kwargs or {}).get("dtype") or torch.get_default_dtype()).itemsize
            if self.budget < 0:
                raise ValueError("they make a network much larger than the one stored")
            func = torch.empty if func in self._random else func
        elif func is torch.linalg.qr:  # of initial values, which takes most of the time for wide networks
            matrix = args[0]
            least = min(matrix.shape)
            return matrix[:, :least], matrix.new_empty([1]).expand(least, matrix.shape[1])
        return func(*args, **(kwargs or {}))


def _check_tensors(tensors: dict[str, torch.Tensor], network: torch.nn.Module, name: str) -> None:
    ours, derived = dict(misc.named_params_and_buffers(network)), families.of(network).derived_tensors
    faults = [f"{key} {list(tensors[key].shape)} is unknown here" for key in tensors.keys() - ours.keys()]
    missing = [key for key in ours.keys() - tensors.keys() if not key.endswith(derived)]
    faults += [f"{key} {list(ours[key].shape)} is missing there" for key in missing]
    for key in tensors.keys() & ours.keys():
        if tensors[key].shape != ours[key].shape:
            faults.append(f"{key} is {list(tensors[key].shape)} there and {list(ours[key].shape)} here")
        elif tensors[key].is_complex():
            faults.append(f"{key} is complex there and {ours[key].dtype} here")
    if faults:
        listed = "; ".join(printable(fault) for fault in sorted(faults)[:_MOST_FAULTS])
        more = f"; and {len(faults) - _MOST_FAULTS} more" if len(faults) > _MOST_FAULTS else ""
        raise UserError(f"{name} does not fit {type(network).__name__}: {listed}{more}")


def _check_dataset_arguments(value: dict[str, Any], name: str) -> None:
    """Raises UserError for values that could not be copied or printed in moderate time: lists of the same list."""
    waiting, count = [value], 0
    while waiting:
        item = waiting.pop()
        count += 1
        if isinstance(item, dict):
            item = [*item, *item.values()]
        if isinstance(item, (list, tuple, set, frozenset)):
            waiting.extend(item)
        too_long = isinstance(item, (str, bytes)) and len(item) > _LONGEST_DATASET_VALUE
        if too_long or count + len(waiting) > _MOST_DATASET_VALUES:
            raise UserError(f"{name} is too long for a description of a dataset: the file is damaged or malicious")


def _constructor_arguments(stored: StoredObject, tensor_names: list[str], size: int) -> tuple[tuple, dict[str, Any]]:
    """Recorded arguments translated for our constructors.

    Raises ValueError for values that no constructor takes, or layers out of proportion to the `size` of the tensors.
    """
    if len(stored.init_args) > _MOST_ARGUMENTS:
        raise ValueError(f"{len(stored.init_args)} arguments")
    args = tuple(_plain(value, len(tensor_names), 1) for value in stored.init_args)
    kwargs = _plain(dict(stored.init_kwargs), len(tensor_names))
    family = families.find(stored.class_name)
    if family is None:
        return args, kwargs
    args, kwargs = family.stored_arguments(stored.class_name, stored.module_src, args, kwargs, tensor_names)
    most = max(_SMALL_LAYER, _LAYER_VALUES_PER_BYTE * size)
    if family.largest_layer is not None and (found := family.largest_layer(stored.class_name, kwargs)) > most:
        raise ValueError(f"a layer of {found} values for one image, although the file is small")
    return args, kwargs


def _plain(value: Any, most_layers: int, depth: int = 0) -> Any:
    """A copy of a constructor argument: bounded numbers, short text, short flat lists of these, two levels of dicts.

    Arguments come from an untrusted file, and even a billion empty layers would take time and memory.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, (list, tuple, dict)) and len(value) > _MOST_ARGUMENTS:
        raise ValueError(f"{len(value)} values for one argument")
    if isinstance(value, int) and abs(value) <= _LARGEST_ARGUMENT:
        return value
    if isinstance(value, str) and len(value) <= 100:
        return value
    if isinstance(value, (list, tuple)) and depth < 3 and not any(isinstance(v, (list, tuple, dict)) for v in value):
        return type(value)(_plain(item, most_layers, depth + 1) for item in value)
    if isinstance(value, dict) and depth < 2:
        if isinstance(value.get("num_layers"), int) and value["num_layers"] > most_layers:
            raise ValueError("num_layers is larger than the number of stored tensors")
        return {str(key): _plain(item, most_layers, depth + 1) for key, item in value.items()}
    raise ValueError(f"an argument of type {type(value).__name__} is too large or not plain")
