# SPDX-License-Identifier: Apache-2.0
import copy
import json
import os
import pickle
import subprocess
import sys

import pytest

import dnnlib
from dnnlib import files, util
from dnnlib.errors import UserError
from tests.dnnlib.disk import no_file_above
from tests.support import ROOT


def test_easy_dict_items_are_attributes():
    d = util.EasyDict(lr=1)
    d.beta = [0, 0.99]
    d["eps"] = 1e-8
    assert d == {"lr": 1, "beta": [0, 0.99], "eps": 1e-8}
    assert (d.lr, d["beta"], d.eps) == (1, [0, 0.99], 1e-8)
    del d.lr
    assert "lr" not in d
    with pytest.raises(AttributeError, match="missing"):
        _ = d.missing
    with pytest.raises(AttributeError, match="missing"):
        del d.missing
    assert json.dumps(d) == '{"beta": [0, 0.99], "eps": 1e-08}'


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_easy_dict_survives_pickle_and_deepcopy(protocol):
    d = util.EasyDict(a=util.EasyDict(b=1))
    for twin in (pickle.loads(pickle.dumps(d, protocol)), copy.deepcopy(d)):
        assert twin == d and type(twin.a) is util.EasyDict
    assert b"dnnlib.util" in pickle.dumps(d, protocol)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (8, "8s"), (59.6, "1m 00s"), (188, "3m 08s"), (7388, "2h 03m 08s"), (93784, "1d 02h 03m")],
)
def test_format_time(seconds, text):
    assert util.format_time(seconds) == text


def test_objects_by_name():
    assert util.get_obj_by_name("os.path.join") is os.path.join
    assert util.get_obj_by_name("dnnlib.util.EasyDict.fromkeys")(["a"]) == {"a": None}
    assert util.get_module_from_obj_name("dnnlib.util.EasyDict.pop") == (util, "EasyDict.pop")
    assert util.call_func_by_name("12", 8, func_name="builtins.int") == 10
    made = util.construct_class_by_name({"a": 1}, class_name="dnnlib.EasyDict", b=2)
    assert type(made) is util.EasyDict and made == {"a": 1, "b": 2}
    for name in ("nowhere.Thing", "os.path.nothing", "thing"):
        with pytest.raises(ImportError, match=name):
            util.get_obj_by_name(name)


def test_objects_by_name_show_the_import_error_of_a_broken_module(tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="no_such_dependency"):
        util.get_obj_by_name("broken_module.Thing")


def test_top_level_function_name():
    assert util.get_top_level_function_name(util.get_obj_by_name) == "dnnlib.util.get_obj_by_name"
    assert util.get_top_level_function_name(util.EasyDict) == "dnnlib.util.EasyDict"
    with pytest.raises(ValueError, match="top-level"):
        util.get_top_level_function_name(lambda: None)


def test_logger_tees_both_streams_and_restores_them(tmp_path, capsys):
    path = tmp_path / "log.txt"
    before = (sys.stdout, sys.stderr)
    with util.Logger(str(path), "w", True) as logger:
        print("to stdout")
        print("to stderr", file=sys.stderr)
        logger.write("direct\n")
        assert path.read_text() == "to stdout\nto stderr\ndirect\n"
    assert (sys.stdout, sys.stderr) == before
    print("afterwards")
    captured = capsys.readouterr()
    assert captured.out == "to stdout\ndirect\nafterwards\n" and captured.err == "to stderr\n"
    with util.Logger(str(path), "a"):
        print("more")
    assert path.read_text() == "to stdout\nto stderr\ndirect\nmore\n"


def test_logger_restores_after_an_exception_and_without_a_file(capsys):
    before = sys.stdout
    with pytest.raises(RuntimeError), util.Logger(should_flush=True):
        print("shown")
        raise RuntimeError
    assert sys.stdout is before
    assert capsys.readouterr().out == "shown\n"


