"""A browser that is driven through chromedriver."""

from __future__ import annotations

import base64
import json
import sys
import time
import urllib.request
from pathlib import Path

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
WIDTH, HEIGHT = 1100, 800
WAIT_SECONDS = 120


def call(url: str, method: str = "GET", body: dict | None = None) -> dict:
    """Sends JSON and returns the JSON of the answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


class Browser:
    """A session of chromedriver, which has to be closed."""

    def __init__(self, driver: str) -> None:
        arguments = ["--headless", "--no-sandbox", "--disable-gpu", f"--window-size={WIDTH},{HEIGHT}"]
        capabilities = {"alwaysMatch": {"goog:chromeOptions": {"args": arguments}}}
        session = call(f"{driver}/session", "POST", {"capabilities": capabilities})
        self.url = f"{driver}/session/{session['value']['sessionId']}"

    def close(self) -> None:
        """Ends the browser."""
        call(self.url, "DELETE")

    def command(self, path: str, body: dict) -> object:
        """Runs a command and returns its value."""
        return call(f"{self.url}{path}", "POST", body)["value"]

    def open(self, url: str) -> None:
        """Opens a page."""
        self.command("/url", {"url": url})

    def run(self, script: str) -> object:
        """Runs the body of a function in the page."""
        return self.command("/execute/sync", {"script": script, "args": []})

    def until(self, condition: str) -> None:
        """Waits until an expression of the page is true."""
        end = time.monotonic() + WAIT_SECONDS
        while not self.run(f"return Boolean({condition});"):
            if time.monotonic() > end:
                sys.exit(f"the page never reached: {condition}")
            time.sleep(0.1)

    def choose(self, selector: str, files: list[Path]) -> None:
        """Chooses files in an input of the page."""
        found = self.command("/element", {"using": "css selector", "value": selector})[ELEMENT]
        self.command(f"/element/{found}/value", {"text": "\n".join(map(str, files))})

    def devtools(self, command: str, parameters: dict) -> object:
        """Runs a command of Chromium's own protocol."""
        return self.command("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def keep(self, path: Path, scheme: str) -> None:
        """Saves what the page shows in a colour scheme."""
        # Without transitions, so that no colour is shown half-way.
        scheme_feature = {"name": "prefers-color-scheme", "value": scheme}
        features = [scheme_feature, {"name": "prefers-reduced-motion", "value": "reduce"}]
        self.devtools("Emulation.setEmulatedMedia", {"features": features})
        metrics = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        self.devtools("Emulation.setDeviceMetricsOverride", metrics)
        path.write_bytes(base64.b64decode(call(f"{self.url}/screenshot")["value"]))
        print(path)
