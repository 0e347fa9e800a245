#!/usr/bin/env python3
"""Runs `imgcls up` with a log that cannot be written and reports whether the service survives.

For each kind of broken log it prints whether an image is answered, the exit code after SIGTERM, how long the exit took
(40 s at most), and how many workers were orphaned. It ends by itself and kills what it started.
"""

import argparse
import fcntl
import http.client
import os
import selectors
import signal
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
START_LIMIT = 40
DRAIN_LIMIT = 40


def main() -> None:
    """Prints a line for each kind of broken log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=ROOT / "target/release/imgcls", help="the program to run")
    arguments = parser.parse_args()
    print(f"{'standard error':<24}{'image':<12}{'exit code':<12}{'seconds':<10}workers left")
    for name, attempt in [
        ("a file", lambda: attempt_with(arguments.binary, "file")),
        ("closed", lambda: attempt_with(arguments.binary, "closed")),
        ("/dev/full", lambda: attempt_with(arguments.binary, "full disk")),
        ("| head -1", lambda: attempt_with(arguments.binary, "head")),
        ("a pipe without a reader", lambda: attempt_with(arguments.binary, "unread")),
    ]:
        image, code, seconds, left = attempt()
        print(f"{name:<24}{image:<12}{code:<12}{seconds:<10}{left}", flush=True)


def attempt_with(binary: Path, kind: str) -> tuple[str, str, str, int]:
    """Runs the service in a temporary directory."""
    with tempfile.TemporaryDirectory(prefix="imgcls-log-") as directory:
        return in_directory(binary, kind, Path(directory))


def in_directory(binary: Path, kind: str, directory: Path) -> tuple[str, str, str, int]:
    """The answer to an image, the exit code, the seconds until the exit, and the number of orphaned workers."""
    reader, stderr = standard_error(kind, directory)
    command = [binary, "up", "--backend", "local", "--listen", "127.0.0.1:0", "--data-dir", directory / "data"]
    if kind == "closed":
        command = ["sh", "-c", 'exec "$0" "$@" 2>&-', *command]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment["IMGCLS_LOG"] = "info"
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, env=environment
    )
    os.close(stderr)
    if kind == "head":
        os.read(reader, 1)
        os.close(reader)
    workers: set[int] = set()
    try:
        image = classify(process, workers)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        try:
            code = str(process.wait(timeout=DRAIN_LIMIT))
        except subprocess.TimeoutExpired:
            code = "none"
        seconds = f"{time.monotonic() - began:.1f}"
        time.sleep(0.5)
        left = sum(1 for pid in workers if is_worker(pid))
    finally:
        for pid in [process.pid, *workers]:
            if pid == process.pid or is_worker(pid):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        process.wait()
        if kind == "unread":
            os.close(reader)
    return image, code, seconds, left


def standard_error(kind: str, directory: Path) -> tuple[int, int]:
    """The read end (-1 if there is none) and the write end of standard error."""
    if kind == "full disk":
        return -1, os.open("/dev/full", os.O_WRONLY)
    if kind in ("file", "closed"):
        return -1, os.open(directory / "log", os.O_WRONLY | os.O_CREAT)
    reader, writer = os.pipe()
    if kind == "unread":
        flags = fcntl.fcntl(writer, fcntl.F_GETFL)
        fcntl.fcntl(writer, fcntl.F_SETFL, flags | os.O_NONBLOCK)
        for size in (4096, 1):
            try:
                while True:
                    os.write(writer, b"." * size)
            except BlockingIOError:
                continue
        fcntl.fcntl(writer, fcntl.F_SETFL, flags)
    return reader, writer


def classify(process: subprocess.Popen, workers: set[int]) -> str:
    """The answer to one image; adds the worker processes to `workers`."""
    selector = selectors.DefaultSelector()
    selector.register(process.stdout, selectors.EVENT_READ)
    if not selector.select(START_LIMIT):
        workers |= children(process.pid)
        return "no service"
    line = process.stdout.readline().decode()
    if not line.startswith("open http://"):
        return "no service"
    address = line.removeprefix("open http://").rstrip("/\n")
    workers |= children(process.pid)
    connection = http.client.HTTPConnection(address, timeout=40)
    try:
        connection.request("POST", "/v1/classify?wait=30", (ROOT / "tests/pictures/rocket.jpg").read_bytes())
        return str(connection.getresponse().status)
    except OSError as error:
        return type(error).__name__
    finally:
        connection.close()


def children(parent: int) -> set[int]:
    """The child processes of all threads of a process."""
    found: set[int] = set()
    for task in Path(f"/proc/{parent}/task").glob("*/children"):
        try:
            found |= {int(word) for word in task.read_text().split()}
        except OSError:
            continue
    return found


def is_worker(pid: int) -> bool:
    """Returns true if the process is a worker of imgcls."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"worker" in arguments


if __name__ == "__main__":
    main()
