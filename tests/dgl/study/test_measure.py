# SPDX-License-Identifier: Apache-2.0
"""The measures that the metrics do not have, times and snapshots of a run, and the placebo."""

import json
import math

import pytest
import torch

from dgl.study import measure
from dgl.study.placebo import write_placebo
from dnnlib.util import UserError
from tests.dgl import tiny
from tests.support import rnd
from torch_utils.misc import named_params_and_buffers
from training.files.snapshot import load_snapshot, save_snapshot


def test_the_distance_within_a_class_is_the_rms_of_pixels_averaged_over_classes():
    levels = torch.tensor([0, 51, 102, 7, 7, 200])  # classes 0, 1 and 2, of which the last has one image
    img = levels.to(torch.uint8).reshape(6, 1, 1, 1).expand(6, 1, 4, 4)
    distance = measure.intra_class_distance(img, torch.tensor([0, 0, 0, 1, 1, 2]))
    assert distance == pytest.approx(((0.2 + 0.2 + 0.4) / 3 + 0) / 2)
    assert math.isnan(measure.intra_class_distance(img[:1], torch.tensor([0])))


def stripes(count, flipped=False):
    """Noisy images of vertical (class 0) and horizontal (class 1) stripes; `flipped` exchanges the classes."""
    wave = ((torch.arange(32) // 4) % 2 * 160.0).expand(32, 32)
    classes = torch.arange(count) % 2
    img = torch.stack([wave.T if number else wave for number in classes])[:, None] + rnd("stripes", (count, 1, 32, 32))
    return img.add(20).clamp(0, 255).to(torch.uint8), 1 - classes if flipped else classes


@pytest.mark.slow
def test_the_classifier_learns_from_the_fakes_alone():
    state = torch.get_rng_state()
    fakes, reals = stripes(128), stripes(40)
    assert measure.classifier_accuracy(*fakes, *reals) > 0.9
    assert measure.classifier_accuracy(*stripes(128, flipped=True), *reals) < 0.1
    assert torch.equal(torch.get_rng_state(), state)


def test_time_of_ticks_and_of_what_came_before_the_first(tmp_path):
    def tick(kimg, seconds, total):
        values = {"Progress/kimg": kimg, "Timing/sec_per_tick": seconds, "Timing/total_sec": total}
        return json.dumps({name: {"mean": value} for name, value in values.items()})

    stats = tmp_path / "stats.jsonl"
    stats.write_text("\n".join([tick(0.05, 9, 9), tick(4.05, 8, 20), tick(8.05, 16, 40)]))
    assert measure.training_time(tmp_path) == {"kimg": 8.05, "seconds": 40, "setup": 0, "sec_per_kimg": 3}
    stats.write_text("\n".join([tick(0.25, 9, 25), tick(4.25, 8, 36), tick(8, 16, 52)]))  # 16 s before the first tick
    assert measure.training_time(tmp_path)["sec_per_kimg"] == pytest.approx(24 / 7.75 + 2, abs=1e-4)
    stats.write_text(tick(2, 9, 10))
    assert measure.training_time(tmp_path)["sec_per_kimg"] == 5


def test_the_last_snapshots_are_measured_without_that_of_the_first_iteration(tmp_path):
    (tmp_path / "00000-run").mkdir()
    for kimg in (0, 8, 16, 24):
        (tmp_path / "00000-run" / f"network-snapshot-{kimg:06d}.pkl").touch()
    assert [measure.kimg_of(path) for path in measure.last_snapshots(tmp_path, 2)] == [16, 24]
    assert [measure.kimg_of(path) for path in measure.last_snapshots(tmp_path, 9)] == [8, 16, 24]
    with pytest.raises(UserError, match="no network snapshot"):
        measure.last_snapshots(tmp_path / "other", 5)


def test_the_samples_have_a_column_per_class_and_are_the_same_each_time():
    G = tiny.make_G(1)
    grid = measure.sample_grid(G, torch.device("cpu"))
    assert grid.shape == (measure.GRID_ROWS * tiny.RESOLUTION, tiny.C_DIM * tiny.RESOLUTION, 3)
    assert (grid == measure.sample_grid(G, torch.device("cpu"))).all()
    without_labels = measure.sample_grid(tiny.make_G(1, c_dim=0), torch.device("cpu"))
    assert without_labels.shape[1] == measure.COLUMNS * tiny.RESOLUTION


def test_a_placebo_has_the_sizes_of_its_teacher_and_nothing_that_it_learned(tmp_path):
    teacher, dest = tiny.save_teacher(tmp_path), tmp_path / "placebo.pkl"
    state = torch.get_rng_state()
    write_placebo(teacher, str(dest), seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    for key in ("D", "G_ema"):
        real, made = (dict(named_params_and_buffers(load_snapshot(path)[key])) for path in (teacher, dest))
        assert {name: t.shape for name, t in real.items()} == {name: t.shape for name, t in made.items()}
        weights = [name for name in real if name.endswith("weight")]
        assert weights and not any(torch.equal(real[name], made[name]) for name in weights)
    write_placebo(teacher, str(tmp_path / "again.pkl"), seed=1)
    again = load_snapshot(tmp_path / "again.pkl")["D"].state_dict()
    assert tiny.same(again, load_snapshot(dest)["D"].state_dict())


def test_a_placebo_needs_a_discriminator(tmp_path):
    save_snapshot(tmp_path / "g.pkl", {"G_ema": tiny.make_G(1)})
    with pytest.raises(UserError, match="holds no discriminator D"):
        write_placebo(str(tmp_path / "g.pkl"), str(tmp_path / "placebo.pkl"))
