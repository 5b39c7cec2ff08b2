# SPDX-License-Identifier: Apache-2.0
"""The file of a run's state: complete or not there, two generations, no code, sentences for what is wrong."""

import contextlib
import os
import pickle

import pytest
import torch

from dnnlib import __version__
from dnnlib.util import UserError
from training import checkpoint
from training.checkpoint import CURRENT, FORMAT, NEXT, PREVIOUS, StateFile


def save(folder, **values) -> None:
    file = StateFile(folder)
    file.save(values)
    file.wait()


def test_the_last_two_states_are_kept(tmp_path):
    assert not checkpoint.exists(tmp_path)
    for number in range(3):
        save(tmp_path, number=number)
    assert sorted(os.listdir(tmp_path)) == sorted([CURRENT, PREVIOUS])
    state = checkpoint.load(tmp_path)
    assert (state["number"], state["version"], state["format"]) == (2, __version__, FORMAT)
    assert torch.load(tmp_path / PREVIOUS, weights_only=True)["number"] == 1


def test_a_state_is_a_copy_of_the_moment_it_was_saved(tmp_path):
    weights, file = {"w": torch.zeros(3)}, StateFile(tmp_path)
    file.save({"nest": [weights, (1, "a", None)]})
    weights["w"] += 1
    file.wait()
    assert checkpoint.load(tmp_path)["nest"][0]["w"].tolist() == [0, 0, 0]
    assert checkpoint.load(tmp_path)["nest"][1] == [1, "a", None]


@pytest.mark.parametrize("renamed", [(), (CURRENT,), (CURRENT, NEXT)], ids=["none", "one", "both"])
def test_a_writer_killed_between_its_steps_leaves_a_whole_state(tmp_path, monkeypatch, renamed):
    """It writes beside the current one, renames that, then the new one: killed before each step."""
    save(tmp_path, number=0)
    real, steps = os.replace, []

    def replace(source, target):
        name = os.path.basename(source)
        if name in (CURRENT, NEXT):
            if len(steps) == len(renamed):
                raise KeyboardInterrupt
            steps.append(name)
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with contextlib.suppress(KeyboardInterrupt):
        checkpoint.write(tmp_path, {"format": FORMAT, "number": 1})
    assert tuple(steps) == renamed
    assert checkpoint.load(tmp_path)["number"] == 1


@pytest.mark.parametrize("damage", [b"", b"x" * 100, None], ids=["empty", "other", "cut"])
def test_a_damaged_state_gives_way_to_the_previous_one(tmp_path, damage):
    for number in range(2):
        save(tmp_path, number=number, weights=torch.ones(1000))
    whole = (tmp_path / CURRENT).read_bytes()
    (tmp_path / CURRENT).write_bytes(whole[:500] if damage is None else damage)
    assert checkpoint.load(tmp_path)["number"] == 0
    (tmp_path / PREVIOUS).write_bytes(b"")
    with pytest.raises(UserError, match=rf"{CURRENT} is damaged .*{PREVIOUS} is damaged"):
        checkpoint.load(tmp_path)


def test_without_a_state_there_is_nothing_to_continue(tmp_path):
    with pytest.raises(UserError, match=rf"--resume=.* cannot be continued: there is no {CURRENT}"):
        checkpoint.load(tmp_path)


def test_a_newer_state_is_refused(tmp_path):
    checkpoint.write(tmp_path, {"format": FORMAT + 1, "version": "9.9"})
    with pytest.raises(UserError, match=r"newer version \(9\.9\)"):
        checkpoint.load(tmp_path)


class Canary:
    def __reduce__(self):
        return (os.mkdir, ("canary",))


def test_no_code_runs_from_a_state(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": FORMAT, "about": Canary()}, tmp_path / CURRENT)
    for text in (None, pickle.dumps({"format": FORMAT, "about": Canary()}, protocol=2)):
        if text is not None:
            (tmp_path / CURRENT).write_bytes(text)
        for read in (checkpoint.load, checkpoint.peek):
            with pytest.raises(UserError, match="damaged"):
                read(tmp_path)
    assert not (tmp_path / "canary").exists()


def test_only_tensors_and_plain_values_are_saved(tmp_path):
    with pytest.raises(TypeError, match="no Canary"):
        StateFile(tmp_path).save({"loss": [Canary()]})


def test_what_goes_wrong_in_the_background_is_raised_when_waiting(tmp_path):
    gone = tmp_path / "run"
    gone.mkdir()
    file = StateFile(gone)
    gone.rmdir()
    file.save({"number": 1})
    with pytest.raises(FileNotFoundError):
        file.wait()
    file.wait()  # said once


def test_leftovers_of_killed_writers_are_removed(tmp_path):
    save(tmp_path, number=0)
    (tmp_path / ".network-snapshot-000000.pkl.123-abcd.tmp").write_bytes(b"x")
    checkpoint.clear_leftovers(tmp_path)
    assert os.listdir(tmp_path) == [CURRENT]