def test_logger_keeps_lines_rewritten_in_place_out_of_the_file(tmp_path, capsys):
    with util.Logger(str(tmp_path / "log.txt")):
        sys.stderr.write("\r10%")
        sys.stderr.write("\r100%\n")
    assert (tmp_path / "log.txt").read_text() == "100%\n"
    assert capsys.readouterr().err == "\r10%\r100%\n"


def test_find_upwards_takes_the_nearest(tmp_path):
    for folder in ("data", "a/data", "a/b/c"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    assert files.find_upwards("data", tmp_path / "a/b/c") == str(tmp_path / "a/data")
    assert files.find_upwards("b/c", tmp_path / "a/b/c") == str(tmp_path / "a/b/c")
    assert files.find_upwards("no such file", tmp_path / "a") == "no such file"


def test_open_atomic_shows_the_file_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with util.open_atomic(path, "w") as file:
        file.write("new é")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text(encoding="utf-8") == "new é"
    with pytest.raises(KeyboardInterrupt), util.open_atomic(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_text(encoding="utf-8") == "new é"
    assert os.listdir(tmp_path) == ["file.txt"]
    with pytest.raises(FileNotFoundError), util.open_atomic(tmp_path / "none" / "file"):
        pass
    with pytest.raises(ValueError, match="mode"), util.open_atomic(path, "rb"):
        pass


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    for name in ("new", "link"):
        with pytest.raises(KeyboardInterrupt), files.folder_atomic(tmp_path / name) as folder:
            (folder / "half").touch()
            raise KeyboardInterrupt
        assert sorted(os.listdir(tmp_path)) == ["empty", "link", *["new"] * (name == "link")]
        with files.folder_atomic(tmp_path / name) as folder:
            (folder / "deep").mkdir()
            (folder / "deep" / "file").touch()
            assert not list((tmp_path / name).glob("*"))
        assert os.listdir(tmp_path / name / "deep") == ["file"]
    assert sorted(os.listdir(tmp_path)) == ["empty", "link", "new"] and (tmp_path / "link").is_symlink()
    with pytest.raises(OSError), files.folder_atomic(tmp_path / "new") as folder:
        (folder / "other").touch()
    assert os.listdir(tmp_path / "new") == ["deep"] and len(os.listdir(tmp_path)) == 3


def test_files_of_a_folder_are_replaced_one_by_one_the_last_after_the_others(tmp_path, monkeypatch):
    for name in ("a", "mine"):
        files.write_text(tmp_path / name, "old")
    with pytest.raises(ZeroDivisionError), files.folder_atomic(tmp_path, last="a") as folder:
        files.write_text(folder / "a", str(1 // 0))
    assert (tmp_path / "a").read_text() == "old"
    with files.folder_atomic(tmp_path, last="a") as folder:
        (folder / "b").mkdir()
        for name in ("a", "b/c", "d"):
            files.write_text(folder / name, "new")
        moved, replace = [], os.replace
        monkeypatch.setattr(
            os, "replace", lambda old, new: (moved.append(os.path.relpath(new, tmp_path)), replace(old, new))
        )
    assert sorted(moved[:2]) == ["b/c", "d"] and moved[2] == "a"
    assert (tmp_path / "a").read_text() == "new" and sorted(os.listdir(tmp_path)) == ["a", "b", "d", "mine"]


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
def test_open_atomic_gives_the_usual_permissions(tmp_path):
    (tmp_path / "plain").write_text("")
    with util.open_atomic(tmp_path / "atomic"):
        pass
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.skipif(os.name != "posix", reason="links are POSIX")
def test_open_atomic_replaces_the_file_behind_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "file").write_text("old")
    for link, target in (("link", "disk/file"), ("dangling", "disk/new"), ("twice", "link")):
        (tmp_path / link).symlink_to(target)
        with util.open_atomic(tmp_path / link, "w") as file:
            file.write(link)
        assert os.readlink(tmp_path / link) == target and (tmp_path / link).read_text() == link
    assert sorted(os.listdir(tmp_path / "disk")) == ["file", "new"]


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices are POSIX")
def test_open_atomic_writes_into_pipes_and_devices(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE) as reader:
        try:
            with util.open_atomic(tmp_path / "pipe", "w+b") as file:
                file.write(b"there and back")
                file.seek(6)
                file.write(b"AND")
            assert (tmp_path / "pipe").is_fifo() and reader.communicate()[0] == b"there AND back"
        finally:
            reader.kill()
    # Only behind links, and after the pipe: a fault here would replace the machine's own devices.
    for name in ("null", "full"):
        (tmp_path / name).symlink_to(f"/dev/{name}")
    with util.open_atomic(tmp_path / "null", "w") as file:
        file.write("nothing")
    if (tmp_path / "full").exists():
        no_space = pytest.raises(UserError, match="No space left")
        with no_space, files.full_disk_is_a_user_error(), util.open_atomic(tmp_path / "full") as file:
            file.write(b"x" * 100_000)
    assert sorted(os.listdir(tmp_path)) == ["full", "null", "pipe"]


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices are POSIX")
def test_only_regular_files_are_read(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    assert files.read_regular(tmp_path / "link", limit=7) == b"content"
    with pytest.raises(OSError, match="larger than"):
        files.read_regular(tmp_path / "file", limit=6)
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero"):
        with pytest.raises(OSError, match="not a regular file"):
            files.read_regular(path, limit=7)


def test_a_line_is_appended_whole_or_not_at_all(tmp_path):
    path = tmp_path / "log.jsonl"
    util.append_line(path, '{"name": "é"}')
    util.append_line(path, "x" * 50)
    before = path.read_text(encoding="utf-8")
    assert before == '{"name": "é"}\n' + "x" * 50 + "\n"
    with no_file_above(100), pytest.raises(OSError, match="File too large"):
        util.append_line(path, "y" * 60)
    assert path.read_text(encoding="utf-8") == before


def test_logger_lets_others_speak_of_a_full_disk(tmp_path, capsys):
    streams = (sys.stdout, sys.stderr)
    path = str(tmp_path / "log.txt")
    with no_file_above(100), pytest.raises(OSError, match="File too large"), util.Logger(path):
        try:
            print("x" * 200)
        finally:
            print("y" * 200, file=sys.stderr)
    assert (sys.stdout, sys.stderr) == streams
    captured = capsys.readouterr()
    assert "x" * 200 in captured.out and captured.err == "y" * 200 + "\n"


def test_listing_and_copying_files(tmp_path):
    source = tmp_path / "source"
    for name in ("a.txt", "b.pyc", "sub/c.txt", "skip/d.txt"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    listed = util.list_dir_recursively_with_ignore(str(source), ignores=["*.pyc", "skip"])
    assert [relative for _, relative in listed] == ["a.txt", os.path.join("sub", "c.txt")]
    assert all(os.path.isabs(absolute) and os.path.isfile(absolute) for absolute, _ in listed)
    with_base = util.list_dir_recursively_with_ignore(str(source), ["b*", "s*"], add_base_to_relative=True)
    assert [relative for _, relative in with_base] == [os.path.join("source", "a.txt")]
    util.copy_files_and_create_dirs([(absolute, str(tmp_path / "copy" / relative)) for absolute, relative in listed])
    assert (tmp_path / "copy" / "sub" / "c.txt").read_text() == "sub/c.txt"
    with pytest.raises(NotADirectoryError):
        util.list_dir_recursively_with_ignore(str(tmp_path / "none"))


def test_public_names_and_light_imports():
    assert dnnlib.EasyDict is util.EasyDict and dnnlib.make_cache_dir_path is util.make_cache_dir_path
    code = (
        "import sys, dnnlib, dnnlib.cli, dnnlib.progress;"
        "sys.exit(bool({'torch', 'requests', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
