"""A headless Chromium driven through chromedriver's W3C WebDriver protocol: the few commands that tests need."""

import base64
import json
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {"Enter": "\ue007", "ArrowRight": "\ue014", "ArrowLeft": "\ue012", "Tab": "\ue004", "Escape": "\ue00c"}


def missing_programs() -> list[str]:
    """What of Chromium and its driver is not installed (Debian: chromium, chromium-driver)."""
    return [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]


class Browser:
    """One headless browser window; `phone` makes it 390 x 844 with a touch screen."""

    def __init__(self, *, phone: bool = False, size: tuple[int, int] = (1280, 900)) -> None:
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._driver = subprocess.Popen(
            ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._address, self._session = "", ""
        try:
            assert self._driver.stdout is not None
            for line in self._driver.stdout:
                if found := re.search(r"started successfully on port (\d+)", line):
                    self._address = f"http://127.0.0.1:{found[1]}"
                    break
            assert self._address, "chromedriver did not start"
            options: dict[str, Any] = {
                "binary": shutil.which("chromium"),
                "args": [
                    "--headless=new",
                    "--no-sandbox",  # containers have none
                    "--disable-gpu",
                    "--disable-dev-shm-usage",
                    "--force-color-profile=srgb",
                    f"--window-size={size[0]},{size[1]}",
                    f"--user-data-dir={self._profile.name}",
                ],
            }
            if phone:
                metrics = {"width": 390, "height": 844, "pixelRatio": 2.0, "touch": True, "mobile": True}
                options["mobileEmulation"] = {"deviceMetrics": metrics}
            wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            told = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            self._session = f"/session/{told['sessionId']}"
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the browser and its driver."""
        try:
            if self._session:
                self._call("DELETE", self._session)
        finally:
            self._session = ""
            self._driver.terminate()
            self._driver.wait(20)
            self._profile.cleanup()

    def _call(self, verb: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._address + path, data=data, method=verb)
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(json.load(error)["value"]["message"]) from None

    def _do(self, verb: str, path: str, body: dict[str, Any] | None = None) -> Any:
        return self._call(verb, self._session + path, body)

    def open(self, url: str) -> None:
        """Go to an address."""
        self._do("POST", "/url", {"url": url})

    def run(self, script: str, *args: Any) -> Any:
        """Run JavaScript in the page; `return` hands a value back."""
        return self._do("POST", "/execute/sync", {"script": script, "args": list(args)})

    def wait(self, what: str, *, seconds: float = 30) -> Any:
        """Wait until a JavaScript expression is truthy; returns its value."""
        return wait_for(lambda: self.run(f"return {what}"), what=what, seconds=seconds)

    def _find(self, selector: str) -> str:
        return self._do("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT]

    def click(self, selector: str) -> None:
        """A real click (or tap) in the middle of an element; fails when something lies over it."""
        self._do("POST", f"/element/{self._find(selector)}/click", {})

    def tap(self, selector: str) -> None:
        """Touch the middle of an element with a finger."""
        finger = [
            {"type": "pointerMove", "duration": 0, "x": 0, "y": 0, "origin": {ELEMENT: self._find(selector)}},
            {"type": "pointerDown", "button": 0},
            {"type": "pause", "duration": 40},
            {"type": "pointerUp", "button": 0},
        ]
        action = {"type": "pointer", "id": "finger", "parameters": {"pointerType": "touch"}, "actions": finger}
        self._do("POST", "/actions", {"actions": [action]})

    def press(self, *keys: str) -> None:
        """Press keys one after another, wherever the focus is."""
        actions = [{"type": kind, "value": KEYS.get(key, key)} for key in keys for kind in ("keyDown", "keyUp")]
        self._do("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def text(self, selector: str) -> str:
        """What an element shows."""
        return self._do("GET", f"/element/{self._find(selector)}/text")

    def role(self, selector: str) -> str:
        """The role that assistive programs see."""
        return self._do("GET", f"/element/{self._find(selector)}/computedrole")

    def name(self, selector: str) -> str:
        """The name that assistive programs read out."""
        return self._do("GET", f"/element/{self._find(selector)}/computedlabel")

    def source(self) -> str:
        """The page's HTML as it is now."""
        return self._do("GET", "/source")

    def complaints(self) -> list[str]:
        """What the console has logged since the last call."""
        return [entry["message"] for entry in self._do("POST", "/se/log", {"type": "browser"})]

    def screenshot(self, path: Path) -> None:
        """Write what the window shows as PNG."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self._do("GET", "/screenshot")))


def wait_for(happens: Callable[[], Any], *, what: str, seconds: float = 30) -> Any:
    """Ask until the answer is truthy; returns it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := happens():
            return value
        time.sleep(0.05)
    raise TimeoutError(f"did not happen within {seconds} s: {what}")
