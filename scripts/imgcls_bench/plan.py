"""The order of measurements: every system once in each round, so that drift of the machine affects all alike."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from . import machine
from .common import say
from .peers import NotInstalledError
from .systems import Bench, HttpSystem, Measurement, Up, Workload

# If other processes use more of the machine before a measurement, the run is refused.
BUSY_SHARE = 0.05
WATCH_SECONDS = 2.0
QUIET_TIMEOUT_SECONDS = 60
CLIENTS = (1, 2, 8, 32)
OPEN_LOOP_SHARES = (0.3, 0.5, 0.7, 0.9)
WARM_UP_IMAGES = {"64x64": 300, "500x375": 150, "1080p": 60, "12mp": 16}
MEMORY_SET = "12mp"
MEMORY_CLIENTS = 32


class BusyError(Exception):
    """Other processes use this machine."""


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    rounds: int
    seconds: float
    clients: tuple[int, ...]
    shares: tuple[float, ...]


FULL = Extent(rounds=3, seconds=8.0, clients=CLIENTS, shares=OPEN_LOOP_SHARES)
QUICK = Extent(rounds=1, seconds=3.0, clients=(1, 8), shares=(0.5,))


def workload(extent: Extent, name: str, images: object) -> Workload:
    """The workload of one image set."""
    warm_up = WARM_UP_IMAGES.get(name, 60)
    return Workload(name, images, extent.clients, extent.shares, extent.seconds, warm_up)


def memory_workload(of: Workload) -> Workload:
    """Many clients with large images, to measure the memory of web tier and workers."""
    return replace(of, clients=(MEMORY_CLIENTS,), open_loop_shares=())


def estimate_seconds(systems: Iterable, workloads: list[Workload], rounds: int) -> float:
    """A rough estimate without installations."""
    one = 0.0
    for system in systems:
        for load in workloads:
            loops = len(load.clients) + 2 * len(load.open_loop_shares) if isinstance(system, HttpSystem) else 2
            one += WATCH_SECONDS + loops * load.seconds + 8
    return one * rounds


def prepare(systems: Iterable, bench: Bench) -> tuple[list, dict[str, str]]:
    """The systems that can be measured here, and the reasons why the others cannot."""
    ready, missing = [], {}
    for system in systems:
        try:
            system.prepare(bench)
            ready.append(system)
        except NotInstalledError as error:
            missing[system.name] = str(error)
            say(f"{system.title} is left out: {error}")
    return ready, missing


def run(
    systems: list, bench: Bench, workloads: list[Workload], large: Workload | None, *, rounds: int, busy_ok: bool
) -> Iterable[Measurement]:
    """Yields measurements with their system, set and round. `large` is run once, for the memory of `up`.

    Raises BusyError if other processes use the machine before a system is started.
    """
    for number in range(1, rounds + 1):
        for load in workloads:
            for system in systems:
                yield from _one(system, bench, load, number, busy_ok)
    if large:
        for system in systems:
            if isinstance(system, Up):
                yield from _one(system, bench, memory_workload(large), 1, busy_ok)


def _one(system: object, bench: Bench, load: Workload, number: int, busy_ok: bool) -> Iterable[Measurement]:
    quiet = wait_for_quiet(busy_ok)
    say(f"round {number}, {load.set}: {system.title}")
    try:
        for measurement in system.measure(bench, load):
            found = {"system": system.name, "set": load.set, "round": number, "others_before": quiet, **measurement}
            say(f"  {line(found)}")
            yield found
    finally:
        machine.end_family()


def wait_for_quiet(busy_ok: bool) -> float:
    """Waits until the machine is quiet; returns the share that other processes use."""
    end = time.monotonic() + QUIET_TIMEOUT_SECONDS
    reported = False
    while True:
        share = machine.others_share(WATCH_SECONDS)
        if share <= BUSY_SHARE or busy_ok:
            return share
        if time.monotonic() > end:
            raise BusyError(
                f"other processes use {share:.0%} of this machine, so results would mislead. Wait until it is idle, "
                "or give --busy-ok to measure anyway"
            )
        if not reported:
            say(f"other processes use {share:.0%} of this machine; waiting up to {QUIET_TIMEOUT_SECONDS} s")
            reported = True


def line(measurement: Measurement) -> str:
    """A measurement in one line, for progress output."""
    what = measurement["kind"]
    what += f", {measurement['clients']} clients" if "clients" in measurement else ""
    what += f", {measurement['share']:.0%} of the capacity" if "share" in measurement else ""
    if "failed" in measurement:
        return f"{what}: FAILED: {measurement['failed']}"
    shown = {
        "images_per_second": "{:.1f} images/s",
        "p50_ms": "p50 {:.1f} ms",
        "p99_ms": "p99 {:.1f} ms",
        "cpu_ms_per_image": "{:.2f} ms CPU per image",
        "memory_mb": "{:.0f} MB",
        "first_answer_seconds": "first answer after {:.2f} s",
        "exec_to_ready_ms": "ready after {:.0f} ms",
    }
    parts = [form.format(measurement[key]) for key, form in shown.items() if measurement.get(key) is not None]
    if measurement.get("others_cpu_share", 0) > BUSY_SHARE:
        parts.append(f"DISTURBED: other processes used {measurement['others_cpu_share']:.0%} of the machine")
    return f"{what}: {', '.join(parts)}"
