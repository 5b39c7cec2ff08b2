# SPDX-License-Identifier: Apache-2.0
"""Servers and addresses that do not do what they should."""

import contextlib
import gzip
import hashlib
import http.server
import os
import time

import pytest

from dnnlib import urls
from dnnlib.util import DownloadError, UserError, is_url, open_url
from tests.dnnlib.web import QuietHandler, serving


class _Handler(QuietHandler):
    def do_GET(self):
        kind = self.path.strip("/")
        self.server.asked += 1
        self.send_response(302 if kind == "redirect" else 200)
        headers = {
            "redirect": ("Location", "http://[::1/x"),
            "length": ("Content-Length", "abc"),
            "digits": ("Content-Length", "9" * 5000),
            "gzip": ("Content-Encoding", "gzip"),
        }
        if kind in headers:
            self.send_header(*headers[kind])
        self.end_headers()
        with contextlib.suppress(OSError):  # the client leaves
            if kind == "gzip":
                self.wfile.write(gzip.compress(bytes(10**6)))
            while kind == "endless":
                self.wfile.write(bytes(1 << 16))
            while kind == "slow":
                self.wfile.write(b"x")
                time.sleep(0.05)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)) as running:
        running.asked = 0
        yield running


@pytest.mark.parametrize(
    ("kind", "reason", "asked"),
    [
        ("redirect", "not valid", 1),
        ("length", "not valid.*abc", 1),
        ("digits", "not valid", 1),
        ("gzip", "compressed", 1),
        ("endless", "larger than", 1),
        ("slow", "broke after", 2),
    ],
)
def test_answers_that_cannot_be_used(server, tmp_path, monkeypatch, kind, reason, asked):
    monkeypatch.setattr(urls, "_LARGEST_BYTES", 10**6)
    monkeypatch.setattr(urls, "_MEASURED_S", 0.2)
    url = f"http://127.0.0.1:{server.server_address[1]}/{kind}"
    with pytest.raises(DownloadError, match=reason) as caught:
        open_url(url, cache_dir=str(tmp_path), verbose=False, num_attempts=2)
    assert url in str(caught.value) and server.asked == asked and os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "url",
    [
        "http://[::1/x",
        "http://" + "a" * 70 + ".example/x",
        "http://exa mple/x",
        "http://127.0.0.1:99999/x",
        "http://\x1b/x",
    ],
)
def test_addresses_that_are_none(tmp_path, url):
    with pytest.raises((UserError, FileNotFoundError)) as caught:
        open_url(url, cache_dir=str(tmp_path), verbose=False, num_attempts=1)
    assert isinstance(caught.value, FileNotFoundError) or str(caught.value).isprintable()
    assert not is_url("http://[::1/x")


@pytest.mark.parametrize(
    "fragment",
    [
        *("sha256=" + "0" * 63, "sha256=" + "0" * 65, "sha256=" + "0" * 64 + "#y", "sha256:" + "0" * 64, "sha256="),
        *(
            "SHA256=" + "g" * 64,
            "sha-256=" + "0" * 64,
            " sha256=" + "0" * 64,
            "x&sha256=" + "0" * 64,
            "sha=0",
            "SHA2=0",
        ),
    ],
)
def test_a_mistyped_digest_is_an_error(server, tmp_path, fragment):
    with pytest.raises(DownloadError, match="64 hexadecimal digits"):
        open_url(f"http://127.0.0.1:{server.server_address[1]}/a#{fragment}", cache_dir=str(tmp_path), verbose=False)
    assert server.asked == 0


def test_digests_in_capitals_and_of_local_files(server, tmp_path):
    digest = hashlib.sha256(b"").hexdigest().upper()
    url = f"http://127.0.0.1:{server.server_address[1]}/a"
    for fragment in (f"SHA256={digest}", "shape"):
        path = open_url(f"{url}#{fragment}", cache_dir=str(tmp_path), verbose=False, return_filename=True)
        assert os.path.getsize(path) == 0
    (tmp_path / "x").write_bytes(b"other")
    with pytest.raises(DownloadError, match="as required"):
        open_url(f"{(tmp_path / 'x').as_uri()}#sha256={digest}")
    with pytest.raises(DownloadError, match="there is no file"):
        open_url(f"{(tmp_path / 'y').as_uri()}#sha256={digest}")
