# SPDX-License-Identifier: Apache-2.0
import hashlib
import http.server
import os
import socket

import pytest

from dnnlib import urls, util
from tests.dnnlib.web import QuietHandler, serving

CONTENT = bytes(range(256)) * 4096


class _Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT; `break_after` holds, for each coming request, how many bytes it sends before it hangs up."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.break_after = []
        self.ranges = []
        self.honours_ranges = True

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(QuietHandler):
    def do_GET(self):
        server = self.server
        server.ranges.append(self.headers.get("Range"))
        if self.path == "/missing":
            self.send_error(404)
            return
        start = 0
        if self.headers.get("Range") and server.honours_ranges:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        body = CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.end_headers()
        self.wfile.write(body[: server.break_after.pop(0)] if server.break_after else body)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(urls.time, "sleep", lambda seconds: None)
    with serving(_Server()) as running:
        yield running


@pytest.mark.parametrize(
    ("obj", "web", "with_files"),
    [
        ("https://example.com/a.pkl", True, True),
        ("http://localhost:80/a", True, True),
        ("file:///a/b.pkl", False, True),
        ("a/b.pkl", False, False),
        ("C:\\a.pkl", False, False),
        ("https://", False, False),
        ("s3://bucket/a", False, False),
        (None, False, False),
        (3, False, False),
    ],
)
def test_is_url(obj, web, with_files):
    assert util.is_url(obj) is web
    assert util.is_url(obj, allow_file_urls=True) is with_files


def test_cache_dir_path(monkeypatch, tmp_path):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path))
    assert util.make_cache_dir_path("a", "b") == os.path.join(str(tmp_path), "a", "b")
    monkeypatch.delenv("DNNLIB_CACHE_DIR")
    monkeypatch.setenv("HOME", "/home/someone")
    assert util.make_cache_dir_path("a") == os.path.join("/home/someone", ".cache", "dnnlib", "a")


def test_download_is_cached_and_named_after_the_url(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path))
    url = server.url + "/nets/ffhq%20a.pkl?x=1"
    with util.open_url(url) as file:
        assert file.read() == CONTENT
    assert "Downloading" in capsys.readouterr().err
    path = util.open_url(url, return_filename=True, verbose=False)
    assert os.path.dirname(path) == str(tmp_path / "downloads") and path.endswith("_ffhq_a.pkl")
    assert len(server.ranges) == 1
    assert os.listdir(tmp_path / "downloads") == [os.path.basename(path)]
    assert capsys.readouterr().err == ""


def test_download_without_cache_stays_in_memory(server, tmp_path, monkeypatch):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    assert util.open_url(server.url + "/a", cache=False, verbose=False).read() == CONTENT
    assert not (tmp_path / "cache").exists()
    with pytest.raises(ValueError, match="return_filename"):
        util.open_url(server.url + "/a", cache=False, return_filename=True)


@pytest.mark.parametrize("honours_ranges", [True, False])
def test_broken_download_is_resumed(server, tmp_path, honours_ranges):
    server.break_after = [500_000, 100_000]
    server.honours_ranges = honours_ranges
    with util.open_url(server.url + "/a", cache_dir=str(tmp_path), verbose=False) as file:
        assert file.read() == CONTENT
    assert len(server.ranges) == 3
    taken_up_at = int(server.ranges[1].removeprefix("bytes=").removesuffix("-"))
    assert server.ranges[0] is None and 400_000 < taken_up_at <= 500_000


def test_download_that_keeps_breaking_leaves_nothing(server, tmp_path):
    server.break_after = [200_000] * 9
    server.honours_ranges = False
    with pytest.raises(util.DownloadError, match="broke after 200000 bytes"):
        util.open_url(server.url + "/a", cache_dir=str(tmp_path), num_attempts=4, verbose=False)
    assert len(server.ranges) == 4 and os.listdir(tmp_path) == []


@pytest.mark.parametrize("cache", [True, False])
def test_digest_in_the_url_is_checked(server, tmp_path, cache):
    good, bad = hashlib.sha256(CONTENT).hexdigest(), "0" * 64
    with pytest.raises(util.UserError, match=good):
        util.open_url(f"{server.url}/a.pkl#sha256={bad}", cache_dir=str(tmp_path), verbose=False, cache=cache)
    assert not list(tmp_path.iterdir())
    with util.open_url(
        f"{server.url}/a.pkl#sha256={good}", cache_dir=str(tmp_path), verbose=False, cache=cache
    ) as file:
        assert file.read() == CONTENT


def test_digest_of_a_cached_file_is_checked(server, tmp_path):
    util.open_url(f"{server.url}/a.pkl", cache_dir=str(tmp_path), verbose=False).close()
    with pytest.raises(util.UserError, match="SHA-256"):
        util.open_url(f"{server.url}/a.pkl#sha256={'1' * 64}", cache_dir=str(tmp_path), verbose=False)


def test_missing_page_is_not_asked_for_twice(server, tmp_path):
    with pytest.raises(OSError, match="404"):
        util.open_url(server.url + "/missing", cache_dir=str(tmp_path), verbose=False)
    assert len(server.ranges) == 1


def test_offline_says_where_to_place_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(urls.time, "sleep", lambda seconds: None)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/nets/ffhq.pkl"
        with pytest.raises(util.UserError) as caught:
            util.open_url(url, cache_dir=str(tmp_path), verbose=False)
    sentence = str(caught.value)
    assert isinstance(caught.value, OSError) and url in sentence
    place = sentence.split("place the file at ")[1]
    with open(place, "wb") as file:
        file.write(b"by hand")
    with util.open_url(url, cache_dir=str(tmp_path), verbose=False) as file:
        assert file.read() == b"by hand"


def test_unwritable_cache_is_a_user_error(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(util.CacheError, match="DNNLIB_CACHE_DIR"):
        util.open_url(server.url + "/a", cache_dir=str(tmp_path / "file" / "sub"), verbose=False)


def test_local_paths_and_file_urls(tmp_path):
    path = tmp_path / "a b.bin"
    path.write_bytes(b"content")
    for name in (str(path), path.as_uri()):
        with util.open_url(name) as file:
            assert file.read() == b"content"
        assert util.open_url(name, return_filename=True) == str(path)
    with pytest.raises(FileNotFoundError):
        util.open_url(str(tmp_path / "none"))
    with pytest.raises(util.UserError, match="s3://bucket/a"):
        util.open_url("s3://bucket/a")
