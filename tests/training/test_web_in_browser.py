# SPDX-License-Identifier: Apache-2.0
"""The page of export.py --format=web in Chromium: it draws the networks' images and answers its controls."""

import contextlib
import pathlib
import shutil

import numpy as np
import pytest
import torch

from dgl import prune
from tests import devtools
from tests.browser import needs_browser
from tests.metrics import stand_ins
from tests.support import ROOT
from training import export, export_web, families
from training.files.snapshot import load_snapshot, save_snapshot

RUNTIME = ROOT / "build" / "onnxruntime-web"
TEACHER = ROOT / "data" / "teachers" / "fashion.pkl"
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    needs_browser,
    pytest.mark.skipif(not RUNTIME.is_dir(), reason="no ONNX Runtime Web: run scripts/fetch_onnxruntime_web.sh"),
]
# Of a copy: Chromium warns of a canvas that is read often.
PIXELS = """((canvas) => {
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", {willReadFrequently: true});
  copy.drawImage(canvas, 0, 0);
  return [...copy.getImageData(0, 0, canvas.width, canvas.height).data];
})(document.querySelectorAll("canvas")[%d])"""


def write(dest: pathlib.Path, network, teacher: str | None = None) -> None:
    export_web.export_page(str(network), str(dest), export.Settings(), runtime=str(RUNTIME), teacher=teacher)


def move(page: devtools.Tab, **controls) -> None:
    """Set controls by id, as a user does, and wait for the images."""
    frames = page.run("document.body.dataset.frames")
    for name, value in controls.items():
        page.run(
            f"(x => {{ x.value = {value}; x.dispatchEvent(new Event('input', {{bubbles: true}})) }})"
            f"(document.getElementById('{name}'))"
        )
    page.wait(f"document.body.dataset.frames > {frames} && !drawing")


def drawn(page: devtools.Tab, number: int = 0) -> np.ndarray:
    """The image [R, R, 4] of the network with this number."""
    flat = np.array(page.run(PIXELS % number), dtype=np.uint8)
    size = round((len(flat) / 4) ** 0.5)
    return flat.reshape(size, size, 4)


def expected(G, page: devtools.Tab, label: int, psi: float) -> np.ndarray:
    """PyTorch's image [R, R, C] of the page's z."""
    z = torch.tensor(page.run("[...inputs().z[0]]")).reshape(1, -1)
    img = families.of(G).sample(G, z, torch.eye(G.c_dim)[[label]], truncation_psi=psi, noise_mode="const")
    return (img[0] * 127.5 + 128).clamp(0, 255).permute(1, 2, 0).detach().numpy()


@contextlib.contextmanager
def opened(folder, dest, **window):
    """A tab with the page in `dest`, ready, inside the block."""
    with devtools.served(dest) as address, devtools.tab(folder / "profile", **window) as page:
        page.send("Page.navigate", url=f"{address}index.html")
        page.wait("document.getElementById('play') && !document.getElementById('play').disabled")
        yield page
        assert page.console == []
        # Every request stays in the folder.
        assert page.requests and all(url.removeprefix("blob:").startswith(address) for url in page.requests)


@pytest.fixture(scope="module")
def networks():
    """The repository's teacher, and a student of half its width that inherits from it, as `--dgl-init` makes it."""
    teacher = load_snapshot(TEACHER)["G_ema"]
    kwargs = teacher.init_kwargs
    kwargs.synthesis_kwargs.channel_base //= 2
    student = type(teacher)(**kwargs).eval().requires_grad_(False)
    prune.check_source(teacher, student, str(TEACHER))
    prune.inherit(teacher, student)
    return teacher, student


@pytest.fixture(scope="module")
def fashion(networks, tmp_path_factory):
    """The page of the teacher and the student."""
    folder = tmp_path_factory.mktemp("fashion")
    save_snapshot(folder / "student.pkl", {"G_ema": networks[1], "training_set_kwargs": {}})
    write(folder / "web", folder / "student.pkl", teacher=str(TEACHER))
    return folder / "web"


def assert_close(page, G, label, psi, number=0):
    wanted = expected(G, page, label, psi)
    found = drawn(page, number)
    assert (found[..., 3] == 255).all()
    assert np.abs(found[..., : wanted.shape[2]] - wanted).max() < 1.5  # rounding to whole values


