# SPDX-License-Identifier: Apache-2.0
import os
import pickle
import time

import pytest

from dnnlib.util import UserError
from tests.compat import canary
from tests.compat.opcodes import named, pickled
from training.files import snapshot
from training.networks import Discriminator


@pytest.fixture(scope="session")
def warm(tmp_path_factory):
    """Import and compile beforehand what would otherwise look like a side effect of a file."""
    path = tmp_path_factory.mktemp("warm") / "net.pkl"
    path.write_bytes(pickle.dumps({"D": Discriminator(0, 8, 1, channel_max=2)}))
    assert snapshot.load_snapshot(path)["D"].img_resolution == 8
    path.write_bytes(pickled({"G": named("os.system")}))
    with pytest.raises(UserError), canary.at_most(1 << 29):
        snapshot.load_snapshot(path)


@pytest.fixture
def refusal(warm, tmp_path, monkeypatch):
    """A function that opens a harmful snapshot, reads `key` from it, and returns the error.

    It checks that nothing else happened: the file was opened once; half a gigabyte and a few seconds were enough; the
    message is printable and names the file.
    """
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "net.pkl"

    def run(content: bytes, key: str | None = None) -> UserError:
        path.write_bytes(content)
        started = time.process_time()
        with canary.at_most(1 << 29), canary.watched() as heard, pytest.raises(UserError) as caught:
            snap = snapshot.load_snapshot(path)
            if key is not None:
                snap[key]
        assert time.process_time() - started < 8
        assert [event for event in heard if str(path) not in event] == [] and len(heard) == 1
        assert os.listdir() == ["net.pkl"]
        assert not canary.ran_out(caught.value), "it was stopped only by a lack of memory"
        sentence = str(caught.value)
        assert str(path) in sentence and len(sentence) < 1000 and sentence.isprintable()
        return caught.value

    return run
