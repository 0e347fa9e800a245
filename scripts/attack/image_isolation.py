#!/usr/bin/env python3
"""Sends pairs of images to one worker and reports pairs in which the first changes the answer to the second.

    scripts/attack/image_isolation.py --binary target/release/imgcls

Each second image is first classified by a new process (`imgcls classify`). Then a web tier and a worker with one
session are started on a temporary directory, and each pair is sent to them, one image after the other. Every answer to
a second image must have the same scores as from the new process. The exit code is 1 if one differs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "tests" / "pictures"
START_SECONDS = 30
QUANTISATION_TABLES, HUFFMAN_TABLES, START_OF_SCAN = 0xDB, 0xC4, 0xDA


def main() -> int:
    """Sends the pairs and prints a line for each; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=ROOT / "target/release/imgcls", help="the imgcls to attack")
    binary = parser.parse_args().binary.resolve()
    leaders, followers = images()
    with tempfile.TemporaryDirectory() as folder:
        fresh = {
            name: classify_in_new_process(binary, Path(folder), name, content) for name, content in followers.items()
        }
        service = Service(binary, Path(folder))
        try:
            differing = 0
            for leader, first in leaders.items():
                for follower, second in followers.items():
                    service.classify(first)
                    answer = service.classify(second)
                    differs = answer != fresh[follower]
                    differing += differs
                    verdict = f"DIFFERS: fresh {short(fresh[follower])}, now {short(answer)}" if differs else "same"
                    print(f"{follower:28} after {leader:20} {verdict}", flush=True)
        finally:
            service.stop()
    print(f"{differing} of {len(leaders) * len(followers)} answers differ from those of a fresh process")
    return 1 if differing else 0


def images() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Images that may leave state in a decoder, and images that reveal such state."""
    cup = (IMAGES / "cup.jpg").read_bytes()
    progressive = (IMAGES / "progressive.jpg").read_bytes()
    bogus_table = segment(HUFFMAN_TABLES, b"\x00" + b"\xff" * 16 + bytes(40))
    coarse = segment(QUANTISATION_TABLES, b"".join(bytes([table]) + b"\xc8" * 64 for table in range(4)))
    leaders = {
        "cup.jpg": cup,
        "coarse-tables.jpg": cup[:2] + coarse + without(cup, QUANTISATION_TABLES)[2:],
        "progressive.jpg": progressive,
        # After the next images, a decoder that is reused may be left in the middle of a header.
        "bad-header.jpg": cup[:2] + bogus_table + cup[2:],
        "two-starts.jpg": cup[:2] + cup,
    }
    followers = {
        "cup.jpg": cup,
        "no-huffman-tables.jpg": without(cup, HUFFMAN_TABLES),
        "no-quantisation-tables.jpg": without(cup, QUANTISATION_TABLES),
        "no-tables.jpg": without(without(cup, HUFFMAN_TABLES), QUANTISATION_TABLES),
    }
    return leaders, followers


def segment(marker: int, content: bytes) -> bytes:
    """A segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def without(jpeg: bytes, marker: int) -> bytes:
    """The JPEG without its segments of one kind before the first scan."""
    kept, position = jpeg[:2], 2
    while jpeg[position + 1] != START_OF_SCAN:
        end = position + 2 + struct.unpack_from(">H", jpeg, position + 2)[0]
        if jpeg[position + 1] != marker:
            kept += jpeg[position:end]
        position = end
    return kept + jpeg[position:]


def classify_in_new_process(binary: Path, folder: Path, name: str, content: bytes) -> object:
    """The answer of a process that has processed no other image."""
    path = folder / name
    path.write_bytes(content)
    command = [binary, "classify", "--json", "--top-k", "1000", path]
    report = json.loads(subprocess.run(command, capture_output=True, check=False).stdout)
    return answer_of(report)


def answer_of(report: dict) -> object:
    """The part of an answer that must not differ: the scores of all classes, or the error code."""
    predictions = report.get("predictions")
    return predictions or report["error"]["code"]


def short(answer: object) -> str:
    """An answer in a few words."""
    return answer if isinstance(answer, str) else f"{answer[0]['label']} {answer[0]['score']:.4f}"


class Service:
    """A web tier and a worker with one session, on a temporary data directory."""

    def __init__(self, binary: Path, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        data = ["--backend", "local", "--data-dir", folder / "data"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        with (folder / "log").open("wb") as log:
            commands = [["serve-web", "--listen", f"127.0.0.1:{port}", *data], ["worker", "--sessions", "1", *data]]
            self.processes = [
                subprocess.Popen([binary, *command], stdout=log, stderr=log, env=environment) for command in commands
            ]
        end = time.monotonic() + START_SECONDS
        while self.status("/readyz") != 200:
            if time.monotonic() > end:
                self.stop()
                sys.exit(f"the service is not ready after {START_SECONDS} s: {(folder / 'log').read_text()}")
            time.sleep(0.1)

    def status(self, path: str) -> int:
        """The status of a GET; 0 if the service does not listen yet."""
        try:
            return urllib.request.urlopen(self.address + path, timeout=5).status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def classify(self, image: bytes) -> object:
        """The answer to one image."""
        request = urllib.request.Request(f"{self.address}/v1/jobs?top_k=1000", data=image, method="POST")
        job = json.load(urllib.request.urlopen(request, timeout=30))
        while job["status"] == "queued":
            job = json.load(urllib.request.urlopen(f"{self.address}/v1/jobs/{job['id']}?wait=10", timeout=30))
        return answer_of(job)

    def stop(self) -> None:
        """Terminates both processes."""
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()


if __name__ == "__main__":
    sys.exit(main())
