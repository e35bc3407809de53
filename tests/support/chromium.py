"""Headless Chromium over its DevTools protocol, through a pipe: no additional package, no port."""

import base64
import json
import os
import subprocess
from pathlib import Path
from typing import Any

CODES = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "?": 191}
"""Key codes of Windows for keys whose code is not that of their character."""


class Browser:
    """One page in headless Chromium; its console output is collected in ``messages``."""

    def __init__(self, chromium: str, profile: Path) -> None:
        ours, theirs = os.pipe(), os.pipe()
        command = (
            f'exec "{chromium}" --headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking '
            "--disable-component-update --disable-sync --remote-debugging-pipe "
            f'--user-data-dir="{profile}" 3<&{ours[0]} 4>&{theirs[1]}'
        )
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(["bash", "-c", command], pass_fds=(ours[0], theirs[1]), stdout=quiet, stderr=quiet)
        os.close(ours[0])
        os.close(theirs[1])
        self._out, self._in, self._last, self._rest = ours[1], theirs[0], 0, b""
        self.messages: list[str] = []
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM", "Accessibility"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        os.close(self._out)
        os.close(self._in)
        self.process.kill()
        self.process.wait()

    def call(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol and return the result."""
        self._last += 1
        sent: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            sent["sessionId"] = self._session
        os.write(self._out, json.dumps(sent).encode() + b"\0")
        while True:
            received = self._receive()
            if received.get("id") == self._last:
                assert "error" not in received, (method, received["error"])
                return received["result"]
            self._note(received)

    def evaluate(self, script: str) -> Any:
        """Return the value of an expression, with promises awaited."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, condition: str, seconds: float = 20) -> Any:
        """Wait until an expression is true."""
        return self.evaluate(
            f"""new Promise((done, fail) => {{
              const end = Date.now() + {seconds * 1000};
              const look = () => {{
                const found = (() => {{ try {{ return {condition}; }} catch (_) {{ return null; }} }})();
                if (found) done(found); else if (Date.now() > end) fail("timed out"); else setTimeout(look, 20);
              }};
              look();
            }})"""
        )

    def open(self, url: str, width: int = 1300, height: int = 900, *, dark: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)
        self.wait("location.href !== 'about:blank' && document.readyState === 'complete'")

    def choose(self, selector: str, *files: Path) -> None:
        """Put files into a file input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def press(self, key: str, modifiers: int = 0, text: str = "") -> None:
        """Press and release a key; a key that is one character types it, unless Control or Meta is held."""
        text = text or (key if len(key) == 1 and not modifiers & 6 else "")
        code = CODES.get(key) or ord(key.upper())
        for kind in ("keyDown", "keyUp"):
            extra = {"text": text} if text and kind == "keyDown" else {}
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                modifiers=modifiers,
                **extra,
            )

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def screenshot(self, to: Path) -> None:
        """Save a picture of the full page."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        to.write_bytes(base64.b64decode(shot["data"]))

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = os.read(self._in, 1 << 20)
            assert piece, "the browser ended"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def _note(self, received: dict[str, Any]) -> None:
        if received.get("method") == "Log.entryAdded":
            self.messages.append(received["params"]["entry"]["text"])
        elif received.get("method") in {"Runtime.consoleAPICalled", "Runtime.exceptionThrown"}:
            self.messages.append(json.dumps(received["params"])[:500])


HEIGHTS = """[...document.querySelectorAll('button, select, textarea, input[type=password], .button')]
  .filter((element) => element.checkVisibility()).map((element) => element.getBoundingClientRect().height)"""
"""Expression: heights of the visible controls, in CSS pixels."""

CONTRAST = """(() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255).map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, place) => sum + c * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = (element) => {
    if (!element) return [255, 255, 255];
    const [r, g, b, alpha = 1] = rgb(getComputedStyle(element).backgroundColor);
    if (alpha === 1) return [r, g, b];
    return behind(element.parentElement).map((under, place) => alpha * [r, g, b][place] + (1 - alpha) * under);
  };
  const low = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility() || ["SCRIPT", "STYLE", "OPTION"].includes(element.tagName)) continue;
    if (element.closest(".hidden")) continue;
    const a = light(rgb(getComputedStyle(element).color)), b = light(behind(element));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push(`${element.tagName} ${element.className} ${ratio.toFixed(2)}`);
  }
  return { low, darkest: Math.min(...rgb(getComputedStyle(document.body).backgroundColor).slice(0, 3)) };
})()"""
"""Expression: text whose contrast is under 4.5 to 1 (WCAG 2.2, 1.4.3), and the brightness of the page."""
