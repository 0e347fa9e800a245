#!/usr/bin/env python3
"""Slow, silent and greedy clients against a service of its own on a loopback port: what they take, and who is served.

Run it with an old and a new binary (--binary) to compare. Each attack lasts at most about a minute, sends traffic only to
127.0.0.1, and stops by itself. Only the standard library is used.
"""

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
    """A web tier without workers, with flags of its own; killed at the end of a `with`."""

    def __init__(self, binary, *flags, files=None):
        self.scratch = tempfile.TemporaryDirectory(prefix="imgcls-attack-")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [binary, "serve-web", "--backend", "local", "--listen", f"127.0.0.1:{self.port}", *flags]
        if files:
            command = ["sh", "-c", f'ulimit -Sn {files} && exec "$0" "$@"', *command]
        log = open(pathlib.Path(self.scratch.name) / "log", "wb")
        self.process = subprocess.Popen(
            [*command, "--data-dir", f"{self.scratch.name}/data"], stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )

    def __enter__(self):
        deadline = time.monotonic() + 30
        while self.request("GET", "/healthz")[0] != 200:
            if time.monotonic() > deadline:
                raise SystemExit("the service does not start")
            time.sleep(0.05)
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.scratch.cleanup()

    def memory_mib(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) // 1024

    def cpu_seconds(self):
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def connect(self, data=b"", timeout=5):
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=timeout)
        with contextlib.suppress(OSError):
            connection.sendall(data)
        return connection

    def request(self, method, path, body=None, timeout=5):
        """Status (0 where none came) and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def statuses(self, seconds, *request):
        """How often each status came to one request after the other."""
        counts, until = {}, time.monotonic() + seconds
        while time.monotonic() < until:
            status = self.request(*request)[0]
            counts[status] = counts.get(status, 0) + 1
            time.sleep(0.02)
        return " ".join(f"{count} x {status or 'no answer'}" for status, count in sorted(counts.items()))


def upload_head(announced, content_type="image/jpeg"):
    return (
        f"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {announced}\r\n\r\n"
    ).encode()


def readers(binary):
    """120 connections ask for an image of 19 MiB and read nothing."""
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
        print(f"readers: memory {before} MiB before, {most} MiB at most, {service.memory_mib()} MiB after 30 s; ", end="")
        print(f"somebody else's read: {status}, {'whole' if body == image else 'not whole'}")


def uploads(binary):
    """Sixteen bodies of 16 MiB at one byte a second, for 30 s."""
    with Service(binary) as service:
        held = [service.connect(upload_head(16 << 20) + b"\xff\xd8\xff") for _ in range(16)]
        stopped = threading.Event()

        def drip():
            while not stopped.wait(1):
                for connection in held:
                    with contextlib.suppress(OSError):
                        connection.sendall(b"x")

        thread = threading.Thread(target=drip)
        thread.start()
        print(f"uploads: others in 30 s: {service.statuses(30, 'POST', '/v1/jobs', IMAGE)}")
        stopped.set()
        thread.join()


def silent(binary):
    """1,100 connections that say nothing."""
    with Service(binary) as service:
        held = [service.connect() for _ in range(1_100)]
        health = service.statuses(10, "GET", "/healthz")
        uploads = service.statuses(10, "POST", "/v1/jobs", IMAGE)
        print(f"silent: {len(held)} connections; /healthz in 10 s: {health}; then uploads in 10 s: {uploads}")


def files(binary):
    """1,100 connections that idle after a request, under a soft limit of 1,024 files."""
    with Service(binary, files=1_024) as service:
        held = []
        for _ in range(1_100):
            with contextlib.suppress(OSError):
                held.append(service.connect(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 0.2))
        health = service.statuses(10, "GET", "/healthz")
        print(f"files: {len(held)} idle connections under a soft limit of 1,024 files; /healthz in 10 s: {health}")


def headers(binary):
    """Heads of form parts that never end, a few bytes at a time: processor time of the service."""
    with Service(binary) as service:
        head = upload_head(2 << 20, "multipart/form-data; boundary=b") + b"--b\r\nX: "
        connection = service.connect(head)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        before, sent, until = service.cpu_seconds(), 0, time.monotonic() + 30
        try:
            while sent < 1_900_000 and time.monotonic() < until:
                connection.sendall(b"x" * 64)
                sent += 64
                # So that the service reads each piece by itself.
                time.sleep(0.0002)
        except OSError:
            pass
        time.sleep(0.5)
        connection.settimeout(1)
        with contextlib.suppress(OSError):
            answer = connection.recv(64)
            print(f"headers: answered {answer[9:12].decode() or 'nothing'}; ", end="")
        print(f"headers: {sent} bytes sent in pieces of 64; {service.cpu_seconds() - before:.2f} s of processor time")


ATTACKS = {attack.__name__: attack for attack in (readers, uploads, silent, files, headers)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", default=str(ROOT / "target/release/imgcls"), help="the imgcls to attack")
    parser.add_argument("attack", nargs="*", choices=[*ATTACKS, []], help="which (all): " + ", ".join(ATTACKS))
    arguments = parser.parse_args()
    for name in arguments.attack or ATTACKS:
        ATTACKS[name](arguments.binary)


if __name__ == "__main__":
    main()
