# SPDX-License-Identifier: Apache-2.0
import io
import threading

import pytest

from dnnlib import progress


class _Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_rate_and_eta(clock):
    stream = io.StringIO()
    with progress.Progress(100, "Training", "img", stream=stream, min_interval=0) as bar:
        clock[0] += 2
        bar.update(20)
        clock[0] += 8
        bar.update(80)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "Training 20/100 img (20%), 10 img/s, ETA 8s"
    assert lines[-1] == "Training 100/100 img (100%), 10s"


def test_plain_lines_come_now_and_then(clock):
    stream = io.StringIO()
    bar = progress.Progress(100, stream=stream)
    for _ in range(100):
        clock[0] += 0.1
        bar.update()
    assert len(stream.getvalue().splitlines()) == 1
    bar.close()
    bar.close()
    assert len(stream.getvalue().splitlines()) == 2


def test_a_terminal_line_is_rewritten_and_fully_covered(clock):
    stream = _Terminal()
    bar = progress.Progress(3, "x", stream=stream, min_interval=0)
    clock[0] += 1000
    bar.update()
    clock[0] += 1
    bar.update(2)
    bar.close()
    pieces = stream.getvalue().split("\r")[1:]
    assert len(pieces) == 3 and stream.getvalue().count("\n") == 1 and pieces[-1].endswith("\n")
    assert len(pieces[1]) >= len(pieces[0].rstrip())


def test_unknown_total_shows_the_rate_alone(clock):
    stream = io.StringIO()
    bar = progress.Progress(None, "Reading", stream=stream, min_interval=0)
    clock[0] += 4
    bar.update(2)
    assert stream.getvalue() == "Reading 2 it, 0.5 it/s\n"


def test_a_forced_line_does_not_wait_for_the_interval(clock):
    stream = io.StringIO()
    bar = progress.Progress(2, "x", stream=stream, min_interval=1000)
    bar.update()
    assert stream.getvalue() == ""
    bar.refresh(force=True)
    assert stream.getvalue().startswith("x 1/2 it")


def test_clearing_wipes_a_terminal_line(clock):
    stream = _Terminal()
    bar = progress.Progress(2, "x", stream=stream, min_interval=0)
    bar.update()
    shown = stream.getvalue().removeprefix("\r")
    bar.clear()
    assert stream.getvalue().endswith(f"\r{' ' * len(shown)}\r")


def test_standard_error_is_the_default(capsys):
    with progress.Progress(1) as bar:
        bar.update()
    assert "1/1 it (100%)" in capsys.readouterr().err


def test_a_stage_shows_its_time_while_its_block_runs(clock):
    stream, shown, threads = io.StringIO(), threading.Event(), threading.active_count()
    write = stream.write
    stream.write = lambda text: (write(text), shown.set())
    with progress.Stage("Tracing", stream=stream, min_interval=0.001):
        clock[0] += 75
        for _ in range(2):  # the first may have been on its way before
            shown.clear()
            assert shown.wait(10)
    clock[0] += 75
    lines = stream.getvalue().splitlines()
    assert "Tracing ... 1m 15s" in lines and lines[-1] == "Tracing, 1m 15s"
    assert threading.active_count() == threads


def test_a_stage_ends_with_its_block_whatever_happens(clock):
    stream = io.StringIO()
    with pytest.raises(ValueError, match="no"), progress.Stage("Tracing", stream=stream):
        raise ValueError("no")
    assert stream.getvalue() == "Tracing, 0s\n"
