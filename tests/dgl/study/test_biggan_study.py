# SPDX-License-Identifier: Apache-2.0
"""A study of BigGANs: its arms resolve to what they say, and its networks are measured like any others."""

import json

import pytest

import dnnlib.cli
import train
from dgl.student import count_macs, count_params
from dgl.study import measure, plan, results
from dgl.study.run import request
from tests.dgl import tiny_biggan
from tests.support import ROOT, make_image_zip
from training.files.snapshot import save_snapshot

STUDY = ROOT / "docs" / "evidence" / "biggan-digits.json"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The project's study with a tiny teacher and a few images."""
    folder = tmp_path_factory.mktemp("study")
    data = make_image_zip(folder / "data.zip", resolution=32, num_images=24, num_labels=3, channels=1)
    teacher = tiny_biggan.save_teacher(folder, ch=2, channels=1)
    content = json.loads(STUDY.read_text())
    files = {"data": str(data), "held_out": str(data), "teacher": teacher}
    content["common"].update({"device": "cpu", "batch": 128, "d-steps": 4})
    (folder / "study.json").write_text(json.dumps({**content, **files, "num_fakes": 1000, "snapshots": 1}))
    return plan.load(folder / "study.json")


def call_train(monkeypatch, capsys, arguments):
    """Output of train.py with the arguments of a study's command."""
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as exit_info:
        dnnlib.cli.run(train.main)
    out, err = capsys.readouterr()
    assert not exit_info.value.code, err
    return out


def test_arms_say_what_is_trained(study, monkeypatch, capsys, tmp_path):
    made = {}
    for run in plan.runs_of(study, seeds=[1]):
        out = call_train(monkeypatch, capsys, [*run.command(run.base_kimg, tmp_path), "-n"])
        options = made[run.arm.name] = json.loads(out[out.index("{") :])
        assert options["G_kwargs"]["class_name"].endswith("BigGANGenerator") and options["G_kwargs"]["ch"] == 1
    assert not any("init_kwargs" in made[name] for name in ("control", "control_time", "dgl"))
    assert (made["dgl"]["loss_kwargs"]["dgl_weight"], made["dgl"]["loss_kwargs"]["dgl_form"]) == (0.1, "hinge")
    assert made["compress"]["init_kwargs"]["fit"]["kimg"] == 16 and "fit" not in made["pruned_d"]["init_kwargs"]
    assert (made["control"]["D_kwargs"]["ch"], made["compress"]["D_kwargs"]["ch"]) == (1, 2)


@pytest.mark.slow
def test_a_network_is_measured(study, monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "CLASSIFIER_EPOCHS", 1)
    (run,) = plan.runs_of(study, arms=["compress"], seeds=[1])
    (tmp_path / results.REQUEST).write_text(json.dumps(request(run, 1)))
    run_dir = tmp_path / "00000-run"
    run_dir.mkdir()
    G = tiny_biggan.make_G(1, ch=1, channels=1)
    networks = {"G": G, "D": None, "G_ema": G, "augment_pipe": None, "training_set_kwargs": {}}
    save_snapshot(str(run_dir / "network-snapshot-000001.pkl"), networks)
    times = {"Progress/kimg": 1, "Timing/sec_per_tick": 2, "Timing/total_sec": 3}
    (run_dir / "stats.jsonl").write_text(json.dumps({name: {"mean": value} for name, value in times.items()}))
    measure.measure(tmp_path)
    line = json.loads((tmp_path / results.LINE).read_text())
    assert line["fid"][0]["value"] > 0 and line["last"]["classifier_accuracy"] >= 0
    assert line["G"] == {"params": count_params(G), "macs": count_macs(G)}
    assert (tmp_path / results.GRID).is_file()
