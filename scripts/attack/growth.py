#!/usr/bin/env python3
"""Measures how much disk space each image leaves behind.

Sends rounds of images to `imgcls up` on a temporary directory and prints the disk usage of the data directory after
each round. To compare two builds, run it once with each --binary; give flags that only one of them has in --flags.

    growth.py --binary OLD
    growth.py --binary NEW --flags '--keep-images 5s --keep-results 10s'
    growth.py --binary NEW --flags '--max-data-bytes 16MiB'

With --due N it also writes N small old results to the database before it starts, so that all of them are due for
deletion at once. The latencies of the first rounds then show what their deletion costs other requests.
"""

import argparse
import http.client
import json
import os
import random
import shlex
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from pathlib import Path


def noise_png(side: int, seed: int) -> bytes:
    """A PNG of incompressible noise, about 3 * side * side bytes."""
    source = random.Random(seed)
    rows = b"".join(b"\0" + source.randbytes(3 * side) for _ in range(side))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


def disk_bytes(directory: Path) -> int:
    """Disk usage of a directory."""
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.lstat().st_blocks * 512
        except FileNotFoundError:
            continue  # The segment was removed meanwhile.
    return total


def add_old_results(data_dir: Path, count: int) -> None:
    """Adds results that are due for deletion."""
    with sqlite3.connect(data_dir / "imgcls.sqlite3", timeout=30) as database:
        database.execute(
            "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?) "
            "INSERT INTO objects (bucket, key, modified_ms, size_bytes, body) "
            "SELECT 'output', 'old-' || n, n, 700, zeroblob(700) FROM n",
            (count,),
        )


def send_round(address: tuple[str, int], images: list[bytes], clients: int) -> tuple[list[float], dict[int, int]]:
    """Sends the images; returns the latencies in seconds and the count of each status."""
    latencies: list[float] = []
    statuses: dict[int, int] = {}
    left = iter(images)
    lock = threading.Lock()

    def client() -> None:
        connection = http.client.HTTPConnection(*address, timeout=60)
        while True:
            with lock:
                image = next(left, None)
            if image is None:
                return
            began = time.monotonic()
            connection.request("POST", "/v1/classify", image, {"Content-Type": "image/png"})
            answer = connection.getresponse()
            answer.read()
            with lock:
                latencies.append(time.monotonic() - began)
                statuses[answer.status] = statuses.get(answer.status, 0) + 1

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return latencies, statuses


def start(binary: str, data_dir: Path, flags: list[str], log: Path) -> tuple[subprocess.Popen, tuple[str, int]]:
    """Starts the service; returns its process and address."""
    command = [binary, "up", "--listen", "127.0.0.1:0", "--data-dir", str(data_dir), *flags]
    with log.open("ab") as sink:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sink, text=True)
    line = process.stdout.readline()
    if not line.startswith("open http://"):
        process.kill()
        sys.exit(f"{binary} did not start:\n{log.read_text()}")
    host, port = line.removeprefix("open http://").rstrip("/\n").rsplit(":", 1)
    return process, (host, int(port))


def stop(process: subprocess.Popen) -> None:
    """Terminates the service."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main() -> None:
    """Runs the rounds and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True, help="the imgcls to run")
    parser.add_argument("--flags", default="", help="more flags for `up`, as one argument")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--images", type=int, default=150, help="images per round")
    parser.add_argument("--side", type=int, default=165, help="side of an image in pixels; 165 makes 80 KB")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--pause", type=float, default=3.0, help="seconds between rounds")
    parser.add_argument("--due", type=int, default=0, help="old results that are due at the start")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each round")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="imgcls-growth-") as folder:
        data_dir, log = Path(folder) / "data", Path(folder) / "log"
        flags = shlex.split(arguments.flags)
        if arguments.due:
            stop(start(arguments.binary, data_dir, flags, log)[0])
            add_old_results(data_dir, arguments.due)
        process, address = start(arguments.binary, data_dir, flags, log)
        began, sent, base = time.monotonic(), 0, disk_bytes(data_dir)
        if not arguments.json:
            print("seconds  images  disk KiB  KiB/image   p50 ms   p99 ms  answers")
        try:
            for number in range(arguments.rounds):
                images = [noise_png(arguments.side, number * arguments.images + at) for at in range(arguments.images)]
                latencies, statuses = send_round(address, images, arguments.clients)
                sent += len(images)
                time.sleep(arguments.pause)
                latencies.sort()
                kib = disk_bytes(data_dir) / 1024
                row = {
                    "seconds": round(time.monotonic() - began, 1),
                    "images": sent,
                    "disk_kib": round(kib),
                    "kib_per_image": round((kib - base / 1024) / sent, 2),
                    "p50_ms": round(latencies[len(latencies) // 2] * 1e3, 1),
                    "p99_ms": round(latencies[int(len(latencies) * 0.99)] * 1e3, 1),
                    "answers": statuses,
                }
                if arguments.json:
                    print(json.dumps(row), flush=True)
                else:
                    values = list(row.values())
                    print("{:>7}  {:>6}  {:>8}  {:>9}  {:>7}  {:>7}  {}".format(*values), flush=True)
        finally:
            stop(process)


if __name__ == "__main__":
    os.environ.setdefault("IMGCLS_LOG", "warn")
    main()
