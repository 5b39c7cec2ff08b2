# SPDX-License-Identifier: Apache-2.0
"""A page in headless Chromium that a test works with, over the browser's DevTools protocol.

The messages, JSON that ends in a zero byte, are in https://chromedevtools.github.io/devtools-protocol.
"""

import base64
import contextlib
import functools
import http.server
import io
import json
import os
import pathlib
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from PIL import Image

from tests.browser import CHROMIUM

_FLAGS = ["--headless=new", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
_FLAGS += ["--disable-component-update", "--hide-scrollbars", "--remote-debugging-pipe", "about:blank"]
# Chromium reads messages from file descriptor 3 and writes to 4.
_START = "import os, sys; [os.dup2(int(sys.argv[i]), i + 2) for i in (1, 2)]; os.execv(sys.argv[3], sys.argv[3:])"


class Tab:
    """A window of `width` x `height`; `console` has the messages and errors, `requests` the URLs, that it has seen."""

    def __init__(self, reader: int, writer: int, width: int, height: int):
        self._reader, self._writer, self._buffer, self._count = reader, writer, b"", 0
        self._session: str | None = None
        self.console: list[str] = []
        self.requests: list[str] = []
        (page,) = (t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = self.send("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def send(self, method: str, **params) -> dict[str, Any]:
        """The result of a command."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._writer, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._count:
            self._note(answer.get("method"), answer.get("params", {}))
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def run(self, script: str) -> Any:
        """The value of the JavaScript expression `script`, awaited if it is a promise."""
        found = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, condition: str, seconds: float = 60) -> None:
        """Until the JavaScript expression `condition` is true."""
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < end, f"{condition} is false; console: {self.console}"
            time.sleep(0.05)

    def screenshot(self) -> Image.Image:
        """The window's content."""
        return Image.open(io.BytesIO(base64.b64decode(self.send("Page.captureScreenshot")["data"])))

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            assert select.select([self._reader], [], [], 60)[0], "Chromium does not answer"
            data = os.read(self._reader, 1 << 20)
            assert data, "Chromium has ended"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, method: str | None, params: dict[str, Any]) -> None:
        if method == "Runtime.consoleAPICalled":
            self.console.append(" ".join(str(x.get("value", x.get("description"))) for x in params["args"]))
        elif method == "Runtime.exceptionThrown":
            self.console.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.console.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])


@contextlib.contextmanager
def tab(folder: pathlib.Path, width: int = 1200, height: int = 900) -> Iterator[Tab]:
    """A browser inside the block, with its files in `folder`."""
    sends, receives = os.pipe(), os.pipe()
    command = [CHROMIUM, *_FLAGS, f"--user-data-dir={folder}", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    far = (sends[0], receives[1])
    process = subprocess.Popen(
        [sys.executable, "-c", _START, *map(str, far), *command], pass_fds=far, stderr=subprocess.DEVNULL
    )
    try:
        for descriptor in far:
            os.close(descriptor)
        yield Tab(receives[0], sends[1], width, height)
    finally:
        for descriptor in (sends[1], receives[0]):
            os.close(descriptor)
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def served(folder: pathlib.Path) -> Iterator[str]:
    """The address of `folder` on this machine, served inside the block as `python -m http.server` does."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
