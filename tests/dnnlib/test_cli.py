# SPDX-License-Identifier: Apache-2.0
import errno
import os
import subprocess
import sys

import click
import pytest

from dnnlib import cli
from dnnlib.util import UserError
from tests.support import ROOT


def _exit_status(body, *args, monkeypatch, options=()):
    command = click.command()(body)
    for option in options:
        command = option(command)
    monkeypatch.setattr("sys.argv", ["script.py", *args])
    with pytest.raises(SystemExit) as caught:
        cli.run(command)
    return caught.value.code


def test_success_exits_0(monkeypatch):
    assert _exit_status(lambda: None, monkeypatch=monkeypatch) == 0


def test_help_exits_0(monkeypatch, capsys):
    assert _exit_status(lambda: None, "--help", monkeypatch=monkeypatch) == 0
    assert "Usage" in capsys.readouterr().out


def test_user_error_is_one_sentence_and_status_2(monkeypatch, capsys):
    def body():
        raise UserError("--data=x: no such file")

    assert _exit_status(body, monkeypatch=monkeypatch) == 2
    captured = capsys.readouterr()
    assert captured.err == "Error: --data=x: no such file\n" and captured.out == ""


def _import_of(name):
    def body():
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    return body


def test_without_a_required_package_there_is_one_sentence(monkeypatch, capsys):
    assert _exit_status(_import_of("torch"), monkeypatch=monkeypatch) == 2
    message = capsys.readouterr().err
    assert message.startswith("Error: The package torch is not installed for ") and message.count("\n") == 1
    assert "source .venv/bin/activate" in message


def test_other_missing_modules_are_faults_of_the_code(monkeypatch):
    monkeypatch.setattr("sys.argv", ["script.py"])
    with pytest.raises(ModuleNotFoundError):
        cli.run(click.command()(_import_of("training.nonsense")))


SCRIPTS = sorted(path.stem for path in ROOT.glob("scripts/*.py") if "__main__" in path.read_text(encoding="utf-8"))
COMMANDS = [
    *([path.name] for path in sorted(ROOT.glob("*.py"))),
    *([f"scripts/{name}.py"] for name in SCRIPTS),
    *(["-m", f"scripts.{name}"] for name in SCRIPTS),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_each_script_says_it_without_click(command):
    """Also those under scripts/, as files and as modules: they find dnnlib either way."""
    done = subprocess.run([sys.executable, "-S", *command], cwd=ROOT, env={}, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("Error: The package click is not installed for ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    [
        ["train_detector", "--data=x.zip", "--dest=x.pt"],
        ["gpu_report", "facts", "facts.json"],
        ["precision_check", "--outdir=out"],
        ["kernel_report"],
    ],
    ids=" ".join,
)
def test_scripts_that_need_torch_say_so(command, tmp_path):
    name, *arguments = command
    path = str(ROOT / "scripts" / f"{name}.py")
    program = (
        "import runpy, sys; sys.modules['torch'] = None; "
        f"sys.argv = {[path, *arguments]!r}; runpy.run_path({path!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("Error: The package torch is not installed for ") and done.stderr.count("\n") == 1


def test_a_user_error_sends_no_commands_to_the_terminal(monkeypatch, capsys):
    def body():
        raise UserError("--data=\x1b[2J\x07: no such file" + "x" * 100_000)

    assert _exit_status(body, monkeypatch=monkeypatch) == 2
    message = capsys.readouterr().err.rstrip("\n")
    assert message.startswith(r"Error: --data=\x1b[2J\x07: no such file") and message.isprintable()
    assert len(message) < 5000


@pytest.mark.parametrize(("filename", "where"), [(None, ""), ("/out/x.png", " (/out/x.png)")])
def test_a_full_disk_is_one_sentence_and_status_2(monkeypatch, capsys, filename, where):
    def body():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), filename)

    assert _exit_status(body, monkeypatch=monkeypatch) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"Error: No space left on device{where}: make room") and captured.out == ""


def test_wrong_flag_is_status_2(monkeypatch, capsys):
    assert _exit_status(lambda: None, "--nonsense", monkeypatch=monkeypatch) == 2
    assert "--nonsense" in capsys.readouterr().err


def test_names_of_flags_may_have_underscores_for_dashes(monkeypatch, capsys):
    """Their values stay as they are, and the help lists the names with dashes only."""
    found, options = [], [click.option("--max-images", "value"), click.option("--trust-pickle", is_flag=True)]

    def body(value, trust_pickle):
        found.append((value, trust_pickle))

    for args in (["--max_images=a_b", "--trust_pickle"], ["--max_images", "a_b", "--trust-pickle"]):
        assert _exit_status(body, *args, monkeypatch=monkeypatch, options=options) == 0
    assert found == [("a_b", True)] * 2
    assert _exit_status(body, "--help", monkeypatch=monkeypatch, options=options) == 0
    text = capsys.readouterr().out
    assert "--max-images" in text and "_" not in text


def test_ctrl_c_is_status_130_and_quiet(monkeypatch, capsys):
    def body():
        raise KeyboardInterrupt

    assert _exit_status(body, monkeypatch=monkeypatch) == 130
    assert capsys.readouterr().err.strip() == ""


@pytest.mark.parametrize("error", [ZeroDivisionError(), OSError(errno.EBADF, "a file descriptor of ours")])
def test_other_exceptions_keep_their_traceback(monkeypatch, error):
    def body():
        raise error

    monkeypatch.setattr("sys.argv", ["script.py"])
    with pytest.raises(type(error)):
        cli.run(click.command()(body))


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        *((cli.BOOL, text, True) for text in ("1", "true", "True", "yes", "on")),
        *((cli.BOOL, text, False) for text in ("0", "false", "no", "OFF")),
        (cli.INT_LIST, "1,2,5-7", [1, 2, 5, 6, 7]),
        (cli.INT_LIST, "3-3, 9", [3, 9]),
        (cli.INT_LIST, "1-1000000", list(range(1, 1_000_001))),
        (cli.INT_LIST, [4, 5], [4, 5]),
        (cli.FINITE_FLOAT, "-0.5", -0.5),
        (cli.CommaList(), "fid50k_full, kid50k_full", ["fid50k_full", "kid50k_full"]),
        (cli.CommaList(), "none", []),
        (cli.CommaList(), "", []),
        (cli.CommaList(empty=False), "none", []),
        (cli.CommaList(), ["a"], ["a"]),
    ],
)
def test_flag_values(kind, text, value):
    assert kind.convert(text, None, None) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *((cli.BOOL, text) for text in ("maybe", "")),
        *((cli.INT_LIST, text) for text in ("", "a", "1,,2", "7-5", "-3", "1.5")),
        *((cli.INT_LIST, text) for text in ("9" * 5000, "0-9999999999", "0-1000000", "0-999999,7", "1" * 30)),
        *((cli.CommaList(), text) for text in (",", " , ,")),
        *((cli.CommaList(empty=False), text) for text in ("", " ", ",")),
        *((cli.FINITE_FLOAT, text) for text in ("nan", "inf", "-Infinity", "1e999", "x")),
    ],
)
def test_wrong_flag_values_name_the_flag(kind, text, monkeypatch, capsys):
    options = [click.option("--flag", type=kind)]
    assert _exit_status(lambda flag: None, f"--flag={text}", monkeypatch=monkeypatch, options=options) == 2
    message = capsys.readouterr().err
    assert "--flag" in message and len(message) < 1000
