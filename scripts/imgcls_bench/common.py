"""Helpers that the benchmarks share: processes on chosen cores, their metrics, the SQS emulator."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "imgcls"
WAIT_SECONDS = 60
BUSY_LOAD = 0.7


def say(text: str) -> None:
    """Prints a message on standard error."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def build() -> None:
    """Builds the program, and installs what it needs."""
    subprocess.run([ROOT / "scripts/setup"], check=True, stdout=sys.stderr)
    command = ["cargo", "build", "--release", "--locked", "--quiet", "--bin", "imgcls"]
    subprocess.run(command, check=True, cwd=ROOT)


def warn_when_busy() -> None:
    """Warns if the load average is high."""
    load = os.getloadavg()[0]
    if load > BUSY_LOAD:
        say(f"this machine is not idle (load {load:.2f}); ratios may mislead")


def free_port() -> int:
    """A free port of the loopback address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def process(
    command: list, cores: Iterable[int], environment: dict | None = None, log: object = subprocess.DEVNULL
) -> Iterator[subprocess.Popen]:
    """Runs a process on these cores; it is terminated at the end of the block."""
    command = ["taskset", "--cpu-list", ",".join(map(str, cores)), *map(str, command)]
    child = subprocess.Popen(command, env=os.environ | (environment or {}), stdout=subprocess.DEVNULL, stderr=log)
    try:
        yield child
    finally:
        child.terminate()
        child.wait()


def wait_until(what: str, condition: Callable[[], object]) -> object:
    """Polls the condition and returns its first true value; exits after WAIT_SECONDS."""
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if value := condition():
                return value
        time.sleep(0.01)
    sys.exit(f"bench: waited {WAIT_SECONDS} s for {what}")


def is_ready(port: int) -> bool:
    """Returns true if the service is ready."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
        return answer.status == 200


def metric_sum(port: int, name: str, labels: str = "") -> float:
    """The sum of a metric over all label sets that match the regular expression."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    found = re.compile(rf"{name}(\{{.*\}})? (?P<value>\S+)$")
    matches = (found.match(line) for line in lines if re.search(labels, line))
    return sum(float(match["value"]) for match in matches if match)


def read_images(folder: pathlib.Path) -> list[bytes]:
    """Reads all JPEG files of a folder, sorted by name."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in (".jpg", ".jpeg"))
    if not files:
        sys.exit(f"bench: no .jpg in {folder}")
    return [file.read_bytes() for file in files]


def submit(port: int, images: list[bytes], count: int) -> None:
    """Submits jobs without waiting for their results."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for index in range(count):
        connection.request("POST", "/v1/jobs", body=images[index % len(images)])
        answer = connection.getresponse()
        answer.read()
        if answer.status != 202:
            sys.exit(f"bench: a job was answered with status {answer.status}")
    connection.close()


def loadgen(port: int, images: pathlib.Path, clients: int, requests: int, cores: Iterable[int]) -> dict:
    """Runs a closed loop on these cores and returns the report; exits if a request failed."""
    url = f"http://127.0.0.1:{port}"
    return load_report(url, images, "-c", clients, "--num-request", requests, cores=cores)


def load_report(url: str, images: pathlib.Path, *flags: object, cores: Iterable[int] | None = None) -> dict:
    """Runs the load generator, on any core unless some are given, and returns the report; exits if a request failed."""
    command = [BINARY, "loadgen", "--json", "--url", url, "--image-folder", images, *flags]
    if cores is not None:
        command = ["taskset", "--cpu-list", ",".join(map(str, cores)), *command]
    run = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(f"bench: the load failed: {run.stderr.strip()[-500:]}")
    return json.loads(run.stdout)


@contextlib.contextmanager
def fauxqs(cores: Iterable[int]) -> Iterator[dict]:
    """Runs the emulator that is fast enough for load tests, and yields the environment of its clients.

    The version is pinned in scripts/emulators/fauxqs.
    """
    folder = ROOT / ".cache" / "fauxqs"
    pins = ROOT / "scripts" / "emulators" / "fauxqs"
    if not shutil.which("npm"):
        sys.exit("bench: npm is missing (Debian, Ubuntu: apt-get install npm)")
    lock = (pins / "package-lock.json").read_bytes()
    stamp = folder / "installed"
    if not stamp.exists() or stamp.read_bytes() != lock:
        say("installing fauxqs into .cache/fauxqs (once)")
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(pins / name, folder / name)
        install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        subprocess.run(install, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        stamp.write_bytes(lock)
    port = free_port()
    settings = {"FAUXQS_PORT": str(port), "FAUXQS_HOST": "127.0.0.1", "FAUXQS_LOGGER": "false"}
    with process(["node", folder / "node_modules" / "fauxqs" / "dist" / "cli.js"], cores, settings):
        wait_until("fauxqs", lambda: socket.create_connection(("127.0.0.1", port)).close() is None)
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench",
        }


def scratch() -> tempfile.TemporaryDirectory:
    """A temporary folder for the whole run.

    Do not delete files during the run: ext4 skips recently deleted inodes one by one, so deleting thousands of files
    would slow down the next measurement.
    """
    return tempfile.TemporaryDirectory(prefix="imgcls-bench-")
