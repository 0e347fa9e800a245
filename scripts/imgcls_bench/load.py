"""Load on HTTP systems, always sent by the same `imgcls loadgen`. A run with errors is a failure, not a result."""

from __future__ import annotations

import json
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

from . import machine

# Connections of an open loop. A request that finds none idle waits, and the wait counts as latency.
OPEN_LOOP_CONNECTIONS = 256
MEMORY_PERIOD_SECONDS = 1.0


class FailedError(Exception):
    """A measurement failed; the message is the reason in one line."""


@dataclass(frozen=True)
class Target:
    """The server under load and the images to send."""

    binary: Path
    port: int
    images: Path


def closed_loop(target: Target, clients: int, requests: int) -> dict:
    """A fixed number of clients, each with one request in flight."""
    return _measured(target, ["--concurrency", clients, "--num-request", max(requests, clients)])


def open_loop(target: Target, rate: float, seconds: float, seed: int) -> dict:
    """Poisson arrivals; latency counts from the intended start."""
    flags = ["--rate", f"{rate:.3f}", "--arrivals", "poisson", "--duration", f"{seconds:.0f}s", "--seed", seed]
    return _measured(target, ["--concurrency", OPEN_LOOP_CONNECTIONS, *flags])


def _measured(target: Target, flags: list) -> dict:
    """The figures of one run of the load generator, and the CPU time and memory of the system during it."""
    clock, cpu_before = machine.Clock(), machine.cpu_seconds(machine.family())
    command = [target.binary, "loadgen", "--json", "--url", f"http://127.0.0.1:{target.port}/"]
    command += ["--image-folder", target.images, *flags]
    generator = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with PeakMemory(exclude=generator.pid) as memory:
        output, errors = generator.communicate()
    cpu = machine.cpu_seconds(machine.family()) - cpu_before
    others = clock.share()
    report = _report(generator.returncode, output, errors)
    latency = report["latency_ms"]
    return {
        "images": report["requests"]["ok"],
        "images_per_second": report["images_per_second"],
        "p50_ms": latency["p50"],
        "p99_ms": latency["p99"],
        "p99_9_ms": latency["p99_9"],
        "cpu_ms_per_image": cpu * 1e3 / report["requests"]["ok"],
        "memory_mb": memory.peak_mb,
        "others_cpu_share": others,
    }


def _report(code: int, output: str, errors: str) -> dict:
    try:
        report = json.loads(output)
    except ValueError:
        last = (errors.strip() or "no report").splitlines()[-1]
        raise FailedError(f"the load generator failed: {last}") from None
    failures = "; ".join(
        f"{it['count']} × {it['reason']}" + (f" ({it['example']})" if it.get("example") else "")
        for it in report["failures"]
    )
    if failures or code:
        raise FailedError(failures or f"the load generator exited with {code}")
    return report


class PeakMemory:
    """Samples the memory of all descendants except the load generator during the block and keeps the maximum."""

    def __init__(self, exclude: int | None = None) -> None:
        self.exclude = exclude
        self.peak_mb = 0.0
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch)

    def __enter__(self) -> PeakMemory:
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._watcher.join()
        self._sample()

    def _watch(self) -> None:
        while not self._stop.wait(MEMORY_PERIOD_SECONDS):
            self._sample()

    def _sample(self) -> None:
        processes = [process for process in machine.family() if process.pid != self.exclude]
        self.peak_mb = max(self.peak_mb, machine.pss_mb(processes))
