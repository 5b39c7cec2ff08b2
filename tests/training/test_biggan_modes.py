# SPDX-License-Identifier: Apache-2.0
"""A run of BigGAN samples its moving average in eval mode and never in training mode, and the trained G the other way.

Batch statistics and singular vectors move with every pass in training mode.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from dnnlib.util import UserError
from tests.metrics import stand_ins
from tests.support import make_image_zip
from torch_utils import images
from training import options, run_networks
from training.networks_biggan import BigGANDiscriminator, BigGANGenerator
from training.training_loop import Trainer, TrainingOptions


@pytest.fixture
def data(tmp_path):
    return str(make_image_zip(tmp_path / "data.zip", resolution=32, num_images=12, num_labels=3))


@pytest.fixture
def trainer(tmp_path, data, monkeypatch):
    """A run of two iterations, with images, a snapshot and a metric at each tick."""
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setitem(stand_ins.catalogue.METRICS, "is50k", stand_ins.smaller("is50k", num_fakes=20))
    flags = {"cfg": "biggan-auto", "cond": True, "ch": 2, "z_dim": 4, "batch": 4, "batch_gpu": 4, "d_steps": 1}
    made = options.build(data=data, metrics=["is50k"], device="cpu", **flags)[1]
    detector = stand_ins.save_detector(stand_ins.Inception(), tmp_path / "digits.pt")
    made |= {"total_kimg": 0.008, "kimg_per_tick": 0.004, "image_snapshot_ticks": 1, "network_snapshot_ticks": 1}
    made |= {"run_dir": str(tmp_path), "data_loader_kwargs": {"num_workers": 0}, "detector": detector}
    return Trainer(TrainingOptions(**made))


def record_calls(monkeypatch, cls):
    """List of (network, training) that each call of a network of `cls` adds to."""
    calls, forward = [], cls.forward

    def recorded(self, *args, **kwargs):
        calls.append((self, self.training))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(cls, "forward", recorded)
    return calls


def test_which_network_runs_in_which_mode(trainer, monkeypatch, tmp_path):
    calls, of_D = (record_calls(monkeypatch, cls) for cls in (BigGANGenerator, BigGANDiscriminator))
    trainer.run()
    of_G = [training for net, training in calls if net is trainer.G]
    of_average = [training for net, training in calls if net is trainer.G_ema]
    of_copies = [training for net, training in calls if net not in (trainer.G, trainer.G_ema)]
    assert len(of_G) == 4 and all(of_G)  # each of two iterations: for D's step and for G's own
    assert of_average and not any(of_average)  # images
    assert of_copies and not any(of_copies)  # metrics
    assert all(training for net, training in of_D)
    assert trainer.G.training and trainer.D.training and not trainer.G_ema.training
    assert trainer.iteration == 2 and (tmp_path / "fakes000000.png").exists()


def test_the_table_of_networks_moves_nothing(trainer):
    before = {name: tensor.clone() for name, tensor in trainer.D.state_dict().items()}
    run_networks.print_tables(trainer.networks)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.D.state_dict().items())
    assert trainer.D.training and not trainer.G_ema.training


def test_rows_of_the_sample_grid_are_classes(trainer, tmp_path):
    before = {name: tensor.clone() for name, tensor in trainer.G_ema.state_dict().items()}
    grid, G = trainer.grid, trainer.G_ema
    grid.save_fakes(str(tmp_path / "fakes.png"), G, batch=16, device=torch.device("cpu"))
    columns, rows = grid.grid_size
    labels = grid.labels.reshape(rows, columns, 3)
    assert (labels == labels[:, :1]).all() and labels[:3, 0].argmax(dim=1).unique().numel() == 3
    made = np.asarray(Image.open(tmp_path / "fakes.png"))
    with torch.no_grad():
        wanted = images.to_uint8(G(grid.latents[:columns], grid.labels[:columns]))
    row = made[:32].reshape(32, columns, 32, 3).transpose(1, 3, 0, 2).astype(int)
    assert np.abs(row - wanted.numpy()).max() <= 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in G.state_dict().items())


def test_metrics_of_w_are_refused_before_a_run(data):
    with pytest.raises(UserError, match=r"--metrics=ppl2_wend needs a latent space w.*--cfg=biggan-auto"):
        options.build(data=data, cfg="biggan-auto", cond=True, metrics=["is50k", "ppl2_wend"], device="cpu")
