# SPDX-License-Identifier: Apache-2.0
"""The file of results: which lines count, and the length of an arm that trains as long as another."""

import pytest

from dgl.study import plan, results
from dnnlib.util import UserError
from tests.dgl.study import toy_study


def test_lines_are_read_with_their_numbers(tmp_path):
    study = toy_study.study(tmp_path)
    first, *_, last = plan.runs_of(study)
    other = {**toy_study.line(first), "study": "another"}
    path = toy_study.write(tmp_path / "r.jsonl", [other, toy_study.line(last)])
    (found,) = results.read(path, "toy")
    assert found["line"] == 2 and results.key_of(found) == last.key
    assert results.find([found], last) is found and results.find([found], first) is None
    assert results.read(tmp_path / "none.jsonl", "toy") == []


def test_damaged_and_repeated_lines_are_refused(tmp_path):
    line = toy_study.line(plan.runs_of(toy_study.study(tmp_path))[0])
    with pytest.raises(UserError, match="lines 1 and 2 are about the same run"):
        results.read(toy_study.write(tmp_path / "twice.jsonl", [line, line]), "toy")
    path = tmp_path / "torn.jsonl"
    path.write_text('{"study": "toy", "ar')
    with pytest.raises(UserError, match="line 1 is no result"):
        results.read(path, "toy")


def test_a_result_with_other_settings_is_refused(tmp_path):
    runs = plan.runs_of(toy_study.study(tmp_path))
    lines = results.read(toy_study.write(tmp_path / "r.jsonl", [toy_study.line(run) for run in runs]), "toy")
    changed = plan.runs_of(toy_study.study(tmp_path, common={"cond": False}, kimg=80))
    with pytest.raises(UserError, match=r"line 1 .* control 1/2 seed 1 with other flags, kimg than the study"):
        results.find(lines, changed[0])


def lines_with(study, **sec_per_kimg):
    """Results of half the width for each of the given times, by arm, with seeds from 1; slower ones at the other."""
    found = []
    for arm, times in sec_per_kimg.items():
        for seed, seconds in enumerate(times, 1):
            for width, factor in (("1/2", 1), ("1/4", 100)):
                run = plan.Run(study, study.arms[arm], width, seed)
                found.append(toy_study.line(run, sec_per_kimg=seconds * factor))
    return found


def test_the_length_for_equal_time_is_in_the_ratio_of_the_medians(tmp_path):
    study = toy_study.study(tmp_path)
    timed, guided = (plan.Run(study, study.arms[name], "1/2", 1) for name in ("timed", "guided"))
    lines = lines_with(study, control=[2.0, 2.2, 90.0], guided=[2.9, 2.8, 1.0])
    # 40 kimg * 2.8 / 2.2 = 50.9, and ticks have 4 kimg
    assert results.length(study, timed, lines) == 52
    assert results.length(study, guided, lines) == 40


def test_the_length_for_equal_time_starts_from_that_of_the_other_arm(tmp_path):
    arms = {**toy_study.ARMS, "guided": {**toy_study.ARMS["guided"], "kimg": 20}}
    study = toy_study.study(tmp_path, arms=arms)
    timed = plan.Run(study, study.arms["timed"], "1/2", 1)
    assert results.length(study, timed, lines_with(study, control=[2.0], guided=[3.0])) == 32  # 30, to even ticks


@pytest.mark.parametrize("known", [{"control": [2.0]}, {"guided": [2.0]}])
def test_there_is_no_length_before_both_arms_are_timed(known, tmp_path):
    study = toy_study.study(tmp_path)
    timed = plan.Run(study, study.arms["timed"], "1/2", 1)
    missing = ({"control", "guided"} - known.keys()).pop()
    with pytest.raises(UserError, match=f"needs a finished run of {missing} at this width"):
        results.length(study, timed, lines_with(study, **known))
