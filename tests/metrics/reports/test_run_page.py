# SPDX-License-Identifier: Apache-2.0
"""The page of a run: its content, who writes it, and what it costs."""

import re
import time

from metrics.reports import curves
from metrics.reports.run_page import RunPage, render
from tests.dnnlib.test_pages import Balance
from tests.metrics.reports.test_curves import metric_line, stats_line
from training.settings import TrainingOptions


def options(tmp_path, **changes) -> TrainingOptions:
    run_dir = tmp_path / "00000-a<b"
    run_dir.mkdir(exist_ok=True)
    return TrainingOptions(run_dir=str(run_dir), total_kimg=16, metrics=["fid1k_full"], **changes)


def fill(opt: TrainingOptions, tmp_path) -> None:
    run_dir = tmp_path / "00000-a<b"
    lines = [stats_line(0), stats_line(8, Loss__G__loss=1, Timing__total_sec=80, Timing__sec_per_kimg=10)]
    (run_dir / "stats.jsonl").write_text("\n".join(lines))
    (run_dir / "metric-fid1k_full.jsonl").write_text(f"{metric_line(4, 30.5)}\n{metric_line(8, 20.25)}\n")
    for name in ("network-snapshot-000004.pkl", "network-snapshot-000008.pkl", "fakes000004.png", "fakes000008.png"):
        (run_dir / name).touch()


def test_the_page_says_how_far_the_run_is(tmp_path):
    opt = options(tmp_path)
    fill(opt, tmp_path)
    text = render(opt, done=False)
    Balance(text)
    assert "00000-a&lt;b" in text and "<b" not in text.replace("<body", "").replace("<b>", "")
    assert "8 of 16 kimg, 1m 20s so far, 10 sec/kimg, about 1m 20s more" in text
    assert "Best snapshot: network-snapshot-000008.pkl, fid1k_full 20.25." in text
    assert 'src="fakes000008.png"' in text and "fakes000004" not in text
    assert "&quot;total_kimg&quot;: 16" in text
    assert set(re.findall(r'src="(?!data:)([^"]*)"', text)) == {"fakes000008.png"}


def test_only_the_page_of_an_unfinished_run_opens_itself_again(tmp_path):
    opt = options(tmp_path)
    assert "http-equiv" in render(opt, done=False)
    ended = render(opt, done=True)
    assert "http-equiv" not in ended and "more" not in ended.split("<h2>")[0].split("</style>")[1]


def test_only_one_process_writes(tmp_path, capsys):
    opt = options(tmp_path)
    RunPage(opt, write=False).announce()
    assert list((tmp_path / "00000-a<b").iterdir()) == [] and capsys.readouterr().out == ""
    page = RunPage(opt, write=True)
    page.announce()
    assert capsys.readouterr().out == f"Progress page: {page.path}\n"
    assert [path.name for path in (tmp_path / "00000-a<b").iterdir()] == ["report.html"]


def test_the_page_of_a_long_run_is_made_quickly(tmp_path):
    opt = options(tmp_path)
    names = {f"Loss/more/{i}": float(i) for i in range(40)}
    with open(f"{opt.run_dir}/stats.jsonl", "w", encoding="utf-8") as file:
        file.writelines(f"{stats_line(4 * i, Loss__G__loss=i % 7, **names)}\n" for i in range(1000))
    start = time.process_time()
    text = render(opt, done=False)
    assert time.process_time() - start < 1
    assert text.count("data:image/png") == 1 and len(text) < 300_000
    assert curves.read(opt.run_dir).last["Progress/kimg"] == 3996
