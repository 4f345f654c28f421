"""A real browser for tests: headless Chromium, driven through its DevTools protocol over pipes.

https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import io
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from PIL import Image

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


class Page:
    """A file, opened in a browser of its own; use it as a context manager."""

    def __init__(self, file: Path, folder: Path, width: int = 900, height: int = 900) -> None:
        """`folder`: for the browser's profile."""
        assert CHROMIUM is not None
        out, self._write = os.pipe()
        self._read, back = os.pipe()
        os.set_blocking(self._read, False)
        self.events: list[dict[str, Any]] = []
        self._number, self._left = 0, b""
        command = [
            # the protocol's pipes are 3 and 4
            "bash", "-c", f'exec "$@" 3<&{out} 4>&{back}', "-", CHROMIUM, "--headless",
            "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--hide-scrollbars",
            "--disable-dev-shm-usage", f"--user-data-dir={folder / 'profile'}",
            f"--window-size={width},{height}", "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command,
            pass_fds=(out, back),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"XDG_CONFIG_HOME": str(folder / "config")},
        )
        os.close(out)
        os.close(back)
        targets = self._send("Target.getTargets")["targetInfos"]
        [page] = [target["targetId"] for target in targets if target["type"] == "page"]
        self._session: str | None = None
        attached = self._send("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Log", "Runtime", "Network"):
            self._send(f"{domain}.enable")
        self._send("Page.navigate", url=file.as_uri())
        self._wait("Page.loadEventFired")

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        result = self._send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def press(self, x: float, y: float) -> None:
        """A click of the mouse."""
        for kind in ("mousePressed", "mouseReleased"):
            self._send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def picture(self) -> Image.Image:
        """What the window shows, RGB."""
        data = base64.b64decode(self._send("Page.captureScreenshot")["data"])
        return Image.open(io.BytesIO(data)).convert("RGB")

    @property
    def requests(self) -> list[str]:
        """Addresses that the page asked for, without what it holds itself."""
        sent = [e["params"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        urls = [event["request"]["url"] for event in sent]
        return [url for url in urls if not url.startswith("data:")]

    @property
    def problems(self) -> list[str]:
        """What the console shows: refusals of the page's policy, errors of scripts."""
        kinds = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        return [json.dumps(e["params"]) for e in self.events if e["method"] in kinds]

    def _send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if getattr(self, "_session", None):
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _wait(self, method: str) -> None:
        while not any(event["method"] == method for event in self.events):
            self.events.append(self._next())

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + 120
        while b"\0" not in self._left:
            assert time.monotonic() < end, "the browser does not answer"
            assert self._process.poll() is None, "the browser has ended"
            try:
                self._left += os.read(self._read, 1 << 20)
            except BlockingIOError:
                time.sleep(0.01)
        message, _, self._left = self._left.partition(b"\0")
        return json.loads(message)
