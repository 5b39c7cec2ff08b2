# SPDX-License-Identifier: Apache-2.0
"""The study file: its runs, their order and flags, and what is refused."""

import json

import pytest

from dgl.study import plan
from dnnlib.util import UserError
from tests.dgl.study import toy_study
from tests.support import ROOT


def test_whole_seeds_come_first_and_timed_arms_after_the_others(tmp_path):
    runs = plan.runs_of(toy_study.study(tmp_path))
    arms = ["control", "guided", "timed"]
    assert [(run.seed, run.width, run.arm.name) for run in runs] == [
        (seed, width, arm) for seed in (1, 2) for width in ("1/2", "1/4") for arm in arms
    ]


def test_runs_can_be_restricted(tmp_path):
    study = toy_study.study(tmp_path)
    runs = plan.runs_of(study, arms=["guided", "control"], widths=["1/4"], seeds=[7])
    assert [run.title for run in runs] == ["control 1/4 seed 7", "guided 1/4 seed 7"]
    with pytest.raises(UserError, match=r"--arms: .* no 'guide', only control, timed, guided"):
        plan.runs_of(study, arms=["guide"])


def test_flags_come_from_study_width_and_arm(tmp_path):
    study = toy_study.study(tmp_path)
    guided = plan.Run(study, study.arms["guided"], "1/4", 3)
    command = guided.command(60, "out")
    assert command[0] == "train.py"
    assert set(command[1:]) == {
        "--outdir=out", f"--data={study.data}", f"--dgl-teacher={tmp_path}/teacher.bin", "--keep=6", "--snap=2",
        "--cond=1", "--cbase=0.25", "--dgl-weight=0.1", "--dgl-start=15", "--kimg=60", "--seed=3",
    }  # fmt: skip
    assert str(tmp_path) not in json.dumps([guided.settings(), guided.flags(60)])


def test_an_arm_can_have_other_teachers_or_none(tmp_path):
    other = [str(tmp_path / "a.pkl"), str(tmp_path / "b.pkl")]
    arms = {"none": {"teacher": None}, "two": {"teacher": other, "kimg": 8}}
    study = toy_study.study(tmp_path, arms=arms)
    none, two = (plan.Run(study, arm, "1/2", 1) for arm in study.arms.values())
    assert not [word for word in none.command(4, "out") if "teacher" in word] and none.base_kimg == 40
    assert f"--dgl-teacher={','.join(other)}" in two.command(4, "out") and two.base_kimg == 8


def test_one_length_for_all_runs(tmp_path):
    path = tmp_path / "study.json"
    path.write_text(json.dumps(toy_study.content(tmp_path, arms={"a": {"kimg": 9}, "b": {}})))
    assert {run.base_kimg for run in plan.runs_of(plan.load(path, kimg=4))} == {4}


def test_settings_follow_the_content_of_files(tmp_path):
    run = plan.runs_of(toy_study.study(tmp_path))[0]
    before = run.settings()
    assert run.settings() == before
    (tmp_path / "teacher.bin").write_text("another")
    (tmp_path / "teacher.bin").touch()
    assert run.settings() != before
    (tmp_path / "teacher.bin").unlink()
    with pytest.raises(UserError, match=r"teacher\.bin, which cannot be read"):
        run.settings()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arm": {}}, "unknown key 'arm'"),
        ({"arms": {"a": {"flag": {}}}}, "unknown key 'flag' of the arm a"),
        ({"common": {"gama": 1}}, "common has the flag 'gama', which train.py does not have"),
        ({"arms": {"a": {"flags": {"seed": 1}}}}, "'seed', which the runner sets itself"),
        ({"widths": {"1/2": {"resume": "a.pkl"}}}, "'resume', which a study cannot have"),
        ({"arms": {"a": {"flags": {"dgl-start": {"kimg": 1}}}}}, "share_of_kimg"),
        ({"comparator": "other"}, "'other' is not one of its arms"),
        ({"seeds": []}, "at least one seed"),
        ({"num_fakes": 1500}, "a multiple of 1000"),
        ({"widths": {"1/2": {}, "1-2": {}}}, "the same folder"),
        ({"arms": {"a": {"as_long_as": "b"}}}, "no arm of fixed length"),
        ({"arms": {"a": {}, "b": {"flags": {"cond": 0}, "as_long_as": "a"}}}, "no arm with the same flags"),
        ({"arms": {"a": {}, "b": {"as_long_as": "a", "kimg": 4}}}, "both kimg and as_long_as"),
        ({"kimg": "many"}, "missing or of the wrong type"),
    ],
)
def test_what_is_refused(changes, words, tmp_path):
    with pytest.raises(UserError, match=r"the study file .*study\.json") as caught:
        toy_study.study(tmp_path, **changes)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_no_studies(tmp_path):
    for text, words in (("{", "is not JSON"), ("{}", "missing"), ("[1]", "wrong type")):
        (tmp_path / "study.json").write_text(text)
        with pytest.raises(UserError, match=words):
            plan.load(tmp_path / "study.json")
    with pytest.raises(UserError, match="no readable study file"):
        plan.load(tmp_path / "other.json")


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "evidence").glob("*.json")), ids=lambda path: path.name)
def test_the_studies_of_the_project_can_be_read(path):
    study = plan.load(path)
    assert study.comparator in study.arms and len(study.seeds) >= 8
