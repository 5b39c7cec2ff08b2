# SPDX-License-Identifier: Apache-2.0
"""export.py --format=web: files of the folder, what the page knows, refusals."""

import json
import os
import re
import sys

import pytest
import torch

import dnnlib.cli
import export
from tests.metrics import stand_ins
from training import export as exporter
from training import export_web
from training.files.snapshot import save_snapshot


def save(path, G, **more):
    save_snapshot(path, {"G": None, "D": None, "G_ema": G, "augment_pipe": None, "training_set_kwargs": {}, **more})
    return path


def write_runtime(package):
    """A stand-in for the unpacked npm package."""
    (package / "dist").mkdir(parents=True)
    (package / "package.json").write_text(json.dumps({"version": export_web.TESTED_RUNTIME}))
    for name in export_web.RUNTIME_FILES:
        (package / "dist" / name).write_text(f"content of {name}")
    return package


@pytest.fixture
def runtime(tmp_path):
    return write_runtime(tmp_path / "package")


@pytest.fixture
def exported(monkeypatch):
    """A stand-in for the export of one network; filled with its calls (class name, settings)."""
    calls = []

    def stand_in(G, path, settings):
        calls.append((type(G).__name__, settings))
        path.write_bytes(b"x" * 1000 * len(calls))
        return {path: exporter.Difference(1.5e-6, 2e-7)}

    monkeypatch.setattr(exporter, "export", stand_in)
    return calls


@pytest.fixture
def run_cli(monkeypatch, capsys, tmp_path, runtime):
    """Write `tmp_path`/web: `run_cli(flag=value, ...)` -> (exit status, stdout, stderr)."""

    def run(**flags):
        flags = {"dest": tmp_path / "web", "format": "web", "runtime": runtime, **flags}
        monkeypatch.setattr(sys, "argv", ["export.py", *(f"--{name}={value}" for name, value in flags.items())])
        with pytest.raises(SystemExit) as exit_info:
            dnnlib.cli.run(export.main)
        return (exit_info.value.code, *capsys.readouterr())

    return run


def page_of(folder):
    """The page's text, and what it knows about its networks."""
    text = (folder / "index.html").read_text(encoding="utf-8")
    return text, json.loads(re.search(r'id="page">(.*?)</script>', text)[1])


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_folder_of_teacher_and_student(tmp_path, run_cli, exported):
    names = ["T-shirt", "</script><b>", "Bag"]
    teacher = save(tmp_path / "big.pkl", stand_ins.tiny_generator(channels=1, c_dim=3))
    student = save(tmp_path / "small.pkl", stand_ins.tiny_generator(4, 1, 3, seed=1), class_names=names)
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "notes.txt").write_text("kept")
    status, out, err = run_cli(network=student, teacher=teacher)
    assert status == 0, err
    assert "teacher.onnx: " in out and "difference to PyTorch max" in out and "python -m http.server" in out
    written = [f"runtime/{name}" for name in export_web.RUNTIME_FILES]
    expected = ["index.html", "notes.txt", "student.onnx", "teacher.onnx", *written]
    assert files(tmp_path / "web") == sorted(expected)
    for name in export_web.RUNTIME_FILES:
        assert (tmp_path / "web" / "runtime" / name).read_text() == f"content of {name}"
    text, page = page_of(tmp_path / "web")
    assert page["classes"] == names and text.count("<b>") == 0
    assert (page["truncation"], page["z_dim"], page["runtime"]) == ("psi", 4, export_web.TESTED_RUNTIME)
    assert [(n["title"], n["name"], n["resolution"]) for n in page["networks"]] == [
        ("Teacher", "big.pkl", 8),
        ("Student", "small.pkl", 4),
    ]
    sizes = [os.path.getsize(tmp_path / "web" / network["file"]) for network in page["networks"]]
    assert sizes == [network["bytes"] for network in page["networks"]] == [1000, 2000]
    assert exported == [("Generator", exporter.Settings())] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["big.pkl", "package", "small.pkl", "web"]


def test_folder_of_a_biggan(tmp_path, run_cli, exported):
    G = stand_ins.tiny_biggan()
    status, _, err = run_cli(network=save(tmp_path / "net.pkl", G), license="MIT", dtype="fp16")
    assert status == 0, err
    _, page = page_of(tmp_path / "web")
    assert page["truncation"] == "bound" and page["classes"] == ["0", "1"] and "MIT" in page["license"]
    assert exported == [("BigGANGenerator", exporter.Settings(license="MIT", dtype="fp16"))]
    assert [(n["title"], n["file"], n["dtype"]) for n in page["networks"]] == [("Generator", "generator.onnx", "fp16")]
    assert page["networks"][0]["params"] == sum(parameter.numel() for parameter in G.parameters())


