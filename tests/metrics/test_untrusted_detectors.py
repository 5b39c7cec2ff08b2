# SPDX-License-Identifier: Apache-2.0
"""Detector files are programs: which ones run, and what happens if they do not do what detectors do."""

import hashlib
import os

import pytest
import torch

from dnnlib.util import UserError
from metrics import catalogue, detectors, metric_main
from tests.metrics import stand_ins
from tests.support import ROOT


class Canary(torch.nn.Module):
    """Writes a file when it is loaded."""

    path: str

    def __init__(self, path):
        super().__init__()
        self.path = path

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1]
        torch.save(torch.zeros(1), self.path)

    def forward(self, img: torch.Tensor, return_features: bool = False):
        return img.float().flatten(1)[:, :4]


@pytest.fixture
def canary(tmp_path):
    """(path of a detector, path of the file that it writes)."""
    path = stand_ins.save_detector(Canary(str(tmp_path / "written")), tmp_path / "canary.pt", trusted=False)
    assert not (tmp_path / "written").exists()
    return path, tmp_path / "written"


def test_an_unknown_program_does_not_run(canary):
    path, written = canary
    for use in (
        lambda: detectors.load(path, "cpu"),
        lambda: detectors.load_record(path),
        lambda: detectors.ensure_available(["fid5k_full"], path),
        lambda: metric_main.calc_metric("fid5k_full", G=stand_ins.tiny_generator(), detector=path),
    ):
        with pytest.raises(UserError, match=r"canary.pt is a program .*--trust-detector") as caught:
            use()
        with open(path, "rb") as file:
            assert hashlib.sha256(file.read()).hexdigest() in str(caught.value)
    assert not written.exists()


def test_a_trusted_program_runs_with_a_warning(canary, capsys):
    path, written = canary
    detectors.trust(path)
    detectors.trust(path)
    assert capsys.readouterr().err.count("WARNING: --trust-detector") == 1
    detectors.load(path, "cpu")
    assert written.exists()


def test_trust_is_in_a_content_and_not_in_a_path(canary, tmp_path):
    path, written = canary
    before = os.stat(path)
    detectors.trust(stand_ins.save_detector(stand_ins.Inception(), tmp_path / "other.pt", trusted=False))
    with open(path, "rb") as file:
        content = file.read()
    os.replace(tmp_path / "other.pt", path)
    spec = detectors.locate(path)
    with open(path, "wb") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(UserError, match="changes while it is being used"):
        detectors.load(spec, "cpu")
    with pytest.raises(UserError, match="--trust-detector"):
        detectors.load(path, "cpu")
    assert not written.exists()


def test_the_projects_own_detectors_are_known(capsys):
    found = {detectors.resolve(name, "inception").sha256 for name in ("mnist", "fashion", "fashion2")}
    assert found == detectors.KNOWN
    digests = (ROOT / "data" / "README.md").read_text()
    assert all(digest in digests for digest in found)
    detectors.trust("mnist")
    detectors.load(str(ROOT / "data" / "detectors" / "mnist.pt"), "cpu")
    assert capsys.readouterr().err == ""


def test_the_default_detectors_need_no_trust(cache_folder, monkeypatch):
    monkeypatch.setattr(detectors, "BASE_URL", "http://127.0.0.1:9/metrics")
    stand_ins.save_detector(
        stand_ins.Inception(), cache_folder / "downloads" / "inception-2015-12-05.pt", trusted=False
    )
    detectors.load(detectors.resolve(None, "inception"), "cpu")


def test_a_mistyped_digest_of_a_detector_is_an_error():
    with pytest.raises(UserError, match="64 hexadecimal digits"):
        detectors.resolve("http://127.0.0.1:9/x.pt#sha256=12", "inception")


def test_a_damaged_download_is_named_so_that_it_can_be_removed(cache_folder):
    url = "http://127.0.0.1:9/x.pt"
    cached = cache_folder / "downloads" / f"{hashlib.md5(url.encode()).hexdigest()}_x.pt"
    cached.parent.mkdir(parents=True)
    for content in (b"", b"<html>", b"PK\x03\x04"):
        cached.write_bytes(content)
        with pytest.raises(UserError, match=f"remove {cached}"):
            detectors.load(url, "cpu")


@pytest.mark.parametrize("name", ["/dev/zero", "http://[::1/x.pt", "file:///%00", "a\0b", ""])
def test_names_that_are_no_detectors(name):
    with pytest.raises(UserError, match="--detector"):
        detectors.resolve(name, "inception")


class Broken(torch.nn.Module):
    """Gives something else than features."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        self.calls = 0

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        self.calls += 1
        x = img.float().flatten(1)[:, :4]
        if self.kind == "raises":
            raise ValueError("\x1b[2J")
        if self.kind == "nan":
            return x * float("nan")
        if self.kind == "scalar":
            return x.sum()
        if self.kind == "integers":
            return x.long()
        if self.kind == "no features":
            return x[:, :0]
        if self.kind == "fewer":
            return x[1:]
        if self.kind == "many":
            return x[:, :1].expand(-1, 1 << 28)
        return x[:, : 1 + self.calls % 2]


class Tuple(torch.nn.Module):
    def forward(self, img: torch.Tensor, return_features: bool = False):
        return img, img


class Text(torch.nn.Module):
    def forward(self, img: torch.Tensor, return_features: bool = False):
        return "\x1b[2J"


KINDS = ("raises", "nan", "scalar", "integers", "no features", "fewer", "many", "changing")
BROKEN = {"a tuple": Tuple, "text": Text} | {kind: lambda kind=kind: Broken(kind) for kind in KINDS}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("metric", ["fid1k_full", "is50k"])
def test_what_is_no_feature_network_is_one_sentence(tmp_path, monkeypatch, kind, metric):
    monkeypatch.setitem(catalogue.METRICS, "is50k", stand_ins.smaller("is50k", num_fakes=1000))
    path = stand_ins.save_detector(BROKEN[kind](), tmp_path / "broken.pt")
    data = stand_ins.dataset_options(stand_ins.write_zip(tmp_path / "data.zip", stand_ins.make_images(130)))
    with pytest.raises(UserError, match="choose another with --detector") as caught:
        metric_main.calc_metric(
            metric, G=stand_ins.tiny_generator(), dataset_kwargs=data, detector=path, cache=False, device="cpu"
        )
    assert str(caught.value).isprintable()