def test_images_are_pytorchs(fashion, networks, tmp_path):
    G, student = networks
    with opened(tmp_path, fashion) as page:
        assert_close(page, G, 0, 1)
        first = drawn(page)
        move(page, seed=7, truncation=0.5, **{"class": 8})
        assert_close(page, G, 8, 0.5)
        assert_close(page, student, 8, 0.5, number=1)
        assert not np.array_equal(drawn(page), drawn(page, 1))
        move(page, between=0.5)
        assert_close(page, G, 8, 0.5)
        lengths = page.run("[0, 0.5, 1].map(t => Math.hypot(...interpolated(latent(7), latent(1), t)))")
        assert lengths[1] == pytest.approx((lengths[0] + lengths[2]) / 2)
        move(page, seed=0, truncation=1, between=0, **{"class": 0})
        assert np.array_equal(drawn(page), first)


def test_playing_takes_frame_times(fashion, tmp_path):
    with opened(tmp_path, fashion) as page:
        before = drawn(page)
        page.run("document.getElementById('play').click()")
        page.wait("page.networks.every(network => network.times.length === FRAMES)")
        page.run("document.getElementById('play').click()")
        page.wait("!playing && !drawing")
        assert not np.array_equal(drawn(page), before)
        times = page.run("[...document.querySelectorAll('.time')].map(x => x.textContent)")
        assert len(times) == 2 and all(float(text.removesuffix(" ms")) > 0 for text in times)
        ratio = page.run("document.getElementById('ratio').textContent")
        assert ratio.startswith("Student: ") and "times the speed of the teacher" in ratio
        captions = page.run("[...document.querySelectorAll('figcaption')].map(x => x.textContent)")
        assert "teacher" in captions[0].lower() and "student" in captions[1].lower()


def test_latents_are_normal_and_within_the_bound(tmp_path):
    G = stand_ins.tiny_biggan()
    save_snapshot(tmp_path / "net.pkl", {"G_ema": G, "training_set_kwargs": {}})
    write(tmp_path / "web", tmp_path / "net.pkl")
    with opened(tmp_path, tmp_path / "web") as page:
        assert page.run("document.getElementById('truncation-value').textContent") == "none"
        assert_close(page, G, 0, 1)
        draws = np.array(page.run("page.z_dim = 500, Array.from({length: 40}, (_, seed) => [...latent(seed)]).flat()"))
        bounded = np.array(page.run("Array.from({length: 40}, (_, seed) => [...latent(seed, 0.5)]).flat()"))
        page.run("page.z_dim = 4, 0")
        assert (
            abs(draws.mean()) < 0.03 and abs(draws.std() - 1) < 0.02 and abs((np.abs(draws) < 1).mean() - 0.683) < 0.02
        )
        assert np.unique(draws).size > 19_900
        assert np.abs(bounded).max() <= 0.5 and np.array_equal(
            bounded[np.abs(draws) <= 0.5], draws[np.abs(draws) <= 0.5]
        )
        assert abs(bounded.std() - 0.28) < 0.02
        move(page, truncation=0.1, **{"class": 1})
        assert page.run("Math.max(...inputs().z[0].map(Math.abs))") <= 0.1
        assert_close(page, G, 1, 1)


@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_the_window(fashion, tmp_path, width):
    with opened(tmp_path, fashion, width=width, height=1200) as page:
        assert page.run("document.documentElement.scrollWidth - innerWidth") <= 0
        picture = page.screenshot()
        assert picture.size == (width, 1200)
        pixels = np.asarray(picture.convert("L"))
        assert all((part < 160).mean() > 0.002 for part in np.array_split(pixels[:800], 4))  # text, images, controls
        unlabelled = "[...document.querySelectorAll('input, select')].filter(x => !x.labels.length).length"
        assert page.run(unlabelled) == 0


def test_a_missing_network_is_said(fashion, tmp_path):
    dest = tmp_path / "web"
    shutil.copytree(fashion, dest)
    (dest / "student.onnx").unlink()
    with devtools.served(dest) as address, devtools.tab(tmp_path / "profile") as page:
        page.send("Page.navigate", url=f"{address}index.html")
        page.wait("document.querySelector('#status.error')")
        assert "cannot run here" in page.run("document.getElementById('status').textContent")
