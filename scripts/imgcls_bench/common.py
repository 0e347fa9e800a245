"""What the benchmarks share: processes on chosen cores, their metrics, the emulator."""

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

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "imgcls"
PATIENCE_SECONDS = 60
BUSY_LOAD = 0.7


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def warn_when_busy() -> None:
    load = os.getloadavg()[0]
    if load > BUSY_LOAD:
        say(f"this machine is not idle (load {load:.2f}); ratios may mislead")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def process(command, cores, environment=None, log=subprocess.DEVNULL):
    """A process on these cores until the block ends; then it is asked to end, and waited for."""
    command = ["taskset", "--cpu-list", ",".join(map(str, cores)), *map(str, command)]
    child = subprocess.Popen(command, env=os.environ | (environment or {}), stdout=subprocess.DEVNULL, stderr=log)
    try:
        yield child
    finally:
        child.terminate()
        child.wait()


def wait_until(what: str, condition):
    """The first true value of the condition."""
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if value := condition():
                return value
        time.sleep(0.01)
    sys.exit(f"bench: waited {PATIENCE_SECONDS} s for {what}")


def is_ready(port: int) -> bool:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
        return answer.status == 200


def metric_sum(port: int, name: str, labels: str = "") -> float:
    """Of all lines of that name whose labels match the expression."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    found = re.compile(rf"{name}(\{{.*\}})? (?P<value>\S+)$")
    matches = (found.match(line) for line in lines if re.search(labels, line))
    return sum(float(match["value"]) for match in matches if match)


def read_pictures(folder: pathlib.Path) -> list[bytes]:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in (".jpg", ".jpeg"))
    if not files:
        sys.exit(f"bench: no .jpg in {folder}")
    return [file.read_bytes() for file in files]


def submit(port: int, pictures: list[bytes], count: int) -> None:
    """Jobs that wait in the queue."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for index in range(count):
        connection.request("POST", "/v1/jobs", body=pictures[index % len(pictures)])
        answer = connection.getresponse()
        answer.read()
        if answer.status != 202:
            sys.exit(f"bench: a job was answered {answer.status}")
    connection.close()


def loadgen(port: int, pictures: pathlib.Path, clients: int, requests: int, cores) -> dict:
    """The report of a closed loop; a run with errors is none."""
    command = [BINARY, "loadgen", "--json", "--url", f"http://127.0.0.1:{port}", "-c", clients]
    command += ["--image-folder", pictures, "--num-request", requests]
    command = ["taskset", "--cpu-list", ",".join(map(str, cores)), *map(str, command)]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if run.returncode:
        sys.exit(f"bench: the load failed: {run.stderr.strip().splitlines()[-1:]}")
    return json.loads(run.stdout)


@contextlib.contextmanager
def fauxqs(cores):
    """The emulator that carries load, pinned by scripts/emulators/fauxqs; the environment of whoever uses it."""
    place = ROOT / ".cache" / "fauxqs"
    pins = ROOT / "scripts" / "emulators" / "fauxqs"
    if not shutil.which("npm"):
        sys.exit("bench: npm is missing (Debian, Ubuntu: apt-get install npm)")
    lock = (pins / "package-lock.json").read_bytes()
    stamp = place / "installed"
    if not stamp.exists() or stamp.read_bytes() != lock:
        say("installing fauxqs into .cache/fauxqs (once)")
        place.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(pins / name, place / name)
        install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        subprocess.run(install, cwd=place, check=True, stdout=subprocess.DEVNULL)
        stamp.write_bytes(lock)
    port = free_port()
    settings = {"FAUXQS_PORT": str(port), "FAUXQS_HOST": "127.0.0.1", "FAUXQS_LOGGER": "false"}
    with process(["node", place / "node_modules" / "fauxqs" / "dist" / "cli.js"], cores, settings):
        wait_until("fauxqs", lambda: socket.create_connection(("127.0.0.1", port)).close() is None)
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench",
        }


def scratch():
    """Kept until the end: ext4 passes over just deleted inodes one by one, so that a run after a clean-up of thousands
    of files would measure that."""
    return tempfile.TemporaryDirectory(prefix="imgcls-bench-")
