# SPDX-License-Identifier: Apache-2.0
"""style_mixing.py: which images, the grid, refusals."""

import functools

import pytest
import torch

import generate
import style_mixing
from tests.scripts.outcome import pixels, refused
from torch_utils import images
from training import sampling


@pytest.fixture
def run_cli(run_script):
    return functools.partial(run_script, style_mixing.main)


def mixture(G, row, col, styles, psi=1.0, c=None):
    c = torch.zeros(1, 0) if c is None else c
    row_ws, col_ws = (G.mapping(sampling.seed_to_z(seed, G.z_dim), c, truncation_psi=psi) for seed in (row, col))
    ws = [(col_ws if i in styles else row_ws)[:, i] for i in range(G.num_ws)]
    return images.to_uint8(G.synthesis(torch.stack(ws, dim=1), noise_mode="const"))[0]


@pytest.mark.parametrize(("styles", "indices"), [("0-1", {0, 1}), ("2,5", {2, 5}), ("0-5", set(range(6)))])
def test_styles_of_the_column_in_the_image_of_the_row(network, run_cli, styles, indices):
    path, G = network(resolution=16)
    status, _, err, outdir = run_cli(network=path, rows="1,2", cols="7", styles=styles, trunc=0.6)
    assert status == 0 and "Generating 5/5" in err
    names = {"1-1.png", "2-2.png", "7-7.png", "1-7.png", "2-7.png", "grid.png"}
    assert {file.name for file in outdir.iterdir()} == names
    for row, col in [(1, 1), (2, 2), (7, 7), (1, 7), (2, 7)]:
        assert torch.equal(pixels(outdir / f"{row}-{col}.png"), mixture(G, row, col, indices, psi=0.6))


def test_by_default_seven_styles_as_far_as_there_are(network, run_cli):
    """A 16x16 network has six: nobody asked for a seventh."""
    for resolution, indices in ((16, set(range(6))), (32, set(range(7)))):
        path, G = network(resolution=resolution)
        status, _, err, outdir = run_cli(network=path, rows="1", cols="7", outdir=f"out{resolution}")
        assert status == 0, err
        assert torch.equal(pixels(outdir / "1-7.png"), mixture(G, 1, 7, indices))


@pytest.mark.parametrize("channels", [1, 3])
def test_grid(network, run_cli, channels):
    path, _ = network(resolution=8, channels=channels)
    *_, outdir = run_cli(network=path, rows="1,2", cols="5-7", styles="0-1")
    cells = pixels(outdir / "grid.png").reshape(channels, 3, 8, 4, 8)
    assert not cells[:, 0, :, 0].any()
    for y, row in enumerate([None, 1, 2]):
        for x, col in enumerate([None, 5, 6, 7]):
            if (row, col) != (None, None):
                expected = pixels(outdir / f"{row or col}-{col or row}.png")
                assert torch.equal(cells[:, y, :, x], expected), (row, col)


@pytest.mark.parametrize("noise_mode", ["const", "random", "none"])
def test_the_image_of_a_single_seed_equals_that_of_generate(network, run_script, noise_mode):
    path, _ = network()
    flags = {"network": path, "trunc": 0.7, "noise_mode": noise_mode}
    *_, plain = run_script(generate.main, outdir="plain", seeds="3,4", **flags)
    *_, mixed = run_script(style_mixing.main, outdir="mixed", rows="3", cols="4,3", styles="0", **flags)
    for seed in (3, 4):
        assert (mixed / f"{seed}-{seed}.png").read_bytes() == (plain / f"seed{seed:04d}.png").read_bytes()


def test_class_of_a_conditional_network(network, run_cli):
    path, G = network(c_dim=3)
    *_, outdir = run_cli(network=path, rows="1", cols="2", styles="0-1", **{"class": 2})
    expected = mixture(G, 1, 2, {0, 1}, c=torch.tensor([[0.0, 0, 1]]))
    assert torch.equal(pixels(outdir / "1-2.png"), expected)


@pytest.mark.parametrize(
    ("c_dim", "flags", "words"),
    [
        (0, {"styles": "0-4"}, ["--styles=4", "0 to 3"]),
        (0, {"styles": "a"}, ["--styles"]),
        (0, {"rows": "9-1"}, ["--rows"]),
        (0, {"rows": "0-99999", "cols": "0-99999"}, ["--rows and --cols", "100000 and 100000 seeds", "GiB"]),
        (0, {"rows": 2**32}, ["--rows=4294967296"]),
        (0, {"cols": 2**32}, ["--cols=4294967296"]),
        (0, {"trunc": "inf"}, ["--trunc", "finite"]),
        (0, {"network": "missing.pkl"}, ["missing.pkl"]),
        (3, {}, ["--class", "0 to 2"]),
        (3, {"class": 3}, ["--class=3"]),
    ],
)
def test_refusals(network, run_cli, c_dim, flags, words):
    path, _ = network(c_dim=c_dim)
    refused(run_cli(**{"network": path, "rows": "0", "cols": "1", "styles": "0", **flags}), *words)


def test_a_network_without_w_is_refused(biggan, run_cli):
    path, _ = biggan()
    words = ("Style mixing needs a latent space w", "BigGANGenerator (biggan)")
    refused(run_cli(network=path, rows="0", cols="1", styles="0", **{"class": 1}), *words)


def test_an_outdir_that_cannot_be_made_is_refused(network, run_cli, tmp_path):
    path, _ = network()
    (tmp_path / "file").write_text("in the way")
    refused(run_cli(network=path, rows="0", cols="1", styles="0", outdir="file/out"), "--outdir")
