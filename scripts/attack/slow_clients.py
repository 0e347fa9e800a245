#!/usr/bin/env python3
"""Attacks a service with slow, silent and greedy clients; measures their cost and whether other clients are served.

Run it with an old and a new binary (--binary) to compare them. Each attack lasts at most about a minute, sends traffic
only to 127.0.0.1, and ends by itself. Only the standard library is used.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import pathlib
import socket
import subprocess
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
IMAGE = (ROOT / "tests/pictures/cat.jpg").read_bytes()


class Service:
    """A web tier without workers, killed at the end of the `with` block."""

    def __init__(self, binary: str, *flags: str, files: int | None = None) -> None:
        self.scratch = tempfile.TemporaryDirectory(prefix="imgcls-attack-")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [binary, "serve-web", "--backend", "local", "--listen", f"127.0.0.1:{self.port}", *flags]
        if files:
            command = ["sh", "-c", f'ulimit -Sn {files} && exec "$0" "$@"', *command]
        command += ["--data-dir", f"{self.scratch.name}/data"]
        with (pathlib.Path(self.scratch.name) / "log").open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def __enter__(self) -> Service:
        deadline = time.monotonic() + 30
        while self.request("GET", "/healthz")[0] != 200:
            if time.monotonic() > deadline:
                raise SystemExit("the service does not start")
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.scratch.cleanup()

    def memory_mib(self) -> int:
        """Resident memory of the service."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) // 1024

    def cpu_seconds(self) -> float:
        """CPU time of the service."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def connect(self, data: bytes = b"", timeout: float = 5) -> socket.socket:
        """A connection on which `data` was sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=timeout)
        with contextlib.suppress(OSError):
            connection.sendall(data)
        return connection

    def request(self, method: str, path: str, body: bytes | None = None, timeout: float = 5) -> tuple[int, bytes]:
        """Sends a request; returns status (0 without an answer) and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def statuses(self, seconds: float, *request: object) -> str:
        """Repeats a request; returns the count of each status as text."""
        counts, until = {}, time.monotonic() + seconds
        while time.monotonic() < until:
            status = self.request(*request)[0]
            counts[status] = counts.get(status, 0) + 1
            time.sleep(0.02)
        return " ".join(f"{count} x {status or 'no answer'}" for status, count in sorted(counts.items()))


def upload_head(announced: int, content_type: str = "image/jpeg") -> bytes:
    """The head of an upload."""
    return (
        f"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {announced}\r\n\r\n"
    ).encode()


def readers(binary: str) -> None:
    """120 connections request an image of 19 MiB and read nothing."""
    with Service(binary) as service:
        image = b"\xff\xd8\xff" + bytes(19 << 20)
        answer = service.request("POST", "/v1/jobs", image, 30)[1].decode()
        job = answer.split('"id":"')[1].split('"')[0]
        before = service.memory_mib()
        ask = f"GET /v1/jobs/{job}/image HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        held, most = [], 0
        for _ in range(120):
            held.append(service.connect(ask))
            most = max(most, service.memory_mib())
        until = time.monotonic() + 30
        while time.monotonic() < until:
            most = max(most, service.memory_mib())
            time.sleep(0.1)
        status, body = service.request("GET", f"/v1/jobs/{job}/image", timeout=30)
        print(f"readers: memory {before} MiB before, {most} MiB at most, {service.memory_mib()} MiB after 30 s")
        print(f"readers: read of another client: {status}, {'complete' if body == image else 'incomplete'}")


def uploads(binary: str) -> None:
    """Sixteen bodies of 16 MiB are sent at one byte per second for 30 s."""
    with Service(binary) as service:
        held = [service.connect(upload_head(16 << 20) + b"\xff\xd8\xff") for _ in range(16)]
        stopped = threading.Event()

        def drip() -> None:
            while not stopped.wait(1):
                for connection in held:
                    with contextlib.suppress(OSError):
                        connection.sendall(b"x")

        thread = threading.Thread(target=drip)
        thread.start()
        print(f"uploads: other clients in 30 s: {service.statuses(30, 'POST', '/v1/jobs', IMAGE)}")
        stopped.set()
        thread.join()


def silent(binary: str) -> None:
    """1,100 connections send nothing."""
    with Service(binary) as service:
        held = [service.connect() for _ in range(1_100)]
        health = service.statuses(10, "GET", "/healthz")
        uploads = service.statuses(10, "POST", "/v1/jobs", IMAGE)
        print(f"silent: {len(held)} connections; /healthz in 10 s: {health}; then uploads in 10 s: {uploads}")


def files(binary: str) -> None:
    """1,100 connections idle after a request, under a soft limit of 1,024 files."""
    with Service(binary, files=1_024) as service:
        held = []
        for _ in range(1_100):
            with contextlib.suppress(OSError):
                held.append(service.connect(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 0.2))
        health = service.statuses(10, "GET", "/healthz")
        print(f"files: {len(held)} idle connections under a soft limit of 1,024 files; /healthz in 10 s: {health}")


def headers(binary: str) -> None:
    """The head of a form part that never ends, a few bytes at a time; measures the CPU time of the service."""
    with Service(binary) as service:
        head = upload_head(2 << 20, "multipart/form-data; boundary=b") + b"--b\r\nX: "
        connection = service.connect(head)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        before, sent, until = service.cpu_seconds(), 0, time.monotonic() + 30
        try:
            while sent < 1_900_000 and time.monotonic() < until:
                connection.sendall(b"x" * 64)
                sent += 64
                # A pause, so that the service reads each piece separately.
                time.sleep(0.0002)
        except OSError:
            pass
        time.sleep(0.5)
        connection.settimeout(1)
        with contextlib.suppress(OSError):
            answer = connection.recv(64)
            print(f"headers: answered {answer[9:12].decode() or 'nothing'}; ", end="")
        print(f"headers: {sent} bytes sent in pieces of 64; {service.cpu_seconds() - before:.2f} s of CPU time")


ATTACKS = {attack.__name__: attack for attack in (readers, uploads, silent, files, headers)}


def main() -> None:
    """Runs the attacks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", default=str(ROOT / "target/release/imgcls"), help="the imgcls to attack")
    parser.add_argument(
        "attack", nargs="*", choices=[*ATTACKS, []], help="some of (default: all): " + ", ".join(ATTACKS)
    )
    arguments = parser.parse_args()
    for name in arguments.attack or ATTACKS:
        ATTACKS[name](arguments.binary)


if __name__ == "__main__":
    main()
