"""Helpers of the attack scripts: a service in a temporary directory, and requests to it."""

from __future__ import annotations

import argparse
import http.client
import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
IMAGE = ROOT / "tests/pictures/cat.jpg"


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the flags that all scripts have."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--binary", default=str(ROOT / "target/release/imgcls"), help="the imgcls to attack")
    return made


def free_port() -> int:
    """A free port of the loopback address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def build_shim(directory: str) -> dict:
    """Builds tests/shim.c and returns the environment that loads it."""
    library = f"{directory}/shim.so"
    subprocess.run([os.environ.get("CC", "cc"), "-shared", "-fPIC", "-o", library, ROOT / "tests/shim.c"], check=True)
    return {"LD_PRELOAD": library, "SHIM_DIRECTORY": directory}


class Service:
    """A web tier without workers, killed at the end of the `with` block. `start` adds more processes."""

    def __init__(self, binary: str, environment: bool = False) -> None:
        """With `environment`, the processes have a wall clock that `step` sets."""
        self.binary = binary
        self.scratch = tempfile.TemporaryDirectory(prefix="imgcls-attack-")
        self.environment = build_shim(self.scratch.name) if environment else {}
        self.data = pathlib.Path(self.scratch.name) / "data"
        self.log = pathlib.Path(self.scratch.name) / "log"
        self.port = free_port()
        self.processes = []

    def __enter__(self) -> Service:
        self.web = self.start("serve-web", "--listen", f"127.0.0.1:{self.port}")
        deadline = time.monotonic() + 30
        while True:
            try:
                if self.request("GET", "/healthz")[0] == 200:
                    return self
            except OSError:
                pass
            if time.monotonic() > deadline:
                raise SystemExit(f"the service does not start; its log is\n{self.log.read_text()}")
            time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
        self.scratch.cleanup()

    def step(self, seconds: float) -> None:
        """Sets the wall clock of all processes to this offset from the true time."""
        new = pathlib.Path(self.scratch.name) / "step.new"
        new.write_text(str(seconds))
        new.rename(new.with_name("step"))

    def start(self, command: str, *flags: str) -> subprocess.Popen:
        """Starts another process on the data directory of the service."""
        arguments = [self.binary, command, "--backend", "local", "--data-dir", str(self.data), *flags]
        environment = {**os.environ, **self.environment}
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, env=environment
            )
        self.processes.append(process)
        return process

    def request(
        self, method: str, path: str, body: bytes | None = None, timeout: float = 120
    ) -> tuple[int, bytes, float]:
        """Sends a request; returns status, body and the seconds it took."""
        started = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read(), time.monotonic() - started
        finally:
            connection.close()

    def database(self) -> str:
        """The path of the SQLite file."""
        return str(self.data / "imgcls.sqlite3")
