# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from dnnlib.util import UserError
from metrics import precision_recall as pr
from metrics.metric_utils import MetricOptions, ProgressMonitor
from tests import tolerances
from tests.metrics import stand_ins
from tests.support import golden_json, rnd


def _golden_features():
    return rnd("real_feat", (300, 24))[:295], (rnd("gen_feat", (280, 24)) * 1.2 + 0.3)[:275]


def test_golden_precision_and_recall():
    golden = golden_json("metrics")["pr"]
    precision, recall = pr.precision_recall(*_golden_features(), golden["nhood_size"])
    assert precision == pytest.approx(golden["precision"], rel=tolerances.PRECISION_RECALL)
    assert recall == pytest.approx(golden["recall"], rel=tolerances.PRECISION_RECALL)


def test_blocks_and_processes_do_not_change_the_result(monkeypatch):
    real, fake = _golden_features()
    whole = pr.precision_recall(real, fake, 3)
    monkeypatch.setattr(pr, "BLOCK_ELEMENTS", 7 * len(real))
    assert pr.precision_recall(real, fake, 3) == whole
    # Outside a process group nothing is summed: each of three processes fills its own rows and leaves zeros elsewhere.
    shares = [pr.neighbour_radius(real, 3, num_gpus=3, rank=rank) for rank in range(3)]
    torch.testing.assert_close(sum(shares), pr.neighbour_radius(real, 3))
    assert all((share == 0).any() for share in shares)


def test_radius_is_the_distance_to_the_kth_neighbour():
    points = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    assert pr.neighbour_radius(points, 1).tolist() == [1, 1, 2, 4]
    assert pr.neighbour_radius(points, 2).tolist() == [3, 2, 3, 6]


def test_same_sets_are_perfect_and_distant_sets_are_not():
    real = rnd("real", (30, 5))
    assert pr.precision_recall(real, real, 3) == (1, 1)
    assert pr.precision_recall(real, real + 100, 3) == (0, 0)


def test_one_mode_is_precise_but_recalls_little():
    real = torch.cat([rnd("a", (30, 5)), rnd("b", (30, 5)) + 50])
    precision, recall = pr.precision_recall(real, real[:30], 3)
    assert precision == 1 and recall == 0.5


def test_features_are_rounded_to_half_precision():
    real = torch.tensor([[0.0], [1.0]])  # nearest neighbours of each other: a radius of 1
    for at, precision in ((2.0004, 1), (2.01, 0)):
        assert pr.precision_recall(real, torch.full([2, 1], at), 1)[0] == precision


def test_too_few_images():
    with pytest.raises(UserError, match=r"more than 3 images.*--data"):
        pr.precision_recall(torch.ones(3, 2), torch.ones(9, 2), 3)


def test_compute_pr_from_images(tmp_path, monkeypatch):
    positions = []
    monkeypatch.setattr(pr, "BLOCK_ELEMENTS", 10 * 64)
    detector = stand_ins.save_detector(stand_ins.VGG16(), tmp_path / "d.pt")
    data = stand_ins.write_zip(tmp_path / "data.zip", stand_ins.make_images(30, channels=1))
    opts = MetricOptions(
        G=stand_ins.tiny_generator(),
        dataset_kwargs=stand_ins.dataset_options(data),
        device="cpu",
        detector=detector,
        progress=ProgressMonitor(progress_fn=lambda position, total: positions.append(position)),
    )
    precision, recall = pr.compute_pr(opts, max_real=200, num_gen=64, nhood_size=3)
    assert 0 <= precision <= 1 and 0 <= recall <= 1
    assert (opts.provenance.num_reals, opts.provenance.num_fakes) == (30, 64)
    # With many images the distances take long, so each block reports progress: 30 + 30 rows, then 64 + 64.
    assert positions == sorted(positions) and positions[-1] == 1000 and sum(800 < p < 1000 for p in positions) >= 15
