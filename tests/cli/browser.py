"""A real Chromium, over its debugging pipe: no driver is needed, and no package.

Protocol: https://chromedevtools.github.io/devtools-protocol/. Messages are JSON, each with a zero byte behind it.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conftest import require
from tests.fakes.wait import eventually

PATIENCE_S = 60
_START = """
import fcntl, os, sys
high = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
os.dup2(high[0], 3)
os.dup2(high[1], 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""


class Tab:
    """One page. One thread."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self._browser, self._target, self._session = browser, target, session

    def close(self) -> None:
        """Close it; its connections end."""
        self._browser.call("Target.closeTarget", {"targetId": self._target})

    def ask(self, expression: str) -> Any:
        """The value of an expression in the page; it may be a promise."""
        answer = self._browser.call(
            "Runtime.evaluate", {"expression": expression, "awaitPromise": True, "returnByValue": True}, self._session
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def open(self, url: str) -> None:
        """Go there."""
        self._browser.call("Page.enable", {}, self._session)
        self._browser.call("Page.navigate", {"url": url}, self._session)
        eventually(lambda: self.ask("document.readyState") == "complete", PATIENCE_S, "the page")

    def text(self, name: str) -> str:
        """What an element shows."""
        return str(self.ask(f"document.getElementById({json.dumps(name)}).innerText"))

    def until(self, name: str, words: str) -> str:
        """Wait until an element shows these words."""
        eventually(lambda: words in self.text(name), PATIENCE_S, f"{words!r} in {name}")
        return self.text(name)

    def emulate(self, scheme: str, width: int) -> None:
        """A light or dark scheme, and a window that is so wide."""
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self._browser.call("Emulation.setEmulatedMedia", media, self._session)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self._browser.call("Emulation.setDeviceMetricsOverride", size, self._session)

    def picture(self, path: Path, height: int = 0) -> None:
        """What the window shows, as a PNG; `height`: as many pixels of the page as that, and not of the window."""
        options: dict[str, Any] = {"format": "png"}
        if height:
            width = self.ask("window.innerWidth")
            clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
            options |= {"captureBeyondViewport": True, "clip": clip}
        data = self._browser.call("Page.captureScreenshot", options, self._session)["data"]
        path.write_bytes(base64.b64decode(data))

    def press(self, key: str, code: int) -> None:
        """A key, where the focus is."""
        for kind in ("keyDown", "keyUp"):
            event = {"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code}
            self._browser.call(
                "Input.dispatchKeyEvent", event | ({"text": "\r"} if key == "Enter" else {}), self._session
            )

    def type(self, name: str, text: str) -> None:
        """Into a field, as from a keyboard."""
        self.ask(f"document.getElementById({json.dumps(name)}).focus()")
        self._browser.call("Input.insertText", {"text": text}, self._session)


class Browser:
    """One process. `complaints` has what the console and the security policy said."""

    def __init__(self, program: str, folder: Path) -> None:
        to_browser, self._to = os.pipe()
        self._from, from_browser = os.pipe()
        command = [
            program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--remote-debugging-pipe", f"--user-data-dir={folder}", "about:blank",
        ]  # fmt: skip
        # Chromium reads the descriptor 3 and writes to 4.
        words = [sys.executable, "-c", _START, str(to_browser), str(from_browser), *command]
        self._process = subprocess.Popen(
            words, pass_fds=(to_browser, from_browser), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(from_browser)
        self._rest, self._number = b"", 0
        self.complaints: list[str] = []
        self._trace: list[dict[str, Any]] = []
        self._trace_is_whole = False

    def tab(self) -> Tab:
        """A new one."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        for domain in ("Runtime", "Log"):
            self.call(f"{domain}.enable", {}, session)
        return Tab(self, target, session)

    def tasks_of_main_threads(self, during: Callable[[], None]) -> list[float]:
        """The processor time of each task of the main threads of pages meanwhile, milliseconds, in ascending order."""
        categories = ["toplevel", "disabled-by-default-devtools.timeline"]
        self.call("Tracing.start", {"traceConfig": {"includedCategories": categories}, "transferMode": "ReportEvents"})
        during()
        self._trace.clear()
        self.call("Tracing.end", {})
        while not self._trace_is_whole:
            self._note(self._read())
        self._trace_is_whole = False
        main = {
            (event["pid"], event["tid"])
            for event in self._trace
            if event.get("name") == "thread_name" and event["args"]["name"] == "CrRendererMain"
        }
        return sorted(
            event["tdur"] / 1000
            for event in self._trace
            if (event["pid"], event["tid"]) in main and event.get("name") == "RunTask" and "tdur" in event
        )

    def _note(self, answer: Any) -> None:
        parameters, method = answer.get("params", {}), answer.get("method")
        if method == "Tracing.dataCollected":
            self._trace += parameters["value"]
        elif method == "Tracing.tracingComplete":
            self._trace_is_whole = True
        elif method in ("Runtime.exceptionThrown", "Log.entryAdded"):
            text = json.dumps(parameters)
            if '"source": "network"' not in text:  # a controller that is away is no fault of the page
                self.complaints.append(text)

    def call(self, method: str, parameters: dict[str, Any], session: str = "") -> Any:
        """The answer to one command."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def _read(self) -> Any:
        while b"\0" not in self._rest:
            data = os.read(self._from, 65536)
            assert data, "the browser has ended"
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def close(self) -> None:
        self._process.kill()
        self._process.wait(20)
        os.close(self._to)
        os.close(self._from)


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser with a profile of its own."""
    started = Browser(require("chromium"), folder)
    try:
        yield started
    finally:
        started.close()
