"""Load on an HTTP system, all by the same `imgcls loadgen`; a run with errors is a failure, not a figure."""

from __future__ import annotations

import json
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

from . import machine

# Connections of an open loop: what finds none free waits, and its wait counts.
OPEN_LOOP_CONNECTIONS = 256
MEMORY_PERIOD_SECONDS = 1.0


class FailedError(Exception):
    """A measurement that did not come about; says why in one line."""


@dataclass(frozen=True)
class Target:
    """What is loaded, with what."""

    binary: Path
    port: int
    pictures: Path


def closed_loop(target: Target, clients: int, requests: int) -> dict:
    """So many clients, each with one request in flight."""
    return _measured(target, ["--concurrency", clients, "--num-request", max(requests, clients)])


def open_loop(target: Target, rate: float, seconds: float, seed: int) -> dict:
    """Poisson arrivals; latency counts from the intended start."""
    flags = ["--rate", f"{rate:.3f}", "--arrivals", "poisson", "--duration", f"{seconds:.0f}s", "--seed", seed]
    return _measured(target, ["--concurrency", OPEN_LOOP_CONNECTIONS, *flags])


def _measured(target: Target, flags: list) -> dict:
    """The figures of one run of the load generator, and what it cost the system meanwhile."""
    clock, cpu_before = machine.Clock(), machine.cpu_seconds(machine.family())
    command = [target.binary, "loadgen", "--json", "--url", f"http://127.0.0.1:{target.port}/"]
    command += ["--image-folder", target.pictures, *flags]
    generator = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with PeakMemory(but=generator.pid) as memory:
        output, complaints = generator.communicate()
    cpu = machine.cpu_seconds(machine.family()) - cpu_before
    others = clock.share()
    report = _report(generator.returncode, output, complaints)
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


def _report(code: int, output: str, complaints: str) -> dict:
    try:
        report = json.loads(output)
    except ValueError:
        said = (complaints.strip() or "no report").splitlines()[-1]
        raise FailedError(f"the load generator failed: {said}") from None
    failures = "; ".join(
        f"{it['count']} × {it['reason']}" + (f" ({it['example']})" if it.get("example") else "")
        for it in report["failures"]
    )
    if failures or code:
        raise FailedError(failures or f"the load generator ended with {code}")
    return report


class PeakMemory:
    """The most memory that the family but the load generator had, looked at now and then while the block runs."""

    def __init__(self, but: int | None = None) -> None:
        self.but = but
        self.peak_mb = 0.0
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch)

    def __enter__(self) -> PeakMemory:
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._watcher.join()
        self._look()

    def _watch(self) -> None:
        while not self._stop.wait(MEMORY_PERIOD_SECONDS):
            self._look()

    def _look(self) -> None:
        processes = [process for process in machine.family() if process.pid != self.but]
        self.peak_mb = max(self.peak_mb, machine.pss_mb(processes))