def test_a_network_without_mean_w_has_no_truncation(tmp_path, run_cli, exported):
    G = stand_ins.tiny_generator()
    G.mapping.w_avg.fill_(torch.nan)
    assert run_cli(network=save(tmp_path / "net.pkl", G))[0] == 0
    assert page_of(tmp_path / "web")[1]["truncation"] is None


def test_nothing_is_replaced_before_all_is_ready(tmp_path, run_cli, exported, monkeypatch):
    network = save(tmp_path / "net.pkl", stand_ins.tiny_generator())
    assert run_cli(network=network)[0] == 0
    before = {name: (tmp_path / "web" / name).read_bytes() for name in files(tmp_path / "web")}

    def full(source, dest):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_web.shutil, "copyfile", full)
    status, _, err = run_cli(network=network)
    assert status == 2 and "--dest" in err and "No space left" in err
    assert {name: (tmp_path / "web" / name).read_bytes() for name in files(tmp_path / "web")} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.pkl", "package", "web"]


def test_the_page_names_nothing_outside_its_folder():
    text = export_web.PAGE.read_text(encoding="utf-8")
    assert not re.findall(r"https?:|//(?! )|@import|url\(", text)
    assert re.findall(r'(?:src|href)="([^"]*)"', text) == ["data:,"]
    assert "default-src 'none'" in text and text.count("__PAGE__") == 1


@pytest.mark.parametrize("kind", ["missing", "no version", "not JSON"])
def test_a_missing_runtime_is_refused(tmp_path, run_cli, runtime, exported, kind):
    network = save(tmp_path / "net.pkl", stand_ins.tiny_generator())
    if kind == "missing":
        (runtime / "dist" / export_web.RUNTIME_FILES[-1]).unlink()
    else:
        (runtime / "package.json").write_text("[]" if kind == "no version" else "{")
    status, _, err = run_cli(network=network)
    assert status == 2 and "fetch_onnxruntime_web.sh" in err and "--runtime" in err and str(runtime) in err
    assert not (tmp_path / "web").exists()


def test_another_version_of_the_runtime_is_named(tmp_path, run_cli, runtime, exported):
    (runtime / "package.json").write_text(json.dumps({"version": "1.0.0"}))
    status, _, err = run_cli(network=save(tmp_path / "net.pkl", stand_ins.tiny_generator()))
    assert status == 0 and f"tested with onnxruntime-web {export_web.TESTED_RUNTIME}, not 1.0.0" in err


def test_the_script_gets_the_tested_version(request):
    script = (request.config.rootpath / "scripts" / "fetch_onnxruntime_web.sh").read_text()
    assert f"version={export_web.TESTED_RUNTIME}\n" in script
    assert all(name in script for name in export_web.RUNTIME_FILES)


def test_bad_input_is_refused(tmp_path, run_cli, exported):
    network = save(tmp_path / "net.pkl", stand_ins.tiny_generator(c_dim=2))
    (tmp_path / "file").write_text("")
    cases = [
        ({"dest": tmp_path / "file"}, "--dest"),
        ({"dest": tmp_path / "no" / "web"}, "--dest"),
        ({"teacher": tmp_path / "no.pkl"}, "no.pkl"),
        ({"teacher": save(tmp_path / "c3.pkl", stand_ins.tiny_generator(c_dim=3))}, "c_dim"),
        ({"teacher": save(tmp_path / "biggan.pkl", stand_ins.tiny_biggan())}, "--teacher"),
        ({"network": save(tmp_path / "two.pkl", stand_ins.tiny_generator(channels=2))}, "channels"),
        ({"format": "page"}, "--format"),
    ]
    before = files(tmp_path)
    for flags, word in cases:
        status, _, err = run_cli(**{"network": network, **flags})
        assert status == 2 and word in err[err.index("Error: ") :] and "Traceback" not in err, flags
    assert files(tmp_path) == before and not exported


def test_flags_without_effect_are_refused(tmp_path, monkeypatch, capsys):
    network = save(tmp_path / "net.pkl", stand_ins.tiny_generator())
    for flags, word in ((["--format=web", "--parts"], "--parts"), (["--teacher=x"], "--teacher")):
        monkeypatch.setattr(sys, "argv", ["export.py", f"--network={network}", f"--dest={tmp_path}/x.onnx", *flags])
        with pytest.raises(SystemExit) as exit_info:
            dnnlib.cli.run(export.main)
        assert exit_info.value.code == 2 and f"{word} has no effect" in capsys.readouterr().err
