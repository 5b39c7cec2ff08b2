# SPDX-License-Identifier: Apache-2.0
"""Thousands of damaged and manipulated network files: each opens or is refused, without side effects."""

import io
import os
import pickle
import pickletools
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from dnnlib.util import UserError
from tests.compat import canary, foreign
from tests.compat.opcodes import call, named, op, pickled, stack_named
from tests.training.files import rosinality_checkpoint, tensorflow_pickle
from torch_utils import torch_files
from training.augment import AugmentPipe
from training.files import snapshot
from training.networks import Discriminator, Generator
from training.networks_biggan import BigGANDiscriminator, BigGANGenerator

OPCODES = [ord(opcode.code) for opcode in pickletools.opcodes]
SKIPPED = {"BININT1": 1, "BININT": 1, "BININT2": 2, "BINFLOAT": 1, "NEWTRUE": 0, "NEWFALSE": 0, "NONE": 0}
SKIPPED |= {"BINUNICODE": 5, "SHORT_BINUNICODE": 2, "BINGET": 1, "LONG_BINGET": 1}  # bytes before an opcode's value
EXTREMES = [b"\x00" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\xff" * 8, b"\x00\x00\x00\x01"]
EXTREMES += [b"\x80\x00\x00\x00", (2**40).to_bytes(8, "little"), (2**31).to_bytes(4, "little")]
ATTACKS = [
    call("os.system", "touch canary"),
    call("builtins.eval", "open('canary', 'w').close()"),
    call("builtins.exec", "open('canary', 'w').close()"),
    stack_named("torch_utils.persistence", "sys.modules"),
    named("posix.system"),
    op((named("os.system"), "touch canary")),
    op("touch canary") + b"\x85R",
    op(()) + b"R",
    op({"__class__": 1, "__setstate__": 2}) + b"b",
    b"(ios\nsystem\n",
    b"\x82\x01",
    b"0" * 3,
    b"1",
    b"(",
]


def our_network() -> dict:
    shape = {"c_dim": 2, "img_resolution": 8, "img_channels": 1}
    G = Generator(z_dim=4, w_dim=4, mapping_kwargs={"num_layers": 1}, synthesis_kwargs={"channel_max": 4}, **shape)
    D = Discriminator(channel_max=4, **shape)
    pipe = AugmentPipe(xflip=1, imgfilter=0.5)
    kwargs = {"class_name": "training.dataset.ImageFolderDataset", "path": "x.zip", "resolution": 8}
    return {"G": G, "D": D, "G_ema": G, "augment_pipe": pipe, "training_set_kwargs": kwargs}


def biggan_networks() -> dict[str, torch.nn.Module]:
    shape = {"c_dim": 2, "img_resolution": 32, "img_channels": 1, "ch": 2, "attn_res": [16]}
    return {"G_ema": BigGANGenerator(z_dim=4, shared_dim=2, **shape), "D": BigGANDiscriminator(**shape)}


def without_source(content: bytes) -> bytes:
    """A snapshot with a short text as stored source, so that mutations hit other parts. Only for protocols up to 3,
    which have no frames with lengths."""
    for network in (Generator, AugmentPipe, BigGANGenerator):
        source = network._persistent_source.encode()
        assert content.count(source) <= 1
        if source not in content:
            continue
        before = content.index(source) - 4
        content = content[:before] + (1).to_bytes(4, "little") + b"#" + content[before + 4 + len(source) :]
    return content


def base_files() -> list[bytes]:
    """A snapshot of ours in three protocols, one in NVIDIA's form, one of TensorFlow, and BigGAN's in two formats."""
    data = our_network()
    stored = {}
    for key, class_name in (("G_ema", "Generator"), ("D", "Discriminator")):
        tensors = {name: foreign.tensor(value.numpy()) for name, value in data[key].state_dict().items()}
        kwargs = dict(data[key].init_kwargs)
        stored[key] = foreign.module(class_name, tensors, init_kwargs=kwargs)
    G, D = tensorflow_pickle.tiny_G(), tensorflow_pickle.tiny_D()
    tensorflow = (
        tensorflow_pickle.in_tensorflow(G, **tensorflow_pickle.G_SIZES),
        tensorflow_pickle.discriminator_in_tensorflow(D, **tensorflow_pickle.D_SIZES),
        tensorflow_pickle.in_tensorflow(G, **tensorflow_pickle.G_SIZES),
    )
    files = [without_source(pickle.dumps(data, protocol)) for protocol in (2, 3)]
    biggan = biggan_networks()
    tensors = io.BytesIO()
    torch.save(biggan["G_ema"].state_dict(), tensors, _use_new_zipfile_serialization=False)
    files += [without_source(pickle.dumps(biggan, 2)), tensors.getvalue()]
    files.append(rosinality_checkpoint.dumps(rosinality_checkpoint.from_training("r16"), zipped=False))
    return [*files, pickle.dumps(data, 4), pickled(stored), tensorflow_pickle.dumps(tensorflow, 4)]


def opcodes_of(content: bytes) -> Iterator[tuple[str, int]]:
    """Names and positions of the opcodes of a pickle, or of the five pickles that torch.save wrote to a file."""
    start = 0
    for _ in range(5 if torch_files.starts_like_torch_save(content) else 1):
        position = 0
        for opcode, _argument, position in pickletools.genops(content[start:]):
            yield opcode.name, start + position
        start += position + 1


class Mutator:
    """Makes mutants of files, as a function of the seed."""

    def __init__(self, files: list[bytes], seed: int):
        self.files = files
        self.rng = np.random.RandomState(seed)
        self.boundaries, self.values = [], []
        for content in files:
            opcodes = list(opcodes_of(content))
            self.boundaries.append([position for _name, position in opcodes])
            self.values.append([(position + SKIPPED[name]) for name, position in opcodes if name in SKIPPED])
        self.kinds: list[Callable[[bytearray, list[int]], None]] = [
            *(self.flip_bytes, self.flip_bits, self.truncate, self.insert, self.delete, self.swap_opcodes),
            *(self.splice, self.attack, self.set_number, self.repeat),
        ]

    def mutant(self) -> tuple[str, bytes]:
        """A description of the mutation, and the result."""
        index = self.rng.randint(len(self.files))
        content = bytearray(self.files[index])
        if self.rng.rand() < 0.4:
            return f"file {index}: change_values", self.change_values(content, self.values[index])
        done = []
        for _ in range(self.rng.choice([1, 1, 1, 2, 4])):
            kind = self.kinds[self.rng.randint(len(self.kinds))]
            kind(content, self.boundaries[index])
            done.append(kind.__name__)
        return f"file {index}: {', '.join(done)}", bytes(content)

    def change_values(self, content: bytearray, values: list[int]) -> bytes:
        """Change numbers and letters in an intact pickle, to test the steps after reading too."""
        for at in self.rng.choice(values, self.rng.randint(1, 4)):
            content[at] = [content[at] ^ 1, content[at] ^ 8, 0, 1, 127][self.rng.randint(5)]
        return bytes(content)

    def place(self, content: bytearray, boundaries: list[int], near: int = 12) -> int:
        """A random position, half the time near an opcode, since most bytes are elements of tensors."""
        if self.rng.rand() < 0.5:
            return self.rng.randint(len(content) + 1)
        return min(int(self.rng.choice(boundaries)) + self.rng.randint(near), len(content))

    def flip_bytes(self, content: bytearray, boundaries: list[int]) -> None:
        for _ in range(self.rng.randint(1, 6)):
            at = self.place(content, boundaries)
            content[at : at + 1] = bytes([self.rng.randint(256)])

    def flip_bits(self, content: bytearray, boundaries: list[int]) -> None:
        at = self.place(content, boundaries)
        content[at : at + 1] = bytes(byte ^ 1 << self.rng.randint(8) for byte in content[at : at + 1])

    def truncate(self, content: bytearray, boundaries: list[int]) -> None:
        del content[self.place(content, boundaries) :]

    def insert(self, content: bytearray, boundaries: list[int]) -> None:
        at = self.place(content, boundaries)
        content[at:at] = self.rng.bytes(self.rng.randint(1, 16))

    def delete(self, content: bytearray, boundaries: list[int]) -> None:
        at = self.place(content, boundaries)
        del content[at : at + self.rng.randint(1, 64)]

    def swap_opcodes(self, content: bytearray, boundaries: list[int]) -> None:
        for _ in range(self.rng.randint(1, 4)):
            at = self.place(content, boundaries, near=1)
            content[at : at + 1] = bytes([OPCODES[self.rng.randint(len(OPCODES))]])

    def splice(self, content: bytearray, boundaries: list[int]) -> None:
        index = self.rng.randint(len(self.files))
        first, last = sorted(self.rng.choice(self.boundaries[index], 2))
        at = self.place(content, boundaries, near=1)
        content[at : at + self.rng.randint(2) * (last - first)] = self.files[index][first:last]

    def attack(self, content: bytearray, boundaries: list[int]) -> None:
        at = self.place(content, boundaries, near=1)
        content[at:at] = ATTACKS[self.rng.randint(len(ATTACKS))]

    def set_number(self, content: bytearray, boundaries: list[int]) -> None:
        at = self.place(content, boundaries, near=4)
        value = EXTREMES[self.rng.randint(len(EXTREMES))]
        content[at : at + len(value)] = value

    def repeat(self, content: bytearray, boundaries: list[int]) -> None:
        at = self.place(content, boundaries, near=1)
        content[at:at] = content[at : at + self.rng.randint(1, 200)] * self.rng.randint(1, 50)


def fuzz(folder, count: int) -> tuple[int, int]:
    """Numbers of mutants, `count` in all, that opened and that were refused."""
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    path = folder / "net.pkl"
    mutator = Mutator(base_files(), seed)
    for content in mutator.files:
        path.write_bytes(content)
        snap = snapshot.load_snapshot(path)
        networks = {key for key in snap if isinstance(snap[key], torch.nn.Module)}
        assert networks >= ({"G_ema"} if torch_files.starts_like_torch_save(content) else {"G_ema", "D"})
    opened = refused = 0
    for number in range(count):
        done, content = mutator.mutant()
        what = f"seed {seed}, mutant {number}, {done}"
        path.write_bytes(content)
        started = time.process_time()
        error = None
        with canary.at_most(1 << 29), canary.watched() as heard:
            try:
                snap = snapshot.load_snapshot(path)
                opened += 1
                for key in snap:
                    snap[key]
            except UserError as refusal:
                error = refusal
                refused += 1
        assert not canary.ran_out(error), what
        assert [event for event in heard if str(path) not in event] == [] and len(heard) == 1, what
        assert time.process_time() - started < 8, what
        assert error is None or str(path) in str(error), what
        assert os.listdir(folder) == ["net.pkl"], what
    print(f"{opened} opened, {refused} refused in whole or in part")
    return opened, refused


def test_a_hundred_mutants(warm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    opened, refused = fuzz(tmp_path, 100)
    assert opened > 0 and refused > 20


@pytest.mark.slow
def test_two_thousand_mutants(warm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    opened, refused = fuzz(tmp_path, 2000)
    assert opened > 100 and refused > 500


def test_mutants_are_a_function_of_the_seed():
    files = [pickle.dumps({"a": [1, "text", b"bytes"]}, 2), pickle.dumps([1.5] * 3, 4)]
    first, second, other = (Mutator(files, seed) for seed in (1, 1, 2))
    mutants = [[mutator.mutant() for _ in range(50)] for mutator in (first, second, other)]
    assert mutants[0] == mutants[1] != mutants[2]
