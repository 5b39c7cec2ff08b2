# SPDX-License-Identifier: Apache-2.0
"""Pages looked at in headless Chromium: a screenshot, messages in the console, requests to the network."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess

import pytest
from PIL import Image

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# For tests that use `look`
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not installed (Debian: apt-get install chromium)"
)
_WIDTH = (
    '<script>document.body.setAttribute("data-overflow", document.documentElement.scrollWidth - innerWidth)</script>'
)
_FLAGS = ["--headless=new", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
_FLAGS += ["--disable-component-update", "--disable-default-apps", "--hide-scrollbars", "--enable-logging=stderr"]


@dataclasses.dataclass(frozen=True)
class Look:
    """What a browser saw of a page.

    Attributes:
        screenshot: the upper part of the page.
        console: messages in the console, errors of the page among them.
        requests: URLs other than files and data that the page asked for.
        overflow: pixels by which the page is wider than the window.
    """

    screenshot: Image.Image
    console: list[str]
    requests: list[str]
    overflow: int


def look(page: pathlib.Path, width: int, height: int, folder: pathlib.Path) -> Look:
    """Open `page` in a window of that size; `folder` is for files of the browser."""
    log, shot = folder / f"net-{width}.json", folder / f"{page.stem}-{width}.png"
    measured = page.with_name(f".{page.stem}-measured.html")
    measured.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{_WIDTH}</body>"), encoding="utf-8")
    flags = [*_FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}"]
    flags += [f"--log-net-log={log}", f"--screenshot={shot}", *(["--no-sandbox"] if os.geteuid() == 0 else [])]

    def run(*more: str) -> subprocess.CompletedProcess:
        return subprocess.run([CHROMIUM, *flags, *more], capture_output=True, text=True, timeout=60, check=True)

    try:
        seen = run(f"file://{page}")
        flags.remove(f"--screenshot={shot}")
        flags.remove(f"--log-net-log={log}")
        dom = run("--dump-dom", f"file://{measured}").stdout
    finally:
        measured.unlink()
    console = re.findall(r"CONSOLE:?\d*\S* (.*)", seen.stderr)
    with Image.open(shot) as picture:
        picture.load()
    overflow = int(re.search(r'data-overflow="(-?\d+)"', dom)[1])
    return Look(picture, console, _requests(log), overflow)


def _requests(log: pathlib.Path) -> list[str]:
    """URLs in a network log that a page, not the browser itself, has asked for."""
    text = log.read_text(encoding="utf-8").rstrip().rstrip(",")
    try:
        events = json.loads(text)["events"]
    except ValueError:  # the browser ended before the last lines
        events = json.loads(f"{text}]}}")["events"]
    asked = (event.get("params", {}) for event in events)
    found = [
        params["url"] for params in asked if params.get("initiator") not in (None, "not an origin") and "url" in params
    ]
    return [url for url in dict.fromkeys(found) if not url.startswith(("file:", "data:"))]
