"""Headless Chromium through its debugging pipe: the DevTools protocol over two file descriptors, nothing to install.

https://chromedevtools.github.io/devtools-protocol/ names the methods and events.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = (
    "--headless",
    "--remote-debugging-pipe",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-extensions",
    "--disable-quic",
    "--disable-sync",
    "--disable-component-update",
    "--disable-background-networking",
    "--hide-scrollbars",
)
TIMEOUT = 60.0
"""Seconds until an answer; starting on a busy machine takes some."""


class Look(NamedTuple):
    """How a page is looked at."""

    width: int = 1100
    dark: bool = False
    medium: str = "screen"
    scale: int = 1


def executable() -> str | None:
    """Where Chromium is, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@dataclass
class Browser:
    """One page of one browser; `events` are all it told since `open` was called."""

    sent: int
    """The file descriptor it reads."""
    received: int
    """The one it writes."""
    session: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    _number: int = 0
    _rest: bytes = b""

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a method. Raises RuntimeError where the browser refuses it, TimeoutError where it is silent."""
        self._number += 1
        request: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self.session:
            request["sessionId"] = self.session
        os.write(self.sent, json.dumps(request).encode() + b"\0")
        while True:
            message = self._message(method)
            if message.get("id") == self._number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                result: dict[str, Any] = message["result"]
                return result
            self.events.append(message)

    def named(self, *methods: str) -> list[dict[str, Any]]:
        """The parameters of the events of these names."""
        return [event["params"] for event in self.events if event.get("method") in methods]

    def open(self, path: Path, look: Look = Look(), *, listen: bool = False) -> None:  # noqa: B008  # a tuple
        """Load a page, and wait until it and its pictures are there.

        To `listen` to what it asks for takes longer than loading it, as pictures in the page are told of as well.
        """
        self._look(look)
        self.call("Network.enable" if listen else "Network.disable")
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not self.named("Page.loadEventFired"):
            self.events.append(self._message("Page.loadEventFired"))
        self.value("Promise.all([...document.images].map(image => image.decode().catch(() => 0))).then(() => 0)")

    def value(self, expression: str) -> Any:
        """What JavaScript says of the page. Raises RuntimeError where it throws."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def screenshot(self, look: Look = Look(), *, top: int = 0, height: int | None = None) -> bytes:  # noqa: B008
        """The page as a PNG, from `top` on; all of it without a `height`."""
        self._look(look)
        whole = self.value("document.documentElement.scrollHeight")
        clip = {"x": 0, "y": top, "width": look.width, "height": min(height or whole, whole - top), "scale": 1}
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(answer["data"])

    def pdf(self) -> bytes:
        """The page as it prints on A4."""
        answer = self.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, printBackground=False)
        return base64.b64decode(answer["data"])

    def start(self) -> None:
        """Open a page, and listen to what it says."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def _look(self, look: Look) -> None:
        height = 800
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=look.width,
            height=height,
            deviceScaleFactor=look.scale,
            mobile=look.width < 600,
        )
        colours = {"name": "prefers-color-scheme", "value": "dark" if look.dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=look.medium, features=[colours])

    def _message(self, waiting_for: str) -> dict[str, Any]:
        """The next message, whatever it is."""
        end = time.monotonic() + TIMEOUT
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self.received], [], [], max(end - time.monotonic(), 0))
            piece = os.read(self.received, 1 << 20) if ready else b""
            if not piece:
                raise TimeoutError(f"no answer to {waiting_for} within {TIMEOUT:g} s, or the browser is gone")
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser with an empty profile, ended afterwards. Raises FileNotFoundError without Chromium."""
    path = executable()
    if path is None:
        raise FileNotFoundError(f"no Chromium on this machine (looked for {', '.join(NAMES)})")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        theirs_in, sent = _pipe()
        received, theirs_out = _pipe()
        # Without a sandbox of its own: inside a container it may not have one, and our pages run no scripts.
        command = [path, *QUIET, "--no-sandbox", f"--user-data-dir={profile}", "about:blank"]
        process = os.posix_spawn(path, command, _environment(profile), file_actions=_actions(theirs_in, theirs_out))
        for descriptor in (theirs_in, theirs_out):
            os.close(descriptor)
        try:
            page = Browser(sent, received)
            page.start()
            yield page
        finally:
            for descriptor in (sent, received):
                os.close(descriptor)
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)


def _actions(reads: int, writes: int) -> list[tuple[Any, ...]]:
    """The browser reads its descriptor 3 and writes 4; what it says beside goes nowhere."""
    nowhere = (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)
    return [(os.POSIX_SPAWN_DUP2, reads, 3), (os.POSIX_SPAWN_DUP2, writes, 4), nowhere]


def _pipe() -> tuple[int, int]:
    """A pipe whose ends are out of the way of descriptors 3 and 4."""
    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 16) for end in ends]
    for end in ends:
        os.close(end)
    return moved[0], moved[1]


def _environment(home: str) -> Mapping[str, str]:
    return {**os.environ, "HOME": home, "XDG_CONFIG_HOME": home, "XDG_CACHE_HOME": home}
