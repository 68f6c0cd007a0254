"""A real Chromium, driven by its DevTools protocol over a websocket."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import aiohttp

FOUND = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SECONDS = 30.0
NAMED = {"Enter": (13, "\r"), "Tab": (9, ""), "Escape": (27, ""), "ArrowRight": (39, ""), "ArrowLeft": (37, "")}


class Browser:
    """One tab. `async with Browser(folder) as tab`; the folder is the profile, so that storage outlives the browser."""

    def __init__(self, profile: Path) -> None:
        self._profile = profile
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.said: list[str] = []  # console errors and refused loads

    async def __aenter__(self) -> Browser:
        assert FOUND
        port_file = self._profile / "DevToolsActivePort"
        port_file.unlink(missing_ok=True)
        flags = (
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--remote-debugging-port=0",
        )
        self._process = await asyncio.create_subprocess_exec(
            FOUND, *flags, f"--user-data-dir={self._profile}", "about:blank",
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self._session = aiohttp.ClientSession()
        try:
            async with asyncio.timeout(SECONDS):
                port = await _port(port_file)
                async with self._session.get(f"http://127.0.0.1:{port}/json") as answer:
                    pages = [target for target in await answer.json() if target["type"] == "page"]
                self._socket = await self._session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)
        except BaseException:
            await self.kill()
            raise
        self._listener = asyncio.create_task(self._listen())
        for domain in ("Page", "Runtime", "Log"):
            await self.send(f"{domain}.enable")
        await self.send("Emulation.setFocusEmulationEnabled", enabled=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def kill(self) -> None:
        """SIGKILL, as when the machine takes it."""
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
        await self._session.close()

    async def _listen(self) -> None:
        async for message in self._socket:
            event = message.json()
            if "id" in event:
                self._waiting.pop(event["id"]).set_result(event)
            elif event["method"] == "Log.entryAdded":
                self.said.append(event["params"]["entry"]["text"])
            elif event["method"] == "Runtime.exceptionThrown":
                self.said.append(str(event["params"]["exceptionDetails"]))

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        answer = await asyncio.wait_for(self._waiting[number], SECONDS)
        assert "error" not in answer, answer
        return answer["result"]

    async def run(self, script: str) -> Any:
        """Value of a script's expression in the page."""
        answer = await self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def wait(self, script: str, seconds: float = SECONDS) -> Any:
        """Until the expression is true; also across page loads."""
        async with asyncio.timeout(seconds):
            while True:
                try:
                    if value := await self.run(script):
                        return value
                except AssertionError:  # between two pages
                    pass
                await asyncio.sleep(0.05)

    async def goto(self, address: str) -> None:
        await self.run("window.old = true")
        await self.send("Page.navigate", url=address)
        await self.wait("!window.old && document.readyState === 'complete'")

    async def reload(self) -> None:
        await self.run("window.old = true")
        await self.send("Page.reload")
        await self.wait("!window.old && document.readyState === 'complete'")

    async def key(self, name: str, modifiers: int = 0) -> None:
        """Press and release; `modifiers` as in the protocol (2: Ctrl)."""
        code, text = NAMED[name] if name in NAMED else (ord(name.upper()), name)
        common: dict[str, Any] = {"key": name, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        await self.send("Input.dispatchKeyEvent", type="keyDown", text="" if modifiers else text, **common)
        await self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    async def type(self, text: str) -> None:
        await self.send("Input.insertText", text=text)

    async def look(self, *, width: int = 1400, height: int = 900, dark: bool = False, phone: bool = False) -> None:
        await self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        await self.send("Emulation.setTouchEmulationEnabled", enabled=phone)
        await self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    async def screenshot(self) -> bytes:
        """PNG of what is seen."""
        return base64.b64decode((await self.send("Page.captureScreenshot", format="png"))["data"])


async def _port(file: Path) -> str:
    """What the browser writes when it is ready."""
    while True:
        if told := _words(file):
            return told[0]
        await asyncio.sleep(0.05)


def _words(file: Path) -> list[str]:
    return file.read_text().split() if file.exists() else []
